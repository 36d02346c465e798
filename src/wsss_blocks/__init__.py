"""Composable building blocks for weakly supervised semantic segmentation.

Importing this package loads neither torch nor timm: each subpackage is imported when it is
first used, as ``wsss_blocks.pooling`` or ``from wsss_blocks.pooling import class_average_pool``.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "backbones",
    "cam",
    "cli",
    "data",
    "decoders",
    "distributed",
    "heads",
    "losses",
    "memory",
    "metrics",
    "pooling",
    "refine",
    "training",
    "viz",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
