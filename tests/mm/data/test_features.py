"""Features on disk: what was computed is read back, an interruption costs nothing, and damage is said."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from encoders.base import Features
from mm.data.features import FeatureStore, build_store, stack_rows, store_key

ROWS, CHUNK = 40, 2


def row(index: int) -> torch.Tensor:
    """Row i has 1 + i mod 3 tokens of value i."""
    return torch.full((1 + index % 3, 4), float(index))


def features(indices: Sequence[int]) -> Features:
    return Features(*stack_rows(row(i) for i in indices))


def build(folder: Path, compute: Callable[[Sequence[int]], Features] = features) -> FeatureStore:
    return build_store(folder, ROWS, CHUNK, compute, "numbers", {"what": "numbers"})


def test_rows_come_back_without_padding(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    assert len(store) == ROWS
    for i in range(ROWS):
        assert torch.equal(store[i].float(), row(i))


def test_a_finished_store_is_not_computed_again(tmp_path: Path) -> None:
    def forbidden(indices: Sequence[int]) -> Features:
        raise AssertionError("the trunk ran")

    build(tmp_path / "store")
    assert torch.equal(build(tmp_path / "store", forbidden)[7].float(), row(7))


@pytest.mark.parametrize("torn", [b"", b"torn bytes of an unfinished write"])
def test_an_interrupted_extraction_goes_on_to_the_same_bytes(tmp_path: Path, torn: bytes) -> None:
    build(tmp_path / "whole")
    asked: list[int] = []

    def interrupted(indices: Sequence[int]) -> Features:
        if indices[0] >= 26:
            raise KeyboardInterrupt
        return features(indices)

    def counted(indices: Sequence[int]) -> Features:
        asked.extend(indices)
        return features(indices)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "store", interrupted)
    with (tmp_path / "store" / "tokens.bin").open("ab") as file:
        file.write(torn)
    build(tmp_path / "store", counted)
    assert 0 < asked[0] <= 26 and asked[-1] == ROWS - 1                # finished chunks stay
    for name in ("tokens.bin", "lengths.npy"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    about, whole = (json.loads((tmp_path / name / "meta.json").read_text()) for name in ("store", "whole"))
    assert {**about, "seconds": whole["seconds"]} == whole             # how long it took is the one thing that differs


def test_a_truncated_store_is_one_line(tmp_path: Path) -> None:
    build(tmp_path / "store")
    tokens = tmp_path / "store" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-8])
    with pytest.raises(ValueError, match="delete the folder and run again") as refused:
        build(tmp_path / "store")
    assert "\n" not in str(refused.value) and str(tmp_path / "store") in str(refused.value)


def test_a_key_depends_on_all_of_its_parts() -> None:
    keys = {store_key("a", 1), store_key("a", 2), store_key("b", 1), store_key(["a"], 1), store_key({"x": 1}, 1)}
    assert len(keys) == 5 and store_key({"x": 1, "y": 2}) == store_key({"y": 2, "x": 1})


def test_stacked_rows_are_padded_and_masked() -> None:
    tokens, mask = stack_rows([row(0), row(2)])
    assert tokens.shape == (2, 3, 4) and mask.tolist() == [[True, False, False], [True] * 3]
    assert not tokens[0, 1:].any()
