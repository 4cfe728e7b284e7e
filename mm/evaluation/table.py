"""What a person reads first when a run has been evaluated: tables, a verdict, size and seconds."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.figures import Figures, first_protocol, split_figures
from eval.report.charts import arrow
from eval.report.run import chances_of
from eval.report.verdict import retrieval_verdict
from mm.evaluation.band import Band, stored_band


def show(result: Mapping[str, Any]) -> None:
    """Print the retrieval table of each split and what to think of it, then size, seconds and hardware.

    A run of the default settings stands beside other seeds and beside linear heads.

    Args:
        result: a run's.
    """
    console = Console()
    chances = chances_of(result)
    band = stored_band(result["config"])
    splits = split_figures(result)
    for split, figures in splits.items():
        prefix = "" if figures is next(iter(splits.values())) else f"{split}/"
        console.print(_retrieval_table(figures, chances, band, prefix))
    verdict = retrieval_verdict(next(iter(splits.values())), chances, None, ())
    sentences = verdict.sentences[:1] + (band.sentences(result["metrics"]) if band else [])
    console.print(" ".join(sentences), highlight=False)
    console.print(f"The trunks have seen: {first_protocol(result).pretraining}")
    total = result["parameters_total"] / 1e6
    active = result["parameters_active"] / 1e6
    console.print(
        f"{total:.1f} M parameters, {active:.1f} M active per token · {result['seconds']:.0f} s on {result['hardware']}"
    )


def _retrieval_table(figures: Figures, chances: Mapping[str, float], band: Band | None, prefix: str) -> Table:
    """A row for each direction that has a chance.

    Args:
        figures: of a split.
        chances: R@1 of a random ranking by direction, in percent.
        band: whose figures stand in columns of their own, if any.
        prefix: of the split's measures in the band's study.
    """
    protocol = figures.protocol
    depth = protocol.rerank_depth
    sizes = protocol.sizes().replace(" x ", ", ")
    said = "R@1 of seeds: the lowest and highest of others; linear: of linear heads, as many steps; chance: at random"
    table = Table(title=f"{protocol.name}: {sizes}, any-hit recall in %", caption=said if band else None)
    table.add_column("direction", no_wrap=True)
    reranked = [f"R@1, best {depth} re-ranked"] if depth else []
    beside = ["seeds", "linear"] if band else []
    for column in ("R@1", "R@5", "R@10", *reranked, *beside, "chance" if band else "chance R@1"):
        table.add_column(column, justify="right", no_wrap=column not in reranked)
    for direction, random in chances.items():
        recalls = [figures.metrics[f"{direction}/R@{k}"] for k in (1, 5, 10)]
        cells = [f"{recall:.1f}" for recall in recalls]
        low, high = figures.intervals[f"{direction}/R@1"]
        cells[0] += f" [dim]({low:.1f}-{high:.1f})[/dim]"
        if depth:
            again = figures.metrics.get(f"reranked/{direction}/R@1")
            cells.append("—" if again is None else f"{again:.1f}{_gain(figures, direction)}")
        if band:
            measure = f"{prefix}{direction}/R@1"
            lowest, highest = band.limits(measure)
            cells += [f"{lowest:.1f}-{highest:.1f}", f"{band.linear(measure):.1f}"]
        table.add_row(arrow(direction), *cells, f"{random:.2f}")
    return table


def _gain(figures: Figures, direction: str) -> str:
    """What re-ranking adds to R@1, with its paired interval; nothing of a result that has none."""
    name = f"reranked/{direction}/gain@1"
    if name not in figures.intervals:
        return ""
    low, high = figures.intervals[name]
    return f" [dim]({low:+.1f} to {high:+.1f})[/dim]"
