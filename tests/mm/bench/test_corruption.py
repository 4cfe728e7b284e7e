"""Damaged files of every kind are refused, counted or read as they were; what would be a fault is found to be one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import UserError
from mm.bench import corruption
from mm.bench.artefacts import SUBJECTS, Found, Subject
from mm.bench.corruption import Trial, compared, corrupt, faults, run_corruptions

TRIALS = 54
WHOLE = Found({"a/image": "1", "b/image": "2"})


def test_no_damaged_file_is_silent_or_a_traceback(tmp_path: Path) -> None:
    """A bounded form of what scripts/soak.py does a thousand times."""
    pytest.importorskip("peft", reason="adapters are among the files: peft is not installed")
    rows, trials = corrupt(TRIALS, tmp_path, seed=4)
    assert faults(trials) == []
    assert rows["all"]["trials"] == TRIALS and rows.keys() == {*SUBJECTS, "all"}
    assert rows["all"]["refused"] > TRIALS / 3 and rows["all"]["counted"] > 0
    checked = [name for name, subject in SUBJECTS.items() if subject.checked]
    assert len(checked) == 3 and not sum(rows[name]["other content"] for name in checked)


def test_the_same_seed_damages_alike(tmp_path: Path) -> None:
    chosen = ("annotations", "seen.json")
    once, again = (corrupt(20, tmp_path / name, 7, chosen)[0] for name in ("once", "again"))
    assert once == again != corrupt(20, tmp_path / "other", 8, chosen)[0]


COMPARED = {
    "identical": (WHOLE, False, ""),
    "counted": (Found({"b/image": "2"}, 1), False, "a"),
    "other content": (Found({"a/image": "3", "b/image": "2"}), False, "a"),
}


@pytest.mark.parametrize("outcome", COMPARED)
def test_what_is_read_is_told_from_what_was(outcome: str) -> None:
    assert compared(WHOLE, *COMPARED[outcome])[0] == outcome


SILENT = {
    "lost": (Found({"b/image": "2"}), False, "a"),
    "lost of another file": (Found({"a/image": "1"}, 1), False, "a"),
    "changed in another file": (Found({"a/image": "1", "b/image": "3"}, 1), False, "a"),
    "changed under a checksum": (Found({"a/image": "3", "b/image": "2"}), True, ""),
}


@pytest.mark.parametrize("found, checked, own", SILENT.values(), ids=SILENT.keys())
def test_what_nobody_says_is_silent(found: Found, checked: bool, own: str) -> None:
    assert compared(WHOLE, found, checked, own)[0] == "silent"


def planted(read: Callable[[Path], Found]) -> Subject:
    """A file of text, and what reads it."""

    def make(folder: Path) -> None:
        (folder / "file.txt").write_text("whole")

    return Subject(make, ("file.txt",), read, {"emptied": lambda draw, data: b""})


def raising(error: Exception) -> Callable[[Path], Found]:
    """A reader that raises an error of a file without content."""

    def read(folder: Path) -> Found:
        if not (folder / "file.txt").read_text():
            raise error
        return Found({"text": "1"})

    return read


@pytest.mark.parametrize(
    "error, outcome",
    [
        (UserError("file.txt is empty"), "refused"),
        (UserError("something is empty"), "unnamed"),
        (ValueError("file.txt is empty"), "traceback"),
        (KeyError("text"), "traceback"),
    ],
)
def test_only_a_users_error_that_names_the_file_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, outcome: str
) -> None:
    monkeypatch.setattr(corruption, "SUBJECTS", {"planted": planted(raising(error))})
    rows, (trial,) = corrupt(1, tmp_path, 0, ["planted"])
    assert trial.outcome == outcome and rows["planted"][outcome] == 1
    assert (tmp_path / "0" / "file.txt").read_text() == "whole"


def test_faults_are_named_in_what_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = Trial("images", "emptied", "silent", "1 lost", 0.5)
    monkeypatch.setattr(corruption, "corrupt", lambda *_: ({}, [trial, replace(trial, outcome="counted")]))
    found = run_corruptions(2, tmp_path, 0)
    assert found["faults"] == ["images, emptied: silent, 1 lost"] and found["damages"] == {"emptied": 2}
