"""The cost model beside runs that others have published: fitted on half of them, its error stated on the other half."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kernels.errors import UserError
from mm.parallel.cost import MACHINES, Machine, Rates, Recompute, Workload, estimate
from mm.parallel.layout import ParallelConfig

SHAPES = {
    # Layers, width, vocabulary, experts of a token: of the models' published configurations.
    "Llama-3.1-8B": (32, 4096, 128256, 0),
    "Llama-3.1-70B": (80, 8192, 128256, 0),
    "Llama-3.1-405B": (126, 16384, 128256, 0),
    "Qwen3-30B-A3B": (48, 2048, 151936, 8),
}
UNSTATED = (4096, 4)
"""Sequence and local batch of rows that do not say theirs."""
EXPERTS = {"Qwen3-30B-A3B": 29.0e9}
"""Parameters of routed experts."""
START = Rates(0.4, 0.85, 1.3, 1.0, 0.7, 0.2, 22.0, 4.0)
"""Where the fit begins, and what it keeps of a rate that no row tells."""
FITTED = (0, 1, 2, 7, 9, 11, 12)
"""Rows that the rates are fitted on: each technique once. The others are longer, larger or wider than these."""


@dataclass(frozen=True)
class Row:
    """One published run.

    Args:
        name: model, number of GPUs, technique.
        load: of a data rank.
        layout: of its processes.
        machine: that it ran on.
        tokens: a second and GPU.
        memory: peak bytes of a GPU; None where it is not stated.
    """

    name: str
    load: Workload
    layout: ParallelConfig
    machine: Machine
    tokens: float
    memory: float | None

    def predicted(self, rates: Rates) -> tuple[float, float]:
        """Tokens a second and GPU, and bytes of a GPU, by the model."""
        found = estimate(self.load, self.layout, self.machine, rates)
        tokens = self.load.tokens * self.layout.data / self.layout.processes / found.step
        return tokens, found.memory


def read_rows(path: Path) -> list[Row]:
    """Runs of a CSV file with the columns of a published table.

    Raises:
        UserError: a row names a model whose shape is not known.
    """
    recomputed: dict[str, Recompute] = {}
    found = []
    with path.open() as file:
        for values in csv.DictReader(file):
            said = _said(values)
            table = values["source"].split(" ")[-1]
            # A row that does not say what it recomputes does as the first row of its table.
            recompute: Recompute = "full" if "full" in said else "selective"
            if "checkpointing" in said:
                recomputed.setdefault(table, recompute)
            else:
                recompute = recomputed.get(table, recompute)
            found.append(_row(values, recompute, path))
    return found


def _row(values: dict[str, str], recompute: Recompute, path: Path) -> Row:
    model = values["model"]
    if model not in SHAPES:
        raise UserError(f"{path}: the shape of {model} is not known; there are {', '.join(SHAPES)}")
    layers, width, vocabulary, top_k = SHAPES[model]
    layout = _layout(values["layout"], int(values["gpus"]))
    sequence, batch = UNSTATED
    if values["sequence"].isdigit():
        sequence, batch = int(values["sequence"]), int(values["local_batch"])
    said = _said(values)
    active = float(values["active_parameters"])
    experts = EXPERTS.get(model, 0.0)
    load = Workload(
        dense=float(values["parameters"]) - experts,
        experts=experts,
        flops=6 * active,
        layers=layers,
        width=width,
        attended=sequence / 2,  # causal
        tokens=sequence * batch,
        top_k=top_k,
        vocabulary=vocabulary,
        recompute=recompute,
        microbatches=batch if layout.pp > 1 else 1,
        turns=2 if "interleaved" in said else 1,
        techniques=_techniques(values),
    )
    machine = MACHINES["h100" if values["gpu"] == "H100" else "h100_96gb"]
    memory = float(values["memory_gib"]) * 2**30 if values["memory_gib"] else None
    name = f"{model}, {values['gpus']} GPUs, {values['precision']} {said}"
    return Row(name, load, layout, machine, float(values["tokens_per_second_per_gpu"]), memory)


def _layout(words: str, gpus: int) -> ParallelConfig:
    """`fsdp32 x tp8` -> the layout; `ep8 DeepEP` is over all GPUs, and by what means said behind it."""
    found = "-".join(re.findall(r"\b[a-z]+\d+\b", words))
    if "fsdp" not in found:
        found = f"fsdp{gpus}-{found}"
    return ParallelConfig.of_word(found)


def _said(values: dict[str, str]) -> str:
    """Techniques, those among them that stand beside the layout."""
    return " ".join([values["technique"], *values["layout"].split(" ")[1:]])


def _techniques(values: dict[str, str]) -> frozenset[str]:
    said = _said(values)
    found = {"sequence_parallel"}
    if values["precision"] == "fp8":
        found.add("fp8")
    elif "compile" not in said and "torchtitan" not in said:
        found.add("eager")
    if "async tp" in said:
        found.add("async_tp")
    if "stock" in said:
        found.add("stock")
    return frozenset(found)


def fit(rows: Sequence[Row]) -> Rates:
    """The rates whose predictions of speed and memory are nearest to rows, by squared logarithms of ratios."""
    from scipy.optimize import least_squares  # slow to import

    names = [each.name for each in fields(Rates)]

    def rates_of(logs: np.ndarray) -> Rates:
        values = np.exp(logs).tolist()
        return Rates(**dict(zip(names, values, strict=True)))

    def residuals(logs: np.ndarray) -> list[float]:
        rates = rates_of(logs)
        found = []
        for row in rows:
            found += _errors(row, rates)
        # What no row tells stays where it was.
        drift = [0.05 * (log - math.log(getattr(START, name))) for log, name in zip(logs, names, strict=True)]
        return [*found, *drift]

    first = [math.log(getattr(START, name)) for name in names]
    # A share of a peak or of a link is at most one.
    highest = [0.0 if name in ("products", "links", "stock") else math.inf for name in names]
    logs = least_squares(residuals, first, bounds=([-math.inf] * len(names), highest)).x
    return rates_of(logs)


def _errors(row: Row, rates: Rates) -> list[float]:
    """Logarithms of predicted over published, of speed and of memory where it is stated."""
    tokens, memory = row.predicted(rates)
    found = [math.log(tokens / row.tokens)]
    if row.memory is not None:
        found.append(math.log(memory / row.memory))
    return found


def compared(path: Path) -> dict[str, Any]:
    """What the model says of every row under rates that are fitted on half of them, as it is stored."""
    rows = read_rows(path)
    rates = fit([rows[index] for index in FITTED])
    shown = []
    for index, row in enumerate(rows):
        tokens, memory = row.predicted(rates)
        entry = {
            "run": row.name,
            "layout": str(row.layout),
            "fitted": index in FITTED,
            "tokens": row.tokens,
            "predicted_tokens": tokens,
        }
        if row.memory is not None:
            entry |= {"memory": row.memory, "predicted_memory": memory}
        shown.append(entry)
    return {"rates": asdict(rates), "rows": shown, **_summary(shown)}


def _summary(shown: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean absolute errors of the rows that were not fitted, in percent."""
    found = {}
    for name in ("tokens", "memory"):
        errors = []
        for row in shown:
            if not row["fitted"] and name in row:
                errors.append(abs(row[f"predicted_{name}"] / row[name] - 1))
        found[f"error_{name}"] = 100 * float(np.mean(errors))
        found[f"largest_error_{name}"] = 100 * float(np.max(errors))
    return found
