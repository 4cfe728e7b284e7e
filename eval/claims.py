"""The article's claims beside what the stored results say of them, each with the command that measured it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.adapted import AdaptedRow
from eval.coco import DIRECTIONS
from eval.figures import first_protocol, split_figures
from eval.gpu import gpu_lines
from eval.layouts import saved
from eval.serving import OURS, worst_delay
from eval.studies import Study

UNMEASURED = "not measured here"
NO_FEATURE = f"{UNMEASURED}: the feature does not exist yet"
NO_COMMAND = "—"


@dataclass(frozen=True)
class Evidence:
    """All results that are stored."""

    runs: Sequence[Mapping[str, Any]]
    """Contents of result.json, as today's code writes them."""
    studies: Mapping[str, Study] = field(default_factory=dict)
    """By name."""
    adapted: Sequence[AdaptedRow] = ()
    """The table of scripts/bench_adapt.py."""
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    """Other JSON by the name of its file."""


@dataclass(frozen=True)
class Claim:
    """What the article says, and what was measured of it."""

    claim: str
    measured: str
    command: str
    """That measured it, or would."""


def claims(evidence: Evidence) -> list[Claim]:
    """Every claim, in the order of the article."""
    return [
        experts(evidence),
        matching(evidence),
        progression(evidence),
        Claim("+7.1 points over a baseline", f"{UNMEASURED}: the baseline is not named", NO_COMMAND),
        sharding(evidence),
        scaling(evidence),
        batching(evidence),
        adaptation(evidence),
        quantisation(evidence),
        edge(evidence),
        checkpointing(evidence),
        Claim(
            "FlashAttention is 3 times faster on the KV path",
            f"{UNMEASURED}: torch's fused kernels are used, but there is no GPU",
            NO_COMMAND,
        ),
        compiled(evidence),
    ]


def experts(evidence: Evidence) -> Claim:
    """What parameters count, and what a study of equal training took; of another model's hardware nothing is known."""
    claim = "128 experts, 8 active, at a fifth of the hardware of a dense model of that size"
    shares = {}
    for run in evidence.runs:
        name = run["config"]["name"]
        moe = run["config"]["model"]["backbone"]["moe"]
        share = 100 * run["parameters_active"] / run["parameters_total"]
        shares[name] = f"{name}: {moe['num_experts']} experts, {moe['top_k']} active, {share:.0f} % of parameters"
    measured = "; ".join(shares.values())
    study = evidence.studies.get("experts")
    if not study:
        return Claim(claim, f"{measured}; hardware {UNMEASURED}", "`train_align.py`")
    seeds = len(study.of(study.variants[0], "RSUM"))
    trained = "; ".join(_trained(study, variant) for variant in study.variants)
    measured += f". Trained alike, {seeds} seeds of few steps: {trained}"
    return Claim(claim, measured, "`ablate.py configs/ablations/experts.yaml`")


def _trained(study: Study, variant: str) -> str:
    """Size, RSUM and seconds of a variant."""
    active = study.of(variant, "parameters_active").mean() / 1e6
    total = study.of(variant, "parameters_total").mean() / 1e6
    rsum = study.of(variant, "RSUM").mean()
    seconds = study.of(variant, "seconds").mean()
    return f"{variant}: {active:.1f} of {total:.1f} M parameters active, RSUM {rsum:.1f}, {seconds:.0f} s"


def matching(evidence: Evidence) -> Claim:
    """Retrieval on whatever COCO photographs were evaluated (a small gallery is no 5K test), and balanced matching."""
    claim = "92.3 % image-text matching on MS-COCO, without a stated protocol"
    found = []
    for run in evidence.runs:
        if "coco" in first_protocol(run).dataset:
            found.append(_recalls_on_coco(run))
        found += _accuracies(run)
    if not found:
        return Claim(claim, UNMEASURED, NO_COMMAND)
    return Claim(claim, "; ".join(found), "`eval_coco.py --data.validation …`")


def _recalls_on_coco(run: Mapping[str, Any]) -> str:
    """R@1 of both directions, and the size of the gallery."""
    protocol = first_protocol(run)
    values = [run["metrics"][f"{direction}/R@1"] for direction in DIRECTIONS]
    recalls = " / ".join(f"{value:.1f}" for value in values)
    where = f"{protocol.images} images of {protocol.name}"
    return f"{run['config']['name']} on {where}: R@1 {recalls} (not the 5K test)"


NEGATIVES = {
    "random": "random negatives",
    "hard": "hard negatives",
    "hard_fitted": "hard negatives that fixed the threshold too",
}


