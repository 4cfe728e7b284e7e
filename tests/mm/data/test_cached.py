"""Behaviour: behind a frozen trunk an absent image, audio clip or caption is absent still, and is not forwarded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders import Features
from mm.artifacts.run import build_run
from mm.batch import Sample
from mm.config import AlignConfig
from mm.data.coco import write_coco
from mm.data.module import AlignData
from mm.data.scenes.folder import sample_at
from mm.data.shard_writer import write_shards

LACKING = {"image": {"image": None}, "audio": {"audio": None, "sample_rate": 0}, "text": {"captions": ()}}
OnScenes = Callable[..., AlignConfig]
Open = Callable[[AlignConfig], AlignData]


def partly(modality: str, absent: set[int]) -> list[Sample]:
    """Six scenes, of which some lack a modality."""
    lacks = dict(LACKING[modality])
    if modality == "text":
        lacks["caption_ids"] = ()
    samples = [sample_at(0, "train", i, 32) for i in range(6)]
    return [replace(sample, **lacks) if i in absent else sample for i, sample in enumerate(samples)]  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_absent_rows_of_a_frozen_trunk_are_not_forwarded_and_stay_absent(
    on_scenes: OnScenes, open_data: Open, tmp_path: Path, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the first chunk is absent, and of the second a part."""
    monkeypatch.setattr("mm.data.cached.chunk_rows", lambda extract: 3)
    write_shards(partly(modality, {0, 1, 2, 4}), tmp_path / "set", "train")
    config = on_scenes(data={"root": str(tmp_path / "set")}, **{modality: {"frozen": True}})
    data = open_data(config)
    torch.manual_seed(0)
    encoder = build_run(config, data.vocabulary).model.encoders[modality]
    forwarded = []
    features = encoder.features

    def counted(inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        forwarded.append(len(inputs))
        return features(inputs, mask)

    monkeypatch.setattr(encoder, "features", counted)
    data.cache_features({modality: encoder}, {"train": data.train})
    captions = {caption for several in data.train.captions for caption in several}
    assert sum(forwarded) == (len(captions) if modality == "text" else 2)
    batch = data.train_batch(list(range(6)))
    assert batch.present[modality].tolist() == [False, False, False, True, False, True]
    assert batch.masks[modality].any(1).tolist() == batch.present[modality].tolist()
    nobody = data.train_batch([0, 1, 2])
    assert not nobody.present[modality].any() and nobody.features[modality].shape[1] == 1


def test_a_file_that_does_not_decode_is_absent_behind_a_frozen_trunk_and_counted_whoever_made_its_features(
    on_scenes: OnScenes, open_data: Open, tmp_path: Path
) -> None:
    write_coco([sample_at(0, "train", i, 32) for i in range(4)], tmp_path / "set", "train", image_format="png")
    sorted((tmp_path / "set" / "images").iterdir())[1].write_bytes(b"no image")
    config = on_scenes(data={"root": str(tmp_path / "set")}, image={"frozen": True})
    for _ in range(2):
        data = open_data(config)
        torch.manual_seed(0)
        encoder = build_run(config, data.vocabulary).model.encoders["image"]
        data.cache_features({"image": encoder}, {"train": data.train})
        assert data.train.skipped == {"unreadable image": 1}
        assert data.train.has_image == [True, False, True, True]
        batch = data.train_batch([0, 1, 2, 3])
        assert batch.present["image"].tolist() == [True, False, True, True]
        assert batch.masks["image"].any(1).tolist() == [True, False, True, True]
