"""Pages of Markdown whose blocks are written from results.

A block stands between `<!-- NAME: written by scripts/reproduce.py -->` and `<!-- /NAME -->`; the words around it are
anybody's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.captions import captions_table
from eval.claims import Evidence
from eval.light import light_page, pareto_plot, points_of
from eval.molecules import molecules_table
from eval.plots import save_svg
from eval.serving import (
    SERVING_COLUMNS,
    SOAK_COLUMNS,
    batching_columns,
    batching_rows,
    draw_batching,
    said_of,
    serving_rows,
    soak_rows,
    targets,
)
from eval.speed import feeding_table, generation_table, index_table, scale_table, steps_table
from eval.stored_codes import stored_codes_plot, stored_codes_table
from eval.studies import Study
from eval.tables import (
    Result,
    adapted_rows_table,
    baseline_of,
    bytes_table,
    claims_table,
    corruption_table,
    gpu_table,
    headline_table,
    kernels_table,
    kills_table,
    layouts_table,
    markdown,
    memory_table,
    plan_table,
    pretraining_of,
    published_table,
    recovery_table,
    retrieval_table,
    studies_table,
    utilization_table,
    with_rsum,
)
from kernels.errors import UserError

BLOCK = re.compile(r"<!-- (?P<name>[a-z]+): written by scripts/reproduce\.py -->.*?<!-- /(?P=name) -->", re.DOTALL)


def _studies(evidence: Evidence) -> str:
    """Each study with its picture and its table."""
    parts = []
    for name, study in with_rsum(evidence.studies).items():
        picture = f"![RSUM and R@1 of each variant: a dot for every seed, a bar at their mean](img/study-{name}.svg)"
        parts.append(f"## {name}\n\n{picture}\n\n{studies_table({name: study})}")
    return "\n\n".join(parts)


def draw_pictures(studies: Mapping[str, Study], benchmarks: Mapping[str, Any], folder: Path) -> None:
    """The pictures that blocks show."""
    draw_studies(studies, folder)
    if "batching" in benchmarks:
        draw_batching(benchmarks["batching"], folder / "batching.svg")
    if "stored_codes" in benchmarks:
        save_svg(stored_codes_plot(benchmarks["stored_codes"]), folder / "stored-codes.svg")
    for name, result in light_results(benchmarks).items():
        save_svg(pareto_plot(points_of(result)), folder / f"{name}.svg")


def light_results(benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """What scripts/bench_light.py stored, a file for each set."""
    return {name: result for name, result in benchmarks.items() if name.partition("_")[0] == "light"}


def draw_studies(studies: Mapping[str, Study], folder: Path) -> None:
    """The pictures that the block of the studies shows."""
    for name, study in with_rsum(studies).items():
        save_svg(study.plot(["RSUM", "image_to_text/R@1", "text_to_image/R@1"]), folder / f"study-{name}.svg")


def _adapted(evidence: Evidence) -> str:
    return adapted_rows_table(evidence.adapted) if evidence.adapted else ""


def _gpu(evidence: Evidence) -> str:
    return _each(evidence, "gpu_", gpu_table)


def _corruption(evidence: Evidence) -> str:
    return _stored(evidence, "soak_corrupt", corruption_table)


def _memory(evidence: Evidence) -> str:
    return _stored(evidence, "soak_memory", memory_table)


def _kills(evidence: Evidence) -> str:
    return _stored(evidence, "soak_kills", kills_table)


def _kernels(evidence: Evidence) -> str:
    return _each(evidence, "kernels_cpu_", kernels_table)


def _steps(evidence: Evidence) -> str:
    steps = {name: result for name, result in evidence.benchmarks.items() if name.startswith("step_")}
    return steps_table(steps) if steps else ""


def _generation(evidence: Evidence) -> str:
    return _each(evidence, "generation_", generation_table)


def _together(evidence: Evidence, kind: str, table: Callable[[list[Any]], str]) -> str:
    """One table of all results of a kind, the first word of their names."""
    found = [result for name, result in evidence.benchmarks.items() if name.partition("_")[0] == kind]
    return table(found) if found else ""


def _batching(evidence: Evidence) -> str:
    """Whether the targets hold, and the table."""

    def table(result: Result) -> str:
        listed = "\n".join(f"- {sentence}" for sentence in targets(result))
        return f"{listed}\n\n{markdown(batching_columns(result), batching_rows(result))}"

    return _stored(evidence, "batching", table)


def _serving(evidence: Evidence) -> str:
    return _stored(evidence, "serving", lambda result: markdown(SERVING_COLUMNS, serving_rows(result)))


def _soak(evidence: Evidence) -> str:
    def table(result: Result) -> str:
        return f"{markdown(SOAK_COLUMNS, soak_rows(result))}\n\n{said_of(result)}"

    return _stored(evidence, "serving_soak", table)


def _each(evidence: Evidence, prefix: str, table: Callable[[Any], str]) -> str:
    """The tables of all stored files whose names begin so."""
    return "\n\n".join(table(found) for name, found in evidence.benchmarks.items() if name.startswith(prefix))


def _stored(evidence: Evidence, name: str, table: Callable[[Result], str]) -> str:
    """The table of one stored file, where it is there."""
    return table(evidence.benchmarks[name]) if name in evidence.benchmarks else ""


BLOCKS: dict[str, Callable[[Evidence], str]] = {
    "headline": lambda evidence: f"{headline_table(evidence.runs)}\n\n{baseline_of(evidence.studies)}".rstrip(),
    "retrieval": lambda evidence: retrieval_table(evidence.runs),
    "pretraining": lambda evidence: pretraining_of(evidence.runs),
    "studies": _studies,
    "adapted": _adapted,
    "utilization": lambda evidence: utilization_table(evidence.runs),
    "gpu": _gpu,
    "claims": claims_table,
    "corruption": _corruption,
    "memory": _memory,
    "kills": _kills,
    "kernels": _kernels,
    "light": lambda evidence: light_page(light_results(evidence.benchmarks)),
    "steps": _steps,
    "feeding": lambda evidence: _stored(evidence, "feeding", feeding_table),
    "index": lambda evidence: _stored(evidence, "index_cpu", index_table),
    "generation": _generation,
    "captions": lambda evidence: _together(evidence, "captions", captions_table),
    "molecules": lambda evidence: _together(evidence, "molecules", molecules_table),
    "scale": lambda evidence: _stored(evidence, "scale", scale_table),
    "stored": lambda evidence: _stored(evidence, "stored_codes", lambda result: stored_codes_table([result])),
    "batching": _batching,
    "serving": _serving,
    "soak": _soak,
    "layouts": lambda evidence: _stored(evidence, "layouts", layouts_table),
    "shares": lambda evidence: _stored(evidence, "layouts", bytes_table),
    "recovery": lambda evidence: _stored(evidence, "layouts_recovery", recovery_table),
    "plan": lambda evidence: _stored(evidence, "plan_70b", plan_table),
    "published": lambda evidence: _stored(evidence, "plan_published", published_table),
}
"""By name; each gives the text of a block, or nothing where no result is stored."""


def write_pages(pages: Sequence[Path], evidence: Evidence) -> list[str]:
    """Write every block of every page anew.

    Returns:
        The names of the blocks that were written, in the order of the pages.

    Raises:
        ValueError: a page has a block of a name that there is not, or no page has a block.
    """
    written: list[str] = []
    for page in pages:
        text = page.read_text()
        names = [match["name"] for match in BLOCK.finditer(text)]
        unknown = sorted(set(names) - set(BLOCKS))
        if unknown:
            raise UserError(f"{page}: no block is called {unknown[0]}; there are {', '.join(BLOCKS)}")
        if names:
            page.write_text(filled(text, {name: BLOCKS[name](evidence) for name in names}))
        written += names
    if not written:
        raise UserError("no page has a block <!-- NAME: written by scripts/reproduce.py --> … <!-- /NAME -->")
    return written


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with the content of its blocks replaced."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- {name}: written by scripts/reproduce.py -->\n{blocks[name]}\n<!-- /{name} -->"

    return BLOCK.sub(block, text)
