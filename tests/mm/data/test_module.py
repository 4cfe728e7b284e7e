"""A run's data: frozen trunks run once for a content, and a step's batch is the same whoever asks for it and when."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from encoders import audio
from encoders.trunks import NO_WEIGHTS
from kernels import dispatch
from mm.artifacts.run import build_run
from mm.batch import Batch, Sample
from mm.config import AlignConfig
from mm.data.coco import write_coco
from mm.data.features import FeatureStore
from mm.data.module import AlignData
from mm.data.scenes.folder import sample_at
from mm.data.shard_writer import write_shards
from mm.device import autocast
from mm.model.multimodal import MultimodalModel

OnScenes = Callable[..., AlignConfig]
Open = Callable[[AlignConfig], AlignData]


CPU = torch.device("cpu")


def batches(data: AlignData, start: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(loader(data, start, rank, world))


def loader(data: AlignData, start: int = 0, rank: int = 0, world: int = 1, device: torch.device = CPU) -> DataLoader:
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(global_step=start, strategy=strategy)  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mm.data.module.rank_and_size", lambda group: (rank, world))
        return data.train_dataloader()


def model_of(config: AlignConfig, data: AlignData) -> MultimodalModel:
    torch.manual_seed(0)
    return build_run(config, data.vocabulary).model.eval()


def assert_same(a: Batch, b: Batch) -> None:
    for part in ("inputs", "features", "masks", "present", "sample_index"):
        torch.testing.assert_close(getattr(a, part), getattr(b, part), rtol=0, atol=0)
    assert torch.equal(a.ids, b.ids)


def samples(first: int, count: int = 3) -> list[Sample]:
    """Scenes under the same keys, ids and captions wherever they begin; pictures are twice as wide as high."""
    found = []
    for i in range(count):
        named = sample_at(0, "train", i, 32)
        seen = sample_at(0, "train", first + i, 32)
        assert seen.image is not None
        found.append(replace(named, image=seen.image.repeat_interleave(2, dim=2), audio=seen.audio))
    return found


@pytest.fixture
def extracted(on_scenes: OnScenes, open_data: Open) -> Callable[..., FeatureStore]:
    """extracted(root, modality, data={…}, settings={…}, train={…}) -> a store of its training split."""

    def run(
        root: Path, modality: str, data: dict | None = None, settings: dict | None = None, train: dict | None = None
    ) -> FeatureStore:
        parts = {modality: {"frozen": True, **(settings or {})}, "data": {"root": str(root), **(data or {})}}
        parts["train"] = train or {}
        opened = open_data(config := on_scenes(**parts))
        opened.cache_features(model_of(config, opened).encoders, {"train": opened.train})
        return opened.features.stores["train", modality, 0]

    return run


def rows_of(store: FeatureStore) -> list[torch.Tensor]:
    return [store[row] for row in range(len(store))]


def differ(a: FeatureStore, b: FeatureStore) -> bool:
    """Whether each row of one store is another one in the other."""
    assert len(a) == len(b) == 3
    return not any(torch.equal(x, y) for x, y in zip(rows_of(a), rows_of(b), strict=True))


@pytest.mark.parametrize("write", [write_coco, write_shards])
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_replaced_files_are_other_features(
    extracted: Callable[..., FeatureStore], tmp_path: Path, write: Callable[..., Path], modality: str
) -> None:
    write(samples(0), tmp_path / "set", "train")
    before = extracted(tmp_path / "set", modality)
    if write is write_shards:
        shutil.rmtree(tmp_path / "set")
    write(samples(10), tmp_path / "set", "train")
    assert differ(before, extracted(tmp_path / "set", modality))


def test_a_picture_of_the_same_size_in_bytes_is_another_picture(
    extracted: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    write_coco(samples(0), tmp_path / "set", "train", image_format="png")
    first, second, _ = sorted((tmp_path / "set" / "images").iterdir())
    contents = [first.read_bytes(), second.read_bytes()]
    longest = max(len(content) for content in contents)
    padded = [content.ljust(longest, b"\0") for content in contents]
    first.write_bytes(padded[0])
    second.write_bytes(padded[1])
    before = extracted(tmp_path / "set", "image")
    first.write_bytes(padded[1])
    second.write_bytes(padded[0])
    after = extracted(tmp_path / "set", "image")
    assert torch.equal(after[0], before[1]) and torch.equal(after[1], before[0])


def test_other_audio_clips_beside_the_same_pictures_are_other_features(
    extracted: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    write_coco(samples(10), tmp_path / "spoken", "train")
    before = extracted(tmp_path / "set", "audio")
    assert differ(before, extracted(tmp_path / "set", "audio", data={"audio_root": str(tmp_path / "spoken")}))


def test_two_sets_in_folders_of_one_name_are_two(extracted: Callable[..., FeatureStore], tmp_path: Path) -> None:
    write_coco(samples(0), tmp_path / "a" / "set", "train")
    write_coco(samples(10), tmp_path / "b" / "set", "train")
    assert differ(extracted(tmp_path / "a" / "set", "image"), extracted(tmp_path / "b" / "set", "image"))


def test_a_set_that_was_moved_is_the_same_set(extracted: Callable[..., FeatureStore], tmp_path: Path) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    before = extracted(tmp_path / "set", "image")
    (tmp_path / "set").rename(tmp_path / "moved")
    assert extracted(tmp_path / "moved", "image").tokens.filename == before.tokens.filename


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_folder_and_its_shards_are_one_set(
    extracted: Callable[..., FeatureStore], tmp_path: Path, modality: str
) -> None:
    write_coco(samples(0), tmp_path / "folder", "train")
    write_shards(samples(0), tmp_path / "shards", "train")
    of_folder, of_shards = (extracted(tmp_path / name, modality) for name in ("folder", "shards"))
    assert of_folder.tokens.filename == of_shards.tokens.filename


@pytest.mark.parametrize(
    "modality, settings",
    [("image", {"fit": "crop"}), ("audio", {"seconds": 0.2}), ("audio", {"sample_rate": 8000})],
    ids=["fit", "seconds", "rate"],
)
def test_what_a_trunk_is_shown_otherwise_has_other_features(
    extracted: Callable[..., FeatureStore], tmp_path: Path, modality: str, settings: dict
) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    before = extracted(tmp_path / "set", modality)
    assert differ(before, extracted(tmp_path / "set", modality, settings=settings))


def test_fewer_tokens_of_a_caption_are_other_features(extracted: Callable[..., FeatureStore], tmp_path: Path) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    before = extracted(tmp_path / "set", "text")
    assert len(extracted(tmp_path / "set", "text", settings={"max_tokens": 4})[0]) < len(before[0])


@pytest.mark.parametrize("name, seconds", [("WINDOW_SECONDS", 0.05), ("HOP_SECONDS", 0.008)])
def test_another_window_of_analysis_has_other_features(
    extracted: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seconds: float
) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    before = extracted(tmp_path / "set", "audio")
    monkeypatch.setattr(audio, name, seconds)
    assert differ(before, extracted(tmp_path / "set", "audio"))


def test_pooled_features_are_other_features(extracted: Callable[..., FeatureStore], tmp_path: Path) -> None:
    write_coco(samples(0), tmp_path / "set", "train")
    trunk = {"trunk": "timm/test_vit", "weights": NO_WEIGHTS}
    before = extracted(tmp_path / "set", "image", settings=trunk)
    after = extracted(tmp_path / "set", "image", settings={**trunk, "pool": 2})
    assert len(after[0]) < len(before[0])


def test_other_arithmetic_is_other_features(
    extracted: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of fp32 reads features of fp32, beside those that a run of bf16 has made of the same images."""
    write_coco(samples(0), tmp_path / "set", "train")
    stores = {}
    for precision in ("auto", "fp32"):
        for native in (False, True):
            monkeypatch.setattr(dispatch, "has_bf16", lambda device, native=native: native)
            stores[precision, native] = extracted(tmp_path / "set", "image", train={"precision": precision})
    wide = stores["auto", False]
    for same in (stores["fp32", False], stores["fp32", True]):
        assert same.folder == wide.folder
    narrow = stores["auto", True]
    assert differ(wide, narrow)
    torch.testing.assert_close(wide[0], narrow[0], rtol=5e-2, atol=5e-2)


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
    assert "set/train: 1 of 2 samples have no audio" in caplog.text
    data.open("val")
    assert "set/val has no audio" in caplog.text
    caplog.clear()
    open_data(on_scenes(data={"root": str(tmp_path / "set")}, model={"modalities": ("image", "text")}))
    assert "audio" not in caplog.text


