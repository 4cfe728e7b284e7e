"""One training step of a run beside open_clip's, and what of it is not arithmetic."""

import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from kernels.timing import Contest
from kernels.timing import Run as Step
from mm.artifacts.run import Run, build_run
from mm.batch import Batch
from mm.bench.config import StepConfig
from mm.bench.peer import peer_step
from mm.config import encoders_of, plan_of
from mm.data.cached import CachedView
from mm.data.module import AlignData
from mm.data.sampling import StepSampler
from mm.device import autocast, choose_device, precision_name
from mm.files import write_json
from mm.train.captured import WARM_UP, CapturedStep
from mm.train.freeze import freeze
from mm.train.memory import keep_freed_memory
from mm.train.optim import build_optimizer
from mm.train.task import AlignTask

ARITHMETIC = re.compile(r"^aten::.*(mm|conv|attention|fft)|grouped_mlp|nearest_code")
"""Operations that are."""
BATCHES = 4
"""How many are made beforehand, and taken in turn."""
LISTED = 40
"""How many operations outside arithmetic are written down."""


class StandingTask(AlignTask):
    """A run that stays at one point of its schedules, `at` in [0, 1], without a trainer."""

    current_rate = 0.0

    def __init__(self, run: Run, at: float) -> None:
        super().__init__(run)
        self.at = at

    @property
    def progress(self) -> float:
        return self.at

    def log(self, *args: Any, **options: Any) -> None:
        """Nobody listens."""


@dataclass
class Standing:
    """A run at one point of its schedules, and the batches of its first steps, on the run's device."""

    task: StandingTask
    batches: list[Batch]
    frozen: tuple[str, ...]
    """Modalities whose trunk is frozen."""
    milliseconds_of_data: float
    """What making a batch took."""

    @property
    def device(self) -> torch.device:
        """Where the steps are taken."""
        return self.task.run.device

    @property
    def precision(self) -> torch.autocast:
        """Of the forward and of the losses."""
        return autocast(self.task.config.train.precision, self.device)

    @property
    def has_pairs(self) -> bool:
        """Whether it reads what open_clip reads."""
        return {"image", "text"} <= set(self.batches[0].inputs)

    def own_step(self, capture: bool = True) -> Step:
        """The run's own, see `own_step`."""
        return own_step(self.task, self.batches, self.precision, capture)

    def peer_step(self, batches: int | None = None) -> Step:
        """open_clip's, see `mm.bench.peer.peer_step`; of the first so many batches."""
        return peer_step(self.task.run, self.batches[:batches], self.precision)


def standing(config: StepConfig, device: torch.device) -> Standing:
    """Build a run, untrained, and make its first batches."""
    torch.manual_seed(config.seed)
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    task = StandingTask(build_run(config, data.vocabulary).to(device), config.progress)
    freeze(task, config.train.freeze)
    data.cache_features(task.model.encoders, {config.data.train: data.train})
    started = time.perf_counter()
    batches = made_batches(data, config)
    taken = (time.perf_counter() - started) / BATCHES
    batches = [batch.to(device) for batch in batches]
    return Standing(task, batches, data.features.frozen, round(1e3 * taken, 1))


def bench_step(config: StepConfig) -> None:
    """Measure, print two tables, and write what was measured to `config.json`."""
    device = choose_device(config.train.accelerator)
    keep_freed_memory()
    run = standing(config, device)
    ours = run.own_step()
    steps = {"ours": ours}
    if run.has_pairs:
        steps["open_clip"] = run.peer_step()
    result = {
        "progress": config.progress,
        "modalities": list(run.task.model.modalities),
        "frozen": list(run.frozen),
        "milliseconds_of_data": run.milliseconds_of_data,
        "rows": timed(steps, config, device),
        **taken_apart(ours, device),
    }
    show(result, config.largest)
    if config.json:
        write_json(Path(config.json), result)