def _accuracies(run: Mapping[str, Any]) -> list[str]:
    """Of each kind of negatives and scorer."""
    found = []
    for evaluation, figures in split_figures(run).items():
        if not evaluation.startswith("matching/"):
            continue
        _, negatives, scorer = evaluation.split("/")
        accuracy = figures.metrics["accuracy"]
        low, high = figures.intervals["accuracy"]
        found.append(
            f"{run['config']['name']} on {figures.protocol.name}, {NEGATIVES[negatives]}, {scorer}:"
            f" accuracy {accuracy:.1f} % [{low:.1f}, {high:.1f}]"
        )
    return found


def batching(evidence: Evidence) -> Claim:
    """The time that a request waits while an engine is idle, simulated; and what a real server answers."""
    claim = "batching delay of at most 15 ms"
    command = "`bench_batching.py`, `bench_serve.py`"
    if "batching" not in evidence.benchmarks:
        return Claim(claim, UNMEASURED, command)
    result = evidence.benchmarks["batching"]
    loads = list(next(iter(result["traces"].values())))
    measured = (
        f"99 % of the requests wait at most {worst_delay(result):.1f} ms while an engine is idle, simulated on"
        f" {len(result['traces'])} kinds of traffic from {100 * float(loads[0]):.0f} to {100 * float(loads[-1]):.0f} %"
        f" of capacity, {result['seeds']} seeds each"
    )
    for row in evidence.benchmarks.get("serving", {}).get("rows", []):
        if row["server"] == OURS:
            measured += f"; real server, {row['model']}, {row['clients']} clients: {row['requests_a_second']:,.0f}"
            measured += f" requests/s, p99 {row['p99']:.0f} ms"
    return Claim(claim, measured, command)


PROGRESSIONS = {"photographs": "at equal steps", "projections": "in equal time"}
"""The studies of schedules on Flickr8k, and what is equal in them."""


def progression(evidence: Evidence) -> Claim:
    """What schedules that progress gained over contrastive terms from the first step on."""
    claim = "a progressive modality-alignment loss improves image-text matching"
    told = []
    for name, equal in PROGRESSIONS.items():
        study = evidence.studies.get(name)
        if study is None:
            continue
        reference, *others = study.variants
        gains = "; ".join(f"{variant} {study.difference(variant, reference, 'RSUM')}" for variant in others)
        told.append(f"RSUM of flickr8k/val against {reference}, {equal}: {gains}")
    if not told:
        return Claim(claim, UNMEASURED, "`ablate.py configs/ablations/photographs.yaml`")
    commands = ", ".join(f"`ablate.py configs/ablations/{name}.yaml`" for name in PROGRESSIONS)
    return Claim(claim, ". ".join(told), commands)


def sharding(evidence: Evidence) -> Claim:
    """What a process holds of the state, measured on few; of a GPU of 256, by the planner's formula."""
    claim = "ZeRO-3 uses 68 % less memory"
    found = []
    if "layouts" in evidence.benchmarks:
        rows = evidence.benchmarks["layouts"]["rows"]
        for layout in ("fsdp2", "fsdp4"):
            less = saved(rows, layout)
            if less is not None:
                found.append(
                    f"{layout}, measured on gloo: {less:.1f} % less parameters, gradients and moments a process"
                )
    plan = evidence.benchmarks.get("plan_70b")
    if plan:
        less = 100 * (1 - plan["sharded"]["memory"] / plan["whole"]["memory"])
        sizes = f"{plan['whole']['memory'] / 1e9:,.0f} to {plan['sharded']['memory'] / 1e9:,.1f} GB a GPU"
        what = f"{plan['run']} on {plan['gpus']} x {plan['machine']['name']}"
        found.append(f"{what}, by formula and not measured: {sizes}, {less:.0f} % less with activations")
    command = "`dist_check.py`, `plan.py`, `train_align.py --train.strategy fsdp2`"
    return Claim(claim, "; ".join(found) or UNMEASURED, command)


def scaling(evidence: Evidence) -> Claim:
    """The fastest layouts that are predicted, with and without a pipeline, and how far such predictions are off."""
    claim = "91 % scaling efficiency with 3-D parallelism"
    plan = evidence.benchmarks.get("plan_70b")
    if not plan:
        return Claim(claim, UNMEASURED, NO_COMMAND)
    rows = plan["rows"]
    named = [rows[0], *[row for row in rows if row["trains"]][:1]]
    shown = {row["layout"]: f"{row['layout']} {100 * row['efficiency']:.0f} %" for row in named}
    what = f"{plan['run']} on {plan['gpus']} x {plan['machine']['name']}, {plan['batch_size']:,} samples a step"
    said = f"predicted, not measured, of {what}: {', '.join(shown.values())}"
    if "plan_published" in evidence.benchmarks:
        error = evidence.benchmarks["plan_published"]["error_tokens"]
        said += f"; such predictions are {error:.0f} % off published speeds that they were not fitted to"
    return Claim(claim, said, "`plan.py --config configs/70b.yaml --gpus 256`")


