"""Fused operations: a reference that defines each, and faster paths that never differ.

Hugging Face has a package of the same name. transformers takes any `kernels` for it that has a version of its range;
this one says 0, and setup.py keeps its name out of the metadata of mm-align, whose version would count instead.
bitsandbytes asks any `kernels` for a faster product and logs where it gets none. The two packages cannot be installed
beside each other.
"""

import importlib.metadata
import logging

from kernels.errors import UserError

__version__ = "0"

logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in str(record.msg)  # it asks when it is imported, and loses nothing
)


def check_namesake() -> None:
    """Raises ValueError where Hugging Face's `kernels` is installed too: transformers would fail on ours instead."""
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"Hugging Face's package kernels {version} is installed, whose name is taken here: pip uninstall kernels"
    )
