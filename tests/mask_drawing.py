"""Masks that exports must survive: drawn ones and the awkward ones by name."""

import numpy as np
from hypothesis import strategies as st

K = 3


def _ring():
    ids = np.zeros((7, 9), np.uint8)
    ids[1:6, 1:8] = 1
    ids[2:5, 2:7] = 0
    ids[3, 4] = 1  # an island in the hole
    return ids


def _holes():
    ids = np.full((9, 9), 2, np.uint8)
    ids[1, 1] = ids[1, 3] = ids[3, 2] = ids[4, 3] = ids[7, 7] = 0  # some below one another
    ids[5:8, 2:5] = 1
    ids[6, 3] = 255
    return ids


AWKWARD = {
    "ring": _ring(),
    "holes": _holes(),
    "checkerboard": np.indices((6, 7)).sum(0).astype(np.uint8) % 2,
    "diagonal": np.eye(5, dtype=np.uint8) * 3,
    "diagonal ring": np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.uint8),
    "closed at a corner": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8),
    "one pixel": np.pad(np.ones((1, 1), np.uint8), 2),
    "one pixel in all": np.full((1, 1), 2, np.uint8),
    "a row": np.array([[1, 1, 0, 2, 255, 1]], np.uint8),
    "a column": np.array([[3], [0], [3], [3]], np.uint8),
    "full": np.full((3, 4), 1, np.uint8),
    "neighbours": np.repeat([[1, 2, 3]], 3, 0).astype(np.uint8),
    "all ignored": np.full((2, 3), 255, np.uint8),
    "all background": np.zeros((3, 2), np.uint8),
}


@st.composite
def drawn_masks(draw, *, largest=9):
    """Draw ids (H, W): pixels, or blocks of pixels, which hold holes more often."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    ids = draw(st.sampled_from([[0, 1], [0, 1, 1, 1], [0, 1, 2, 3, 255], [1, 2]]))
    cells = draw(st.lists(st.sampled_from(ids), min_size=height * width, max_size=height * width))
    mask = np.array(cells, np.uint8).reshape(height, width)
    side = draw(st.sampled_from([1, 1, 2]))
    return np.kron(mask, np.ones((side, side), np.uint8))