def made_batches(data: AlignData, config: StepConfig) -> list[Batch]:
    """The first batches of a training run, features of frozen trunks included."""
    view = CachedView(data.train_view, data.features, config.data.train)
    sampler = StepSampler(len(data.train), config.train.batch_size, BATCHES, config.seed)
    batches = []
    for keys in sampler:
        examples = [view[key] for key in keys]
        batches.append(data.stack(examples))
    return batches


def own_step(task: StandingTask, batches: list[Batch], precision: torch.autocast, capture: bool = True) -> Step:
    """One step of the run after the other: what AlignTask and the trainer do, without the trainer.

    Args:
        task: whose steps they are.
        batches: are taken in turn.
        precision: of the forward and of the losses.
        capture: whether steps are replayed where they can be, which they are from the first one on.
    """
    optimizer = build_optimizer(task.groups())
    turn = cycle(batches)
    captured = CapturedStep(task)
    if not capture:
        captured.stay_eager("it is timed so")
    task.train()

    def step() -> None:
        task.captured = captured
        with precision:
            total = task.training_step(next(turn), 0)
        task.backward(total)
        task.on_after_backward()
        task.configure_gradient_clipping(optimizer)
        optimizer.step()
        task.clamp_scales()
        optimizer.zero_grad()

    if capture and task.run.device.type == "cuda":
        for _ in range((WARM_UP + 1) * len(batches)):
            step()
    return step


def timed(steps: dict[str, Step], config: StepConfig, device: torch.device) -> list[dict[str, Any]]:
    """The rows of a contest (`kernels.timing`), an implementation each, with images a second.

    Steps are interleaved; the first of each is a warm-up, in which its peak memory is read.
    """
    images = config.train.batch_size
    case = f"{config.name}, batch {images}"
    dtype = precision_name(config.train.precision, device)
    contest = Contest("training_step", case, dtype, "forward_backward", steps, device=device)
    rows = contest.rows(config.repeats)
    for row in rows:
        row["images_per_second"] = round(1e3 * images / row["milliseconds"], 1)
    return rows


def taken_apart(step: Step, device: torch.device) -> dict[str, Any]:
    """`outside_arithmetic`: the share of a step's time that is not spent in products, convolutions, attention and
    Fourier transforms; `largest_outside`: the operations that it is spent in, by share, largest first. On a GPU it is
    the time of its kernels, by the operation that started them."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        for _ in range(BATCHES):
            step()
    spent: Counter[str] = Counter()
    for event in record.key_averages():
        if device.type == "cpu":
            spent[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CPU:  # a kernel's own row would count it twice
            spent[event.key] += event.self_device_time_total
    whole = sum(spent.values())
    arithmetic = 0.0
    largest: dict[str, float] = {}
    for name, time_spent in spent.most_common():
        if ARITHMETIC.search(name):
            arithmetic += time_spent
        elif len(largest) < LISTED:
            largest[name] = round(time_spent / whole, 4)
    return {"outside_arithmetic": round(1 - arithmetic / whole, 4), "largest_outside": largest}


def show(result: dict[str, Any], largest: int) -> None:
    """Print what was measured; `largest`: how many operations outside arithmetic are listed."""
    case = result["rows"][0]["case"]
    data = result["milliseconds_of_data"]
    table = Table(title=f"{case}; making a batch takes {data:.0f} ms", title_justify="left")
    table.add_column("implementation")
    for name in ("median ms", "images/s", "peak MB"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        milliseconds = f"{row['milliseconds']:,.0f}"
        rate = f"{row['images_per_second']:,.1f}"
        megabytes = f"{row['peak_bytes'] / 1e6:,.0f}"
        table.add_row(row["implementation"], milliseconds, rate, megabytes)
    percent = 100 * result["outside_arithmetic"]
    outside = Table(title=f"outside arithmetic: {percent:.1f} % of the step", title_justify="left")
    outside.add_column("operation")
    outside.add_column("% of the step", justify="right")
    shares = list(result["largest_outside"].items())
    for name, share in shares[:largest]:
        outside.add_row(name, f"{100 * share:.1f}")
    Console().print(table, outside)
