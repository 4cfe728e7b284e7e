"""Weights in integers: the grid, what is packed, what a run of them does, and training on the grid."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from encoders.state import weights_digest
from kernels.errors import UserError
from mm.artifacts.run import Run, load_run, save_run
from mm.batch import Batch
from mm.compress.integers import fake_quantize_tokens, from_grid, pack
from mm.compress.ledger import IN_FLOAT, file_ledger, float_roles
from mm.compress.quantize import (
    FakeQuantized,
    QATConfig,
    QuantizedLinear,
    convert,
    pack_state,
    places,
    prepare_qat,
    quantize_activations,
)
from mm.train.task import AlignTask


def test_eight_bits_of_a_row_are_checked_by_eye() -> None:
    """The step is 2.55 / 127.5 = 0.02, in bfloat16."""
    packed = pack(torch.tensor([[2.55, -2.55, 0.02, 0.011]]), 8)
    assert packed.values.tolist() == [[127, -127, 1, 1]] and packed.bits == 8
    assert packed.scale.item() == pytest.approx(0.02, rel=0.004)


def test_four_bits_have_a_scale_for_each_group_and_two_values_in_a_byte() -> None:
    weight = torch.cat([torch.full((2, 64), 0.1), torch.full((2, 64), 10.0)], 1)
    packed = pack(weight, 4)
    assert packed.values.shape == (2, 64) and packed.scale.shape == (2, 2) and packed.bits == 4
    # The largest value lies half a step beyond the last one: 7 of 7.5.
    torch.testing.assert_close(packed.unpack(), weight * 7 / 7.5, rtol=0.005, atol=0)
    assert packed.bytes() == 2 * 64 + 2 * 2 * 2


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_come_back_in_their_columns_and_zero_is_zero(bits: int) -> None:
    """The scale is one, of a row whose largest value is half a step beyond the last; no zero point shifts it."""
    most = 2 ** (bits - 1) - 0.5
    row = torch.tensor([[0.0, 1.0, -1.0, 3.0, -5.0, 2.0, 0.0, most]])
    expected = [[0, 1, -1, 3, -5, 2, 0, int(most)]]
    packed = pack(row, bits)
    assert packed.scale.tolist() == [[1.0]] and packed.integers().tolist() == expected
    assert from_grid(row.round(), packed.scale, bits).integers().tolist() == expected
    assert packed.unpack().tolist() == expected


@pytest.mark.parametrize(("bits", "largest"), [(8, 0.01), (4, 0.12)])
def test_experts_keep_a_scale_for_each_row_of_each_expert(bits: int, largest: float) -> None:
    torch.manual_seed(0)
    small = torch.randn(3, 8, 64) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None]
    packed = pack(small, bits, leading=2)
    assert packed.scale.shape == (24, 1)
    error = (packed.unpack() - small).flatten(1).norm(dim=1) / small.flatten(1).norm(dim=1)
    assert (error < largest).all() and (error > 0).all()


def test_what_a_token_reads_is_rounded_to_its_own_largest_value() -> None:
    x = torch.tensor([[1.27, 0.014, -1.27], [127.0, 1.4, 0.0]], requires_grad=True)
    y = fake_quantize_tokens(x)
    torch.testing.assert_close(y, torch.tensor([[1.27, 0.01, -1.27], [127.0, 1.0, 0.0]]))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.fixture
def compressed(tiny_run: Callable[..., Run], tmp_path: Path) -> Callable[[QATConfig], Run]:
    """compressed(config) -> a tiny run as it was written in these bits."""

    def make(config: QATConfig) -> Run:
        run = tiny_run().eval()
        quantize_activations(run.model, config.activation_bits)
        run.compression = config
        save_run(run, tmp_path / "run")
        return run

    return make


@pytest.mark.parametrize("config", [QATConfig(), QATConfig(32, 4), QATConfig(32, 16)])
def test_a_compressed_run_is_loaded_as_it_was_written(
    config: QATConfig, compressed: Callable[[QATConfig], Run], tiny_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    run = compressed(config)
    again = load_run(tmp_path / "run")
    assert again.compression == config and again.packed.keys() == run.packed.keys()
    if config.weight_bits < 16:
        # Every row of every one of the eight experts has a scale.
        experts = again.packed["backbone.blocks.0.moe.w_in"]
        assert experts.bits == config.weight_bits and len(experts.scale) == 8 * 16
    for name, tensor in run.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    save_run(again, tmp_path / "twice")
    # Written again nothing is rounded again.
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "model.safetensors"
    ).read_bytes()
    rounds = any(isinstance(module, QuantizedLinear) for module in again.model.modules())
    assert rounds == (config.activation_bits == 8)


def test_linear_layers_of_a_compressed_run_round_what_they_read(compressed, tiny_run, tiny_batch) -> None:
    """The fused projections of either attention too: they read weights of layers whose forward is never called."""
    seen = set()
    run = compressed(QATConfig())
    for name, module in run.model.named_modules():
        if isinstance(module, QuantizedLinear):
            module.register_forward_pre_hook(lambda *_, name=name: seen.add(name))
    with torch.no_grad():
        run.model(tiny_batch(), reconstruct=False)
    assert {"backbone.blocks.0.self_attention.q_proj", "encoders.text.trunk.layers.0.qkv"} <= seen


def test_a_model_that_rounds_what_it_reads_is_another_one(tiny_run) -> None:
    """Features of one are not those of the other, though all weights are the same."""
    plain, rounds = tiny_run().model, tiny_run().model
    assert weights_digest(plain) == weights_digest(rounds)
    quantize_activations(rounds, 8)
    assert weights_digest(plain) != weights_digest(rounds)
    assert plain.state_dict().keys() == rounds.state_dict().keys()


def test_convolutions_have_fewer_than_eight_bits_in_decoders_alone(tiny_run: Callable[..., Run]) -> None:
    model = tiny_run().model
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Conv1d)}
    found = {name: place.bits for name, place in places(model, 4).items() if name.rpartition(".")[0] in convolutions}
    decoders = {bits for name, bits in found.items() if ".decoder." in name}
    others = {bits for name, bits in found.items() if ".decoder." not in name}
    assert (decoders, others) == ({4}, {8})


def test_no_role_of_a_compressed_file_stays_in_float_unannounced(compressed, tmp_path: Path) -> None:
    compressed(QATConfig())
    path = tmp_path / "run" / "model.safetensors"
    assert set(float_roles(path)) <= set(IN_FLOAT)
    rows = {row.group: row for row in file_ledger(path)}
    assert {"experts", "attention", "encoders", "embeddings", "scales"} <= rows.keys()
    assert rows["experts"].bits == 8 and rows["all"].stored == path.stat().st_size
    assert sum(row.stored for row in rows.values()) == 2 * path.stat().st_size


def test_sixteen_bits_are_bfloat16_without_scales(compressed, tiny_run, tmp_path: Path) -> None:
    run = compressed(QATConfig(32, 16))
    rows = {row.group: row for row in file_ledger(tmp_path / "run" / "model.safetensors")}
    assert "scales" not in rows and not run.packed
    assert {rows[role].bits for role in ("experts", "attention", "encoders", "embeddings")} == {16}
    name = "backbone.blocks.0.moe.w_in"
    assert torch.equal(run.state_dict()[name], tiny_run().state_dict()[name].bfloat16().float())


def test_a_weight_that_moved_is_rounded_anew(compressed) -> None:
    run = compressed(QATConfig())
    name = "backbone.blocks.0.moe.w_in"
    with torch.no_grad():
        run.model.backbone.blocks[0].moe.w_in.mul_(2)
    packed = pack_state(run.state_dict(), places(run.model, 8), run.packed)
    torch.testing.assert_close(packed[name].scale, 2 * run.packed[name].scale, rtol=0.02, atol=0)
    kept = "backbone.blocks.0.moe.w_out"
    assert packed[kept] is run.packed[kept]


def test_a_file_whose_values_do_not_fit_its_scales_is_refused(compressed, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compressed(QATConfig())
    path = tmp_path / "run" / "model.safetensors"
    tensors = load_file(path)
    tensors["backbone.blocks.0.moe.w_in.scale"] = tensors["backbone.blocks.0.moe.w_in.scale"][:3].clone()
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"backbone\.blocks\.0\.moe\.w_in is packed as"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "said"), [({"weight_bits": 3}, "weight_bits=3"), ({"quant_scheme": "x"}, "symmetric")]
)
def test_bits_that_are_not_there_are_refused(given: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        QATConfig(**given)


def test_a_run_that_trains_on_keeps_its_bits(compressed) -> None:
    run = compressed(QATConfig())
    assert AlignTask(run).run.compression == QATConfig()


@pytest.mark.parametrize("bits", [8, 4])
def test_training_on_the_grid_reaches_experts_and_ends_on_it(bits: int, tiny_run, tiny_batch) -> None:
    pytest.importorskip("torchao", reason="its fake quantisers are torchao's")
    run = tiny_run()
    names = prepare_qat(run.model, QATConfig(8, bits))
    assert {"backbone.blocks.0.moe.w_in", "encoders.text.trunk.layers.0.qkv.weight"} <= set(names)
    out = run.model(tiny_batch(), reconstruct=False)
    (out.embeddings["image"] * torch.randn(4, 16)).sum().backward()
    latent = run.model.backbone.blocks[0].moe.parametrizations.w_in.original
    assert latent.grad.abs().sum() > 0
    before = run.model.backbone.blocks[0].moe.w_in.detach().clone()
    packed = convert(run.model)
    assert packed.keys() == set(names)
    assert isinstance(run.model.backbone.blocks[0].moe.w_in, nn.Parameter)
    assert torch.equal(packed["backbone.blocks.0.moe.w_in"].unpack(), before)
    assert torch.equal(run.model.backbone.blocks[0].moe.w_in, before)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_that_trains_has_no_zero_point(bits: int) -> None:
    """Of values that are all positive an asymmetric grid has half the step, and a zero point that nothing stores."""
    pytest.importorskip("torchao", reason="its fake quantisers are torchao's")
    weight = torch.linspace(0.5, 1.5, 64)[None]
    fake = FakeQuantized(weight, bits, 1)
    found = fake(weight)
    step = float(fake.quantizer.scale.max())
    assert torch.isclose(torch.tensor(step), weight.max() / (2 ** (bits - 1) - 0.5), rtol=0.01)
    torch.testing.assert_close(found, weight, atol=1.01 * step, rtol=0)
    assert fake.packed(weight).integers().min() > 0
    assert torch.equal(fake.packed(weight).unpack(), found)


def test_our_grid_is_torchao_s() -> None:
    """But for scales, which are bfloat16 here: 0.4 % of a step of eight bits at the end of the range is half a step."""
    qat = pytest.importorskip("torchao.quantization.qat", reason="compared with torchao's fake quantiser")
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    for bits, kind in ((8, torch.int8), (4, torch.int4)):
        config = qat.IntxFakeQuantizeConfig(kind, group_size=128 if bits == 8 else 64, is_symmetric=True)
        theirs = (qat.IntxFakeQuantizer(config)(weight) - weight).norm()
        ours = (pack(weight, bits).unpack() - weight).norm()
        assert ours / theirs == pytest.approx(1, abs=0.02)
