"""Rules of batching beside each other, on the same arrivals and the same cost of batches: who is answered in time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.studies import Difference
from kernels.parsing import parse_json
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit
from mm.files import write_json
from mm.progress import followed
from mm.serve.batcher import Batcher, Limits, Rule
from mm.serve.cost import CostModel
from mm.serve.forecast import Forecast
from mm.serve.oracle import most_in_time
from mm.serve.rivals import BentoCork, FixedWait, LitServeWindow, NoWait
from mm.serve.simulate import Cost, simulate
from mm.serve.traces import GENERATED, LENGTHS, Trace

OURS = "this server"
MEASURES = ("goodput", "delay_p99", "latency_mean", "latency_p99", "batch", "busy")


@dataclass(frozen=True)
class BatchingBench:
    """What is simulated."""

    traces: tuple[str, ...] = (*GENERATED, "recorded")
    """Generated ones by name, and `recorded`."""
    recorded: Path = Path("eval/results/arrivals.csv")
    """A recorded trace: CSV with the columns TIMESTAMP and ContextTokens."""
    loads: Annotated[tuple[float, ...], "(0, inf)"] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Mean rates of arrival, as shares of what full batches answer."""
    seconds: Annotated[float, "(0, inf)"] = 2.0
    """Of each trace."""
    seeds: Annotated[int, "[2, inf)"] = 20
    """Of what is drawn."""
    size: Annotated[int, "[1, inf)"] = 16
    """Items of a batch at most."""
    json: str | None = None
    """Where to write what was found; what the file holds of other traces stays."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Setting:
    """What all rules share.

    Args:
        size: of a batch at most.
        cost: of batches.
    """

    size: int
    cost: Cost = field(default_factory=Cost)

    @property
    def deadline(self) -> float:
        """Seconds: three times what a full batch of the longest items takes."""
        return 3 * self.cost.seconds(LENGTHS[1] - 1, self.size)

    @property
    def capacity(self) -> float:
        """Items a second that full batches answer, all padded to the longest."""
        return self.size / self.cost.seconds(LENGTHS[1] - 1, self.size)


class Known:
    """A forecast that is perfect: it has seen the trace.

    Args:
        times: (N,) of all arrivals.
    """

    def __init__(self, times: np.ndarray) -> None:
        self.times = times

    def arrived(self, time: float) -> None:
        """It knew."""

    def rate(self, now: float) -> float:
        """Of the next ten milliseconds."""
        return float(self.expected(now, np.array([0.01]))[0]) / 0.01

    def expected(self, now: float, steps: np.ndarray) -> np.ndarray:
        """How many come until each of some times (T,) after now."""
        before = np.searchsorted(self.times, now, "right")
        return (np.searchsorted(self.times, now + steps, "right") - before).astype(float)


def rules(setting: Setting, trace: Trace) -> dict[str, Callable[[], Rule]]:
    """Every rule by name."""
    size = setting.size

    def ours(forecast: Any) -> Batcher:
        return Batcher(Limits(size), lambda kind: CostModel(2e-5, 2e-4, 2e-3), forecast)  # guesses that are wrong

    return {
        OURS: lambda: ours(Forecast),
        "forecast off": lambda: ours(None),
        "forecast perfect": lambda: ours(lambda: Known(trace.times)),
        "no wait (Triton)": lambda: NoWait(size),
        "5 ms from the first (mosec, Ray Serve)": lambda: FixedWait(size),
        "windows of 5 ms (LitServe)": lambda: LitServeWindow(size),
        "adaptive (BentoML)": lambda: BentoCork(size, setting.deadline),
    }


def bench_batching(config: BatchingBench) -> None:
    """Simulate, print a table for each trace, and write them to `config.json`."""
    setting = Setting(config.size)
    found: dict[str, Any] = {}
    cases = [(name, load) for name in config.traces for load in config.loads]
    for name, load in followed(cases, "simulating", len(cases)):
        found.setdefault(name, {})[f"{load:g}"] = compared(config, setting, name, load)
    for name, loads in found.items():
        Console().print(trace_table(name, loads))
    if config.json:
        path = Path(config.json)
        stored = parse_json(path.read_text(), str(path)) if path.is_file() else {}
        about = {
            "commit": commit(),
            "seeds": config.seeds,
            "seconds": config.seconds,
            "size": config.size,
            "deadline": setting.deadline,
            "capacity": setting.capacity,
        }
        write_json(path, {**about, "traces": {**stored.get("traces", {}), **found}})


def compared(config: BatchingBench, setting: Setting, name: str, load: float) -> dict[str, Any]:
    """Every rule on one kind of trace at one load.

    Returns:
        by rule its measures, means over seeds with half the width of their 95 % interval; of goodput also that of this
        server less the rule's, paired by seed; and the oracle's goodput.
    """
    measured: dict[str, list[dict[str, float]]] = {}
    best = []
    for seed in range(config.seeds):
        trace = drawn(config, setting, name, load, seed)
        best.append(100 * most_in_time(trace, setting.cost, setting.deadline, setting.size) / len(trace.times))
        for rule, make in rules(setting, trace).items():
            measured.setdefault(rule, []).append(measures(setting, trace, make()))
    columns = {rule: {m: np.array([row[m] for row in rows]) for m in MEASURES} for rule, rows in measured.items()}
    found: dict[str, Any] = {"oracle": {"goodput": interval(np.array(best))}}
    for rule, values in columns.items():
        found[rule] = {measure: interval(values[measure]) for measure in MEASURES}
        found[rule]["delay_p99_worst"] = float(values["delay_p99"].max())
        found[rule]["ours_less"] = interval(columns[OURS]["goodput"] - values["goodput"])
        found[rule]["of_oracle"] = interval(100 * values["goodput"] / np.array(best))
    return found


def drawn(config: BatchingBench, setting: Setting, name: str, load: float, seed: int) -> Trace:
    """A trace at a load; of the recorded one a part, stretched or pressed to that load's mean rate."""
    random = np.random.default_rng(seed)
    rate = load * setting.capacity
    if name != "recorded":
        return GENERATED[name](rate, config.seconds, random)
    whole = Trace.load(config.recorded)
    count = min(int(rate * config.seconds), len(whole.times))
    start = int(random.integers(0, len(whole.times) - count + 1))
    part = slice(start, start + count)
    return Trace(whole.times[part], np.clip(whole.tokens[part], LENGTHS[0], LENGTHS[1] - 1)).at_rate(rate)


