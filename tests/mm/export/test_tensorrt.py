"""Files for TensorRT hold what its list takes; what it lacks is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.errors import UserError
from mm.export.graph import BATCH, Graph
from mm.export.onnx_runtime import OnnxExperts, open_onnx
from mm.export.tensorrt import not_taken, write_tensorrt
from mm.model.inference import DenseExperts, GroupedExperts, InferenceMoE
from mm.model.moe import MoE, MoEConfig

onnx = pytest.importorskip("onnx", reason="exports to ONNX need the extra export")
for name in ("onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="exports to ONNX need the extra export")


def graph_of(experts: Any) -> Graph:
    """A mixture of experts: x (N, 64) -> (N, 64)."""
    torch.manual_seed(0)
    moe = MoE(MoEConfig(num_experts=6, top_k=2, hidden=32, shared=0), 64, 1).requires_grad_(False)
    module = Mixture(InferenceMoE(moe, experts(moe, "")))
    return Graph("mixture", module, {"x": torch.randn(5, 64)}, {"x": {0: BATCH}}, ("out.y",))


class Mixture(nn.Module):
    """The tokens alone of a mixture's output."""

    def __init__(self, moe: nn.Module) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 64) -> (N, 64)."""
        return self.moe(x).x


def saved(folder: Path, nodes: list[Any], opset: int = 20, fixed: tuple[Any, ...] = ()) -> Path:
    """A file of these nodes, which nothing executes."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], initializer=list(fixed))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    onnx.save(model, folder / "x.onnx")
    return folder / "x.onnx"


def test_dense_experts_are_taken_whole_and_compute_what_sparse_ones_do(tmp_path: Path) -> None:
    graph = graph_of(DenseExperts)
    (found,) = open_onnx(write_tensorrt(graph, tmp_path))(*graph.named().values())
    torch.testing.assert_close(torch.from_numpy(found), graph_of(GroupedExperts).eager()[0], atol=1e-5, rtol=1e-4)


def test_sparse_experts_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"TensorRT does not take mixture\.onnx: com\.microsoft::MoE \(1 ×\)"):
        write_tensorrt(graph_of(OnnxExperts), tmp_path)


def test_forms_that_are_not_taken_are_told_apart(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    assert not_taken(saved(tmp_path, [node("Relu", ["x"], ["y"])])) == []
    assert not_taken(saved(tmp_path, [node("Relu", ["x"], ["y"])], opset=25)) == ["opset 25 is not in 9 to 24"]
    assert not_taken(saved(tmp_path, [node("DFT", ["x"], ["y"])] * 2)) == ["DFT (2 ×)"]
    axes = onnx.numpy_helper.from_array(torch.tensor([0]).numpy(), "axes")
    reduced = [node("ReduceSum", ["x", "axes"], ["y"])]
    assert not_taken(saved(tmp_path, reduced, fixed=(axes,))) == []
    assert not_taken(saved(tmp_path, reduced)) == ["ReduceSum over axes that are computed (1 ×)"]
    normed = [node("LayerNormalization", ["x", "x"], ["y", "mean"])]
    assert not_taken(saved(tmp_path, normed)) == ["LayerNormalization with more than one output (1 ×)"]
    highest = [node("TopK", ["x", "axes"], ["y", "at"], sorted=0)]
    assert not_taken(saved(tmp_path, highest)) == ["TopK in any order (1 ×)"]
