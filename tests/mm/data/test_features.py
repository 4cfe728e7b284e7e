"""Features on disk: what was computed is read back, by whoever asks; an interruption costs nothing, damage is said."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from encoders import BottleneckConfig
from encoders.base import Features
from encoders.image import ImageConfig, ImageEncoder
from encoders.text import TextConfig, TextEncoder
from encoders.trunks import NO_WEIGHTS
from kernels.dispatch import has_bf16
from mm.data.features import UNFINISHED, Extractor, FeatureStore, build_store, stack_rows, store_key
from mm.device import autocast

ROWS, CHUNK = 40, 2
CPU = torch.device("cpu")
BUILDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import torch
from encoders import Features
from mm.data.features import build_store

print("ready", flush=True)
sys.stdin.readline()
ran = []

def features(rows):
    ran.extend(rows)
    time.sleep(0.02)
    values = torch.tensor(list(rows)).float() + 1
    return Features(values.view(-1, 1, 1).expand(-1, 3, 4), torch.ones(len(rows), 3, dtype=torch.bool))

store = build_store(Path(sys.argv[1]), 40, 2, features, "numbers", {})
print(len(ran), *[int(store[row][0, 0]) for row in range(len(store))])
"""
"""Builds a store of 40 rows, row i of value i + 1, and prints how many it computed, and what it reads."""


def row(index: int) -> torch.Tensor:
    """Row i has 1 + i mod 3 tokens of value i."""
    return torch.full((1 + index % 3, 4), float(index))


def features(indices: Sequence[int]) -> Features:
    return Features(*stack_rows(row(i) for i in indices))


def build(folder: Path, compute: Callable[[Sequence[int]], Features] = features) -> FeatureStore:
    return build_store(folder, ROWS, CHUNK, compute, "numbers", {"what": "numbers"})


def test_rows_come_back_without_padding(tmp_path: Path) -> None:
    store = build(tmp_path / "features" / "store")
    assert len(store) == ROWS
    for i in range(ROWS):
        assert torch.equal(store[i].float(), row(i))


def test_a_finished_store_is_not_computed_again(tmp_path: Path) -> None:
    def forbidden(indices: Sequence[int]) -> Features:
        raise AssertionError("the trunk ran")

    build(tmp_path / "features" / "store")
    assert torch.equal(build(tmp_path / "features" / "store", forbidden)[7].float(), row(7))


@pytest.mark.parametrize("torn", [b"", b"torn bytes of an unfinished write"])
def test_an_interrupted_extraction_goes_on_to_the_same_bytes(tmp_path: Path, torn: bytes) -> None:
    build(tmp_path / "features" / "whole")
    asked: list[int] = []

    def interrupted(indices: Sequence[int]) -> Features:
        if indices[0] >= 26:
            raise KeyboardInterrupt
        return features(indices)

    def counted(indices: Sequence[int]) -> Features:
        asked.extend(indices)
        return features(indices)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "features" / "store", interrupted)
    with (tmp_path / UNFINISHED / "store" / "tokens.bin").open("ab") as file:
        file.write(torn)
    build(tmp_path / "features" / "store", counted)
    assert 0 < asked[0] <= 26 and asked[-1] == ROWS - 1  # finished chunks stay
    for name in ("tokens.bin", "lengths.npy"):
        assert (tmp_path / "features" / "store" / name).read_bytes() == (
            tmp_path / "features" / "whole" / name
        ).read_bytes()
    about, whole = (json.loads((tmp_path / "features" / name / "meta.json").read_text()) for name in ("store", "whole"))
    assert {**about, "seconds": whole["seconds"]} == whole  # how long it took is the one thing that differs


def test_an_unfinished_store_without_its_end_is_made_anew(tmp_path: Path) -> None:
    def interrupted(indices: Sequence[int]) -> Features:
        if indices[0] >= 26:
            raise KeyboardInterrupt
        return features(indices)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "features" / "store", interrupted)
    tokens = tmp_path / UNFINISHED / "store" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:8])
    store = build(tmp_path / "features" / "store")
    for i in range(ROWS):
        assert torch.equal(store[i].float(), row(i))


def test_a_store_is_there_once_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "store"

    def watched(indices: Sequence[int]) -> Features:
        assert not folder.exists()
        return features(indices)

    build(folder, watched)
    assert sorted(path.name for path in folder.iterdir()) == ["lengths.npy", "meta.json", "tokens.bin"]
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


def test_of_two_processes_one_computes_and_both_read_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "features" / "store")]
    processes = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].splitlines()[-1].split() for process in processes]
    assert sorted(int(words[0]) for words in said) == [0, ROWS]
    for words in said:
        assert [int(word) for word in words[1:]] == list(range(1, ROWS + 1))


