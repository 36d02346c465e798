"""The pieces of a data set: folders of images, their labels, the splits made of them."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["Listing", "Part", "Wanted", "load_given"]


@dataclass
class Listing:
    """A split: the ids of a list, or all images of a part (None), and the folder of its masks."""

    name: str
    source: Path
    ids: list[str] | None
    masks: Path | None


@dataclass
class Part:
    """A folder of images, the labels that speak of them, and the splits made of them."""

    images: Path
    files: list[str]
    splits: list[Listing]
    labels: WeakLabels | None = None
    labels_from: Path | None = None
    reported: set[str] = field(default_factory=set)  # ids whose labels are known to be missing
    suffix: str = ""  # of the images, if the data set takes only one
    lost: set[str] = field(default_factory=set)  # listed ids that have no image


@dataclass
class Wanted:
    """What the user said."""

    labels: Path | None
    masks: Path | None
    names: tuple[str, ...] | None


def load_given(part: Part, wanted: Wanted, findings: list[Finding]) -> None:
    """Read the label file that the user named."""
    part.labels_from = path = wanted.labels
    if path is None:
        return
    try:
        part.labels = WeakLabels.load(path, names=wanted.names)
    except (OSError, ValueError) as error:
        kind = "labels-unreadable"
        if wanted.names is not None and path.suffix.lower() in (".json", ".csv"):
            with suppress(OSError, ValueError):
                WeakLabels.load(path)
                kind = "class-names"
        findings.append(Finding(kind, str(path), str(error)))
