"""Quantizers: what every kind promises, and what each is for."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist

from encoders.quantizer import QUANTIZERS, QuantizerConfig, build_quantizer
from encoders.quantizers.ema import EMAQuantizer

KINDS = [*sorted(QUANTIZERS), "grouped ema", "grouped fsq", "grouped residual"]
FOLLOWING = ["ema", "cosine", "residual"]


def quantizer_of(kind: str, revive_below: float | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    groups = 2 if kind.startswith("grouped ") else 1
    kind = kind.removeprefix("grouped ")
    depth = 3 if kind == "residual" else 1
    defaults: dict[str, Any] = {"num_codes": 16, "width": 4, "quantizers": depth, "levels": (4, 5, 3), "groups": groups}
    quantizer = build_quantizer(QuantizerConfig(kind=kind, **{**defaults, **changes}))  # type: ignore[arg-type]
    for module in quantizer.modules():
        if isinstance(module, EMAQuantizer) and revive_below is not None:
            module.revive_below = revive_below
    return quantizer


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(quantizer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def assert_equal(a: Any, b: Any) -> None:
    """Of tensors, or of states by name, to the bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_lookup_of_the_codes_gives_the_vectors(kind: str) -> None:
    quantizer = quantizer_of(kind)
    quantizer(batch(2, 50, 4))
    out = quantizer.eval()(batch(2, 7, 4, seed=2))
    assert out.codes.shape == (2, 7, quantizer.depth)
    assert out.codes.dtype == torch.int64
    assert out.codes.min() >= 0 and out.codes.max() < quantizer.size
    torch.testing.assert_close(quantizer.lookup(out.codes), out.vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    z, mask = batch(2, 30, 4), torch.ones(2, 30, dtype=torch.bool)
    mask[0, 11:] = False
    outputs, states = [], []
    for filler in (0.0, 1e6, float("nan")):
        quantizer = quantizer_of(kind)
        outputs.append(quantizer(z.masked_fill(~mask[..., None], filler), mask))
        states.append(state(quantizer))
    for out, after in zip(outputs[1:], states[1:], strict=True):
        torch.testing.assert_close((out.vectors, out.codes, out.losses), (*outputs[0].__dict__.values(),)[:3])
        assert_equal(after, states[0])
    assert (outputs[0].codes[~mask] == -1).all() and (outputs[0].vectors[~mask] == 0).all()
    assert (outputs[0].codes[mask] >= 0).all()
    assert (quantizer_of(kind).lookup(outputs[0].codes)[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_padding_alone_is_harmless(kind: str) -> None:
    quantizer = quantizer_of(kind)
    before = state(quantizer)
    out = quantizer(batch(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert all(value == 0 for value in (*out.losses.values(), *out.metrics.values()))
    assert_equal(state(quantizer), before)


@pytest.mark.parametrize("kind", ["ema", "residual", "simvq"])
def test_the_gradient_goes_straight_through(kind: str) -> None:
    z, weight = batch(2, 5, 4).requires_grad_(), batch(2, 5, 4, seed=3)
    (quantizer_of(kind)(z).vectors * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["ema", "residual", "simvq", "grouped ema"])
def test_the_gradient_is_turned_as_the_vector_was(kind: str) -> None:
    """Parity with the rotation that the paper defines, as a matrix: within the plane of z and its code alone."""
    z, weight = batch(2, 5, 4).requires_grad_(), batch(2, 5, 4, seed=3)
    out = quantizer_of(kind, gradient="rotation")(z)
    assert_equal(out.vectors, quantizer_of(kind)(z).vectors)
    (out.vectors * weight).sum().backward()
    parts = 2 if kind == "grouped ema" else 1
    rows = (x.detach().reshape(-1, 4 // parts) for x in (z, out.vectors, weight, z.grad))
    for row, vector, pushed, found in zip(*rows, strict=True):
        e, q = row / row.norm(), vector / vector.norm()
        r = (e + q) / (e + q).norm()
        turn = torch.eye(len(row)) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        torch.testing.assert_close(turn @ row * vector.norm() / row.norm(), vector, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, vector.norm() / row.norm() * turn.T @ pushed, rtol=1e-4, atol=1e-5)


def test_each_group_is_quantized_as_if_it_were_alone() -> None:
    grouped = quantizer_of("grouped ema", revive_below=0.9)
    alone = [quantizer_of("ema", width=2, revive_below=0.9) for _ in range(2)]
    for quantizer, part in zip(alone, grouped.parts, strict=True):
        quantizer.load_state_dict(state(part))
    for step in range(2):  # no code is dead in the first
        z = batch(2, 50, 4, seed=step)
        out, halves = grouped(z), [quantizer(x) for quantizer, x in zip(alone, z.chunk(2, -1), strict=True)]
    assert_equal(out.vectors, torch.cat([half.vectors for half in halves], -1))
    assert_equal(out.codes, torch.cat([half.codes for half in halves], -1))
    for found, name in ((out.losses, "commitment"), (out.metrics, "perplexity"), (out.metrics, "used")):
        each = [(half.losses | half.metrics)[name] for half in halves]
        torch.testing.assert_close(found[name], torch.stack(each).mean())
    assert out.metrics["revived"] == sum(half.metrics["revived"] for half in halves) > 0
    for part, quantizer in zip(grouped.parts, alone, strict=True):
        assert_equal(state(part), state(quantizer))


def test_the_gradient_of_finite_scalars_is_that_of_the_bounded_channels() -> None:
    z, quantizer = batch(1, 6, 3).requires_grad_(), quantizer_of("fsq", width=3, levels=(3, 5, 7))
    quantizer(z).vectors.sum().backward()
    odd = torch.tensor([3.0, 5.0, 7.0])
    half = (odd - 1) * 1.001 / 2
    torch.testing.assert_close(z.grad, (1 - z.tanh() ** 2) * half / (odd // 2))


@pytest.mark.parametrize("kind", KINDS)
def test_eval_changes_no_buffer(kind: str) -> None:
    quantizer = quantizer_of(kind)
    for _ in range(2):  # untouched by data at first, then trained
        before = state(quantizer.eval())
        quantizer(batch(2, 50, 4, seed=2))
        assert_equal(state(quantizer), before)
        quantizer.train()(batch(2, 50, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_training_resumes_to_the_bit_from_a_state_dict(kind: str) -> None:
    quantizer, resumed = quantizer_of(kind, revive_below=0.9), quantizer_of(kind, revive_below=0.9)
    for step in range(3):
        quantizer(batch(2, 20, 4, seed=step))
    resumed.load_state_dict(state(quantizer))
    torch.manual_seed(99)  # revival must not depend on the global generator
    for step in range(3, 6):
        quantizer(batch(2, 20, 4, seed=step)), resumed(batch(2, 20, 4, seed=step))
    assert_equal(state(resumed), state(quantizer))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_codes_are_those_of_float32(kind: str) -> None:
    quantizer, z = quantizer_of(kind), batch(2, 40, 4).bfloat16()
    quantizer(z.float())
    quantizer.eval()
    plain = quantizer(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(z)
        looked_up = quantizer.lookup(mixed.codes)
    assert mixed.vectors.dtype == torch.bfloat16 and looked_up.dtype == torch.float32
    assert all(
        value.dtype == torch.float32
        for value in (*quantizer.buffers(), *mixed.losses.values())
        if value.is_floating_point()
    )
    torch.testing.assert_close(mixed.codes, plain.codes)
    torch.testing.assert_close(looked_up, plain.vectors)


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_dead_code_is_used_again(kind: str) -> None:
    quantizer, turned = quantizer_of(kind, decay=0.95), torch.tensor([-1.0, -1, 1, 1])
    for step in range(5):
        quantizer(30 + batch(4, 50, 4, seed=step))
    used: list[float] = []
    revived: list[int] = []
    for step in range(130):  # the data is elsewhere, in place and in direction: most codes are dead
        out = quantizer((30 + batch(4, 50, 4, seed=step)) * turned)
        used.append(float(out.metrics["used"]))
        revived.append(int(out.metrics["revived"]))
    assert used[0] < 0.5 < 0.9 < min(used[-20:])
    assert 10 <= sum(revived) <= 20 * quantizer.depth  # once each, give or take: not over and over
    assert sum(revived[-20:]) == 0


def test_a_revived_code_stays_with_the_vectors_it_was_given() -> None:
    quantizer = quantizer_of("ema", decay=0.99)
    quantizer(batch(4, 50, 4))
    quantizer.counts[:8] = 0.5  # as after a long time of not being chosen
    quantizer.sums[:8] = 0.5 * -100.0
    quantizer.codebook[:8] = -100.0
    assert quantizer(batch(4, 50, 4, seed=2)).metrics["revived"] == 8
    quantizer(batch(4, 50, 4, seed=3))  # old sums left behind would drag the codes back towards -100
    assert quantizer.codebook.abs().max() < 6


def test_without_revival_a_dead_code_stays_dead() -> None:
    quantizer = quantizer_of("ema", decay=0.5, revive_below=0.0)
    quantizer(batch(4, 50, 4))
    for step in range(30):
        out = quantizer(batch(4, 50, 4, seed=step) + 50)
    assert out.metrics["used"] < 0.5 and out.metrics["revived"] == 0


def test_the_codebook_moves_to_the_means_of_its_clusters() -> None:
    centres = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    quantizer = quantizer_of("ema", num_codes=4, width=2, decay=0.0, revive_below=0.0)
    quantizer.codebook.copy_(centres + 1)
    quantizer.updates += 1
    quantizer((centres.repeat(25, 1) + 0.1 * batch(100, 2))[None])
    torch.testing.assert_close(quantizer.codebook, centres, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_codebook_equal_to_the_data_reconstructs_exactly(kind: str) -> None:
    quantizer, data = quantizer_of(kind), batch(16, 4)
    data = data / data.norm(dim=-1, keepdim=True)
    if kind == "residual":
        for stage, codebook in zip(quantizer.stages, (data, 0 * data, 0 * data), strict=True):
            stage.codebook.copy_(codebook)
    else:
        quantizer.codebook.copy_(data)
    out = quantizer.eval()(data[None])
    torch.testing.assert_close(out.vectors, data[None])
    torch.testing.assert_close(out.codes[0, :, 0], torch.arange(16))
    assert out.losses["commitment"] < 1e-12
    if kind != "residual":  # its later stages have nothing left to code
        torch.testing.assert_close(out.metrics["perplexity"], torch.tensor(16.0))
        assert out.metrics["used"] == 1


def test_the_first_batch_already_fits_its_clusters() -> None:
    centres = 10 * batch(16, 4)
    quantizer = quantizer_of("ema")
    out = quantizer((centres.repeat(30, 1) + 0.01 * batch(480, 4, seed=5))[None])
    assert out.losses["commitment"] < 0.25 * 0.25 * centres.var()


def test_every_residual_stage_brings_the_sum_closer() -> None:
    quantizer, z = quantizer_of("residual"), batch(1, 300, 4)
    quantizer(z)
    codes = quantizer.eval()(z).codes
    errors = [(quantizer.lookup(codes[..., :depth]) - z).square().mean() for depth in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_cosine_codes_ignore_the_length_of_a_vector() -> None:
    quantizer, z = quantizer_of("cosine"), batch(1, 40, 4)
    quantizer(z)
    quantizer.eval()
    torch.testing.assert_close(quantizer(z).codes, quantizer(7 * z).codes)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(16))


def test_one_step_of_simvq_moves_every_code() -> None:
    quantizer, z = quantizer_of("simvq"), batch(1, 3, 4)  # three vectors choose at most three of sixteen codes
    before = quantizer.lookup(torch.arange(16).view(1, 16, 1)).detach()
    quantizer(z).losses["codebook"].backward()
    with torch.no_grad():
        quantizer.linear.weight -= 0.1 * quantizer.linear.weight.grad
    after = quantizer.lookup(torch.arange(16).view(1, 16, 1))
    assert ((after - before).norm(dim=-1) > 0).all()
    assert not quantizer.basis.requires_grad


@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_finite_scalar_codes_are_in_range_and_round_trip(levels: list[int], scale: float, seed: int) -> None:
    quantizer = quantizer_of("fsq", width=len(levels), levels=tuple(levels))
    out = quantizer(scale * batch(2, 20, len(levels), seed=seed))
    assert out.codes.min() >= 0 and out.codes.max() < quantizer.size
    assert out.vectors.abs().max() <= 1
    torch.testing.assert_close(quantizer.lookup(out.codes), out.vectors, rtol=0, atol=0)


def test_every_finite_scalar_code_has_a_vector_of_its_own() -> None:
    quantizer = quantizer_of("fsq", width=3, levels=(4, 5, 3))
    every = quantizer.lookup(torch.arange(60).view(1, 60, 1))
    assert len(every[0].unique(dim=0)) == quantizer.size == 60


def two_ranks_follow(rank: int, store: str, kind: str, revive_below: float, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    quantizer = quantizer_of(kind, revive_below=revive_below)
    for step in range(4):
        z, mask = joint_batch(step)
        half = slice(0, 3) if rank == 0 else slice(3, 4)  # shards of unequal length
        quantizer(z[half], mask[half])
    torch.save(state(quantizer), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def joint_batch(step: int) -> tuple[Tensor, Tensor]:
    mask = torch.rand(4, 20, generator=torch.Generator().manual_seed(step)) < 0.8
    return batch(4, 20, 4, seed=step) + step, mask


@pytest.mark.parametrize(("kind", "revive_below"), [("ema", 0.9), ("residual", 0.1)])
def test_two_ranks_give_the_codebook_of_one_process_with_the_joint_batch(
    tmp_path: Path,
    kind: str,
    revive_below: float,
) -> None:
    arguments = (str(tmp_path / "store"), kind, revive_below, str(tmp_path))
    mp.start_processes(two_ranks_follow, arguments, nprocs=2, start_method="fork")
    alone, revived = quantizer_of(kind, revive_below=revive_below), 0
    for step in range(4):
        revived += int(alone(*joint_batch(step)).metrics["revived"])
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0], ranks[1])
    torch.testing.assert_close(ranks[0], state(alone), rtol=1e-4, atol=1e-5)
    assert revived > 0 or kind != "ema"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "ema", "quantizers": 2}, "residual"),
        ({"kind": "fsq", "levels": (8, 1)}, r"levels=1: .* in \[2, inf\)"),
        ({"num_codes": 0}, "num_codes=0"),
        ({"decay": 1.0}, "decay"),
        ({"width": 32, "groups": 5}, r"bottleneck\.quantizer\.groups"),
        ({"kind": "fsq", "gradient": "rotation"}, "gradient=straight_through"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        QuantizerConfig(**changes)


def test_vectors_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 4"):
        quantizer_of("ema")(batch(2, 3, 5))
