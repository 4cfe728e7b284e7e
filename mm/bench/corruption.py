"""A thousand damaged files, each read as the product reads it: refused in one line, counted, or without consequence.

A fault is anything else: an exception that is no user's error, a refusal that names no file, something that is missing
or changed and nobody says so.
"""

import logging
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import UserError
from mm.bench.artefacts import SUBJECTS, Found, Subject

REFUSED = "refused"
"""A user's error that names the file."""
COUNTED = "counted"
"""What is missing is among the counts of what was skipped, or said in the log."""
IDENTICAL = "identical"
"""To the bit what is read of the file undamaged."""
OTHER = "other content"
"""The file is valid and says something else: its format has no checksum."""
SILENT = "silent"
"""Something is missing or changed, and nobody says so."""
TRACEBACK = "traceback"
"""An exception that is no user's error."""
UNNAMED = "unnamed"
"""A user's error that does not say of which file."""
OUTCOMES = (REFUSED, COUNTED, IDENTICAL, OTHER, SILENT, TRACEBACK, UNNAMED)
FAULTS = (SILENT, TRACEBACK, UNNAMED)


@dataclass(frozen=True)
class Trial:
    """One damaged file: of which subject, by which damage, what came of it, and in words why."""

    subject: str
    damage: str
    outcome: str
    reason: str
    seconds: float


def corrupt(
    trials: int, folder: Path, seed: int = 0, subjects: Sequence[str] = tuple(SUBJECTS)
) -> tuple[dict[str, Any], list[Trial]]:
    """Damage files and read them. The damages are drawn anew for each seed, the subjects take turns.

    Args:
        trials: how many.
        folder: for the artefacts.
        seed: of the places and kinds of the damages.
        subjects: what is damaged.

    Returns:
        for each subject the numbers of its trials and outcomes, and the trials.
    """
    draw = random.Random(seed)
    whole: dict[str, Found] = {}
    places = {name: folder / str(number) for number, name in enumerate(subjects)}
    for name, place in places.items():
        place.mkdir(parents=True)
        SUBJECTS[name].make(place)
        whole[name] = SUBJECTS[name].read(place)
    done = []
    with _quiet():
        for number in range(trials):
            name = subjects[number % len(subjects)]
            done.append(_trial(name, places[name], whole[name], draw))
    return table(done, subjects), done


def run_corruptions(trials: int, folder: Path, seed: int) -> dict[str, Any]:
    """What `corrupt` found, for a file of results: `faults` has a line for each."""
    started = time.perf_counter()
    rows, done = corrupt(trials, folder, seed)
    damages = Counter(trial.damage for trial in done)
    return {
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "slowest_seconds": round(max(trial.seconds for trial in done), 2),
        "subjects": rows,
        "damages": dict(sorted(damages.items())),
        "faults": faults(done),
    }


def table(trials: Sequence[Trial], subjects: Sequence[str]) -> dict[str, Any]:
    """Numbers of trials and outcomes by subject, and of all together."""
    rows: dict[str, Any] = {}
    for name in subjects:
        rows[name] = _counts([trial for trial in trials if trial.subject == name])
    rows["all"] = _counts(trials)
    return rows


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    counts = Counter(trial.outcome for trial in trials)
    return {"trials": len(trials)} | {outcome: counts[outcome] for outcome in OUTCOMES}


def faults(trials: Sequence[Trial]) -> list[str]:
    """A line for each trial that ended as none may."""
    bad = [trial for trial in trials if trial.outcome in FAULTS]
    return [f"{trial.subject}, {trial.damage}: {trial.outcome}, {trial.reason}" for trial in bad]


def _trial(name: str, folder: Path, whole: Found, draw: random.Random) -> Trial:
    """Damage a file of a subject, read it, and put back what it held."""
    subject = SUBJECTS[name]
    path = draw.choice(damaged_files(subject, folder))
    kind = draw.choice(list(subject.damages))
    data = path.read_bytes()
    started = time.perf_counter()
    try:
        path.write_bytes(subject.damages[kind](draw, data))
        outcome, reason = _outcome(subject, folder, path, whole)
    finally:
        path.write_bytes(data)
    return Trial(name, kind, outcome, reason, time.perf_counter() - started)


def damaged_files(subject: Subject, folder: Path) -> list[Path]:
    """The files of a subject that are damaged, one at a time."""
    found: list[Path] = []
    for pattern in subject.files:
        found += sorted(folder.glob(pattern))
    return found


def _outcome(subject: Subject, folder: Path, path: Path, whole: Found) -> tuple[str, str]:
    try:
        found = subject.read(folder)
    except UserError as error:
        said = str(error)
        named = path.name in said or str(path.parent) in said
        return (REFUSED if named else UNNAMED), said
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return TRACEBACK, f"{type(error).__name__} {str(error)[:200]} at {where.filename}:{where.lineno}"
    return compared(whole, found, subject.checked, path.stem if subject.alone else "")


def compared(whole: Found, found: Found, checked: bool, own: str = "") -> tuple[str, str]:
    """What reading a damaged artefact came to, beside reading it whole.

    Args:
        whole: what was read undamaged.
        found: what was read damaged.
        checked: whether the format has checksums.
        own: what the names of the damaged file's items begin with; others may not change.

    Returns:
        one of `OUTCOMES`, and in words why.
    """
    names = whole.items.keys() | found.items.keys()
    differ = sorted(name for name in names if whole.items.get(name) != found.items.get(name))
    more = found.counted - whole.counted
    if not differ and not more:
        return IDENTICAL, ""
    if any(not name.startswith(own) for name in differ):
        return SILENT, f"of other files: {', '.join(differ[:3])}"
    if more > 0:
        return COUNTED, f"{more} counted"
    lost = len(whole.items) - len(found.items)
    if lost > 0 or checked:
        return SILENT, f"{lost} lost, {len(differ)} differ: {', '.join(differ[:3])}"
    return OTHER, f"{len(differ)} differ"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that readers log of what they skip."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
