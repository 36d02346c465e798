"""How zero-shot segmentation is evaluated on each data set (SimSeg, CVPR 2023)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from wsss_blocks._validate import check_choice
from wsss_blocks.data import class_table

__all__ = ["PROTOCOL_OF_DATA", "ZeroShotProtocol", "zero_shot_protocol"]

ProtocolName = Literal["voc21", "context60", "coco_object81"]


class ZeroShotProtocol(NamedTuple):
    """Hold the constants of one benchmark.

    Attributes:
        dataset: one of :data:`~wsss_blocks.data.CLASS_TABLES`.
        names: the K classes, without background, as the data set calls them.
        spoken: name -> what is said in its place.
        top: how many of the best scores set the threshold of a class.
        sigma: its deviations above their mean.
        most: how many of the best classes can be taken.
        size: side of the square that images are squeezed into.
        closing: side of the square of the morphological closing.
    """

    dataset: str
    names: tuple[str, ...]
    spoken: Mapping[str, str]
    top: int
    sigma: float = 1.0
    most: int = 5
    size: int = 288
    closing: int = 7


_VOC = MappingProxyType({"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"})
_NONE: Mapping[str, str] = MappingProxyType({})
_PROTOCOLS = {
    "voc21": ("voc", _VOC, 10),
    "context60": ("context", _NONE, 30),
    "coco_object81": ("coco-object", _NONE, 10),
}
PROTOCOL_OF_DATA: Mapping[str, ProtocolName] = MappingProxyType(
    {"voc": "voc21", "context": "context60", "coco-object": "coco_object81"}
)
"""The benchmark of a data set, by its name for :func:`~wsss_blocks.data.open_dataset`."""


def zero_shot_protocol(name: ProtocolName) -> ZeroShotProtocol:
    """Return the constants of a benchmark.

    All of them encode the background as a name among the others, in 80 templates, refine with the
    binary CRF ``DenseCRF.preset("simseg")`` at 288 x 288, and score at the size of the true mask,
    background included.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        section 4.1 and the released code; https://doi.org/10.1109/CVPR52729.2023.00683.

    Note:
        The paper's "COCO-Stuff" is COCO-Object: 80 things, all else background. Context keeps
        the names of its label file ("pottedplant", "tvmonitor", "bedclothes").

    Args:
        name: ``"voc21"``, ``"context60"`` or ``"coco_object81"``; the number counts background.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> found = zero_shot_protocol("context60")
        >>> len(found.names), found.top, found.spoken
        (59, 30, mappingproxy({}))
    """
    check_choice("name", name, _PROTOCOLS)
    dataset, spoken, top = _PROTOCOLS[name]
    return ZeroShotProtocol(dataset, class_table(dataset).names, spoken, top)
