"""Blocks in microbatches: the outputs, losses, load and gradients of blocks that read all rows at once.

A pipeline of one stage, in a process of its own: one that is connected cannot be forked for other tests.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mm.bench.processes import on_processes
from mm.model.backbone import Backbone, BackboneConfig, BackboneOutput
from mm.model.moe import MoEConfig
from mm.model.packed import Reading, Stream, spans_of
from mm.parallel.layout import ParallelConfig
from mm.parallel.pipeline import Microbatches, Pipeline, stages_of

MOE = MoEConfig(num_experts=6, top_k=2, hidden=4, shared=8, z=0.1)
CONFIG = BackboneConfig(width=16, layers=2, heads=2, moe=MOE)
LENGTHS = {"image": 4, "text": 5}


def backbones(config: BackboneConfig) -> tuple[Backbone, Backbone]:
    """Two of the same weights, the second in microbatches."""
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = Backbone(config, tuple(LENGTHS))
        for block in backbone.blocks:
            torch.nn.init.normal_(block.cross_attention.out_proj.weight)
        both.append(backbone)
    both[1].pipeline = Pipeline(both[1], ParallelConfig(), None)
    return both[0], both[1]


def reading(rows: dict[str, int], seed: int = 0) -> Reading:
    """Streams whose first rows have padding."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for m, count in rows.items():
        x = torch.randn(count, LENGTHS[m], 16, generator=random)
        found[m] = Stream(x, torch.arange(LENGTHS[m]) < 2 + torch.arange(count)[:, None])
    return found


def differentiated(backbone: Backbone, given: list[Reading], fuse: bool) -> tuple[BackboneOutput, dict[str, Tensor]]:
    """What comes out, and every gradient of its real tokens."""
    out = backbone(given, fuse)
    total = torch.stack(list(out.losses.values())).sum()
    for part in out.readings:
        for stream in part.values():
            total = total + stream.x[stream.mask].pow(3).sum()
    total.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return out, gradients


@pytest.mark.parametrize("fuse", [False, True])
def test_microbatches_are_the_batch(fuse: bool, tmp_path: Path) -> None:
    """Of five and of three rows in four parts: some have fewer, some none."""
    on_processes(1, check_batch, (fuse,), tmp_path, 60)


def check_batch(rank: int, fuse: bool, folder: Path) -> None:
    rows = ({"image": 5, "text": 5}, {"image": 3, "text": 3}) if fuse else ({"image": 5, "text": 7},)
    given = [reading(each, seed) for seed, each in enumerate(rows)]
    whole, divided = backbones(CONFIG)
    (a, expected), (b, found) = (differentiated(each, given, fuse) for each in (whole, divided))
    for there, here in zip(a.readings, b.readings, strict=True):
        for m, stream in there.items():
            torch.testing.assert_close(here[m].x[stream.mask], stream.x[stream.mask])
    assert torch.equal(a.load, b.load) and a.losses.keys() == b.losses.keys() == {"z"}
    torch.testing.assert_close(b.losses, a.losses)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_losses_that_are_no_means_over_tokens_are_means_over_microbatches(tmp_path: Path) -> None:
    """Weighted by their tokens: of 8 rows two are in each of four parts."""
    on_processes(1, check_losses, (), tmp_path, 60)


def check_losses(rank: int, folder: Path) -> None:
    whole, divided = backbones(replace(CONFIG, moe=replace(MOE, balance=0.5, entropy=0.2)))
    given = reading({"image": 8, "text": 8})
    found = divided([given], fuse=False).losses
    expected = dict.fromkeys(("z", "balance", "entropy"), torch.zeros(()))
    real = sum(stream.mask.sum() for stream in given.values())
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        own = {m: Stream(stream.x[rows], stream.mask[rows]) for m, stream in given.items()}
        weight = sum(stream.mask.sum() for stream in own.values()) / real
        for name, value in whole([own], fuse=False).losses.items():
            expected[name] = expected[name] + weight * value
    torch.testing.assert_close(found, expected)


def test_what_stands_before_may_be_frozen_and_an_evaluation_has_no_losses(tmp_path: Path) -> None:
    on_processes(1, check_frozen, (), tmp_path, 60)


def check_frozen(rank: int, folder: Path) -> None:
    _, divided = backbones(CONFIG)
    for parameter in divided.modality.parameters():
        parameter.requires_grad_(False)
    _, found = differentiated(divided, [reading({"image": 4, "text": 4})], fuse=False)
    assert found["blocks.0.moe.w_in"].any()
    with torch.no_grad():
        assert not divided.eval()([reading({"image": 4})], fuse=False).losses


def test_rows_in_parts_and_back() -> None:
    spans = spans_of([reading({"image": 5, "text": 3})], tuple(LENGTHS))
    parts = Microbatches(spans, 4)
    x = torch.arange(35.0)[:, None].expand(-1, 2)
    divided = parts.divided(x)
    assert divided.shape == (4, 2 * 4 + 1 * 5, 2)
    assert divided[2, :, 0].tolist() == [16, 17, 18, 19, 0, 0, 0, 0, 30, 31, 32, 33, 34]
    assert torch.equal(parts.joined(divided), x)
    assert parts.divided(torch.ones(35, dtype=torch.bool)).sum() == 35


def test_stages_of_a_process_are_as_many_apart_as_there_are_processes() -> None:
    layout = ParallelConfig.of_word("pp2-vpp2")
    assert stages_of(8, layout, 1) == {1: range(2, 4), 3: range(6, 8)}
