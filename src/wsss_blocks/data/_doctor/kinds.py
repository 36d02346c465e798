"""What can be wrong with a data set: kinds of findings, their meaning and what to do."""

from typing import NamedTuple

__all__ = ["KINDS", "Finding", "shown"]

KINDS: dict[str, tuple[str, str]] = {
    "empty-file": ("a file of 0 bytes", "copy or download it again"),
    "unreadable": ("a file that is no image", "replace or remove it"),
    "truncated": ("an image that ends too early", "copy or download it again"),
    "label-without-file": ("a label row or list entry without image", "add the image or drop it"),
    "file-without-label": ("an image that no label row names", "label it or take it out"),
    "labels-unreadable": (
        "no labels, or labels or a list that cannot be read",
        "make or mend them",
    ),
    "class-names": ("classes that differ from those expected", "use one list, in one order"),
    "empty-class": ("a class without images to learn it from", "add images or drop the class"),
    "no-class": ("an image whose labels name no class", "legal: it teaches background"),
    "duplicate-id": ("an id used twice, in two splits or for two files", "keep one of the two"),
    "duplicate-content": ("an image file with the bytes of another one", "keep one of the two"),
    "missing-mask": ("no mask, although others of the split have one", "add the mask"),
    "size-mismatch": ("a mask of another size than its image", "make it again, never rescale it"),
    "rgb-mask": ("a mask saved as a colour picture", "convert colours to class ids"),
    "mask-id": (
        "a mask with an id above the number of classes",
        "map the ids, or name the classes",
    ),
    "label-not-in-mask": ("a class of the labels that the mask lacks", "look at both"),
    "mask-not-in-label": ("a class of the mask that the labels lack", "look at both"),
    "split-size": ("an official split with another number of images", "complete it, or say subset"),
    "cmyk": ("a CMYK image", "read as RGB with rough colours: convert it"),
    "exif-rotated": ("an image turned by its EXIF orientation", "store it upright"),
    "grey": ("an image without colours", "read as RGB: fine if meant"),
    "one-pixel": ("an image one pixel high or wide", "replace or remove it"),
}
"""Kind -> what it is, what to do."""


class Finding(NamedTuple):
    """One thing that is wrong with a data set.

    Attributes:
        kind: what, one of the kinds that ``wsss doctor --help`` lists.
        path: the file it is about.
        detail: what exactly.
    """

    kind: str
    path: str
    detail: str


def shown(text: str) -> str:
    """Escape what a terminal cannot print, such as bytes of a file name that are not UTF-8."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
