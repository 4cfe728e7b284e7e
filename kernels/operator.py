"""Operations as torch sees them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operator:
    """A function of tensors, and last the path it runs on, as a custom operator, so that torch.compile takes it whole.

    An operator's way through the dispatcher takes the host 0.1 ms, as long as a kernel of the Triton path; where
    nothing traces or watches operations that path is called at once.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.function = function
        self.operator = torch.library.custom_op(name, function, mutates_args=())
        self.register_fake = self.operator.register_fake

    def __call__(self, *arguments: Any) -> Any:
        if arguments[-1] != "triton" or watched(arguments[0]):
            return self.operator(*arguments)
        return self.function(*arguments)


def watched(tensor: Tensor) -> bool:
    """Whether operations on the tensor are traced or watched: by torch.compile, a dispatch mode or its own class."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or type(tensor) is not Tensor
