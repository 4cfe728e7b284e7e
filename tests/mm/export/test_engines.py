"""AOTInductor, ExecuTorch and ONNX Runtime execute whole graphs; it takes minutes: `make export-check`."""

import os
from pathlib import Path

import pytest
import torch

from mm.artifacts.run import Run
from mm.export.aot_inductor import open_aoti, write_aoti
from mm.export.command import ENGINES, model_for
from mm.export.graph import Graph, graphs_of
from mm.export.onnx_runtime import open_onnx
from mm.export.tensorrt import write_tensorrt
from mm.model.inference import DenseExperts, prepare

pytestmark = pytest.mark.skipif(not os.environ.get("MM_EXPORT_CHECK"), reason="compiles for minutes: make export-check")


@pytest.fixture
def text_graph(writing_run: Run) -> Graph:
    graphs = graphs_of(writing_run.config, prepare(writing_run.model, DenseExperts))
    return next(graph for graph in graphs if graph.name == "encode_text")


def test_aot_inductor_does_what_the_run_does_for_any_batch(text_graph: Graph, tmp_path: Path) -> None:
    call = open_aoti(write_aoti(text_graph, tmp_path))
    ids, mask = text_graph.inputs.values()
    for rows in (3, 1):
        (found,) = call(ids[:rows].contiguous(), mask[:rows].contiguous())
        torch.testing.assert_close(found, text_graph.eager()[0][:rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["encode_image", "encode_text"])
def test_executorch_does_what_the_run_does_for_any_batch(
    name: str, bits: int, writing_run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("executorch", reason="executorch is installed by hand: docs/export.md")
    engine = ENGINES["executorch"]
    model = model_for(writing_run, engine, bits)
    graph = next(graph for graph in graphs_of(writing_run.config, model, engine.batch) if graph.name == name)
    path = engine.write(graph, tmp_path)
    for rows in (3, 1, 5):
        inputs = [torch.cat([value, value])[:rows] for value in graph.inputs.values()]
        (found,) = engine.open(path)(*inputs)
        torch.testing.assert_close(found, graph.module(*inputs), atol=1e-5 if bits == 32 else 5e-3, rtol=1e-5)


def test_tensorrt_s_list_takes_a_whole_graph(text_graph: Graph, tmp_path: Path) -> None:
    (found,) = open_onnx(write_tensorrt(text_graph, tmp_path))(*text_graph.named().values())
    torch.testing.assert_close(torch.from_numpy(found), text_graph.eager()[0], atol=1e-5, rtol=1e-4)
