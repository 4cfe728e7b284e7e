"""The libraries of the extra `adapt`: imported where they are used, missed in one line."""

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a module of the extra. Raises ValueError naming the remedy where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(f"{package} is not installed: pip install 'mm-align[adapt]'") from error
