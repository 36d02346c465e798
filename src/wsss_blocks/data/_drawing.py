"""Draw the scenes in whole numbers: nothing here rounds differently on another machine."""

from functools import cache, lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._optional import require
from wsss_blocks.data.names import DIGIT_NAMES

__all__ = ["CANVAS", "Scene", "draw_scene", "reads_as_a_digit", "scene_captions"]

Ints = NDArray[np.int64]

CANVAS = 96
TRAIN_DIGITS = 1200
MAX_OVERLAP = 0.2
# Squared distance to the nearest real digit, at any shift up to 2 cells, below which a scrambled
# digit is taken for a digit. Real digits are nearer than 840 to their neighbour in 99.9 % of cases.
READS_BELOW = 1400
SCRAMBLES = tuple(permutations(range(4)))[1:]
PHRASINGS = (
    *("{}", "a photo of {}", "there is {} here", "{} on a noisy page"),
    *("an image with {}", "somebody wrote {}", "handwriting: {}", "{} between some lines"),
)


class Scene(NamedTuple):
    """An image ``(96, 96, 3)`` and mask ``(96, 96)``, uint8, and the digits in it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    digits: tuple[int, ...]


@lru_cache(maxsize=4096)  # 40 kB each; drawing one takes longer than the rest of loading it
def draw_scene(split: str, *, index: int, seed: int, hard: bool) -> Scene:
    """Draw scene ``index``; the stream of random numbers depends on all four arguments."""
    digits, targets = _digits()
    entropy = (seed, ("train", "val").index(split), int(hard), index)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    pool = (0, TRAIN_DIGITS) if split == "train" else (TRAIN_DIGITS, len(digits))

    image = _background(rng)
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    for _ in range(rng.integers(2, 5)):
        _draw_line(image, rng)
    chosen = rng.integers(*pool, size=rng.integers(1, 4 if hard else 3))
    distractors = 2 if hard else 1
    boxes = _place(len(chosen), distractors, 30 if hard else 36, rng)
    for box in boxes[len(chosen) :]:
        _paste(image, _ink(_distractor(pool, rng), box[2]), box, rng)
    for number, box in zip(chosen, boxes, strict=False):
        ink = _ink(digits[number], box[2])
        _paste(image, ink, box, rng)
        top, left, side = box
        mask[top : top + side, left : left + side][ink >= 128] = targets[number] + 1
    present = tuple(sorted(int(targets[number]) for number in chosen))
    return Scene(image.astype(np.uint8), mask, present)


@cache
def scene_captions(digits: tuple[int, ...]) -> tuple[str, ...]:
    """Say what a scene shows in all orders and phrasings, the plain ones in the usual order first.

    Args:
        digits: sorted, with repetitions.
    """
    phrases = []
    for digit in sorted(set(digits)):
        name, count = DIGIT_NAMES[digit], digits.count(digit)
        plural = name + ("es" if name == "six" else "s")
        article = "an" if name == "eight" else "a"
        phrases.append(
            f"{article} {name}" if count == 1 else f"{('two', 'three')[count - 2]} {plural}"
        )
    said = [
        " and ".join(filter(None, [", ".join(order[:-1]), order[-1]]))
        for order in permutations(phrases)
    ]
    return tuple(phrasing.format(each) for phrasing in PHRASINGS for each in said)


def reads_as_a_digit(image: Ints) -> bool:
    """Tell whether an 8x8 image, shifted by up to two cells, is near a real digit."""
    digits, _ = _digits()
    padded = np.pad(image, 2)
    shifted = np.lib.stride_tricks.sliding_window_view(padded, (8, 8)).reshape(25, 64)
    # All sums are whole numbers below 2 ** 24, so float32 is exact in any order of summation.
    a, b = shifted.astype(np.float32), digits.reshape(-1, 64).astype(np.float32)
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return bool(squared.min() < READS_BELOW)


@cache
def _digits() -> tuple[Ints, Ints]:
    datasets = require("sklearn.datasets", extra="examples", what="Scenes")
    images, targets = datasets.load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8).astype(np.int64), targets.astype(np.int64)


@cache
def _enlarge_weights(size: int, cells: int) -> Ints:
    """Bilinear weights ``(size, cells)`` in units of ``1 / (2 * size)``."""
    position = ((2 * np.arange(size) + 1) * cells - size).clip(0, (cells - 1) * 2 * size)
    left, rest = np.divmod(position, 2 * size)
    weights = np.zeros((size, cells + 1), np.int64)
    weights[np.arange(size), left] = 2 * size - rest
    weights[np.arange(size), left + 1] = rest
    return weights[:, :cells]


def _background(rng: np.random.Generator) -> Ints:
    """Low-frequency coloured noise, dimmed to 55 %."""
    grey, colour = rng.integers(0, 256, (6, 6, 1)), rng.integers(0, 256, (6, 6, 3))
    coarse = ((2 * grey + colour) // 3).transpose(2, 0, 1)
    weights = _enlarge_weights(CANVAS, 6)
    fine = weights @ coarse @ weights.T // (2 * CANVAS) ** 2
    return np.ascontiguousarray((fine * 55 // 100).transpose(1, 2, 0))


def _draw_line(image: Ints, rng: np.random.Generator) -> None:
    """A straight stroke one or two pixels wide, duller than ink."""
    (y0, x0), (y1, x1) = rng.integers(0, CANVAS, (2, 2))
    width, colour = rng.integers(1, 3), rng.integers(60, 200, 3)
    y, x = np.ogrid[:CANVAS, :CANVAS]
    dy, dx = y1 - y0, x1 - x0
    length = dy * dy + dx * dx
    along = (y - y0) * dy + (x - x0) * dx
    across = (y - y0) * dx - (x - x0) * dy
    image[(4 * across**2 <= width**2 * length) & (along >= 0) & (along <= length)] = colour


def _place(digits: int, distractors: int, smallest: int, rng: np.random.Generator) -> Ints:
    """Draw rows of top, left, side: digits that hide no more than a fifth of one another.

    Distractors keep off the other boxes where one of 32 draws allows it; they lie under the digits.
    """
    settled = False
    while not settled:
        sides = rng.integers(smallest, 57, digits)
        draws = rng.integers(0, CANVAS + 1 - sides[:, None], (32, digits, 2))
        layouts = np.concatenate([draws, np.broadcast_to(sides[:, None], (32, digits, 1))], -1)
        shared = _overlap(layouts[:, :, None], layouts[:, None]) > MAX_OVERLAP
        free = shared.sum((1, 2)) == digits
        settled = bool(free.any())
    boxes: Ints = layouts[free.argmax()]
    for _ in range(distractors):
        side = rng.integers(smallest, 57)
        draws = np.column_stack([rng.integers(0, CANVAS + 1 - side, (32, 2)), np.full(32, side)])
        excess = (_overlap(draws[:, None], boxes) - MAX_OVERLAP).clip(0).sum(1)
        boxes = np.vstack([boxes, draws[excess.argmin()]])
    return boxes


def _overlap(a: Ints, b: Ints) -> NDArray[np.float64]:
    """Intersection of square boxes as a share of the smaller one."""
    side_a, side_b = a[..., 2:], b[..., 2:]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + side_a, b[..., :2] + side_b)
    shared = (high - low).clip(0).prod(-1)
    return shared / np.minimum(side_a, side_b)[..., 0] ** 2  # type: ignore[no-any-return]


def _ink(digit: Ints, side: int) -> Ints:
    """Coverage 0..255 of a digit enlarged to ``side`` pixels: its grey levels, steepened."""
    weights = _enlarge_weights(side, 8)
    levels = weights @ digit @ weights.T * 255 // (16 * (2 * side) ** 2)
    coverage: Ints = (3 * (levels - 138) + 128).clip(0, 255)
    return coverage


def _paste(image: Ints, ink: Ints, box: Ints, rng: np.random.Generator) -> None:
    top, left, side = box
    colour = 255 - rng.integers(0, 100, 3)
    patch = image[top : top + side, left : left + side]
    patch += (colour - patch) * ink[..., None] // 255


def _distractor(pool: tuple[int, int], rng: np.random.Generator) -> Ints:
    digits, _ = _digits()
    while True:
        digit = digits[rng.integers(*pool)]
        quadrants = digit.reshape(2, 4, 2, 4).swapaxes(1, 2).reshape(4, 4, 4)
        order = SCRAMBLES[rng.integers(len(SCRAMBLES))]
        scrambled: Ints = quadrants[list(order)].reshape(2, 2, 4, 4).swapaxes(1, 2).reshape(8, 8)
        if not reads_as_a_digit(scrambled):
            return scrambled
