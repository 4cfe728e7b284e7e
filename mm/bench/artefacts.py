"""Small valid artefacts of every kind that the product reads, each beside the product's own reader of it.

A reader gives a digest of each thing that was read, by name, and counts what it skipped. What it refuses it raises.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from encoders import AudioConfig, ImageConfig
from encoders.tokenizer import Tokenizer, observed_vocabulary
from eval.embeddings import Embeddings
from eval.protocols import Protocol
from mm.artifacts.adapter import AdapterDescription, save_adapter
from mm.artifacts.results import read_result
from mm.artifacts.run import Run, build_run, config_from_dict, load_run, save_run, write_config
from mm.artifacts.seen import load_seen, save_seen
from mm.artifacts.settings import read_text, read_yaml
from mm.artifacts.upgrade import upgrade_config
from mm.batch import Sample
from mm.bench.damage import ANY, JSON, Damage
from mm.bench.damage_archives import CHECKPOINT, NPZ, SAFETENSORS, TAR
from mm.bench.presence import PresenceRow, config_of
from mm.compress.lora import LoraConfig, attach
from mm.config import AlignConfig
from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.collection import Collection
from mm.data.dataset import CaptionDataset
from mm.data.media import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, pil_image
from mm.data.scenes.folder import sample_at
from mm.data.shard_index import index_path
from mm.data.shard_writer import write_shards
from mm.data.views import EvalView
from mm.files import write_json
from mm.readers import AudioReader, ImageReader, Reader
from mm.train.checkpoint import SyncedCheckpointIO
from mm.train.identity import Identity, begin
from mm.train.resume import newest_checkpoint

SPLIT = "val"
SAMPLES = 8
IMAGES = ("jpg", "png", "webp", "gif", "bmp", "tif", "jpg", "png")
"""The kinds of the images, one after another."""
AUDIO = ("wav", "flac", "ogg", "mp3", "aiff", "au", "wav", "flac")
"""Those of the audio clips."""


@dataclass(frozen=True)
class Found:
    """What was read of an artefact.

    Args:
        items: digests by name.
        counted: how many things were skipped and counted, or said to be skipped in the log.
    """

    items: dict[str, str]
    counted: int = 0


@dataclass(frozen=True)
class Subject:
    """A kind of artefact.

    Args:
        make: writes one into a folder.
        files: patterns of the files that are damaged, one at a time.
        read: what the product reads of the folder.
        damages: what happens to a file, by name.
        checked: whether the format has checksums, so that anything else than what was written is noticed.
        alone: whether a file holds one item, whose name is the file's, so that no other may change.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Found]
    damages: Mapping[str, Damage]
    checked: bool = False
    alone: bool = False


def samples() -> list[Sample]:
    """A few scenes, small."""
    found = []
    for index in range(SAMPLES):
        sample = sample_at(0, SPLIT, index, 32)
        assert sample.audio is not None
        found.append(replace(sample, audio=sample.audio[:4000]))
    return found


def write_media(folder: Path) -> None:
    """COCO layout with an image and an audio clip of each kind that is read."""
    stated = samples()
    write_coco(stated, folder, SPLIT, image_format="png", audio_format="wav")
    path = folder / "annotations" / f"captions_{SPLIT}.json"
    content = json.loads(path.read_text())
    for sample, image, audio, entry in zip(stated, IMAGES, AUDIO, content["images"], strict=True):
        (folder / "images" / entry["file_name"]).unlink()
        (folder / "audio" / f"{sample.key}.wav").unlink()
        entry["file_name"] = f"{sample.key}.{image}"
        assert sample.image is not None
        pil_image(sample.image).save(folder / "images" / entry["file_name"])
        soundfile.write(folder / "audio" / f"{sample.key}.{audio}", sample.audio, sample.sample_rate)
    path.write_text(json.dumps(content))


def write_tar(folder: Path) -> None:
    """Shards without an index."""
    write_shards(samples(), folder, SPLIT)
    index_path(folder, SPLIT).unlink()


def write_indexed(folder: Path) -> None:
    """Shards with their index."""
    write_shards(samples(), folder, SPLIT, samples_per_shard=4)


def write_karpathy(folder: Path) -> None:
    """COCO layout with Karpathy's file of its splits."""
    stated = samples()
    write_coco(stated, folder, SPLIT)
    images = []
    for sample in stated:
        sentences = []
        for sentence_id, caption in zip(sample.caption_ids, sample.captions, strict=True):
            sentences.append({"sentid": sentence_id, "raw": caption})
        image = {"cocoid": sample.image_id, "filename": f"{sample.key}.jpg", "split": SPLIT, "sentences": sentences}
        images.append(image)
    write_json(folder / "karpathy.json", {"images": images})


