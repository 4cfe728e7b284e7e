"""What is said of runs that many processes divide: layouts beside one process, plans, and published runs."""

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
GIB = 2**30
STATE = ("parameters", "gradients", "moments")
"""Roles of the bytes that are held from step to step."""


def held(row: Result) -> float:
    """Share of one process's parameters, gradients and moments that a process of a layout holds."""
    return sum(row["bytes"].values()) / sum(row["bytes_alone"].values())


def layout_rows(result: Result) -> list[list[str]]:
    """Each layout's distance from one process, what a process of it holds beside the formula, and its seconds."""
    rows = []
    for row in result["rows"]:
        away = row["difference"]
        name = f"{row['layout']}, {row['experts']} experts" + (", recomputed" if row["checkpoint"] else "")
        errors = [f"{away[name]:.0e}" for name in ("gradient", "value", "weight")]
        seconds = f"{row['seconds']:.2f} ({row['seconds_alone']:.2f})"
        rows.append([name, *errors, f"{100 * held(row):.1f} %", seconds, f"{row['samples_per_second']:.0f}"])
    return rows


def bytes_rows(result: Result) -> list[list[str]]:
    """MB of a process of each layout whose blocks are not recomputed: its state beside the planner's formula, and what
    a step makes beside what one process alone makes."""
    rows = []
    for row in result["rows"]:
        if row["checkpoint"] or "predicted" not in row:
            continue
        state = [sum(row["bytes"].values()), sum(row["predicted"][role] for role in STATE)]
        made = [row["activations"], row["activations_alone"]]
        name = f"{row['layout']}, {row['experts']} experts"
        rows.append([name, *(f"{size / 1e6:.1f}" for size in (*state, *made))])
    return rows


def checkpoint_rows(result: Result) -> list[list[str]]:
    """By the layout that wrote a checkpoint: how many of its tensors came back to the bit under each that read it."""
    readers = list(dict.fromkeys(each["loaded"] for each in result["checkpoints"]))
    found: dict[str, dict[str, str]] = {}
    for each in result["checkpoints"]:
        exact = each["tensors"] - len(each["differ"])
        found.setdefault(each["saved"], {})[each["loaded"]] = f"{exact} of {each['tensors']}"
    return [
        ["written under", *readers],
        *([saved, *(cells[word] for word in readers)] for saved, cells in found.items()),
    ]


def kills_said(result: Result) -> str:
    """What runs left that lost a rank."""
    kills = result["kills"]
    exact = sum(each["exact"] for each in kills)
    saving = sum(each["saving"] for each in kills)
    noticed = sum(each["noticed"] for each in kills)
    words = " and ".join(sorted({each["layout"] for each in kills}))
    return (
        f"Killed (SIGKILL to one rank of {words}): {exact} of {len(kills)} runs left a whole checkpoint that is, to the"
        f" bit, what a run that nobody killed had after that step; in {saving} a checkpoint was being written; in"
        f" {noticed} the other rank ended by itself."
    )


def plan_rows(result: Result) -> list[list[str]]:
    """Each layout's bytes of a GPU by role, seconds of a step by what takes them, and efficiency."""
    rows = []
    for row in result["rows"]:
        sizes = row["bytes"]
        state = sizes["parameters"] + sizes["gradients"] + sizes["moments"]
        parts = [state, sizes["gathered"], sizes["activations"] + sizes["logits"], row["memory"]]
        waiting = {name: value for name, value in row["seconds"].items() if name not in ("products", "optimizer")}
        waits = [f"{name} {value:.2f}" for name, value in waiting.items() if value >= 0.005]
        cells = [f"{size / 1e9:.1f}" for size in parts]
        efficiency = f"{100 * row['efficiency']:.0f} %"
        trains = "yes" if row["trains"] else "no"
        rows.append([row["layout"], *cells, f"{row['step']:.2f}", ", ".join(waits) or "—", efficiency, trains])
    return rows


def published_rows(result: Result) -> list[list[str]]:
    """Each published run beside the model's prediction."""
    rows = []
    for row in result["rows"]:
        ratio = row["predicted_tokens"] / row["tokens"]
        memory = "—"
        if "memory" in row:
            memory = f"{row['memory'] / GIB:.1f}, {row['predicted_memory'] / GIB:.1f}"
        kind = "fitted" if row["fitted"] else "held out"
        speeds = f"{row['tokens']:,.0f}, {row['predicted_tokens']:,.0f} ({ratio:.2f} ×)"
        rows.append([row["run"], row["layout"], speeds, memory, kind])
    return rows


def published_errors(result: Result) -> str:
    """Mean errors of the rows that were not fitted."""
    return (
        f"Rows that were not fitted: speed is {result['error_tokens']:.0f} % off on average, at most"
        f" {result['largest_error_tokens']:.0f} %; memory {result['error_memory']:.0f} %, at most"
        f" {result['largest_error_memory']:.0f} %."
    )


def saved(rows: Sequence[Result], layout: str) -> float | None:
    """Percent of parameters, gradients and moments that a process of a layout does not hold; None where it was not
    measured."""
    for row in rows:
        if row["layout"] == layout:
            return 100 * (1 - held(row))
    return None
