"""Composable building blocks for weakly supervised semantic segmentation.

Importing this package loads neither torch nor timm: each subpackage is imported when it is
first used, as ``wsss_blocks.pooling`` or ``from wsss_blocks.pooling import class_average_pool``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_blocks._environment import environment as environment

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
    "segmenters",
    "training",
    "viz",
]


# __all__ lists the subpackages alone; the one function beside them is as lazy as they are.
def __getattr__(name: str) -> Any:
    if name == "environment":
        return importlib.import_module(f"{__name__}._environment").environment
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "environment"])
