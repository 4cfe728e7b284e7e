"""The best result of a protocol that the repository has stored, for a report to stand beside."""

from importlib.resources import files
from pathlib import Path

from eval.figures import Figures, split_figures
from eval.protocols import Protocol
from eval.report.tables import Baseline
from mm.artifacts.results import read_result

RESULTS = Path(str(files("eval"))) / "results"
"""Not part of an installed package: only a checkout has baselines."""
SAME = ("dataset", "split", "images", "captions", "recall", "folds", "ground_truth", "task")
"""Fields of a protocol in which a baseline must agree: the question is the same, whoever answers it and however."""


def stored_baseline(protocol: Protocol, folder: Path = RESULTS) -> Baseline | None:
    """The stored result of the largest RSUM that answers the same question; None where there is none.

    Args:
        protocol: of the figures that are reported.
        folder: of `<run>-on-<dataset>-<split>.json` files.
    """
    best: tuple[str, Figures] | None = None
    for path in sorted(folder.glob("*-on-*.json")):
        for figures in split_figures(read_result(path)).values():
            if not _same_question(figures.protocol, protocol) or "RSUM" not in figures.metrics:
                continue
            if best is None or figures.metrics["RSUM"] > best[1].metrics["RSUM"]:
                best = (path.stem.partition("-on-")[0], figures)
    if best is None:
        return None
    name, figures = best
    metrics = dict(figures.metrics)
    if figures.protocol.rerank_depth != protocol.rerank_depth:
        metrics = {measure: value for measure, value in metrics.items() if not measure.startswith("reranked/")}
    return Baseline(name, metrics)


def _same_question(mine: Protocol, theirs: Protocol) -> bool:
    return all(getattr(mine, name) == getattr(theirs, name) for name in SAME)
