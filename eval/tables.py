"""Tables of the pages: what was measured, under which protocol, by which command, on what hardware."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.adapted import COLUMNS as ADAPTED_COLUMNS
from eval.adapted import AdaptedRow, stored_rows
from eval.claims import Evidence, claims
from eval.coco import DIRECTIONS
from eval.figures import first_protocol
from eval.gpu import BOTH, beside, contests, described_gpu, gpu_lines
from eval.layouts import (
    bytes_rows,
    checkpoint_rows,
    kills_said,
    layout_rows,
    plan_rows,
    published_errors,
    published_rows,
)
from eval.measures import random_recall
from eval.retrieval import RECALL_AT
from eval.studies import Study

RETRIEVAL_COLUMNS = (
    "run",
    "evaluated on",
    "R@1/5/10 image→text",
    "R@1/5/10 text→image",
    "RSUM",
    "RSUM re-ranked",
    "parameters, active",
    "seconds",
)
HEADLINE_COLUMNS = (
    "run",
    "judged on",
    "R@1 image→text",
    "R@1 text→image",
    "RSUM",
    "RSUM of chance",
    "minutes",
)
HEADLINES = (("default", "scenes/val"), ("flickr8k_recipe", "flickr8k/val"))
"""Runs, and what they are judged on, that stand on the first page."""
UTILIZATION_COLUMNS = (
    "run",
    "modality",
    "codes used, %",
    "code perplexity",
    "experts used, %",
    "expert perplexity",
)
STUDY_MEASURES = {
    "RSUM": "RSUM",
    "R@1 image→text": "image_to_text/R@1",
    "R@1 text→image": "text_to_image/R@1",
    "R@1 audio→text": "audio_to_text/R@1",
    "R@1 image→audio": "image_to_audio/R@1",
}
"""Column -> the measure of a study."""
BESIDE = "measured, in brackets how many times as long the first takes"
LEGEND = (
    "Any-hit recall in %; RSUM is the sum of the six recalls. Seconds are of the whole run on a shared machine;"
    " `features` is what caching a frozen trunk's took, part of them in the run that needed it first. Measured on:"
    " {where}."
)
Result = Mapping[str, Any]
"""The content of a result.json, as today's code writes it."""
Cells = Sequence[str]


def is_run(content: Any) -> bool:
    """Whether a stored JSON is a run's result of image-text retrieval, and no benchmark."""
    return isinstance(content, dict) and "commit" in content and "image_to_text/R@1" in content.get("metrics", {})


def gather(runs: Sequence[Result], studies: Mapping[str, Study], others: Mapping[str, Any]) -> Evidence:
    """What the pages are written from.

    Args:
        runs: contents of result.json.
        studies: by name.
        others: further JSON by name; `adapt` is the table of scripts/bench_adapt.py, `gpu_…` of scripts/gpu_check.py.
    """
    adapted = stored_rows(others["adapt"]) if "adapt" in others else []
    return Evidence(runs, studies, adapted, others)


def stored_name(result: Result) -> str:
    """Name of the file that keeps a result: its run, and the data on which it was evaluated."""
    return f"{result['config']['name']}-on-{first_protocol(result).name.replace('/', '-')}.json"


