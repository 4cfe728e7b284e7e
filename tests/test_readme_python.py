"""The Python that README shows runs as it stands, on a tiny run in the place of the default one."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.artifacts.run import Run, save_run

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_readme_s_python_runs(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = BLOCK.findall(README.read_text())
    assert sum(bool(line) for line in block.splitlines()) == 5
    save_run(tiny_run(), tmp_path / "runs" / "default")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for path in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    given: dict[str, object] = {}
    exec(block, given)
    printed = capsys.readouterr().out
    assert tuple(given["texts"].shape) == (2, 16)  # type: ignore[attr-defined]
    assert printed.count("tensor(") == 2 and printed.count("Hit(path=") == 2