def read_split(folder: Path) -> Found:
    """A split as an evaluation sees it."""
    return found_in(open_split(folder, SPLIT))


def read_karpathy_split(folder: Path) -> Found:
    """The same, by Karpathy's file."""
    return found_in(open_split(folder, SPLIT, karpathy=folder / "karpathy.json"))


def found_in(dataset: CaptionDataset) -> Found:
    """Rows and captions of a split, by the key of the sample."""
    readers: dict[str, Reader] = {
        "image": ImageReader(ImageConfig(size=32)),
        "audio": AudioReader(AudioConfig(seconds=0.32)),
    }
    view = EvalView(dataset, readers)
    items = {}
    for index in range(len(view)):
        example = view[index]
        name = dataset[index].key
        for modality, row in example.rows.items():
            if row is not None:
                items[f"{name}/{modality}"] = digest_of(row)
        for number, caption in enumerate(dataset.captions[index]):
            items[f"{name}/text/{number}"] = digest_of(caption)
    return Found(items, sum(dataset.skipped.values()))


@cache
def settings(runs: Path) -> AlignConfig:
    """Of the smallest model of all modalities."""
    row = PresenceRow(("image", "audio", "text"), False, "image", "folder", 1)
    return config_of(row, runs / "data", runs)


def a_run(folder: Path) -> Run:
    """A run, untrained."""
    torch.manual_seed(0)
    tokenizer = Tokenizer("scratch", 24)
    return build_run(settings(folder), observed_vocabulary(tokenizer, samples()[0].captions))


def write_run(folder: Path) -> None:
    """A finished run."""
    save_run(a_run(folder), folder / "run")


def read_run(folder: Path) -> Found:
    """A run as everything loads it."""
    return state_of(load_run(folder / "run"))


def write_adapter(folder: Path) -> None:
    """An adapter beside its base."""
    run = a_run(folder)
    save_run(run, folder / "run")
    base = run.fingerprint()
    lora = LoraConfig(rank=2, targets=("q_proj", "w_in"))
    attach(run.model, lora)
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(run.model, AdapterDescription(lora, base), folder / "adapter")
    given = {"root": "photos", "train": "train", "val": SPLIT, "audio_root": None}
    text = json.dumps({"run": str(folder / "run"), "data": given})
    (folder / "adapter" / "config.yaml").write_text(text)


def read_adapter(folder: Path) -> Found:
    """An adapter merged into its base."""
    return state_of(load_run(folder / "adapter"))


def state_of(run: Run) -> Found:
    """The tensors and the settings of a run."""
    items = {name: digest_of(tensor) for name, tensor in run.state_dict().items()}
    items["settings"] = digest_of(asdict(run.config))
    return Found(items)


def write_checkpoints(folder: Path) -> None:
    """Two checkpoints of a run."""
    run = a_run(folder)
    for step in (1, 2):
        content: dict[str, Any] = {
            "epoch": 0,
            "global_step": step,
            "state_dict": run.state_dict(),
            "optimizer_states": [],
        }
        SyncedCheckpointIO().save_checkpoint(content, folder / "checkpoints" / f"step={step}.ckpt")


def read_checkpoint(folder: Path) -> Found:
    """The checkpoint that a resumed run takes, as Lightning reads it. It says in the log which others are not whole."""
    path = newest_checkpoint(folder)
    content = SyncedCheckpointIO().load_checkpoint(path, weights_only=True)
    items = {name: digest_of(tensor) for name, tensor in content["state_dict"].items()}
    return Found(items, int(content["global_step"] == 1))


def write_embeddings(folder: Path) -> None:
    """Vectors with their ids."""
    draw = np.random.default_rng(0)
    arrays = {
        "image": draw.normal(size=(6, 8)).astype(np.float32),
        "text": draw.normal(size=(12, 8)).astype(np.float32),
        "image_ids": np.arange(6),
        "caption_image_ids": np.repeat(np.arange(6), 2),
        "caption_ids": np.arange(12),
    }
    np.savez(folder / "embeddings.npz", **arrays)  # type: ignore[arg-type]  # numpy types its keywords as bool