def without_places(content: Any) -> Any:
    """JSON content, of every absolute path the last part: where a run lay says nothing of what it measured."""
    if isinstance(content, dict):
        return {name: without_places(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content


def markdown(columns: Cells, rows: Sequence[Cells]) -> str:
    """A table with the names of its columns underlined."""
    lines = []
    for cells in (columns, ["---"] * len(columns), *rows):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_on(results: Iterable[Result]) -> str:
    """On what each of some results was measured, and at which commit, once each."""
    places = dict.fromkeys(f"{result['hardware']} (commit {result['commit']})" for result in results)
    return f"Measured on: {'; '.join(places)}"


def headline_table(runs: Sequence[Result]) -> str:
    """The runs of HEADLINES, beside chance."""
    rows = []
    for name, judged in HEADLINES:
        for run in runs:
            if (run["config"]["name"], first_protocol(run).name) == (name, judged):
                rows.append(_headline_row(run))
    return markdown(HEADLINE_COLUMNS, rows)


def _headline_row(run: Result) -> Cells:
    """Cells under HEADLINE_COLUMNS."""
    metrics = run["metrics"]
    protocol = first_protocol(run)
    first = [f"{metrics[f'{direction}/R@1']:.1f} %" for direction in DIRECTIONS]
    chance = 0.0
    for k in RECALL_AT:
        chance += random_recall(k, protocol.captions, protocol.captions / protocol.images)
        chance += random_recall(k, protocol.images, 1)
    where = f"{protocol.name}, {protocol.images:,} images"
    return [
        run["config"]["name"],
        where,
        *first,
        f"{metrics['RSUM']:.0f}",
        f"{chance:.1f}",
        f"{run['seconds'] / 60:.0f}",
    ]


def retrieval_table(runs: Sequence[Result]) -> str:
    """A row for each run, and below the table what its figures are and where they were measured."""
    commits: dict[str, set[str]] = {}
    for run in runs:
        commits.setdefault(run["hardware"], set()).add(run["commit"])
    facts = []
    for hardware, found in sorted(commits.items()):
        facts.append(f"{hardware} (commits {', '.join(sorted(found))})")
    table = markdown(RETRIEVAL_COLUMNS, [_retrieval_row(run) for run in runs])
    return f"{table}\n\n{LEGEND.format(where='; '.join(facts))}"


def pretraining_of(runs: Sequence[Result]) -> str:
    """What the trunks had seen before, runs of the same trunks in one sentence."""
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        seen = names.setdefault(first_protocol(run).pretraining, {})
        seen[run["config"]["name"]] = None
    return "\n".join(f"- {', '.join(of_these)}: {words}." for words, of_these in names.items())


def _retrieval_row(run: Result) -> Cells:
    """Cells under RETRIEVAL_COLUMNS."""
    metrics = run["metrics"]
    protocol = first_protocol(run)
    kind = "zero-shot" if protocol.zero_shot else "held-out split"
    where = f"{protocol.name}, {protocol.images:,} images × {protocol.captions_per_image} captions, {kind}"
    recalls = []
    for direction in DIRECTIONS:
        values = [metrics[f"{direction}/R@{k}"] for k in RECALL_AT]
        recalls.append("/".join(f"{value:.1f}" for value in values))
    total = run["parameters_total"] / 1e6
    active = run["parameters_active"] / 1e6
    size = f"{total:.1f} M, {active:.1f} M"
    seconds = f"{run['seconds']:,.0f}"
    if run.get("seconds_features"):
        seconds += f", features {run['seconds_features']:,.0f}"
    rsum = f"{metrics['RSUM']:.1f}"
    return [run["config"]["name"], where, *recalls, rsum, _reranked_cell(metrics), size, seconds]


def _reranked_cell(metrics: Mapping[str, float]) -> str:
    """RSUM and both R@1 after re-ranking; – where nothing was."""
    if "reranked/RSUM" not in metrics:
        return "–"
    values = [metrics[f"reranked/{direction}/R@1"] for direction in DIRECTIONS]
    first = " / ".join(f"{value:.1f}" for value in values)
    return f"{metrics['reranked/RSUM']:.1f}, R@1 {first}"


def baseline_of(studies: Mapping[str, Study]) -> str:
    """What linear heads on the default's trunks reach beside it, in a sentence; empty where it was not studied."""
    study = studies.get("baseline")
    if study is None:
        return ""
    means = {variant: f"{study.of(variant, 'RSUM').mean():.0f}" for variant in study.variants}
    gain = study.difference("default", "linear_equal_time", "RSUM")
    return (
        f"The default over {len(study.of('default', 'RSUM'))} seeds: RSUM {means['default']}. The same trunks with a"
        f" linear head each, no codes and no backbone: {means['linear']} in as many steps, {means['linear_equal_time']}"
        f" in as much time; the default less that, by seed: {gain}."
    )


def studies_table(studies: Mapping[str, Study]) -> str:
    """Every study's variants, beside the difference from its first, paired by seeds.

    A study without RSUM is skipped.
    """
    rows: list[Cells] = []
    for study in with_rsum(studies).values():
        rows += [_study_row(study, variant) for variant in study.variants]
    columns = ["study", "variant", "seeds", *STUDY_MEASURES, "RSUM against the first"]
    return markdown(columns, rows)


def with_rsum(studies: Mapping[str, Study]) -> dict[str, Study]:
    """The studies that measured RSUM."""
    return {name: study for name, study in studies.items() if "RSUM" in study.values[study.variants[0]]}


def _study_row(study: Study, variant: str) -> Cells:
    """Means over the seeds; – where a measure does not exist."""
    measured = study.values[variant]
    means = []
    for measure in STUDY_MEASURES.values():
        if measure in measured:
            mean = study.of(variant, measure).mean()
            means.append(f"{mean:.1f}")
        else:
            means.append("–")
    first = study.variants[0]
    against = "" if variant == first else str(study.difference(variant, first, "RSUM"))
    return [study.name, variant, str(len(measured["RSUM"])), *means, against]


def adapted_rows_table(rows: Sequence[AdaptedRow]) -> str:
    """What scripts/bench_adapt.py prints, in one table."""
    cells = [(row.group, *row.text()) for row in rows]
    return markdown(("evaluated by, base", *ADAPTED_COLUMNS), cells)


def utilization_table(runs: Sequence[Result]) -> str:
    """Codes and experts in use on the evaluated split, by modality."""
    rows = []
    for run in runs:
        where = f"{run['config']['name']} on {first_protocol(run).name}"
        for modality in ("image", "audio", "text"):
            if f"experts/{modality}/used" in run["metrics"]:
                rows.append([where, modality, *_utilization_cells(run["metrics"], modality)])
    return markdown(UTILIZATION_COLUMNS, rows)


def _utilization_cells(metrics: Mapping[str, float], modality: str) -> Cells:
    """Share and perplexity of codes, then of experts; – where there are none."""
    cells = []
    for kind in ("codes", "experts"):
        for measure in ("used", "perplexity"):
            value = metrics.get(f"{kind}/{modality}/{measure}")
            cells.append("–" if value is None else f"{value:.1f}")
    return cells


def gpu_table(result: Result) -> str:
    """What scripts/gpu_check.py measured on a card, and below it where.

    Where both passes of a kernel were timed, the forward alone is left to the JSON.
    """
    lines = dict(gpu_lines(result))
    shown = [(what, said) for what, said in lines.items() if f"{what} + backward" not in lines]
    table = markdown(("on a GPU", BESIDE), shown)
    return f"{table}\n\nMeasured on: {described_gpu(result)}. By `python scripts/gpu_check.py`."


def corruption_table(result: Result) -> str:
    """What became of damaged files of each kind, as scripts/soak.py counted them."""
    subjects = result["corrupt"]["subjects"]
    outcomes = next(iter(subjects.values()))
    rows = [[name, *(f"{count:,}" for count in counts.values())] for name, counts in subjects.items()]
    return markdown(["damaged", *outcomes], rows)


def kills_table(result: Result) -> str:
    """How often a run was killed, how often of it before its last step, and what of its weights differs from a run that
    was left alone."""
    logged = result["killed_after_logged_step"]
    cells = [
        str(len(logged)),
        str(sum(step < result["steps"] - 1 for step in logged)),
        f"{result['steps']:,}",
        str(result["tensors"]),
        str(len(result["tensors_that_differ"])),
    ]
    return markdown(("kills", "while it trained", "steps", "tensors of weights", "that differ"), [cells])


def kernels_table(rows: Sequence[Result]) -> str:
    """What scripts/bench_kernels.py measured on a CPU, and below it where."""
    lines = []
    for contest in contests(rows):
        first = contest[0]
        kind = "forward + backward" if first["pass"] == BOTH else "forward"
        lines.append((f"{first['op']}, {first['case']}, {first['dtype']}, {kind}", beside(contest)))
    where = f"{rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['date']}"
    return f"{markdown(('kernel', BESIDE), lines)}\n\nMeasured on: {where}. By `python scripts/bench_kernels.py`."


def memory_table(result: Result) -> str:
    """Resident memory of a process while it trains."""
    sizes = result["resident_mib_by_step"]
    return markdown(["step", *sizes], [["MiB", *(f"{size:,.0f}" for size in sizes.values())]])


LAYOUT_COLUMNS = (
    "layout",
    "gradients",
    "logged values",
    "weights after three steps",
    "state that a process holds",
    "s a step (of one process alone)",
    "samples/s of all",
)
PLAN_COLUMNS = (
    "layout",
    "state, GB",
    "gathered, GB",
    "activations, GB",
    "together, GB",
    "s a step",
    "waits for, s",
    "efficiency",
    "in train_align",
)


def layouts_table(result: Result) -> str:
    """What scripts/dist_check.py found of each layout, and below it where."""
    shared = "gloo, all processes on the cores of one machine, which they share"
    where = f"{result['hardware']}, {shared} (commit {result['commit'][:7]})"
    command = "By `python scripts/dist_check.py --parts '[layouts]'`"
    return f"{markdown(LAYOUT_COLUMNS, layout_rows(result))}\n\nMeasured on: {where}. {command}."


def bytes_table(result: Result) -> str:
    """What a process of each layout holds and makes, where it was measured."""
    columns = ("layout", "state, MB", "by formula, MB", "made by a step, MB", "by one process alone, MB")
    rows = bytes_rows(result)
    return markdown(columns, rows) if rows else ""


def recovery_table(result: Result) -> str:
    """Checkpoints read under every layout, and what runs left that lost a rank."""
    columns, *rows = checkpoint_rows(result)
    where = f"{result['hardware']}, gloo (commit {result['commit'][:7]})"
    command = "By `python scripts/dist_check.py --parts '[checkpoints,kills]'`"
    return f"{markdown(columns, rows)}\n\n{kills_said(result)}\n\nMeasured on: {where}. {command}."


def plan_table(result: Result) -> str:
    """What scripts/plan.py predicts of each layout, and for what."""
    machine = result["machine"]["name"]
    what = f"{result['run']}, {result['batch_size']:,} samples a step, on {result['gpus']} x {machine}"
    return f"Predicted, not measured: {what}.\n\n{markdown(PLAN_COLUMNS, plan_rows(result))}"


def published_table(result: Result) -> str:
    """The planner's model beside published runs, and its error on those that it was not fitted to."""
    columns = ("run", "layout", "tokens/s of a GPU: published, predicted", "GiB: published, predicted", "row")
    return f"{markdown(columns, published_rows(result))}\n\n{published_errors(result)}"


def claims_table(evidence: Evidence) -> str:
    """The article's claims beside what was measured of them."""
    rows = [(each.claim, each.measured, each.command) for each in claims(evidence)]
    return markdown(("claim", "measured here", "by"), rows)