def adaptation(evidence: Evidence) -> Claim:
    """Of each set the strategy that gained most, in the metric's own unit and in percent, and what it forgot."""
    claim = "domain adaptation gains 19 %"
    best: dict[str, AdaptedRow] = {}
    for row in evidence.adapted:
        known = best.setdefault(row.score, row)
        if row.mean("domain after") > known.mean("domain after"):
            best[row.score] = row
    if not best:
        return Claim(claim, f"{UNMEASURED} yet", "`finetune.py`")
    measured = "; ".join(_gain(row) for row in best.values())
    return Claim(claim, measured, "`finetune.py`, `bench_adapt.py`")


def _gain(row: AdaptedRow) -> str:
    """What a strategy learned of the new set, and what it forgot where that was measured."""
    before = row.mean("domain before")
    after = row.mean("domain after")
    percent = 100 * (after / before - 1)
    text = f"{row.score}, {row.strategy}: {before:.1f} → {after:.1f} ({percent:+.0f} %)"
    if all("general after" in seed for seed in row.seeds):
        kept = row.mean("general after")
        text += f", RSUM of its own set {row.mean('general before'):.1f} → {kept:.1f}"
    return text


LIGHT = "`bench_light.py`"


def quantisation(evidence: Evidence) -> Claim:
    """Bytes of compressed runs beside the first one's, and what they lose."""
    claim = "8-bit quantisation takes 28 GB to 3.5 GB"
    cannot = "cannot be: 28 GB of fp32 are 7 GB in 8 bits and with scales 4.6 GB in 4"
    if "light" not in evidence.benchmarks:
        return Claim(claim, cannot, LIGHT)
    first, *others = evidence.benchmarks["light"]["price"]
    found = []
    for row in others:
        test = row["differences"]["RSUM"]
        found.append(
            f"{row['name']}: {row['bytes'] / first['bytes']:.3f} of the bytes,"
            f" ΔRSUM {test['difference']:+.1f} [{test['low']:+.1f}, {test['high']:+.1f}]"
        )
    return Claim(claim, f"{cannot}. Measured against {first['name']}, {'; '.join(found)}", LIGHT)


def edge(evidence: Evidence) -> Claim:
    """Images a second on one core, from the JPEG on."""
    claim = "8 inferences a second at the edge"
    rows = [row for row in _speeds(evidence, 1) if row["case"] == "encode_image of 1"]
    if not rows:
        return Claim(claim, UNMEASURED, LIGHT)
    found = ", ".join(f"{row['implementation']} {row['per_second']:.0f}" for row in rows)
    return Claim(claim, f"images a second on one core of {rows[0]['device']}: {found}. No board was there", LIGHT)


def compiled(evidence: Evidence) -> Claim:
    """Milliseconds of one image and one caption, eager and compiled."""
    claim = "compiled inference takes 120 ms to 45 ms"
    rows = [row for row in _speeds(evidence, 1) if row["case"].endswith(" of 1")]
    if not rows:
        return Claim(claim, UNMEASURED, LIGHT)
    found = ", ".join(f"{row['case']}, {row['implementation']} {row['milliseconds']:.1f} ms" for row in rows)
    return Claim(claim, f"no TensorRT here; one core of {rows[0]['device']}: {found}", LIGHT)


def _speeds(evidence: Evidence, threads: int) -> list[Mapping[str, Any]]:
    """What was timed of light models on so many cores."""
    rows = evidence.benchmarks.get("light", {}).get("speed", [])
    return [row for row in rows if row["threads"] == threads]


def checkpointing(evidence: Evidence) -> Claim:
    """Peak bytes of one training step, with and without gradient checkpointing of the backbone."""
    claim = "checkpointing takes 48 GB to 16 GB"
    command = "`bench_step.py --config configs/bench.yaml --model.backbone.checkpoint true`"
    steps = []
    for name in ("step_default", "step_default_checkpoint"):
        if name in evidence.benchmarks:
            steps.append(_own_row(evidence.benchmarks[name]))
    if len(steps) < 2:
        return Claim(claim, UNMEASURED, command)
    sizes = " to ".join(f"{step['peak_bytes'] / 1e6:.0f} MB" for step in steps)
    times = " to ".join(f"{step['milliseconds']:.0f} ms" for step in steps)
    measured = [f"step of configs/bench.yaml, on a CPU: {sizes}, for {times}"]
    for name, result in evidence.benchmarks.items():
        if name.startswith("gpu_"):
            measured += [f"{result['card']}, {what}: {sizes}" for what, sizes in gpu_lines(result) if "memory" in what]
    return Claim(claim, "; ".join(measured), command)


def _own_row(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the implementations that were timed, this project's."""
    return next(row for row in benchmark["rows"] if row["implementation"] == "ours")