def read_embeddings(folder: Path) -> Found:
    """The vectors of a file, and how many have no partner."""
    embeddings = Embeddings.load(folder)
    items = {}
    for name, array in vars(embeddings).items():
        if array is not None:
            items[name] = digest_of(array)
    return Found(items, sum(embeddings.alone().values()))


def write_settings(folder: Path) -> None:
    """A run's config.yaml."""
    write_config(settings(folder), folder)


def read_settings(folder: Path) -> Found:
    """Settings from a file."""
    path = folder / "config.yaml"
    content = upgrade_config(read_yaml(read_text(path), str(path)), str(path))
    return Found({"settings": digest_of(asdict(config_from_dict(content, str(path))))})


def write_identity(folder: Path) -> None:
    """identity.json of a run."""
    identity = Identity.of(settings(folder), {"initial weights": "0" * 16})
    write_json(folder / "identity.json", asdict(identity))


def read_identity(folder: Path) -> Found:
    """identity.json, compared with the run that is asked for: what differs is refused."""
    asked = Identity.of(settings(folder), {"initial weights": "0" * 16})
    begin(folder, asked, settings(folder), resume=True)
    return Found({})


def write_result(folder: Path) -> None:
    """A result.json as evaluations write it."""
    protocol = Protocol("scenes", SPLIT, 8, 40, "5", trained_on="trained on scenes/train")
    content = {
        "metrics": {"val/RSUM": 12.5},
        "intervals": {"val/RSUM": [10.0, 14.0]},
        "protocol": {"val": asdict(protocol)},
        "config": asdict(settings(folder)),
        "seed": 0,
    }
    write_json(folder / "result.json", content)


def read_run_result(folder: Path) -> Found:
    """result.json as comparisons read it."""
    return Found({"result": digest_of(read_result(folder / "result.json"))})


def write_seen(folder: Path) -> None:
    """seen.json of a run."""
    save_seen([Collection("scenes/train", str(folder), "train", None, frozenset({"a1", "b2"}))], folder)


def read_seen(folder: Path) -> Found:
    """The sets that a run was trained on."""
    seen = load_seen(folder, settings(folder).data)
    return Found({str(number): digest_of(repr(each)) for number, each in enumerate(seen)})


def digest_of(content: Any) -> str:
    """A short sha256 of a tensor, an array, or anything that `repr` tells apart."""
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    data = content.tobytes() if isinstance(content, np.ndarray) else repr(content).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def patterns(folder: str, extensions: Sequence[str]) -> tuple[str, ...]:
    """Of the files of some kinds in a folder."""
    return tuple(f"{folder}/*.{extension}" for extension in extensions)


SUBJECTS: dict[str, Subject] = {
    "images": Subject(write_media, patterns("images", IMAGE_EXTENSIONS), read_split, ANY, alone=True),
    "audio": Subject(write_media, patterns("audio", AUDIO_EXTENSIONS), read_split, ANY, alone=True),
    "annotations": Subject(write_media, ("annotations/*.json",), read_split, JSON),
    "karpathy": Subject(write_karpathy, ("karpathy.json",), read_karpathy_split, JSON),
    "shards": Subject(write_tar, ("*.tar",), read_split, TAR),
    "shards with an index": Subject(write_indexed, ("*.tar",), read_split, TAR),
    "shard index": Subject(write_indexed, ("*.index.json",), read_split, JSON),
    "embeddings": Subject(write_embeddings, ("*.npz",), read_embeddings, NPZ),
    "run weights": Subject(write_run, ("run/model.safetensors",), read_run, SAFETENSORS, checked=True),
    "run description": Subject(write_run, ("run/model.json",), read_run, JSON),
    "adapter weights": Subject(write_adapter, ("adapter/*.safetensors",), read_adapter, SAFETENSORS, checked=True),
    "adapter description": Subject(write_adapter, ("adapter/adapter.json",), read_adapter, JSON),
    "adapter config.yaml": Subject(write_adapter, ("adapter/config.yaml",), read_adapter, JSON),
    "checkpoints": Subject(write_checkpoints, ("checkpoints/*.ckpt",), read_checkpoint, CHECKPOINT, checked=True),
    "config.yaml": Subject(write_settings, ("config.yaml",), read_settings, JSON),
    "identity.json": Subject(write_identity, ("identity.json",), read_identity, JSON),
    "result.json": Subject(write_result, ("result.json",), read_run_result, JSON),
    "seen.json": Subject(write_seen, ("seen.json",), read_seen, JSON),
}
"""By what is damaged."""
