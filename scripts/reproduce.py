"""Write README's results from result files: what was measured, under which protocol, by which command, on what
hardware.

    python scripts/reproduce.py                                   # from eval/results/*.json
    python scripts/reproduce.py --add runs/flickr8k/result.json   # keep a run's result there first

Nothing in the table is typed by hand: every figure comes from a file that train_align or eval_coco wrote.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.adapted import COLUMNS as ADAPTED
from eval.adapted import stored_rows
from eval.claims import DIRECTIONS, Evidence, claims
from eval.studies import Study
from mm.cli import run_command
from mm.files import write_json

BEGIN, END = "<!-- RESULTS: written by scripts/reproduce.py -->", "<!-- /RESULTS -->"
COLUMNS = (
    "run",
    "evaluated on",
    "R@1/5/10 image→text",
    "R@1/5/10 text→image",
    "RSUM",
    "RSUM re-ranked",
    "parameters, active",
    "seconds",
)


def reproduce(
    results: Path = Path("eval/results"), readme: Path = Path("README.md"), add: list[Path] | None = None
) -> None:
    """Regenerate the results between the markers of the README.

    Args:
        results: folder of result files; those without retrieval metrics (benchmarks) are passed over.
        readme: file with the markers.
        add: result files to copy into the folder first.
    """
    for path in add or []:
        keep(path, results)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    runs = [
        r
        for r in found.values()
        if isinstance(r, dict) and "image_to_text/R@1" in r.get("metrics", {}) and "commit" in r
    ]
    if not runs:
        raise ValueError(f"{results} holds no result of a run: add one with --add '[runs/<name>/result.json]'")
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    studies = {path.stem: Study.load(path) for path in sorted((results / "ablations").glob("*.csv"))}
    evidence = Evidence(runs, studies, found)
    tables = [retrieval_table(runs), utilization_table(runs), claims_table(evidence)]
    if "adapt" in found:
        tables.insert(1, adapted_table(found["adapt"]))
    if studies:
        tables.insert(1, studies_table(studies))
    joined = "\n\n".join(tables)
    readme.write_text(f"{head}{BEGIN}\n{joined}\n{END}{rest.split(END)[1]}")
    print(f"{readme}: {len(runs)} results")


def keep(path: Path, results: Path) -> None:
    """Copy a result under the name of its run and the data it was evaluated on, without the paths of this machine."""
    result = without_places(json.loads(path.read_text()))
    stamp = next(iter(result["protocol"].values()))
    write_json(results / f"{result['config']['name']}-on-{stamp['dataset'].replace('/', '-')}.json", result)


def without_places(content: Any) -> Any:
    """JSON content, of every absolute path the last part: where a run lay says nothing of what it measured."""
    if isinstance(content, dict):
        return {name: without_places(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table: the first row names the columns, the second underlines them."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def retrieval_table(runs: list[dict]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for run in runs:
        metrics, stamp = run["metrics"], next(iter(run["protocol"].values()))
        first = ["/".join(f"{metrics[f'{direction}/R@{k}']:.1f}" for k in (1, 5, 10)) for direction in DIRECTIONS]
        again = "–"
        if "reranked/RSUM" in metrics:
            best = " / ".join(f"{metrics[f'reranked/{direction}/R@1']:.1f}" for direction in DIRECTIONS)
            again = f"{metrics['reranked/RSUM']:.1f}, R@1 {best}"
        kind = "zero-shot" if stamp["zero_shot"] else "held-out split"
        judged = f"{stamp['dataset']}, {stamp['images']:,} images × {stamp['captions_per_image']:g} captions, {kind}"
        size = f"{run['parameters_total'] / 1e6:.1f} M, {run['parameters_active'] / 1e6:.1f} M"
        seconds = f"{run['seconds']:,.0f}"
        if run.get("seconds_features"):
            seconds += f", features {run['seconds_features']:,.0f}"
        rows.append((run["config"]["name"], judged, *first, f"{metrics['RSUM']:.1f}", again, size, seconds))
    commits: dict[str, set[str]] = {}
    for run in runs:
        commits.setdefault(run["hardware"], set()).add(run["commit"])
    facts = [f"{where} (commits {', '.join(sorted(found))})" for where, found in sorted(commits.items())]
    return "\n".join(
        [
            markdown(rows),
            "",
            "Any-hit recall in %; RSUM is the sum of the six recalls. Seconds are of the whole run on a shared machine;"
            " `features` is what caching a frozen trunk's took, part of them in the run that needed it first."
            " Measured on: " + "; ".join(facts) + ".",
        ]
    )


def claims_table(evidence: Evidence) -> str:
    rows = [("claim", "measured here", "by"), ("---",) * 3, *claims(evidence)]
    return markdown(rows)


def adapted_table(table: dict) -> str:
    """What scripts/bench_adapt.py wrote, as it prints it."""
    columns = ("evaluated by, base", *ADAPTED)
    return markdown([columns, ("---",) * len(columns), *((row.group, *row.text()) for row in stored_rows(table))])


def studies_table(studies: dict[str, Study]) -> str:
    """Every study's variants, beside the difference from its first, paired by seeds."""
    shown = {
        "RSUM": "RSUM",
        "R@1 image→text": "image_to_text/R@1",
        "R@1 text→image": "text_to_image/R@1",
        "R@1 audio→text": "audio_to_text/R@1",
        "R@1 image→audio": "image_to_audio/R@1",
    }
    rows: list[tuple[str, ...]] = [("study", "variant", "seeds", *shown, "RSUM against the first")]
    rows.append(("---",) * len(rows[0]))
    for name, study in studies.items():
        first = study.variants[0]
        if "RSUM" not in study.values[first]:
            continue
        for variant in study.variants:
            measured = study.values[variant]
            means = [f"{study.of(variant, m).mean():.1f}" if m in measured else "–" for m in shown.values()]
            against = "" if variant == first else str(study.difference(variant, first, "RSUM"))
            rows.append((name, variant, str(len(measured["RSUM"])), *means, against))
    return markdown(rows)


def utilization_table(runs: list[dict]) -> str:
    """Codes and experts in use on the evaluated split, by modality."""
    rows: list[tuple[str, ...]] = [
        ("run", "modality", "codes used, %", "code perplexity", "experts used, %", "expert perplexity"),
        ("---",) * 6,
    ]
    for run in runs:
        metrics = run["metrics"]
        judged = f"{run['config']['name']} on {next(iter(run['protocol'].values()))['dataset']}"
        for modality in (m for m in ("image", "audio", "text") if f"experts/{m}/used" in metrics):
            cells = [
                metrics.get(f"{kind}/{modality}/{what}")
                for kind in ("codes", "experts")
                for what in ("used", "perplexity")
            ]
            rows.append((judged, modality, *("–" if c is None else f"{c:.1f}" for c in cells)))
    return markdown(rows)


if __name__ == "__main__":
    run_command(reproduce)
