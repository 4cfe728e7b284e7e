"""Notebooks execute on the stored results, and one that breaks is named."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "eval" / "notebooks"


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_tells_its_story(
    name: str, script: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_STEPS", "0")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    script("notebooks.py", "--only", f"[{name}]", "--out", tmp_path)
    outputs = [
        out for cell in nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells for out in cell.get("outputs", [])
    ]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert any("R@1" in out.get("text", "") for out in outputs)


def test_notebooks_are_kept_without_output() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), path.name


def test_a_notebook_nobody_knows_is_named(refused: Callable[..., str]) -> None:
    assert "no notebook 'weather': choose from bottleneck, " in refused("notebooks.py", "--only", "[weather]")
