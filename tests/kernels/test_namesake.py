"""transformers and bitsandbytes take this package for what it is, and not for Hugging Face's of the same name."""

import importlib.metadata
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from encoders.trunks import require_transformers
from mm.optional import require

ROOT = Path(__file__).parents[2]
IN_THEIR_RANGE = "0.18.5"
"""A version that transformers 5.23 would take: at least 0.18.2, below 0.19.0."""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata of mm-align, were its version in their range."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("metadata")
    for package in ("mm", "encoders", "alignment", "kernels", "eval"):
        (copy / package).mkdir()
        (copy / package / "__init__.py").touch()
    for name in ("README.md", "setup.py"):
        shutil.copy(ROOT / name, copy)
    settings, changed = re.subn(
        r'\nversion = ".*"', f'\nversion = "{IN_THEIR_RANGE}"', (ROOT / "pyproject.toml").read_text()
    )
    assert changed == 1
    (copy / "pyproject.toml").write_text(settings)
    program = f"import setuptools.build_meta as build; build.prepare_metadata_for_build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True, capture_output=True)
    shutil.rmtree(out / "mm_align.egg-info", ignore_errors=True)
    return out


def transformers_takes_us(metadata: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which this is the only mm-align that is installed."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    program = f"""
import importlib.metadata as metadata, sys
sys.path[:0] = [{str(metadata)!r}, {str(ROOT)!r}]
every = metadata.distributions
metadata.distributions = lambda **k: [d for d in every(**k) if d.name != "mm-align" or d.version == {IN_THEIR_RANGE!r}]
from transformers.utils.import_utils import is_kernels_available
import kernels
print(is_kernels_available(), kernels.__file__)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=metadata)


def test_the_name_is_not_claimed_and_transformers_leaves_us_alone(metadata: Path) -> None:
    (claimed,) = metadata.glob("*.dist-info/top_level.txt")
    assert set(claimed.read_text().split()) == {"mm", "encoders", "alignment", "eval"}
    found = transformers_takes_us(metadata)
    assert found.stdout.split() == ["False", str(ROOT / "kernels" / "__init__.py")], found.stderr


def test_transformers_would_take_us_if_the_name_were_claimed(metadata: Path, tmp_path: Path) -> None:
    """What the test above would show."""
    shutil.copytree(metadata, tmp_path / "claiming")
    (claimed,) = (tmp_path / "claiming").glob("*.dist-info/top_level.txt")
    claimed.write_text(claimed.read_text() + "kernels\n")
    found = transformers_takes_us(tmp_path / "claiming")
    assert found.stdout.split()[0] == "True", found.stderr


def test_our_version_lies_below_every_minimum() -> None:
    assert kernels.__version__ == "0"


def test_bitsandbytes_does_not_complain_of_us(caplog: pytest.LogCaptureFixture) -> None:
    """What it logs on processors with AVX512-BF16 when it is imported, found in its source and logged here."""
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        pytest.importorskip("bitsandbytes")
    source = (Path(spec.origin).parent / "backends" / "cpu" / "ops.py").read_text()
    (complaint,) = re.findall(r'logger.warning\(\s*"(.*%s.*)",\s*exc', source)
    assert "from kernels import get_kernel" in source and "logger = logging.getLogger(__name__)" in source
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning(complaint, ImportError("get_kernel"))
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_hugging_faces_package_beside_us_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"kernels": "0.18.5"}[name])
    for look in (kernels.check_namesake, lambda: require_transformers("hf/x"), lambda: require("no_such_package")):
        with pytest.raises(ValueError, match=r"kernels 0\.18\.5 is installed, whose name is taken here: pip uninstall"):
            look()


@pytest.mark.parametrize("package", ["transformers", "peft", "bitsandbytes", "timm", "open_clip", "lightning"])
def test_no_library_looks_for_another_of_our_names(package: str) -> None:
    """Neither by an import nor by asking whether it is installed; the examples and tests inside them do not count."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.importorskip(package)
    name = "(mm|encoders|alignment|eval|scripts|configs|tests)"
    asks = re.compile(
        rf"^\s*(from {name}[. ].*import|import {name}(\.|\s|$))|(find_spec|_is_package_available)\([\"']{name}[\"']",
        re.M,
    )
    sources = list(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    assert sources and not [p for p in sources if asks.search(p.read_text(errors="ignore"))]
