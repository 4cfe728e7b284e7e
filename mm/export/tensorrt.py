"""ONNX files that TensorRT takes whole: experts dense, standard operators alone, checked against its published list.

No GPU is asked: what is written is executed by ONNX Runtime's CPU provider, and every operator is looked up in the list
of onnx-tensorrt, the parser that ONNX Runtime's TensorRT provider and trtexec share. What the parser does not take the
provider would leave to CUDA or the CPU, piece by piece, and trtexec would refuse.
"""

from pathlib import Path
from typing import Any

from kernels.errors import UserError
from mm.export.graph import Graph
from mm.export.onnx_runtime import write_onnx
from mm.optional import require

SOURCE = "docs/operators.md of onnx-tensorrt, TensorRT 10.15"
OPSETS = range(9, 25)
WORDS = """
Abs Add And ArgMax ArgMin BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum Div
Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater
GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not Or Pad Pow
Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize RMSNormalization Round ScatterElements ScatterND Shape Sigmoid Sign Sin Size
Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
TAKEN = frozenset(WORDS.split())
"""Of ONNX's own domain, those that the list takes and a network of ours may have."""


def write_tensorrt(graph: Graph, folder: Path) -> Path:
    """One graph as a file of ONNX that TensorRT takes whole.

    Args:
        graph: of a model that was prepared with dense experts.
        folder: where `<name>.onnx` is written.

    Raises:
        UserError: a package of the extra `export` is not installed, or there is an operator that TensorRT lacks.
    """
    path = write_onnx(graph, folder)
    if lacking := not_taken(path):
        raise UserError(f"TensorRT does not take {path.name}: {'; '.join(lacking)} ({SOURCE})")
    return path


def not_taken(path: Path) -> list[str]:
    """What of a file of ONNX is not in TensorRT's list, in words: opset, operators by name, forms of them."""
    onnx: Any = require("onnx", "export")
    model = onnx.load(str(path))
    found = []
    for each in model.opset_import:
        if each.domain == "" and each.version not in OPSETS:
            found.append(f"opset {each.version} is not in {OPSETS.start} to {OPSETS.stop - 1}")
    fixed = {each.name for each in model.graph.initializer}
    fixed |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    reasons: dict[str, int] = {}
    for node in model.graph.node:
        if reason := lacking(node, fixed):
            reasons[reason] = reasons.get(reason, 0) + 1
    found += [f"{reason} ({count} ×)" for reason, count in sorted(reasons.items())]
    return found


def lacking(node: Any, fixed: set[str]) -> str:
    """Why TensorRT does not take a node, in words; nothing where it does.

    Args:
        node: of a graph of ONNX.
        fixed: names of tensors that are constants.
    """
    name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if node.domain or node.op_type not in TAKEN:
        return name
    if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in fixed:
        return f"{name} over axes that are computed"
    if node.op_type == "LayerNormalization" and len(node.output) > 1:
        return f"{name} with more than one output"
    if node.op_type == "TopK" and any(each.name == "sorted" and not each.i for each in node.attribute):
        return f"{name} in any order"
    return ""