def measures(setting: Setting, trace: Trace, rule: Rule) -> dict[str, float]:
    """Goodput and busy time in percent, times in milliseconds."""
    outcome = simulate(rule, trace, setting.cost, setting.deadline)
    answered = outcome.latencies[np.isfinite(outcome.latencies)]
    return {
        "goodput": 100 * outcome.goodput(setting.deadline),
        "delay_p99": 1000 * float(np.quantile(outcome.delays, 0.99)),
        "latency_mean": 1000 * float(answered.mean()),
        "latency_p99": 1000 * float(np.quantile(answered, 0.99)),
        "batch": float(outcome.batches.mean()),
        "busy": 100 * outcome.busy / outcome.seconds,
    }


def interval(values: np.ndarray) -> list[float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    found = Difference.of(values)
    return [round(found.mean, 4), round(found.high - found.mean, 4)]


def trace_table(name: str, loads: dict[str, Any]) -> Table:
    """One trace: goodput by load, and the worst delay of any seed and load."""
    table = Table(title=f"{name}: goodput in % by load; added delay p99, worst, ms", title_justify="left")
    table.add_column("rule")
    for load in loads:
        table.add_column(load, justify="right")
    table.add_column("delay", justify="right")
    for rule in next(iter(loads.values())):
        cells = [f"{at[rule]['goodput'][0]:.1f} ±{at[rule]['goodput'][1]:.1f}" for at in loads.values()]
        delays = [at[rule].get("delay_p99_worst", 0.0) for at in loads.values()]
        table.add_row(rule, *cells, f"{max(delays):.1f}" if rule != "oracle" else "")
    return table
