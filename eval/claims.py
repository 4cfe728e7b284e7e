"""The article's claims beside what the stored results say of them, each with the command that measured it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.adapted import stored_rows
from eval.studies import Study

NO_FEATURE = ("not measured here: the feature does not exist yet", "—")
DIRECTIONS = ("image_to_text", "text_to_image")
Row = tuple[str, str]
"""What was measured, and by which command."""


@dataclass(frozen=True)
class Evidence:
    """All results that are stored.

    runs: result.json contents; studies by name; others: all JSON by name, among it benchmarks and the table of
    scripts/bench_adapt.py.
    """

    runs: Sequence[dict]
    studies: Mapping[str, Study] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)


def claims(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(claim, what was measured here, command) of every claim."""
    rows: list[tuple[str, Row]] = [
        ("128 experts, 8 active, at a fifth of the hardware of a dense model of that size", experts(evidence)),
        ("92.3 % image-text matching on MS-COCO, without a stated protocol", matching(evidence)),
        ("+7.1 points over a baseline", ("not measured here: the baseline is not named", "—")),
        (
            "ZeRO-3 uses 68 % less memory",
            ("not measured here: it needs GPUs", "`train_align.py --train.strategy deepspeed_stage_3`"),
        ),
        ("91 % scaling efficiency with 3-D parallelism", NO_FEATURE),
        ("batching delay of at most 15 ms", NO_FEATURE),
        ("domain adaptation gains 19 %", adaptation(evidence)),
        (
            "8-bit quantisation takes 28 GB to 3.5 GB",
            (
                "cannot be: 28 GB of fp32 are 7 GB in 8 bits. 3.5 GB are 4 bits, which training packs; export in 8 bits"
                " is not built yet",
                "`finetune.py --strategy qlora`",
            ),
        ),
        ("8 inferences a second at the edge", NO_FEATURE),
        ("checkpointing takes 48 GB to 16 GB", checkpointing(evidence)),
        (
            "FlashAttention is 3 times faster on the KV path",
            ("not measured here: torch's fused kernels are used, but there is no GPU", "—"),
        ),
        ("compiled inference takes 120 ms to 45 ms", NO_FEATURE),
    ]
    return [(claim, *row) for claim, row in rows]


def experts(evidence: Evidence) -> Row:
    """What parameters count, and what a study of equal training took; of another model's hardware nothing is known."""
    shares = {}
    for run in evidence.runs:
        moe = run["config"]["model"]["backbone"]["moe"]
        share = 100 * run["parameters_active"] / run["parameters_total"]
        shares[run["config"]["name"]] = f"{moe['experts']} experts, {moe['active']} active, {share:.0f} % of parameters"
    said = "; ".join(f"{name}: {text}" for name, text in shares.items())
    study = evidence.studies.get("experts")
    if not study:
        return f"{said}; hardware not measured here", "`train_align.py`"
    trained = []
    for variant in study.variants:
        active, total = (study.of(variant, f"parameters_{kind}")[0] / 1e6 for kind in ("active", "total"))
        rsum, seconds = (study.of(variant, measure).mean() for measure in ("RSUM", "seconds"))
        trained.append(f"{variant}: {active:.1f} of {total:.1f} M parameters active, RSUM {rsum:.1f}, {seconds:.0f} s")
    seeds = len(study.of(study.variants[0], "RSUM"))
    return (
        f"{said}. Trained alike, {seeds} seeds of few steps: {'; '.join(trained)}",
        "`ablate.py configs/ablations/experts.yaml`",
    )


def matching(evidence: Evidence) -> Row:
    """Retrieval on whatever COCO photographs were evaluated (a small gallery is no 5K test), and balanced matching."""
    found = []
    for run in evidence.runs:
        stamp = next(iter(run["protocol"].values()))
        name = run["config"]["name"]
        if "coco" in stamp["dataset"]:
            recalls = " / ".join(f"{run['metrics'][f'{direction}/R@1']:.1f}" for direction in DIRECTIONS)
            found.append(f"{name} on {stamp['images']} images of {stamp['dataset']}: R@1 {recalls} (not the 5K test)")
        for protocol, figures in run.get("protocols", {}).items():
            if protocol.startswith("matching/"):
                low, high = figures["intervals"]["accuracy"]
                _, negatives, scored = protocol.split("/")
                found.append(
                    f"{name} on {stamp['dataset']}, {negatives} negatives, {scored}: accuracy"
                    f" {figures['metrics']['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
                )
    return ("; ".join(found), "`eval_coco.py --data.validation …`") if found else ("not measured here", "—")


def adaptation(evidence: Evidence) -> Row:
    """Of each set the strategy that gained most, in the metric's own unit and in percent, and what it forgot."""
    best: dict[str, tuple[float, str]] = {}
    for row in stored_rows(evidence.others.get("adapt", {"rows": []})):
        before, after = row.mean("domain before"), row.mean("domain after")
        text = f"{row.judged}, {row.strategy}: {before:.1f} → {after:.1f} ({100 * (after / before - 1):+.0f} %)"
        if all("general after" in seed for seed in row.seeds):
            text += f", RSUM of its own set {row.mean('general before'):.1f} → {row.mean('general after'):.1f}"
        best[row.judged] = max(best.get(row.judged, (float("-inf"), "")), (after, text))
    if not best:
        return "not measured here yet", "`finetune.py`"
    return "; ".join(text for _, text in best.values()), "`finetune.py`, `bench_adapt.py`"


def checkpointing(evidence: Evidence) -> Row:
    """Peak bytes of one training step, with and without gradient checkpointing of the backbone."""
    command = "`bench_step.py --model.backbone.checkpoint true`"
    steps = [evidence.others.get(name) for name in ("step_default", "step_default_checkpoint")]
    if not all(steps):
        return "not measured here", command
    plain, saved = (next(row for row in step["rows"] if row["implementation"] == "ours") for step in steps if step)
    return (
        f"default step, on a CPU: {plain['peak_bytes'] / 1e6:.0f} MB to {saved['peak_bytes'] / 1e6:.0f} MB, for"
        f" {plain['milliseconds']:.0f} ms to {saved['milliseconds']:.0f} ms; no GPU",
        command,
    )
