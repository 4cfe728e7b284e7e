"""A result.json is read in today's words, and what is none is named."""

import json
from pathlib import Path

import pytest

from mm.artifacts.results import read_result


def test_an_older_result_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    protocol = {"dataset": "toy/val", "split": "val", "images": 40, "captions": 200, "captions_per_image": 5.0}
    old = {"metrics": {}, "intervals": {}, "protocol": {"val": protocol | {"zero_shot": True, "trained_on": "x"}}}
    path.write_text(json.dumps(old | {"judged": "mine"}))
    found = read_result(path)
    assert found["evaluated"] == "mine" and found["protocol"]["val"]["trained_on"] == "zero-shot, trained on x"


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(FileNotFoundError, match=r"result\.json: no such file; a finished run"):
        read_result(path)
    for content in ("{", "[]", "{}", '{"protocol": {"val": 3}}', '{"protocol": {"val": {"dataset": "x"}}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"result\.json is not a run's result"):
            read_result(path)
