"""JSON is written whole or not at all, one process holds a lock, and names from data stay in their folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm.files import InUseError, leaves_folder, locked, private_name, write_json

HOLDER = """
import sys
from pathlib import Path
from mm.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).write_text("whole")
"""
"""Holds a path until it is told to let go, then writes it."""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the path."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_no_two_processes_write_under_one_name(tmp_path: Path) -> None:
    name = private_name(tmp_path / "file.json")
    assert name.parent == tmp_path and str(os.getpid()) in name.name


def test_a_held_path_is_refused_naming_its_holder(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    with pytest.raises(InUseError, match=f"process {process.pid} on "), locked(tmp_path / "run", wait=False):
        pass
    process.communicate("\n")
    with locked(tmp_path / "run", wait=False):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    process.kill()
    process.communicate()
    with locked(tmp_path / "run", wait=False):
        pass


def test_a_held_path_is_waited_for(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    assert process.stdin is not None
    subprocess.Popen(["sh", "-c", "sleep 0.3; echo"], stdout=process.stdin)
    started = time.monotonic()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").read_text() == "whole"
    assert time.monotonic() - started > 0.2
    process.communicate()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "..\\b"])
def test_a_name_that_leads_out_of_its_folder_is_known(name: str) -> None:
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "a..b", ".hidden", "12:30.jpg", "a:b"])
def test_any_other_name_stays_in_it(name: str) -> None:
    assert not leaves_folder(name)
