"""The libraries of extras: imported where they are used, missed in one line."""

import importlib
from types import ModuleType

from kernels import check_namesake
from kernels.errors import UserError


def require(module: str, extra: str = "adapt") -> ModuleType:
    """Import a module of an extra. Raises ValueError naming the remedy where it is not installed, or where another
    package than ours is `kernels` to it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        check_namesake()
        package = module.partition(".")[0]
        raise UserError(f"{package} is not installed: pip install 'mm-align[{extra}]'") from error
