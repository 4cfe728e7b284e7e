"""One rule that says which implementation of an operation runs.

Every operation has up to three paths: ``reference`` (the definition, plain torch), ``cpu`` (faster plain torch, runs
on any device) and ``triton`` (CUDA). ``MM_KERNELS=reference|cpu|triton|auto`` forces one; ``auto``, the default, is:
``triton`` for CUDA tensors of a dtype the kernels have (float32, float16, bfloat16) where Triton is installed, else
``cpu``. The path is written to the log once per operation, so that a run always says what it was timed with.
"""

import importlib.util
import logging
import os
from functools import cache

import torch
from torch import Tensor

from kernels.errors import UserError

PATHS = ("reference", "cpu", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSED_HIDDEN = 128
"""The widest experts of which one kernel makes both products."""
FEW_ROWS = 8
"""Rows of an expert, on average, up to which reading its matrices outweighs multiplying them on a CPU."""
GATHERED = 2**22
"""Bytes of matrices that are sooner copied, one for each row, than multiplied expert by expert on a CPU."""
LARGE_EXPERT = 2**20
"""Bytes of an expert from which on its bfloat16 products are no dearer for having few rows."""

log = logging.getLogger("kernels")


def choose_path(op: str, tensor: Tensor) -> str:
    """The path on which ``op`` runs for data like ``tensor``: ``reference``, ``cpu`` or ``triton``; logged once per
    op and path.

    Raises ValueError when ``MM_KERNELS`` names no path, or forces Triton where it cannot run.
    """
    return _path_for(op, tensor.device.type, tensor.dtype)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype an operation computes in: autocast's where autocast is on for the tensor's device, else the tensor's
    own.
    """
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively. A CPU that does not is over twenty times slower in it than in
    float32; GPUs before Ampere emulate it.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def arithmetic_dtype(op: str, dtype: torch.dtype, device: str, path: str) -> torch.dtype:
    """The dtype the ``cpu`` path makes products in for a result in ``dtype``: float32 for bfloat16 on a CPU that
    cannot multiply it; logged once per op.
    """
    if path != "cpu" or device != "cpu" or dtype != torch.bfloat16 or has_bf16("cpu"):
        return dtype
    _say_widened(op)
    return torch.float32


def choose_products(device: torch.device, dtype: torch.dtype, width: int, hidden: int) -> str:
    """How the experts of a grouped MLP on CUDA multiply, as measured on an H200: ``fused``, both products of an expert
    in one kernel, while its hidden state fits registers; ``library``, torch's grouped product, where that is a kernel;
    ``tiles``, our own products. Logged once.
    """
    if hidden <= FUSED_HIDDEN:
        products = "fused"
    elif has_grouped_mm(device, dtype) and width % 8 == 0 and hidden % 8 == 0:  # rows in whole 16 bytes
        products = "library"
    else:
        products = "tiles"
    _say_products(products, width, hidden)
    return products


def choose_few(rows: int, experts: int, expert_bytes: int, dtype: torch.dtype) -> str | None:
    """How few rows pass the experts of a grouped MLP on a CPU where nothing is differentiated, as measured on two cores
    with AVX512 and bfloat16: ``gathered`` or ``by_expert`` of `grouped_mlp.few`; None where they are many.

    Args:
        rows: tokens times experts of each.
        experts: how many there are.
        expert_bytes: of the matrices of one.
        dtype: of the matrices.
    """
    if rows > FEW_ROWS * experts:
        return None
    if rows * expert_bytes <= GATHERED:
        return "gathered"
    # oneDNN packs a bfloat16 matrix anew for every product: small ones then cost less padded and batched.
    return "by_expert" if dtype != torch.bfloat16 or expert_bytes >= LARGE_EXPERT else None


def has_grouped_mm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product is one kernel that waits for nothing: bfloat16 on Hopper.

    On older GPUs it is a loop over experts that waits for the host; on Blackwell it leaves noise in the gradient of an
    expert without tokens (pytorch issue 172439).
    """
    return device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] == 9


def _path_for(op: str, device: str, dtype: torch.dtype) -> str:
    forced = os.environ.get("MM_KERNELS", "auto")
    if forced not in (*PATHS, "auto"):
        raise UserError(f"MM_KERNELS is {forced!r}; it must be one of {', '.join(PATHS)}, auto")
    if forced == "triton":
        _require_triton(op, device, dtype)
    path = _automatic(device, dtype) if forced == "auto" else forced
    _say_once(op, path, device, "MM_KERNELS" if forced != "auto" else "device and dtype")
    return path


# torch.compile asks, and logs, once while tracing. This is what torch.compiler.assume_constant_result sets; calling
# that would import the whole compiler, seconds of start-up, with the package.
_path_for._dynamo_marked_constant = True  # type: ignore[attr-defined]
arithmetic_dtype._dynamo_marked_constant = True  # type: ignore[attr-defined]
choose_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _automatic(device: str, dtype: torch.dtype) -> str:
    return "triton" if device == "cuda" and dtype in TRITON_DTYPES and triton_installed() else "cpu"


def _require_triton(op: str, device: str, dtype: torch.dtype) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not triton_installed():
        raise UserError(f"MM_KERNELS=triton, but Triton is not installed ({op}); install it or unset MM_KERNELS")
    if device != "cuda" and not interpreted:
        raise UserError(
            f"MM_KERNELS=triton needs CUDA tensors, {op} was given {device}; "
            "unset MM_KERNELS, or set TRITON_INTERPRET=1 to interpret the kernels on the CPU"
        )
    if dtype not in TRITON_DTYPES:
        raise UserError(f"MM_KERNELS=triton: the {op} kernels take float32, float16, bfloat16, not {dtype}")


@cache
def triton_installed() -> bool:
    """Whether the ``triton`` package can be imported (it is imported only by the Triton paths themselves)."""
    return importlib.util.find_spec("triton") is not None


@cache
def _say_once(op: str, path: str, device: str, reason: str) -> None:
    log.info("%s runs on the %s path (%s tensors; chosen by %s)", op, path, device, reason)


@cache
def _say_widened(op: str) -> None:
    log.info("%s multiplies in float32: this CPU has no bfloat16 products", op)


@cache
def _say_products(products: str, width: int, hidden: int) -> None:
    log.info("grouped_mlp multiplies by %s products (width %d, hidden %d)", products, width, hidden)
