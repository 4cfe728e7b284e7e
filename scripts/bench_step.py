"""One training step of a run, taken apart: images a second, the share that is not arithmetic, open_clip beside it.

    python scripts/bench_step.py
    python scripts/bench_step.py --config configs/flickr8k.yaml --data.root DIR --json rows.json
    python scripts/bench_step.py --model.modalities '[image,text]'    # what open_clip's CLIP does, and no more

The step is the run's own (forward, all losses of the stage at `progress`, backward, clipping, AdamW, rebalancing) on
batches made beforehand; making one is timed too. Arithmetic is what runs in products, convolutions, attention and
Fourier transforms; the share of the rest is from torch's profiler. The peer is open_clip's CLIP with its own loss and
AdamW on the same images and captions; its transformers are as wide as our backbone and so deep that they have as many
parameters as each of our towers uses (encoder, active experts, heads). Interleaved, median of the repeats.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from kernels.timing import Contest
from mm.adapt.task import freeze
from mm.batch import Batch
from mm.cli import log_training, run_command
from mm.config import AlignConfig
from mm.data.module import AlignData, CachedView, trainer_precision
from mm.data.sampling import StepSampler
from mm.files import write_json
from mm.model.multimodal import count_parameters
from mm.train.memory import keep_freed_memory
from mm.train.optim import build_optimizer
from mm.train.task import AlignTask

ARITHMETIC = re.compile(r"^aten::.*(mm|conv|attention|fft)|grouped_mlp|nearest_code")
BATCHES = 4
Step = Callable[[], None]


@dataclass(frozen=True)
class StepConfig(AlignConfig):
    """One training step of a run, taken apart beside open_clip's."""

    progress: float = 0.9
    """Share of the run at which the step is taken: late, every loss is on."""
    repeats: int = 7
    """Steps of each implementation that are timed."""
    largest: int = 12
    """How many operations outside arithmetic are listed."""
    json: str | None = None
    """Where to write what was measured."""


class StandingTask(AlignTask):
    """A run that stays at one point of its schedules, without a trainer."""

    at = 0.0

    @property
    def progress(self) -> float:
        return self.at

    def log(self, *args: Any, **options: Any) -> None:
        """Nobody listens."""


def bench_step(config: StepConfig) -> None:
    log_training()
    keep_freed_memory()
    torch.manual_seed(config.seed)
    data = AlignData(config)
    data.setup()
    task = StandingTask(config, data.vocabulary)
    task.at = config.progress
    freeze(task, config.train.freeze)
    data.cache_features(task.model, {config.data.train: data.train})
    started = time.perf_counter()
    batches = made_batches(data, config)
    seconds_of_data = (time.perf_counter() - started) / BATCHES
    precision = torch.autocast("cpu", torch.bfloat16, enabled=trainer_precision(config.train.precision) != "32-true")
    runs = {"ours": own_step(task, batches, precision)}
    if {"image", "text"} <= set(batches[0].inputs):
        runs["open_clip"] = peer_step(task, batches, precision)
    contest = Contest(
        "training_step", f"{config.name}, batch {config.train.batch_size}", "float32", "forward_backward", runs
    )
    rows = [
        row | {"images_per_second": round(1e3 * config.train.batch_size / row["milliseconds"], 1)}
        for row in contest.rows(config.repeats)
    ]
    result = {
        "progress": config.progress,
        "modalities": list(task.model.modalities),
        "frozen": list(data.frozen),
        "milliseconds_of_data": round(1e3 * seconds_of_data, 1),
        "rows": rows,
        **taken_apart(runs["ours"]),
    }
    show(result, config.largest)
    if config.json:
        write_json(Path(config.json), result)


def made_batches(data: AlignData, config: StepConfig) -> list[Batch]:
    view = CachedView(data.train_view, data, config.data.train)
    sampler = StepSampler(len(data.train), config.train.batch_size, BATCHES, config.seed)
    return [data.stack([view[key] for key in keys]) for keys in sampler]


