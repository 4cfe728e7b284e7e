"""What is exported computes what the run computes, and nothing else."""

import pytest
import torch
from torch.utils._pytree import tree_map

from mm.artifacts.probe import probe
from mm.artifacts.run import Run
from mm.config import encoders_of
from mm.export.graph import Graph, graphs_of
from mm.infer.decoding import Decoding
from mm.infer.generation import Generation
from mm.modalities import probe_batch
from mm.model.inference import DenseExperts, GroupedExperts, prepare
from mm.model.writer import Writer


@pytest.fixture
def graphs(writing_run: Run) -> dict[str, Graph]:
    return {graph.name: graph for graph in graphs_of(writing_run.config, prepare(writing_run.model, GroupedExperts))}


def test_everything_that_a_run_does_is_a_graph(graphs: dict[str, Graph]) -> None:
    encoders = {"encode_image", "encode_audio", "encode_text"}
    assert graphs.keys() == encoders | {"match", "describe_image", "describe_audio", "decode_step"}


def test_examples_have_no_strides_of_a_wider_tensor(graphs: dict[str, Graph]) -> None:
    """Texts as long as that tensor would be excluded from the graph."""
    for graph in graphs.values():
        assert all(value.is_contiguous() for value in graph.named().values()), graph.name
    assert graphs["encode_text"].inputs["text"].shape[1] < 24


@pytest.mark.parametrize("experts", [GroupedExperts, DenseExperts])
def test_the_inference_forward_is_the_model_s(writing_run: Run, experts: type) -> None:
    """Of three captions of other lengths, so that two are padded."""
    expected = probe(writing_run.model, encoders_of(writing_run.config))
    graphs = graphs_of(writing_run.config, prepare(writing_run.model, experts))
    found = {graph.name.removeprefix("encode_"): graph.eager()[0] for graph in graphs}
    assert set(expected) <= set(found)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.from_numpy(values), atol=2e-6, rtol=1e-5)


def test_steps_of_the_cache_write_what_generation_writes(writing_run: Run, graphs: dict[str, Graph]) -> None:
    """Token by token through the decode step alone, beside what the image graph says of an image."""
    writer = Writer(writing_run.model)
    beside = graphs["describe_image"].eager()
    start = int(graphs["decode_step"].inputs["ids"][0])
    condition = writer.condition(probe_batch(encoders_of(writing_run.config)), ["image"])
    expected = Generation(writer, [], Decoding(max_tokens=5))([[start]] * 3, condition)
    step = graphs["decode_step"]
    keys, values = torch.zeros_like(step.inputs["keys"]), torch.zeros_like(step.inputs["values"])
    ids = torch.full((3, 1), start)
    written: list[torch.Tensor] = []
    for place in range(5):
        with torch.no_grad():
            logits, keys, values = step.module(ids, torch.full((3,), place), keys, values, beside)
        logits[:, 0] = -torch.inf  # the row of unknown tokens
        ids = writer.encoder.ids_of(logits.argmax(1, keepdim=True))
        written.append(ids)
    assert torch.cat(written, 1).tolist() == expected


def test_an_exported_graph_is_the_eager_one_for_any_batch(graphs: dict[str, Graph]) -> None:
    graph = graphs["decode_step"]
    program = graph.program()
    fewer = [tree_map(lambda x: x[:1] if x.shape[0] == 3 else x[:, :1], value) for value in graph.inputs.values()]
    with torch.no_grad():
        expected = graph.module(*fewer)
        found = program.module()(*fewer)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
