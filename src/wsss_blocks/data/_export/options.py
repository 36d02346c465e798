"""What the writers of the formats are told, and what they have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from wsss_blocks._validate import check_choice, check_int, check_number
from wsss_blocks.data._export.regions import Instances
from wsss_blocks.data._export.source import IGNORED, Mask

__all__ = [
    "Competition",
    "ExportFormat",
    "MakeWriter",
    "Options",
    "Segments",
    "Writer",
    "check_options",
]

ExportFormat = Literal[
    "voc-png", "voc-server-tar", "coco-json", "mmseg", "labelme", "yolo-seg", "npz"
]
Segments = Literal["rle", "polygon"]
Competition = Literal["comp5_val", "comp5_test", "comp6_val", "comp6_test"]

# What is set to anything but its default must be read by the format.
_READ_BY: dict[str, tuple[object, tuple[str, ...]]] = {
    "instances": ("components", ("coco-json", "labelme")),
    "segmentation": ("rle", ("coco-json",)),
    "simplify": (0, ("coco-json", "labelme", "yolo-seg")),
    "val_ids": (frozenset(), ("mmseg", "yolo-seg")),
    "competition": ("comp6_val", ("voc-server-tar",)),
}


@dataclass(frozen=True)
class Options:
    """The arguments of ``export_masks`` that some formats read; ``output`` is the final place."""

    names: tuple[str, ...]
    output: Path
    instances: Instances
    segmentation: Segments
    simplify: float
    val_ids: frozenset[str]
    competition: Competition

    def split(self, name: str) -> str:
        """Return the split of an image."""
        return "val" if name in self.val_ids else "train"


class Writer(Protocol):
    """Writes one format into a temporary place."""

    def convert(self, mask: Mask) -> bytes:
        """Do in a thread what one mask needs, return what is left; masks come in any order."""

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Write what all share; ``results`` are those of ``convert``, by id, sorted."""


MakeWriter = Callable[[Path, Options], Writer]


def check_options(to: str, options: Options, ignore_index: int) -> None:
    """Raise unless the options are possible and this format reads them."""
    check_choice("to", to, get_args(ExportFormat))
    check_choice("instances", options.instances, get_args(Instances))
    check_choice("segmentation", options.segmentation, get_args(Segments))
    check_choice("competition", options.competition, get_args(Competition))
    check_number("simplify", options.simplify)
    if not 0 <= options.simplify < float("inf"):
        raise ValueError(f"simplify must be >= 0 and finite, got {options.simplify}.")
    if len(options.names) >= IGNORED:
        raise ValueError(f"names must be at most 254 classes, got {len(options.names)}.")
    check_int("ignore_index", ignore_index)
    if 0 <= ignore_index <= len(options.names):
        raise ValueError(
            f"ignore_index must not be the id of a class (0..{len(options.names)}), "
            f"got {ignore_index}."
        )
    for name, (default, formats) in _READ_BY.items():
        value = getattr(options, name)
        if value != default and to not in formats:
            shown = sorted(value) if isinstance(value, frozenset) else value
            raise ValueError(f"{name} is for {' and '.join(formats)}, not for {to}: got {shown!r}.")
    if options.simplify and to == "coco-json" and options.segmentation == "rle":
        raise ValueError("simplify is for polygons: it needs segmentation='polygon'.")