def own_step(task: StandingTask, batches: list[Batch], precision: torch.autocast) -> Step:
    """One step of the run after the other."""
    optimizer = build_optimizer(task.groups(), task.config.optim)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    turn = cycle(batches)
    task.train()

    def step() -> None:
        batch = next(turn)
        with precision:
            terms, load = task.losses(task.read(batch), batch)
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, task.config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        task.rebalance(load)

    return step


def peer_step(task: StandingTask, batches: list[Batch], precision: torch.autocast) -> Step:
    """open_clip's CLIP and ClipLoss on the same images, with the first caption of each."""
    config = task.config
    width = config.model.backbone.width
    size = batches[0].inputs["image"].shape[-1]
    depth = {m: max(1, round(tower_parameters(task, m) / (12 * width**2))) for m in ("image", "text")}
    tokens = round(task.model.encoders["image"].trunk.tokens ** 0.5)
    vision = CLIPVisionCfg(
        layers=depth["image"], width=width, head_width=32, patch_size=size // tokens, image_size=size
    )
    text = CLIPTextCfg(
        context_length=config.text.max_tokens,
        vocab_size=open_clip.SimpleTokenizer().vocab_size,
        width=width,
        heads=width // 32,
        layers=depth["text"],
    )
    model, loss = CLIP(config.model.embedding, vision, text), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.learning_rate, fused=True)
    Console().print(f"open_clip: transformers of width {width}, {depth['image']} (image) and {depth['text']} layers")
    first = len(batches[0].inputs["text"]) // len(batches[0].inputs["image"])
    turn = cycle([(b.inputs["image"].float().div(127.5).sub(1), b.inputs["text"][::first]) for b in batches])

    def step() -> None:
        images, captions = next(turn)
        padded = torch.nn.functional.pad(captions, (0, text.context_length - captions.shape[1]))
        with precision:
            found = loss(*model(images, padded))
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def tower_parameters(task: StandingTask, modality: str) -> int:
    """Parameters one modality's embedding uses: its encoder without token embeddings, active experts, its heads."""
    model = task.model
    total, active = count_parameters(model)
    everywhere = sum(p.numel() for p in model.backbone.parameters()) - (total - active)
    own = [
        model.encoders[modality].trunk,
        model.encoders[modality].bottleneck,
        model.pool[modality],
        model.project[modality],
    ]
    tables = sum(m.weight.numel() for part in own for m in part.modules() if isinstance(m, torch.nn.Embedding))
    return everywhere + sum(p.numel() for part in own for p in part.parameters()) - tables


def taken_apart(step: Step) -> dict[str, Any]:
    """Share of a step's time in arithmetic, and the operations outside of it by share."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(BATCHES):
            step()
    spent: Counter[str] = Counter()
    for event in record.key_averages():
        spent[event.key] += event.self_cpu_time_total
    whole = sum(spent.values())
    arithmetic = sum(time for name, time in spent.items() if ARITHMETIC.search(name))
    rest = {name: round(time / whole, 4) for name, time in spent.most_common() if not ARITHMETIC.search(name)}
    return {"outside_arithmetic": round(1 - arithmetic / whole, 4), "largest_outside": dict(list(rest.items())[:40])}


def show(result: dict[str, Any], largest: int) -> None:
    row = result["rows"][0]
    table = Table(
        title=f"{row['case']}; making a batch takes {result['milliseconds_of_data']:.0f} ms", title_justify="left"
    )
    for name in ("implementation", "median ms", "images/s", "peak MB"):
        table.add_column(name, justify="left" if name == "implementation" else "right")
    for row in result["rows"]:
        table.add_row(
            row["implementation"],
            f"{row['milliseconds']:,.0f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
    outside = Table(
        title=f"outside arithmetic: {100 * result['outside_arithmetic']:.1f} % of the step", title_justify="left"
    )
    outside.add_column("operation")
    outside.add_column("% of the step", justify="right")
    for name, share in list(result["largest_outside"].items())[:largest]:
        outside.add_row(name, f"{100 * share:.1f}")
    Console().print(table, outside)


if __name__ == "__main__":
    run_command(StepConfig, bench_step)
