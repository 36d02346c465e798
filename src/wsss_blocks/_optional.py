"""Optional dependencies: a clear error that names the extra, never an automatic install."""

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, *, extra: str, what: str) -> ModuleType:
    """Import ``module`` or say which extra of wsss-blocks provides it.

    Raises:
        ImportError: ``module`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {module}: pip install 'wsss-blocks[{extra}]' ({error})"
        ) from error
