"""One rule chooses the path, the environment forces it, and the log says it once."""

import logging
import subprocess
import sys

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import choose_path, choose_products, compute_dtype
from kernels.grouped_mlp import grouped_mlp


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM_KERNELS", raising=False)
    dispatch._say_once.cache_clear()


def test_the_rule() -> None:
    assert choose_path("op", torch.zeros(1)) == "cpu"
    assert dispatch._automatic("cuda", torch.float64) == "cpu"
    assert dispatch._automatic("cuda", torch.bfloat16) == ("triton" if dispatch.triton_installed() else "cpu")


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "hidden", "expected"),
    [
        ((9, 0), torch.bfloat16, 256, 128, "fused"),
        ((9, 0), torch.bfloat16, 2048, 768, "library"),
        ((9, 0), torch.bfloat16, 2044, 768, "tiles"),
        ((9, 0), torch.bfloat16, 2048, 766, "tiles"),
        ((9, 0), torch.float32, 2048, 768, "tiles"),
        ((8, 0), torch.bfloat16, 2048, 768, "tiles"),
        ((10, 0), torch.bfloat16, 2048, 768, "tiles"),
    ],
)
def test_the_rule_of_products(
    capability: tuple[int, int],
    dtype: torch.dtype,
    width: int,
    hidden: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's grouped product where it is a kernel: bfloat16 on Hopper, rows in whole 16 bytes, experts wide."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_products(torch.device("cuda"), dtype, width, hidden) == expected


@pytest.mark.parametrize("forced", ["reference", "cpu"])
def test_the_environment_forces(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_KERNELS", forced)
    assert choose_path("op", torch.zeros(1)) == forced


def test_the_log_says_once_which_path_runs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO, logger="kernels"):
        for _ in range(3):
            choose_path("op", torch.zeros(1))
        monkeypatch.setenv("MM_KERNELS", "reference")
        choose_path("op", torch.zeros(1))
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "op runs on the cpu path",
        "op runs on the reference path",
    ]
    assert "MM_KERNELS" in caplog.records[1].message and "MM_KERNELS" not in caplog.records[0].message


def test_an_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_KERNELS", "cuda")
    with pytest.raises(ValueError, match="reference, cpu, triton, auto"):
        choose_path("op", torch.zeros(1))


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="CUDA"):
        choose_path("op", torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="float64"):
        choose_path("op", torch.zeros(1, dtype=torch.float64))
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    with pytest.raises(ValueError, match="not installed"):
        choose_path("op", torch.zeros(1))


def test_compute_dtype_follows_autocast() -> None:
    wide, narrow = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
    assert compute_dtype(narrow) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(narrow) == torch.bfloat16
        assert compute_dtype(wide) == torch.float64


def test_importing_the_kernels_imports_no_compiler() -> None:
    """Neither Triton nor torch's compiler, seconds of start-up, in a process that does not use them."""
    script = "import sys, kernels.grouped_mlp, kernels.info_nce, kernels.nearest_code; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "kernels.info_nce" in loaded and "triton" not in loaded and "torch._dynamo" not in loaded


def test_bfloat16_is_multiplied_in_float32_where_the_cpu_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, w_in, w_out = torch.randn(24, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    indices, weights = torch.rand(24, 4).topk(2)[1], torch.rand(24, 2)
    narrow = [t.bfloat16() for t in (x, w_in, w_out)]
    exact = grouped_mlp(*(t.float() for t in narrow), indices, weights)
    monkeypatch.setattr(dispatch, "has_bf16", lambda device: False)
    dispatch._say_widened.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels"):
        found = grouped_mlp(*narrow, indices, weights)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=0, atol=0)  # rounded once, at the end
    assert any("multiplies in float32" in record.message for record in caplog.records)
