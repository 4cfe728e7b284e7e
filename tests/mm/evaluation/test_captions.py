"""A run's captions of a split are scored beside training captions, kept, and shown."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.captions import CaptionScores
from eval.report.exhibits import AttentionMap
from mm.artifacts.run import build_run, save_run
from mm.artifacts.seen import save_seen
from mm.config import AlignConfig
from mm.data.collection import Collection
from mm.data.module import AlignData
from mm.evaluation import captions as module
from mm.evaluation.captions import EvalCaptions, eval_captions
from mm.infer.decoding import Decoding
from mm.model.causal import Condition
from mm.model.writer import Writer


def overlap(written: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> CaptionScores:
    """In the place of pycocoevalcap: shared words."""
    each = []
    for image, text in written.items():
        words = set(" ".join(references[image]).split())
        each.append(100.0 * len(words & set(text.split())) / max(1, len(words)))
    values = np.array(each)
    return CaptionScores({"BLEU-4": 0.0, "CIDEr": float(values.mean())}, {"CIDEr": values})


@pytest.fixture(scope="module")
def kept() -> dict[bool, Path]:
    """Folders of runs by whether they write: the first test that needs one leaves it here."""
    return {}


@pytest.fixture
def run(
    kept: dict[bool, Path],
    tiny: AlignConfig,
    on_scenes: Callable[..., AlignConfig],
    open_data: Callable[[AlignConfig], AlignData],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[bool], Path]:
    """run(writes) -> the folder of an untrained run on a few scenes."""
    monkeypatch.setattr(module, "score_captions", overlap)

    def build(writes: bool = True) -> Path:
        if writes not in kept:
            folder = tmp_path_factory.mktemp("captions") / "run"
            config = on_scenes(model=replace(tiny.model, generate=writes))
            data = open_data(config)
            torch.manual_seed(0)
            save_run(build_run(config, data.vocabulary), folder)
            save_seen([Collection.of(config.data, [data.open("train"), data.open("val")])], folder)
            kept[writes] = folder
        return kept[writes]

    return build


@pytest.mark.parametrize("beside", ["image", "audio"])
def test_captions_are_written_scored_and_shown(run: Callable[..., Path], beside: str, tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    given = EvalCaptions(str(run()), beside=beside, decoding=Decoding(6), samples=50, json=place)  # type: ignore[arg-type]
    assert eval_captions(given) == place
    result = json.loads(place.read_text())
    written = json.loads((tmp_path / "out-written.json").read_text())
    assert [row["image_id"] for row in written] == sorted(row["image_id"] for row in written)
    assert result["images"] == len(written) and result["references"] == 5 * len(written)
    assert set(result["scores"]) == {"written", "nearest"} and set(result["similarity"]) > {"references"}
    assert result["similarity"]["nearest"] >= result["similarity"]["references"], "the nearest is not nearest"
    report = place.with_suffix(".html").read_text()
    assert written[0]["caption"].split()[0] in report and "Nearest training caption" in report
    assert ("<audio" in report) == (beside == "audio")


def test_the_baseline_can_be_left_out(run: Callable[..., Path], tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    eval_captions(EvalCaptions(str(run()), decoding=Decoding(2), nearest=False, samples=50, json=place))
    assert set(json.loads(place.read_text())["scores"]) == {"written"}


def test_a_run_that_does_not_write_is_refused(run: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"does not write text: train it with model\.generate=true"):
        eval_captions(EvalCaptions(str(run(False))))


def test_a_word_looked_where_it_was_written_from(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is written by what was read before it: row t is of the token at place t + 1."""

    def one_patch_each(writer: Writer, ids: torch.Tensor, condition: Condition) -> torch.Tensor:
        tokens = condition.mask.shape[1]
        prefix = tokens - math.isqrt(tokens) ** 2
        rows = torch.arange(ids.shape[1] - 1) % (tokens - prefix)
        return torch.eye(tokens)[prefix + rows][None, None, None]

    looks: list[AttentionMap] = []

    def shown(path: Path, result: object, captions: object, looked: list[AttentionMap]) -> Path:
        looks.extend(looked)
        return path

    monkeypatch.setattr("mm.evaluation.describer.written_attention_maps", one_patch_each)
    monkeypatch.setattr(module, "write_captions_report", shown)
    eval_captions(EvalCaptions(str(run()), decoding=Decoding(6), nearest=False, samples=50, json=tmp_path / "out.json"))
    assert looks
    for look in looks:
        assert look.weights[0].argmax() == 0 and len(look.words) == len(look.weights)
