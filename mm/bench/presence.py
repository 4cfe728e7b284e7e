"""Every legal set of modalities with a third of the images, audio clips or captions absent, trained and evaluated.

A row is a combination of factors. It is trained for two steps, evaluated and reported; what its result says was
evaluated must be what was there. Tests run rows that cover every pair of values, scripts/soak.py runs all of them.
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment import LossConfig, ScheduleConfig
from encoders import AudioConfig, BottleneckConfig, ImageConfig, TextConfig
from encoders.quantizer import QuantizerConfig
from encoders.state import save_encoder
from kernels.errors import UserError
from mm.artifacts.run import build_run, write_config
from mm.batch import Sample
from mm.config import AlignConfig, EvalConfig, TrainConfig, encoders_of, plan_of
from mm.data.coco import write_coco
from mm.data.config import DataConfig
from mm.data.module import AlignData
from mm.data.scenes.folder import sample_at
from mm.data.shard_writer import write_shards
from mm.modalities import pairs_of
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.train.align import train_align

SIZES = {"train": 18, "val": 9}
CAPTIONS = 2
FACTORS: dict[str, tuple[Any, ...]] = {
    "modalities": (("image", "text"), ("audio", "text"), ("image", "audio"), ("image", "audio", "text")),
    "frozen": (False, True),
    "absent": ("image", "audio", "text"),
    "layout": ("folder", "shards"),
    "processes": (1, 2),
}
LACKS: dict[str, dict[str, Any]] = {
    "image": {"image": None},
    "audio": {"audio": None},
    "text": {"captions": (), "caption_ids": ()},
}
Start = Callable[[AlignConfig], None]
"""Trains a run to its end."""


@dataclass(frozen=True)
class PresenceRow:
    """A combination: what the model reads, whether its trunks are frozen, what a third of the samples lack, how they
    lie on disk, and how many processes train."""

    modalities: tuple[str, ...]
    frozen: bool
    absent: str
    layout: str
    processes: int

    @property
    def name(self) -> str:
        """Of its run."""
        trunks = "frozen" if self.frozen else "scratch"
        return f"{'_'.join(self.modalities)}-{trunks}-no_{self.absent}-{self.layout}-{self.processes}"


def combinations(factors: Mapping[str, Sequence[Any]]) -> list[PresenceRow]:
    """Every combination of the values of `FACTORS`, or of fewer."""
    return [PresenceRow(*values) for values in itertools.product(*factors.values())]


def pairwise_cover(factors: Mapping[str, Sequence[Any]]) -> list[PresenceRow]:
    """Rows in which any two values of two factors meet; of those that cover most, the first is taken each time."""
    rows = combinations(factors)
    missing = set().union(*(_pairs(row) for row in rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(row: PresenceRow) -> set[tuple[Any, Any]]:
    """Every two of a row's values, each with the name of its factor."""
    values = [(name, getattr(row, name)) for name in FACTORS]
    return set(itertools.combinations(values, 2))


def run_row(row: PresenceRow, folder: Path, start: Start) -> dict[str, Any]:
    """Write the row's data, train and evaluate on them, and check what is left behind.

    Args:
        row: what is run.
        folder: for its data and its run.
        start: trains; `train_align` in this process, or `train_in_processes`.

    Returns:
        the content of result.json.

    Raises:
        ValueError: a report is missing, a number is not finite, or the protocol does not say what was there.
    """
    data = folder / "data" / row.name
    for split in SIZES:
        write_samples(row, data, split)
    config = config_of(row, data, folder)
    start(config)
    run = folder / row.name
    result = json.loads((run / "result.json").read_text())
    if not (run / "report.html").is_file():
        raise UserError(f"{row.name}: no report")
    check_result(row, result)
    return result


def write_samples(row: PresenceRow, folder: Path, split: str) -> None:
    """A split of scenes, of which the first, the fourth and so on lack what the row says."""
    samples = []
    for index in range(SIZES[split]):
        sample = sample_at(0, split, index, 32)
        assert sample.audio is not None
        kept: dict[str, Any] = {
            "audio": sample.audio[:4000],
            "captions": sample.captions[:CAPTIONS],
            "caption_ids": sample.caption_ids[:CAPTIONS],
        }
        lacks = LACKS[row.absent] if index % 3 == 0 else {}
        samples.append(replace(sample, **(kept | lacks)))
    if row.layout == "shards":
        write_shards(samples, folder, split, samples_per_shard=7)
        return
    _write_folder(samples, folder, split)


def _write_folder(samples: Sequence[Sample], folder: Path, split: str) -> None:
    """COCO layout; an image that is absent is written and then removed, as its annotations stay."""
    stand_in = next(sample.image for sample in samples if sample.image is not None)
    whole = [sample if sample.image is not None else replace(sample, image=stand_in) for sample in samples]
    write_coco(whole, folder, split)
    for sample in samples:
        if sample.image is None:
            (folder / "images" / f"{sample.key}.jpg").unlink()


