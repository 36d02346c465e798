"""Score a folder of masks as most repositories do: pillow, numpy and a pool of processes.

``python -m benchmarks.baselines.evaluate_loop PREDICTIONS --masks MASKS [--boundary]``
"""

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES, IGNORED = 21, 255


def confusion(pair: tuple[Path, Path]) -> NDArray[np.int64]:
    pred, target = (np.array(Image.open(path)) for path in pair)
    scored = target < CLASSES
    index = CLASSES * target[scored].astype(int) + pred[scored]
    return np.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def boundary(pair: tuple[Path, Path]) -> NDArray[np.int64]:
    from scipy.ndimage import binary_erosion

    pred, target = (np.array(Image.open(path)) for path in pair)
    width = max(1, round(0.02 * float(np.hypot(*target.shape))))
    counts = np.zeros((2, CLASSES), np.int64)
    scored = target != IGNORED
    for c in np.union1d(np.unique(pred), np.unique(target)):
        if c == IGNORED:
            continue
        near = []
        for ids in (pred == c, target == c):
            framed = np.pad(ids, 1)
            eroded = binary_erosion(framed, np.ones((3, 3)), iterations=width, border_value=1)
            near.append(ids & ~eroded[1:-1, 1:-1] & scored)
        counts[:, c] = (near[0] & near[1]).sum(), (near[0] | near[1]).sum()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--boundary", action="store_true")
    chosen = parser.parse_args()
    targets = sorted(chosen.masks.iterdir())
    pairs = [(chosen.predictions / path.name, path) for path in targets]
    with multiprocessing.Pool(chosen.workers) as pool:
        table = sum(pool.imap_unordered(confusion, pairs, chunksize=64))
        if chosen.boundary:
            both, union = sum(pool.imap_unordered(boundary, pairs, chunksize=8))
            print(f"boundary {100 * np.mean((both / np.maximum(union, 1))[union > 0]):.2f}")
    union = table.sum(0) + table.sum(1) - table.diagonal()
    print(f"mIoU {100 * np.mean(table.diagonal()[union > 0] / union[union > 0]):.2f}")


if __name__ == "__main__":
    main()
