"""A device of its own on the CPU: what is there holds real values, meets nothing that is elsewhere, and says where the
host reads it.

torch's fake tensors were tried first, on torch 2.11.0+cu130 without a GPU. They raise on mixed devices, but a step does
not get through them. The backward of tensors on a fake `cuda` ends with "hasPrimaryContext expects a valid device".
`nonzero` and boolean indices raise DynamicOutputShapeException, or with a ShapeEnv leave sizes on which nothing can
branch. With a ShapeEnv `.item()` gives a symbol instead of raising, and `.cpu()` never raises. `.to("cuda")` of a
module that was made under the mode fails ("Couldn't swap"). Here tensors are wrapped, operations run on the CPU, and
branches are taken as they would be on a GPU.

An operator of ours (`mm_kernels::…`) is one operation: what its CPU path does inside is not looked at, on a GPU Triton
takes its place. Import this before anything else: autograd counts devices at its first backward, and wrapped tensors
know no inference mode, for which `no_grad` stands in.
"""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).parents[2]
NAME = "pretend"
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
}
"""Operations that wait for the device: a number for the host, or a result whose size depends on values."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""They wait where an index is boolean."""
COPIES = {aten._to_copy.default, aten.copy_.default}
"""They may take tensors of two devices."""


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
torch.__future__.set_overwrite_module_params_on_conversion(True)
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is a copy from the CPU
torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]
DEVICE = torch.device(NAME, 0)


class There(Tensor):
    """A tensor on the device; `inner` holds its values on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.inner})"

    def tolist(self) -> Any:
        """torch's own refuses a subclass."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{function} outside of Device")


class Device(TorchDispatchMode):
    """The mode under which tensors can be on the device. `reads` are the places in our code, `file:function`, at which
    the host waited for it, in order; `calls` is how many operations it was sent, views and the backward's among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, There)]
        asked = kwargs.get("device")
        target = there[0].device if there else torch.device("cpu")
        if asked is not None:
            target = torch.device(asked)
        if function is aten.copy_.default:
            target = args[0].device
        if not there and target.type != NAME:
            return function(*args, **kwargs)
        self.calls += 1
        if function not in COPIES and there:
            self.require_one_device(function, tensors)
        if waits(function, args, kwargs) or (there and target.type != NAME):
            self.reads.append(place())
        inner_args, inner_kwargs = tree_map_only(There, lambda tensor: tensor.inner, (args, kwargs))
        if asked is not None:
            inner_kwargs["device"] = torch.device("cpu")
        found = function(*inner_args, **inner_kwargs)
        if target.type != NAME:
            return args[0] if function is aten.copy_.default else found
        found = tree_map_only(Tensor, There, found)
        return return_and_correct_aliasing(function, args, kwargs, found)

    def require_one_device(self, function: Any, tensors: list[Tensor]) -> None:
        """Raises RuntimeError on operands of two devices; numbers, tensors without dimensions, may be anywhere."""
        for tensor in tensors:
            if tensor.ndim and not isinstance(tensor, There):
                raise RuntimeError(f"{function} meets tensors of two devices at {place()}")


def waits(function: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operation waits for the device."""
    if function in INDEXING:
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
    if function is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return function in READS


def place() -> str:
    """The innermost function of ours that runs now, as `file:function`; `backward` of what autograd runs."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not {"tests", "site-packages"} & set(path.parts):
            return f"{path.relative_to(ROOT)}:{frame.name}"
    return "backward"
