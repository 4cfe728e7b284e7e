"""A study: every variant with every seed, planned, run one after the other, and read into one tidy table.

It is a YAML of `config` (a file of configs/, or none for the embedded run), `settings` of every run, `seeds`, and
`variants`, a name and its settings each. A run with a result.json is not run again; one that was interrupted goes on
from its newest checkpoint. The table is written anew after every run: what was measured so far can be read at any time.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from eval.studies import ROOT, Study
from kernels.errors import UserError
from mm.artifacts.settings import by_group, read_text, read_yaml
from mm.config import AlignConfig
from mm.modalities import MODALITIES
from mm.train.resume import is_whole

PARTS: dict[str, Any] = {"config": (str, type(None)), "settings": dict, "seeds": list, "variants": dict}
"""What a study's YAML may hold, and of which kind."""
COLUMNS = ("study", "variant", "seed", "measure", "value")
COSTS = ("parameters_total", "parameters_active", "seconds")
"""What the table has of a result.json beside its metrics."""


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed; settings by their dotted names, on top of the file `config`."""

    variant: str
    seed: int
    settings: dict[str, Any]
    config: str | None

    @property
    def name(self) -> str:
        """Of the run's folder in the study's."""
        return f"{self.variant}-{self.seed}"

    def described(self) -> str:
        """What makes it another run than one of the same name."""
        content = {"config": self.config, "seed": self.seed, "settings": self.settings}
        return json.dumps(content, sort_keys=True)

    def options(self, runs: Path) -> list[str]:
        """What the script that trains is told; runs: the folder that this run's folder is in."""
        words = []
        if self.config:
            words += ["--config", self.config]
        for name, value in self.settings.items():
            written = json.dumps(value)
            words += [f"--{name}", written.strip('"')]
        words += ["--runs", str(runs)]
        words += ["--name", self.name]
        words += ["--seed", str(self.seed)]
        checkpoints = runs / self.name / "checkpoints"
        if any(is_whole(path) for path in checkpoints.glob("*.ckpt")):
            words += ["--resume", "true"]
        return words


def run_study(planned: Sequence[PlannedRun], study: str, train: Path, folder: Path, table: Path) -> None:
    """Run what has not been run, and write the table anew after each.

    Args:
        study: its name.
        train: the script that trains one run.
        folder: of the study's runs.
        table: CSV file.

    Raises:
        ValueError: where a run of the same name has other settings, or one ends badly.
    """
    # Held by no name: where a run breaks, the display must end with the loop, not when the traceback is collected.
    for number, run in enumerate(track(planned, study, refresh_per_second=1), start=1):
        check_settings(run, folder)
        if not is_done(run, folder):
            log = log_of(run, folder)
            print(f"{number} of {len(planned)}: {run.name}, log in {log}", flush=True)
            execute(run, train, folder)
        done = [other for other in planned if is_done(other, folder)]
        write_table(table, study, done, folder)


def run_again(name: str, steps: int, runs: Path = ROOT / "runs" / "notebooks") -> Study:
    """The study anew with one seed and few steps, by scripts/ablate.py; what has been run is not run again.

    Args:
        name: of the study, without .yaml.
        steps: optimizer steps of each run.
        runs: folder for the runs and the table.

    Raises:
        CalledProcessError: where a run fails; its output is shown.
    """
    table = runs / f"{name}-{steps}.csv"
    study = ["scripts/ablate.py", f"configs/ablations/{name}.yaml", "--seeds", "[0]"]
    settings = ["--settings", f"{{train.steps: {steps}}}"]
    places = ["--runs", str(runs / f"{steps}"), "--table", str(table)]
    subprocess.run([sys.executable, *study, *settings, *places], cwd=ROOT, check=True)
    return Study.load(table)


