"""A run's data: frozen trunks run once, and a step's batch is the same whoever asks for it and when."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels.dispatch import bf16_autocast
from mm.artifacts.run import build_run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.data.coco import write_coco
from mm.data.module import AlignData
from mm.data.scenes.folder import sample_at
from mm.model.multimodal import MultimodalModel

OnScenes = Callable[..., AlignConfig]
Open = Callable[[AlignConfig], AlignData]


def batches(data: AlignData, start: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    data.trainer = SimpleNamespace(global_step=start, global_rank=rank, world_size=world)  # type: ignore[assignment]
    return list(data.train_dataloader())


def model_of(config: AlignConfig, data: AlignData) -> MultimodalModel:
    torch.manual_seed(0)
    return build_run(config, data.vocabulary).model.eval()


def assert_same(a: Batch, b: Batch) -> None:
    for part in ("inputs", "features", "masks", "present", "sample_index"):
        torch.testing.assert_close(getattr(a, part), getattr(b, part), rtol=0, atol=0)
    assert torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("frozen", [False, True], ids=["raw", "cached"])
def test_a_resumed_run_sees_the_batches_it_would_have_seen(on_scenes: OnScenes, open_data: Open, frozen: bool) -> None:
    """From mid-epoch on, to the bit: captions, paddings and cached features do not depend on what was read before."""
    parts = {m: {"frozen": frozen} for m in ("image", "audio", "text")}
    found = []
    for start in (0, 5):
        data = open_data(config := on_scenes(**parts))
        data.cache_features(model_of(config, data).encoders, {"train": data.train})
        found.append(batches(data, start))
    assert len(found[0]) == 10 and len(found[1]) == 5
    for whole, resumed in zip(found[0][5:], found[1], strict=True):
        assert_same(whole, resumed)


def test_a_modality_that_a_split_lacks_is_reported(
    on_scenes: OnScenes, open_data: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoken, silent = (sample_at(0, "train", i, 32) for i in range(2))
    write_coco([spoken, replace(silent, audio=None)], tmp_path / "set", "train")
    write_coco([replace(sample_at(0, "val", 0, 32), audio=None)], tmp_path / "set", "val")
    data = open_data(on_scenes(data={"root": str(tmp_path / "set")}))
    assert "set/train: 1 of 2 images have no audio" in caplog.text
    data.open("val")
    assert "set/val has no audio" in caplog.text
    caplog.clear()
    open_data(on_scenes(data={"root": str(tmp_path / "set")}, model={"modalities": ("image", "text")}))
    assert "audio" not in caplog.text


def test_ranks_share_a_step(on_scenes: OnScenes, open_data: Open) -> None:
    whole = [b.ids.tolist() for b in batches(open_data(on_scenes()))]
    shards = [[b.ids.tolist() for b in batches(open_data(on_scenes()), rank=r, world=2)] for r in (0, 1)]
    assert [a + b for a, b in zip(*shards, strict=True)] == whole


def test_frozen_trunks_run_once(on_scenes: OnScenes, open_data: Open) -> None:
    """The second run finds the features on disk; what it trains on is what the trunk gives, in half precision."""
    config = on_scenes(image={"frozen": True}, text={"frozen": True})
    data = open_data(config)
    model = model_of(config, data)
    data.cache_features(model.encoders, {"train": data.train})
    again = open_data(config)
    for encoder in model.encoders.values():
        encoder.trunk.forward = None  # running it would fail
    again.cache_features(model.encoders, {"train": again.train})
    for encoder in model.encoders.values():
        del encoder.trunk.forward
    first = batches(again)[0]
    assert set(first.features) == {"image", "text"} and "image" not in first.inputs and "audio" in first.inputs
    raw = batches(open_data(on_scenes()))[0].inputs["image"]
    with torch.inference_mode():
        expected = model.encoders["image"].features(raw).tokens
    torch.testing.assert_close(first.features["image"].float(), expected, rtol=2e-2, atol=2e-2)


def test_other_weights_are_other_features(on_scenes: OnScenes, open_data: Open) -> None:
    config = on_scenes(image={"frozen": True})
    data = open_data(config)
    model = model_of(config, data)
    data.cache_features(model.encoders, {"train": data.train})
    before = data.features.stores["train", "image", 0][0]
    with torch.no_grad():
        next(model.encoders["image"].trunk.parameters()).mul_(2)
    data.cache_features(model.encoders, {"train": data.train})
    assert not torch.equal(data.features.stores["train", "image", 0][0], before)


def test_cached_and_computed_features_embed_alike(on_scenes: OnScenes, open_data: Open) -> None:
    config = on_scenes(image={"frozen": True}, audio={"frozen": True}, text={"frozen": True})
    cached, raw = open_data(config), open_data(on_scenes())
    model = model_of(config, cached)
    dataset = cached.open("val")
    cached.cache_features(model.encoders, {"val": dataset})
    kinds = (AlignData.sample_batches, AlignData.caption_batches)
    with torch.inference_mode(), bf16_autocast("cpu"):  # the precision in which features are cached
        for read in kinds:
            found = [model(next(iter(read(d, d.eval_view(dataset), "val", 5)))).embeddings for d in (cached, raw)]
            for m, vectors in found[0].items():
                assert (vectors * found[1][m]).sum(1).min() > 0.99


def test_what_workers_decode_is_not_kept(on_scenes: OnScenes, open_data: Open) -> None:
    """Each worker would hold a copy of its own."""
    for workers, kept in ((0, 1), (1, 0)):
        view = open_data(on_scenes(data={"workers": workers})).train_view
        view[3, 0]
        assert len(view._kept) == kept


def test_features_of_images_do_not_depend_on_how_audio_is_cut(
    on_scenes: OnScenes, open_data: Open, tmp_path: Path
) -> None:
    for seconds in (0.32, 0.16):
        config = on_scenes(image={"frozen": True}, audio={"seconds": seconds, "frozen": True})
        data = open_data(config)
        data.cache_features(model_of(config, data).encoders, {"train": data.train})
    stores = sorted(path.name.split("-")[0] for path in (Path(config.data.cache) / "features").iterdir())
    assert stores == ["audio", "audio", "image"]
