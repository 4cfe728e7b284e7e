"""Embeddings are made once for all questions about the same weights and files, and again once either changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from kernels.errors import UserError
from mm.artifacts.run import Run, build_run
from mm.config import AlignConfig, EvalConfig, encoders_of, plan_of
from mm.data.module import AlignData
from mm.data.scenes import write_scenes
from mm.evaluation import kept
from mm.evaluation.retrieval import evaluate_embedded

Setting = tuple[Run, AlignData]


@pytest.fixture
def setting(tiny: AlignConfig, tmp_path: Path) -> Setting:
    root = write_scenes(tmp_path / "scenes", sizes={"train": 8, "val": 6}, image_size=32, layout="coco")
    config = replace(tiny, data=replace(tiny.data, root=str(root), cache=str(tmp_path / "cache")))
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    torch.manual_seed(0)
    return build_run(config, data.vocabulary), data


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that were embedded."""
    found: list[str] = []
    embed = kept.embed_split

    def counted(run: Run, data: AlignData, view: object, split: str) -> object:
        found.append(split)
        return embed(run, data, view, split)  # type: ignore[arg-type]

    monkeypatch.setattr(kept, "embed_split", counted)
    return found


def ask(setting: Setting) -> kept.SplitEmbeddings:
    run, data = setting
    return kept.embeddings_of(run, data, data.open("val"), "val")


def test_another_question_finds_the_same_embeddings(setting: Setting, calls: list[str]) -> None:
    first, second = ask(setting), ask(setting)
    assert calls == ["val"] and len(first.parts) == 3
    for modality, part in first.parts.items():
        again = second.parts[modality]
        for tensor, other in zip(tree_leaves(part), tree_leaves(again), strict=True):
            assert torch.equal(tensor, other) and tensor.dtype == other.dtype
        assert (first.code_counts[modality] == second.code_counts[modality]).all()
    assert (first.arrays()["caption_ids"] == second.arrays()["caption_ids"]).all()
    assert first.load is not None and second.load is not None and np.array_equal(first.load, second.load)
    figures = [evaluate_embedded(setting[0], each, "it", EvalConfig(rerank=3)).metrics() for each in (first, second)]
    assert figures[0] == figures[1] and "reranked/RSUM" in figures[0]


def weights(setting: Setting) -> None:
    with torch.no_grad():
        next(iter(setting[0].model.parameters())).add_(0.1)


def image(setting: Setting) -> None:
    images = sorted(Path(setting[1].config.folder).rglob("images/val*"))
    images[0].write_bytes(images[1].read_bytes())


def caption(setting: Setting) -> None:
    path = Path(setting[1].config.folder) / "annotations" / "captions_val.json"
    path.write_text(path.read_text().replace("a ", "one ", 1))


@pytest.mark.parametrize("change", [weights, image, caption])
def test_what_changes_is_embedded_anew(change: Callable[[Setting], None], setting: Setting, calls: list[str]) -> None:
    ask(setting)
    change(setting)
    ask(setting)
    assert calls == ["val", "val"]


def test_an_image_that_does_not_decode_is_counted_each_time(setting: Setting, calls: list[str]) -> None:
    images = sorted(Path(setting[1].config.folder).rglob("images/val*"))
    images[2].write_bytes(b"no image")
    run, data = setting
    skipped = []
    for _ in range(2):
        dataset = data.open("val")
        kept.embeddings_of(run, data, dataset, "val")
        skipped.append(dict(dataset.skipped))
    assert calls == ["val"] and skipped[0] == skipped[1] and sum(skipped[0].values()) == 1


def test_a_damaged_file_is_named(setting: Setting, tmp_path: Path) -> None:
    ask(setting)
    (path,) = (tmp_path / "cache" / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}.*delete the file"):
        ask(setting)