def read_study(path: Path, seeds: Sequence[int] | None, settings: Mapping[str, Any] | None) -> list[PlannedRun]:
    """All runs of a study, seed by seed: one that is stopped early has compared all variants.

    Args:
        path: the study's YAML.
        seeds: instead of the study's own.
        settings: added to those of every run.

    Raises:
        ValueError: naming the part, where the file holds no study.
    """
    content = _content(path)
    config = content.get("config")
    shared = content.get("settings", {})
    planned = []
    for seed in seeds or content.get("seeds", [0]):
        for variant, changes in content["variants"].items():
            merged = dict(shared)
            merged.update(changes or {})
            merged.update(settings or {})
            settings_of_run = for_each_modality(merged)
            by_group(settings_of_run, AlignConfig, f"{path}, {variant}")  # a wrong name is known before anything trains
            run = PlannedRun(variant, seed, settings_of_run, config)
            planned.append(run)
    return planned


def for_each_modality(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`*.trunk` becomes image.trunk, audio.trunk and text.trunk: a setting of every encoder.

    The others stay as they are.
    """
    found = {}
    for name, value in settings.items():
        if name.startswith("*."):
            for modality in MODALITIES:
                own = name.replace("*", modality, 1)
                found[own] = value
        else:
            found[name] = value
    return found


def is_done(run: PlannedRun, folder: Path) -> bool:
    """Whether a run has its result, which is written last; folder: of the study's runs."""
    result = folder / run.name / "result.json"
    return result.is_file()


def check_settings(run: PlannedRun, folder: Path) -> None:
    """Write down the settings with which a run is begun, or compare them with those that are written down.

    Raises ValueError where the folder holds a run of this name with other settings.
    """
    # Beside the run's folder: the script that trains moves aside what it finds in there.
    stored = folder / f"{run.name}.json"
    described = run.described()
    if stored.is_file() and stored.read_text() != described:
        raise UserError(
            f"{folder / run.name} was run with other settings: remove {stored} and it, or name other --runs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(described)


def log_of(run: PlannedRun, folder: Path) -> Path:
    """The file of what a run printed, in the folder of the study's runs."""
    return folder / f"{run.name}.log"


def execute(run: PlannedRun, train: Path, folder: Path) -> None:
    """Train one run in a process of its own, its output in a log beside its folder.

    Raises ValueError, with the last line of the log, when it ends badly.
    """
    log = log_of(run, folder)
    command = [sys.executable, str(train)]
    command += run.options(folder)
    with log.open("a") as file:
        finished = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    code = finished.returncode
    if code:
        lines = log.read_text().strip().splitlines()
        last = lines[-1] if lines else "no output"
        raise UserError(f"{run.name} ended with code {code}: {last} (log: {log}); run the same again to go on")


def write_table(path: Path, study: str, done: Sequence[PlannedRun], folder: Path) -> None:
    """A row for each run and measure, the columns of COLUMNS; what was there stays until the new table is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for run in done:
            own = folder / run.name
            for measure, value in measures(own):
                row = (study, run.variant, run.seed, measure, value)
                table.writerow(row)
    temporary.replace(path)


def measures(run: Path) -> Iterator[tuple[str, Any]]:
    """Names and values of a finished run, whose folder `run` is: its metrics, what it cost, and its last losses."""
    content = (run / "result.json").read_text()
    result = json.loads(content)
    yield from result["metrics"].items()
    for name in COSTS:
        yield name, result[name]
    yield from last_logged(run).items()


def last_logged(run: Path) -> dict[str, str]:
    """The training losses of a run, whose folder `run` is, as they were logged last: `train/<name>`.

    A measure that is not logged at every step keeps the value of the last step at which it was.
    """
    last = {}
    path = run / "metrics.csv"
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name.startswith("train/") and value:
                    last[name] = value
    return last


def _content(path: Path) -> dict[str, Any]:
    """The YAML of a study, every part of which is known and of the right kind."""
    content = read_yaml(read_text(path), str(path))
    if not isinstance(content, dict) or "variants" not in content:
        raise UserError(f"{path} is no study: it needs `variants`, a name and its settings each")
    for name, value in content.items():
        kind = PARTS.get(name, ())
        if not isinstance(value, kind):
            raise UserError(f"{path}: {name} is no part of a study, or of another kind: see scripts/ablate.py")
    return content