@pytest.mark.parametrize("value", [70000.0, -70000.0, torch.nan, torch.inf])
def test_a_feature_that_float16_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    def large(indices: Sequence[int]) -> Features:
        found = features(indices)
        if 30 in indices:
            found.tokens[0, 0, 0] = value
        return found

    with pytest.raises(ValueError, match=r"^numbers: .* at most 65,504: .* set frozen=false") as refused:
        build(tmp_path / "features" / "store", large)
    assert "\n" not in str(refused.value) and not (tmp_path / "features" / "store").exists()


def test_the_largest_float16_is_kept(tmp_path: Path) -> None:
    def large(indices: Sequence[int]) -> Features:
        return Features(torch.full((len(indices), 1, 4), 65504.0), torch.ones(len(indices), 1, dtype=torch.bool))

    assert build(tmp_path / "features" / "store", large)[0].eq(65504).all()


def test_a_truncated_store_is_one_line(tmp_path: Path) -> None:
    build(tmp_path / "features" / "store")
    tokens = tmp_path / "features" / "store" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-8])
    with pytest.raises(ValueError, match="delete the folder and run again") as refused:
        build(tmp_path / "features" / "store")
    assert "\n" not in str(refused.value) and str(tmp_path / "features" / "store") in str(refused.value)


def test_a_key_depends_on_all_of_its_parts() -> None:
    keys = {store_key("a", 1), store_key("a", 2), store_key("b", 1), store_key(["a"], 1), store_key({"x": 1}, 1)}
    assert len(keys) == 5 and store_key({"x": 1, "y": 2}) == store_key({"y": 2, "x": 1})


def test_stacked_rows_are_padded_and_masked() -> None:
    tokens, mask = stack_rows([row(0), row(2)])
    assert tokens.shape == (2, 3, 4) and mask.tolist() == [[True, False, False], [True] * 3]
    assert not tokens[0, 1:].any()


def test_extraction_gives_what_the_encoder_gives() -> None:
    """Batch norms folded on a copy and few rows at a time are another order of sums, and nothing else."""
    config = ImageConfig(trunk="timm/tiny_vit_5m_224", weights=NO_WEIGHTS, size=64, frozen=True)
    encoder, images = (
        ImageEncoder(config, BottleneckConfig(), 16).eval(),
        torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8),
    )
    for module in encoder.trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    extract = Extractor(encoder, at_once=2, precision="auto")
    with torch.inference_mode(), autocast("auto", CPU):
        expected = encoder.features(images)
    found = extract(images, None)
    tolerance = 5e-2 if has_bf16("cpu") else 1e-3
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=tolerance, atol=tolerance)
    assert found.mask.all() and len(found.mask) == 5
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in extract.encoder.trunk.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_extraction_passes_each_row_its_mask() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=16), BottleneckConfig(), 16, torch.arange(50)).eval()
    ids, mask = torch.randint(0, 50, (5, 7)), torch.arange(7) < torch.tensor([3, 7, 1, 5, 2])[:, None]
    found = Extractor(encoder, at_once=2, precision="auto")(ids, mask)
    assert torch.equal(found.mask, mask)
    with torch.inference_mode(), autocast("auto", CPU):
        expected = encoder.features(ids, mask).tokens
    torch.testing.assert_close(found.tokens[mask], expected[mask], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("free", "stores", "refused"), [(900, 1, True), (1000, 1, False), (2800, 3, True)])
def test_a_store_that_the_disk_cannot_hold_is_refused_after_its_first_chunk(
    free: int, stores: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 rows, of which the first two have three tokens of four halves: 24 bytes, 960 for all by their measure."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    computed: list[int] = []

    def counted(indices: Sequence[int]) -> Features:
        computed.extend(indices)
        tokens = torch.ones(len(indices), 3, 4)
        return Features(tokens, torch.ones(len(indices), 3, dtype=torch.bool))

    def make() -> FeatureStore:
        return build_store(tmp_path / "features" / "store", ROWS, CHUNK, counted, "numbers", {}, stores)

    if refused:
        with pytest.raises(ValueError, match=r"numbers: 0\.0 GB are needed.*0\.0 GB left.*--data\.cache"):
            make()
    else:
        assert len(make()) == ROWS
    assert len(computed) == (CHUNK if refused else ROWS)


def test_a_large_store_says_its_bytes_and_minutes_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mm.data.features.LARGE_BYTES", 100)
    at: list[int] = []

    def watched(indices: Sequence[int]) -> Features:
        at.append(len(caplog.records))
        return features(indices)

    with caplog.at_level("INFO"):
        build(tmp_path / "features" / "store", watched)
    (said,) = [record.message for record in caplog.records if "GB and about" in record.message]
    assert said.startswith("numbers: 0.0 GB and about 0 minutes (") and at[1] == at[0] + 1
