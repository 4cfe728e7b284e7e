"""audit says which gallery sizes a published figure fits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_brief_s_figure_is_of_25000_captions(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("audit.py", "--value", "0.36584", "--direction", "t2i", "--json", tmp_path / "out.json")
    (figure,) = json.loads((tmp_path / "out.json").read_text())
    fits = {fit["queries"]: fit["fits"] for fit in figure["fits"]}
    assert fits[25_000] and not fits[25_010] and "9,146" in capsys.readouterr().out


def test_without_a_figure_the_published_ones_are_audited(script: Callable[..., None], tmp_path: Path) -> None:
    script("audit.py", "--json", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())) >= 5


@pytest.mark.parametrize(
    "words, named",
    [
        (["--value", "many"], "many"),
        (["--direction", "up"], "direction"),
        (["--vaule", "0.3"], "--vaule"),
    ],
)
def test_mistakes_are_one_line(refused: Callable[..., str], words: list[str], named: str) -> None:
    assert named in refused("audit.py", *words)
