"""Run a study: every variant with every seed, resumable run by run, and one tidy table of what was measured.

    python scripts/ablate.py configs/ablations/schedule.yaml
    python scripts/ablate.py configs/ablations/schedule.yaml --seeds '[0]' --settings '{train.steps: 20}'

A study is a YAML: `config` (a file of configs/, or none for the embedded run), `settings` of every run, `seeds`, and
`variants`, a name and its settings each; a setting of `*.` is one of all three modalities. A run with a result.json
is not run again, one that was interrupted goes on from its newest checkpoint. The table (study, variant, seed, measure,
value) is written anew after every run.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.progress import track

from mm.artifacts.run import is_whole
from mm.cli import run_command
from mm.model.backbone import MODALITIES

TRAIN = Path(__file__).parent / "train_align.py"
PARTS = {"config": (str, type(None)), "settings": dict, "seeds": list, "variants": dict}


@dataclass(frozen=True)
class Run:
    """One variant with one seed; settings by their dotted names."""

    variant: str
    seed: int
    settings: dict[str, Any]
    config: str | None

    def described(self) -> str:
        """What makes it another run than one of the same name."""
        return json.dumps({"config": self.config, "seed": self.seed, "settings": self.settings}, sort_keys=True)

    def command(self, runs: Path) -> list[str]:
        folder = runs / self.name
        base = ["--config", self.config] if self.config else []
        given = [word for name, value in self.settings.items() for word in (f"--{name}", json.dumps(value).strip('"'))]
        resume = ["--resume", "true"] if any(map(is_whole, (folder / "checkpoints").glob("*.ckpt"))) else []
        where = ["--runs", str(runs), "--name", self.name, "--seed", str(self.seed)]
        return [sys.executable, str(TRAIN), *base, *given, *where, *resume]

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"


def ablate(
    study: Path,
    seeds: list[int] | None = None,
    settings: dict[str, Any] | None = None,
    runs: Path = Path("runs/ablations"),
    table: Path | None = None,
) -> None:
    """Run what of a study has not been run, and write its table.

    Args:
        study: YAML file of the study.
        seeds: instead of the study's own.
        settings: added to those of every run.
        runs: folder for the runs; a study has its own folder in it.
        table: CSV file to write; by default <runs>/<study>.csv.
    """
    planned = read_study(study, seeds, settings or {})
    folder, table = runs / study.stem, table or runs / f"{study.stem}.csv"
    for at, run in enumerate(track(planned, study.stem, refresh_per_second=1), start=1):  # runs take minutes
        check_settings(run, folder)
        if not (folder / run.name / "result.json").is_file():
            print(f"{at} of {len(planned)}: {run.name}, log in {folder / run.name / 'log.txt'}", flush=True)
            execute(run, folder)
        write_table(table, study.stem, [r for r in planned if (folder / r.name / "result.json").is_file()], folder)
    print(f"{len(planned)} runs: {table}")


def read_study(path: Path, seeds: list[int] | None, settings: dict[str, Any]) -> list[Run]:
    """All runs of a study, seed by seed: a study that is stopped early has compared all variants."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or "variants" not in content:
        raise ValueError(f"{path} is no study: it needs `variants`, a name and its settings each")
    for name, value in content.items():
        if name not in PARTS or not isinstance(value, PARTS[name]):  # type: ignore[arg-type]
            raise ValueError(f"{path}: {name} is no part of a study, or of another kind: see scripts/ablate.py")
    shared = content.get("settings", {})
    return [
        Run(variant, seed, for_each_modality({**shared, **(changes or {}), **settings}), content.get("config"))
        for seed in seeds or content.get("seeds", [0])
        for variant, changes in content["variants"].items()
    ]


def for_each_modality(settings: dict[str, Any]) -> dict[str, Any]:
    """`*.bottleneck.mode` becomes image.bottleneck.mode, audio.… and text.…"""
    return {
        name.replace("*", modality, 1): value
        for name, value in settings.items()
        for modality in (MODALITIES if name.startswith("*.") else ("",))
    }


def check_settings(run: Run, folder: Path) -> None:
    """Raises ValueError where the folder holds a run of this name with other settings."""
    described = folder / run.name / "study.json"
    if described.is_file() and described.read_text() != run.described():
        raise ValueError(f"{described.parent} was run with other settings: remove it, or name other --runs")
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(run.described())


def execute(run: Run, folder: Path) -> None:
    """Raises ValueError with the last line of the log when the run ends badly."""
    log = folder / run.name / "log.txt"
    with log.open("a") as file:
        code = subprocess.run(run.command(folder), stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        lines = log.read_text().strip().splitlines() or ["no output"]
        raise ValueError(f"{run.name} ended with code {code}: {lines[-1]} (log: {log}); run the same again to go on")


def write_table(path: Path, study: str, done: list[Run], folder: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("study", "variant", "seed", "measure", "value"))
        for run in done:
            result = json.loads((folder / run.name / "result.json").read_text())
            own = {name: result[name] for name in ("parameters_total", "parameters_active", "seconds")}
            for measure, value in {**result["metrics"], **own, **last_logged(folder / run.name)}.items():
                rows.writerow((study, run.variant, run.seed, measure, value))
    temporary.replace(path)


def last_logged(run: Path) -> dict[str, str]:
    """The training losses of a run as they were logged last, `train/<name>`."""
    last: dict[str, str] = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            last |= {name: value for name, value in row.items() if name.startswith("train/") and value}
    return last


if __name__ == "__main__":
    run_command(ablate, positional=True)
