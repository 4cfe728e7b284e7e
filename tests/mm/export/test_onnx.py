"""Files of ONNX compute what the run computes, in every number of bits; what is not so is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from eval.fingerprint import Fingerprint, FingerprintError
from kernels.errors import UserError
from mm.artifacts.run import build_run, load_run, save_run
from mm.compress.integers import pack
from mm.compress.quantize import QATConfig
from mm.config import AlignConfig
from mm.export.command import TOLERANCES, Exported, checked, export, stored_bits
from mm.export.graph import BATCH, Graph
from mm.export.onnx_integers import NBitExperts, NBitLinear, block_of, unsigned
from mm.export.onnx_runtime import OnnxExperts, interleaved, open_onnx, router_logits, write_onnx
from mm.modalities import probe_text
from mm.model.inference import GroupedExperts, InferenceMoE
from mm.model.moe import MoE, MoEConfig

STATISTICS = (
    "nonzero",
    "bincount",
    "scatter_add",
    "logsumexp",
    "aten.item",
    "local_scalar",
    "searchsorted",
    "mm_kernels",
)
"""Operations of losses, statistics and questions of the host, and those that engines do not have."""


def test_logits_of_the_router_are_weights_again_behind_a_softmax() -> None:
    chosen = torch.tensor([[2, 0], [1, 3]])
    weights = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    found = router_logits(chosen, weights, 4).softmax(1)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0, 0.75, 0], [0, 1.0, 0, 0]]))


def test_gate_and_up_rows_take_turns() -> None:
    w_in = torch.tensor([[[1.0], [2.0], [10.0], [20.0]]])
    assert interleaved(w_in).flatten().tolist() == [1, 10, 2, 20]


def test_integers_are_shifted_to_the_middle_and_the_even_column_is_low() -> None:
    assert unsigned(torch.tensor([[-128, 0, 127]], dtype=torch.int8), 8).tolist() == [[0, 128, 255]]
    assert unsigned(torch.tensor([[-8, 7]], dtype=torch.int8), 4).tolist() == [[0xF0]]


@pytest.mark.parametrize(
    ("inputs", "bits", "block"), [(128, 8, 128), (96, 8, 32), (128, 4, 64), (96, 4, 32), (8, 8, 16)]
)
def test_blocks_divide_what_shares_a_scale(inputs: int, bits: int, block: int) -> None:
    assert block_of(pack(torch.randn(2, inputs), bits)) == block


@pytest.fixture
def packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="exports to ONNX need the extra export")


class Toy(nn.Module):
    """A linear layer behind a mixture of experts: x (N, 64) -> (N, 24)."""

    def __init__(self, moe: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.moe = moe
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.moe(x, torch.zeros(0, dtype=torch.int64)).x)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_experts_and_linear_layers_are_computed_as_we_do(bits: int, packages: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    moe = MoE(MoEConfig(num_experts=6, top_k=2, hidden=32, shared=0), 64, 1).requires_grad_(False)
    layer = nn.Linear(64, 24).requires_grad_(False)
    # Experts of other sizes: one scale for all of them would lose the small ones.
    moe.w_in.mul_(torch.logspace(-1, 1, 6)[:, None, None])
    integers = {name: pack(getattr(moe, name), bits, 2) for name in ("w_in", "w_out") if bits < 32}
    if bits == 32:
        toy = Toy(InferenceMoE(moe, OnnxExperts(moe, "")), layer)
    else:
        packed = pack(layer.weight, bits)
        toy = Toy(InferenceMoE(moe, NBitExperts(moe, **integers)), NBitLinear(packed, layer.bias, rounds=False))
        for name, value in integers.items():
            getattr(moe, name).copy_(value.unpack())
        layer.weight.copy_(packed.unpack())
    x = torch.randn(5, 64)
    expected = Toy(InferenceMoE(moe, GroupedExperts(moe, "")), layer)(x)
    path = write_onnx(Graph("toy", toy, {"x": x}, {"x": {0: BATCH}}, ("out.y",)), tmp_path)
    call = open_onnx(path)
    (found,) = call(x)
    error = np.abs(found - expected.numpy()).max() / expected.abs().max()
    assert error < (1e-5 if bits == 32 else 5e-3)
    assert call(x[:1])[0].shape == (1, 24)
    weights = moe.w_in.numel() + moe.w_out.numel() + layer.weight.numel()
    assert path.stat().st_size < weights * bits / 8 * 1.5 + 16_000


@pytest.fixture
def small_run(tiny: AlignConfig, vocabulary: torch.Tensor, tmp_path: Path) -> Path:
    """The folder of a run of images and text, one layer deep."""
    backbone = replace(tiny.model.backbone, layers=1)
    model = replace(tiny.model, modalities=("image", "text"), backbone=backbone)
    torch.manual_seed(0)
    save_run(build_run(replace(tiny, model=model), vocabulary).eval(), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_in_eight_bits_does_what_the_run_does(
    small_run: Path, packages: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced: list[ExportedProgram] = []
    program = Graph.program

    def noted(graph: Graph) -> ExportedProgram:
        traced.append(program(graph))
        return traced[-1]

    monkeypatch.setattr(Graph, "program", noted)
    export(small_run, "onnx", 8, graphs=("encode_text",))
    folder = small_run / "export-onnx-8"
    assert sorted(path.name for path in folder.iterdir()) == ["encode_text.onnx", "export.json"]
    said = json.loads((folder / "export.json").read_text())
    assert said["bits"] == 8 and 1e-5 < said["files"]["encode_text"]["error"] < 0.05
    assert "encode_text.onnx" in capsys.readouterr().out
    called = {str(node.target) for node in traced[0].graph.nodes if node.op == "call_function"}
    assert len(called) > 20 and not [each for each in called if any(word in each for word in STATISTICS)]
    call = open_onnx(folder / "encode_text.onnx")
    ids, mask = probe_text(load_run(small_run).config.text)
    (alone,) = call(ids[:1, :3].contiguous(), mask[:1, :3].contiguous())
    short = mask & (torch.arange(ids.shape[1]) < 3)
    (padded,) = call(ids.where(short, 0), short)
    np.testing.assert_allclose(padded[:1], alone, atol=2e-2)


@pytest.mark.parametrize(
    ("to", "bits", "said"),
    [
        ("aoti", 4, "--to aoti has no 4-bit weights here: it has 32"),
        ("executorch", 4, "--to executorch has no 4-bit weights here: it has 32, 8"),
    ],
)
def test_bits_that_an_engine_lacks_are_refused_before_it_compiles(
    small_run: Path, to: str, bits: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm.export.command.written", lambda *_: pytest.fail("an engine was asked"))
    with pytest.raises(UserError, match=said):
        export(small_run, to, bits)  # type: ignore[arg-type]
    assert not list(small_run.glob("export-*"))


def test_a_graph_that_a_run_does_not_have_is_refused(small_run: Path) -> None:
    with pytest.raises(UserError, match="--graphs encode_audio: this run has encode_image, encode_text, match"):
        export(small_run, graphs=("encode_audio",))
    assert not list(small_run.glob("export-*"))


@pytest.mark.parametrize(("bits", "exported"), [(None, 32), (8, 8), (4, 4), (16, 32)])
def test_a_run_is_exported_in_the_integers_that_it_is_stored_in(bits: int | None, exported: int) -> None:
    compression = None if bits is None else QATConfig(32, bits)  # type: ignore[arg-type]
    assert stored_bits(SimpleNamespace(compression=compression)) == exported  # type: ignore[arg-type]


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("run: nowhere\ndata: {root: x, train: train, val: val, audio_root: null}\n")
    with pytest.raises(UserError, match="needs its base: nowhere holds no finished run"):
        export(tmp_path)


def test_a_folder_of_something_else_is_not_replaced(small_run: Path) -> None:
    with pytest.raises(UserError, match="is no export"):
        export(small_run, out=small_run)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_file_that_computes_something_else_is_refused(bits: int) -> None:
    """Random vectors are as far from the run's as another activation in every layer."""
    was = np.ones((3, 16), dtype=np.float32)
    stored = Fingerprint({"text": was.astype(np.float16).ravel()}, {"text": (3, 16)})
    near = was + 0.5 * TOLERANCES[bits] * np.sign(np.arange(16) - 7.5)
    far = was + 2.0 * TOLERANCES[bits] * np.sign(np.arange(16) - 7.5)
    checked(stored, {"encode_text": Exported(Path("x"), 1, 0.0, near.astype(np.float32))}, bits)
    with pytest.raises(UserError, match=r"decode_step is off by nan.*export it in 32"):
        checked(stored, {"decode_step": Exported(Path("x"), 1, float("nan"), near)}, bits)
    with pytest.raises(FingerprintError, match="behave differently"):
        checked(stored, {"encode_text": Exported(Path("x"), 1, 0.0, far.astype(np.float32))}, bits)


def test_an_operator_that_the_runtime_lacks_is_named(packages: None, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Nonsense", ["x"], ["y"], domain="com.microsoft")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"does not take x\.onnx: .*Nonsense"):
        open_onnx(tmp_path / "x.onnx")
