"""Adapted runs side by side: a row of figures for each, cells for those of one strategy."""

import json
from pathlib import Path
from statistics import mean, stdev

MEASURES = ("trainable", "peak memory, GiB", "minutes", "domain before", "domain after", "general before",
            "general after")


def read_adapted(folder: Path) -> tuple[str, dict[str, float]]:
    """A run's row: its title, and what was measured. Raises ValueError where it is no adapted run."""
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    found = result.get("adaptation") or result.get("continued")
    if not found:
        raise ValueError(f"{folder} is no adapted run: expected a result.json of scripts/finetune.py or"
                         " scripts/continue_pretrain.py in it")
    stamp = next(iter(result["protocol"].values()))
    targets = f" on {' + '.join(found['targets'])}" if found.get("targets") else ""
    how = found.get("strategy", "continued pre-training")
    parts = [how + targets, f"{found['selected']['metric']} of {stamp['dataset']}", f"from {found['run']}"]
    measured = {"trainable": found["trainable"], "peak memory, GiB": found["peak_memory_gib"],
                "minutes": found["minutes"]}
    for moment in ("before", "after"):
        measured |= {f"{part} {moment}": value for part, value in found[moment].items()}
    return ", ".join(parts), measured


def cells(found: list[dict[str, float]]) -> list[str]:
    """MEASURES of runs that differ in their seeds: mean ± standard deviation, or — where it was not measured."""
    return [_cell(name, [row[name] for row in found if name in row]) for name in MEASURES]


def _cell(name: str, values: list[float]) -> str:
    if not values:
        return "—"
    if name == "trainable":
        return f"{mean(values):,.0f}"
    digits = 2 if name.startswith("peak") else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
