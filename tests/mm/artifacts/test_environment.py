"""A result names the commit and the machine, and says so where there is no checkout."""

import subprocess

import pytest
import torch

from mm.artifacts import environment


def test_the_commit_is_git_s_and_says_whether_files_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = ""
    monkeypatch.setattr(environment, "_git", lambda *words: "abc123" if words[0] == "rev-parse" else changed)
    assert environment.commit() == "abc123"
    changed = " M mm/config.py"
    assert environment.commit() == "abc123+changes"


def test_outside_a_checkout_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*words: str) -> str:
        raise subprocess.CalledProcessError(128, ["git", *words])

    monkeypatch.setattr(environment, "_git", failing)
    assert environment.commit() == "unknown"


def test_hardware_names_cores_processor_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    for found, said in ((True, "3 cores, chip with bf16, torch "), (False, "3 cores, chip, torch ")):
        monkeypatch.setattr(environment, "processor", lambda: "chip")
        monkeypatch.setattr(environment, "has_bf16", lambda device, found=found: found)
        assert environment.hardware(torch.device("cpu")) == said + torch.__version__


def test_the_gpu_is_named_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    assert "H200" not in environment.hardware(torch.device("cpu"))
    assert environment.hardware(torch.device("cuda")) == f"2 x H200, torch {torch.__version__}"
