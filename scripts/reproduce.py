"""Write README's results from result files: what was measured, under which protocol, by which command, on what
hardware.

    python scripts/reproduce.py                                   # from eval/results/*.json
    python scripts/reproduce.py --add runs/flickr8k/result.json   # keep a run's result there first

Nothing in the table is typed by hand: every figure comes from a file that train_align or eval_coco wrote.
"""

import json
from pathlib import Path
from typing import Any

from mm.command import run_command

BEGIN, END = "<!-- RESULTS: written by scripts/reproduce.py -->", "<!-- /RESULTS -->"
COLUMNS = (
    "run",
    "judged on",
    "R@1/5/10 image→text",
    "R@1/5/10 text→image",
    "RSUM",
    "RSUM re-ranked",
    "parameters, active",
    "seconds",
)
NO_FEATURE = "not measured here: the feature does not exist yet"
CLAIMS = {
    "128 experts, 8 active, at a fifth of the hardware of a dense model of that size": "experts",
    "92.3 % image-text matching on MS-COCO, without a stated protocol": "coco",
    "+7.1 points over a baseline": "not measured here: the baseline is not named",
    "ZeRO-3 uses 68 % less memory": "not measured here: `train.strategy=deepspeed_stage_3` needs GPUs",
    "91 % scaling efficiency with 3-D parallelism": NO_FEATURE,
    "batching delay of at most 15 ms": NO_FEATURE,
    "domain adaptation gains 19 %": "not measured here yet: `scripts/finetune.py` writes gain and forgetting of a run",
    "8-bit quantisation takes 28 GB to 3.5 GB": (
        "cannot be: 28 GB of fp32 are 7 GB in 8 bits. 3.5 GB are 4 bits, which `finetune.py --strategy qlora` packs for"
        " training; export in 8 bits is not built yet"
    ),
    "8 inferences a second at the edge": NO_FEATURE,
    "checkpointing takes 48 GB to 16 GB": "not measured here: `model.backbone.checkpoint=true`, but no GPU",
    "FlashAttention is 3 times faster on the KV path": "not measured here: torch's fused kernels, but no GPU",
    "compiled inference takes 120 ms to 45 ms": NO_FEATURE,
}
DIRECTIONS = ("image_to_text", "text_to_image")


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
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    runs = [r for r in found if isinstance(r, dict) and "image_to_text/R@1" in r.get("metrics", {}) and "commit" in r]
    if not runs:
        raise ValueError(f"{results} holds no result of a run: add one with --add '[runs/<name>/result.json]'")
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    tables = "\n\n".join((retrieval_table(runs), use_table(runs), claims_table(runs)))
    readme.write_text(f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}")
    print(f"{readme}: {len(runs)} results")


def keep(path: Path, results: Path) -> None:
    """Copy a result under the name of its run and the data it was judged on, without the paths of this machine."""
    result = without_places(json.loads(path.read_text()))
    stamp = next(iter(result["protocol"].values()))
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{result['config']['name']}-on-{stamp['dataset'].replace('/', '-')}.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


def without_places(content: Any) -> Any:
    """JSON content, of every absolute path the last part: where a run lay says nothing of what it measured."""
    if isinstance(content, dict):
        return {name: without_places(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content


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
    facts = sorted({f"{run['hardware']} (commit {run['commit']})" for run in runs})
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            "Any-hit recall in %; RSUM is the sum of the six recalls. Seconds are of the whole run on a shared machine;"
            " `features` is what caching a frozen trunk's took, part of them in the run that needed it first."
            " Measured on: " + "; ".join(facts) + ".",
        ]
    )


def claims_table(runs: list[dict]) -> str:
    """The article's claims beside what the result files say of them."""
    measured = {"experts": experts_measured(runs), "coco": coco_measured(runs)}
    rows = [("claim", "here"), ("---",) * 2, *((claim, measured.get(here, here)) for claim, here in CLAIMS.items())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def experts_measured(runs: list[dict]) -> str:
    """Only what a parameter count shows; nothing here measures a dense model's hardware."""
    found = {}
    for run in runs:
        moe = run["config"]["model"]["backbone"]["moe"]
        share = 100 * run["parameters_active"] / run["parameters_total"]
        found[run["config"]["name"]] = f"{moe['experts']} experts, {moe['active']} active, {share:.0f} % of parameters"
    return "; ".join(f"{name}: {text}" for name, text in found.items()) + "; hardware not measured here"


def coco_measured(runs: list[dict]) -> str:
    """Retrieval on whatever COCO photographs were judged: a small gallery is no 5K test, and says so."""
    found = []
    for run in runs:
        stamp = next(iter(run["protocol"].values()))
        if "coco" in stamp["dataset"]:
            recalls = " / ".join(f"{run['metrics'][f'{direction}/R@1']:.1f}" for direction in DIRECTIONS)
            found.append(f"{run['config']['name']} on {stamp['images']} images of {stamp['dataset']}: R@1 {recalls}")
    return "; ".join(found) + " (not the 5K test)" if found else "not measured here"


def use_table(runs: list[dict]) -> str:
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
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    run_command(reproduce)