def config_of(row: PresenceRow, data: Path, runs: Path) -> AlignConfig:
    """The smallest model of the row's modalities, all of whose losses are on at the second of two steps."""
    moe = MoEConfig(num_experts=8, top_k=2, hidden=8, shared=16)
    encoders: dict[str, Any] = {
        "image": ImageConfig(size=32, width=16, depth=1, frozen=row.frozen),
        "audio": AudioConfig(seconds=0.32, width=16, depth=1, frozen=row.frozen),
        "text": TextConfig(width=16, depth=1, heads=2, max_tokens=24, frozen=row.frozen),
    }
    return AlignConfig(
        name=row.name,
        runs=str(runs),
        data=DataConfig(root=str(data), cache=str(runs / "cache")),
        model=ModelConfig(
            modalities=row.modalities,
            embedding=16,
            token_embedding=8,
            backbone=BackboneConfig(width=32, layers=1, heads=2, moe=moe),
        ),
        train=TrainConfig(
            steps=2,
            batch_size=8,
            precision="fp32",
            accelerator="cpu",
            devices=row.processes,
            strategy="ddp" if row.processes > 1 else "auto",
        ),
        loss=LossConfig(filip_rows=4, itm_rows=4),
        schedule=ScheduleConfig(kind="progressive", stage2=0.1, stage3=0.2),
        eval=EvalConfig(rerank=2),
        **{modality: encoders[modality] for modality in row.modalities},
        bottleneck=BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=2),
    )


def train_in_processes(script: Path) -> Start:
    """What trains by a script with the options of train_align.py, in a process of its own, which may start others."""

    def start(config: AlignConfig) -> None:
        settings = Path(config.runs) / "settings" / config.name
        settings.mkdir(parents=True, exist_ok=True)
        write_config(with_weights(config, settings), settings)
        command = [sys.executable, str(script), "--config", str(settings / "config.yaml")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip() or "not a word").splitlines()[-1]
            raise UserError(f"{config.name} ended with code {ended.returncode}: {last}")

    return start


def with_weights(config: AlignConfig, folder: Path) -> AlignConfig:
    """Settings whose frozen trunks start from files in `folder`: a command line takes no random ones."""
    frozen = [modality for modality, encoder in encoders_of(config).items() if encoder.frozen]
    if not frozen:
        return config
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    encoders = build_run(config, data.vocabulary).model.encoders
    files = {modality: str(folder / f"{modality}.safetensors") for modality in frozen}
    for modality, path in files.items():
        save_encoder(encoders[modality], path)
    return replace(config, encoder_weights=files)


def expected_protocol(row: PresenceRow) -> dict[str, Any]:
    """`samples`, `present` and `gallery` of a row's validation split, counted without opening it."""
    everyone = set(range(SIZES["val"]))
    has = {modality: set(everyone) for modality in LACKS}
    has[row.absent] -= {index for index in everyone if index % 3 == 0}
    # Annotations are of images with captions: of a folder nothing else is read.
    samples = has["image"] & has["text"] if row.layout == "folder" else everyone
    present = {modality: len(has[modality] & samples) for modality in row.modalities}
    items = {modality: CAPTIONS if modality == "text" else 1 for modality in row.modalities}
    gallery = {}
    for a, b in pairs_of(row.modalities):
        shared = len(has[a] & has[b] & samples)
        gallery[f"{a}_to_{b}"] = shared * items[b]
        gallery[f"{b}_to_{a}"] = shared * items[a]
    return {"samples": len(samples), "present": present, "gallery": gallery}


def check_result(row: PresenceRow, result: Mapping[str, Any]) -> None:
    """Raises ValueError where the protocol or chance do not say what was there, or a figure is not finite."""
    protocol = result["protocol"]["val"]
    for name, expected in expected_protocol(row).items():
        if protocol[name] != expected:
            raise UserError(f"{row.name}: the protocol's {name} is {protocol[name]}, not {expected}")
    metrics = result["metrics"]
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{row.name}: {name} is {value}")
    for direction, size in protocol["gallery"].items():
        matches = CAPTIONS if direction.endswith("to_text") else 1
        if abs(metrics[f"chance/{direction}/R@1"] - 100 * matches / size) > 1e-3:
            raise UserError(f"{row.name}: chance of {direction} is not of its gallery of {size}")


def run_all(folder: Path, script: Path) -> dict[str, Any]:
    """Run every combination: how many `rows`, and of those that `failed` the name and why."""
    failed = {}
    rows = combinations(FACTORS)
    for number, row in enumerate(rows):
        start = train_align if row.processes == 1 else train_in_processes(script)
        try:
            run_row(row, folder, start)
            outcome = "as it should be"
        except Exception as error:
            outcome = failed[row.name] = f"{type(error).__name__}: {error}"
        print(f"{number + 1} of {len(rows)}, {row.name}: {outcome}", flush=True)
    return {"rows": len(rows), "failed": failed}