def test_ranks_share_a_step(on_scenes: OnScenes, open_data: Open) -> None:
    whole = [b.ids.tolist() for b in batches(open_data(on_scenes()))]
    shards = [[b.ids.tolist() for b in batches(open_data(on_scenes()), rank=r, world=2)] for r in (0, 1)]
    assert [a + b for a, b in zip(*shards, strict=True)] == whole


def test_a_worker_that_is_spawned_reads_what_this_process_reads(on_scenes: OnScenes, open_data: Open) -> None:
    """It is sent the dataset and the function that stacks, and neither a trainer nor the features of a split."""
    config = on_scenes(image={"frozen": True})
    data = open_data(config)
    data.cache_features(model_of(config, data).encoders, {"train": data.train})
    expected = batches(data)
    data.trainer.unpicklable = lambda: None  # type: ignore[union-attr]
    loader = data.train_dataloader()
    sent = pickle.dumps((loader.dataset, loader.collate_fn))
    assert data.features.stores["train", "image", 0].tokens.tobytes() not in sent
    dataset, stack = pickle.loads(sent)
    for keys, batch in zip(loader.batch_sampler, expected, strict=True):  # type: ignore[arg-type]
        examples = [dataset[key] for key in keys]
        assert_same(stack(examples), batch)


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
    with (
        torch.inference_mode(),
        autocast(config.train.precision, torch.device("cpu")),
    ):  # the precision in which features are cached
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_gpu_is_fed_by_processes_and_from_pinned_memory(
    on_scenes: OnScenes, open_data: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, workers in ((2, 1), (64, 12)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        data = open_data(on_scenes(data={"workers": "auto"}))
        data.train_view[3, 0]
        there = loader(data, device=torch.device("cuda"))
        assert (there.num_workers, there.pin_memory, there.persistent_workers) == (workers, True, True)
        data.train_view[3, 0]
        assert not data.train_view._kept  # each process would hold its own
    here = loader(open_data(on_scenes(data={"workers": "auto"})))
    assert (here.num_workers, here.pin_memory) == (0, False)


def test_a_batch_is_copied_to_a_gpu_while_the_host_goes_on(
    on_scenes: OnScenes, open_data: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(on_scenes())
    batch = data.train_batch([0, 1])
    copies = []
    monkeypatch.setattr(Batch, "to", lambda _, device, non_blocking: copies.append((device.type, non_blocking)))
    for device in ("cuda", "cpu"):
        data.transfer_batch_to_device(batch, torch.device(device), 0)
    assert copies == [("cuda", True), ("cpu", False)]


def test_every_tensor_of_a_batch_is_pinned(
    on_scenes: OnScenes, open_data: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = open_data(on_scenes()).train_batch([0, 1])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    pinned = batch.pin_memory()
    assert_same(batch, pinned)
    for before, after in zip(tree_leaves(batch), tree_leaves(pinned), strict=True):
        assert after.data_ptr() != before.data_ptr()


def test_features_of_images_do_not_depend_on_how_audio_is_cut(
    on_scenes: OnScenes, open_data: Open, tmp_path: Path
) -> None:
    for seconds in (0.32, 0.16):
        config = on_scenes(image={"frozen": True}, audio={"seconds": seconds, "frozen": True})
        data = open_data(config)
        data.cache_features(model_of(config, data).encoders, {"train": data.train})
    stores = sorted(path.name.split("-")[0] for path in (Path(config.data.cache) / "features").iterdir())
    assert stores == ["audio", "audio", "image"]


def test_samples_of_one_image_id_train_and_are_not_judged(on_scenes: OnScenes, open_data: Open, tmp_path: Path) -> None:
    """Every copy would match each caption of the id: any-hit recall would count the copies."""
    for split in ("train", "val"):
        copies = [replace(sample, key=f"{sample.key}{n}") for n, sample in enumerate(samples(0) + samples(0))]
        write_shards(copies, tmp_path, split)
    data = open_data(on_scenes(data={"root": str(tmp_path)}))
    assert len(data.train) == 6
    with pytest.raises(ValueError, match=r"2 samples have image id .* keep all captions of an image in one sample"):
        data.open("val")
