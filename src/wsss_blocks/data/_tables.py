"""The tables of classes as they are written, without torch."""

import json
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["CLASS_TABLES", "read_table"]

CLASS_TABLES: tuple[str, ...] = ("voc", "coco", "coco-object", "context", "ade20k", "coco-stuff")
"""The names that :func:`class_table` knows."""


@cache
def read_table(name: str) -> dict[str, Any]:
    """Read one of them."""
    file = resources.files("wsss_blocks.data") / "tables" / f"{name.replace('-', '_')}.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
