"""Bounding boxes of connected components, as one operator: the compiler does not look inside."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["fill_component_boxes"]


@torch.library.custom_op("wsss_blocks::fill_component_boxes", mutates_args=())
def fill_component_boxes(marked: Tensor) -> Tensor:
    """Fill the bounding box of each 8-connected component of the planes ``(P, h, w)``, bool.

    scipy labels the components of all planes at once, on the host: a GPU has to wait.
    """
    from scipy import ndimage

    planes = marked.cpu().numpy()
    _, height, width = planes.shape
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True  # neighbours within a plane, corners included, and none in the next plane
    component, count = ndimage.label(planes, structure)
    plane, y, x = np.nonzero(planes)
    number = component[plane, y, x] - 1
    of_plane = np.zeros(count, dtype=np.intp)
    of_plane[number] = plane
    top, left = np.full(count, height), np.full(count, width)
    bottom, right = np.zeros(count, dtype=np.intp), np.zeros(count, dtype=np.intp)
    np.minimum.at(top, number, y)
    np.minimum.at(left, number, x)
    np.maximum.at(bottom, number, y + 1)
    np.maximum.at(right, number, x + 1)
    # Each box adds 1 to its cells: as the sum, down and to the right, of marks at its corners.
    boxes = np.zeros((len(planes), height + 1, width + 1), dtype=np.int32)
    for rows, columns, sign in (
        (top, left, 1),
        (bottom, right, 1),
        (top, right, -1),
        (bottom, left, -1),
    ):
        np.add.at(boxes, (of_plane, rows, columns), sign)
    filled = boxes.cumsum(1).cumsum(2)[:, :height, :width] > 0
    return torch.from_numpy(filled).to(marked.device)


@fill_component_boxes.register_fake
def _(marked: Tensor) -> Tensor:
    return torch.empty_like(marked)
