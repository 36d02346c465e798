"""A data set of the size of COCO from class maps to masks of other tools: time, disk, memory.

``python -m benchmarks.coco_export [--images 2000] [--output FILE]``

Measured is a fraction of the 82,081 training images of 2014. Sizes, numbers of classes and maps are
drawn (seed 0) to resemble them: each map is a few blobs on uneven ground, so that masks have some
smooth objects and some crumbs. Each step runs in a process of its own, with half of the images and
with all of them; memory that did not grow in between does not grow after it. Time is CPU time of
all threads, without drawing the maps. What is said of 82,081 images is extrapolated by
``tools/result_tables.py``, in proportion.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks._harness import _commit, _status, _trim, command
from wsss_blocks.cam import normalize_cam
from wsss_blocks.cli import whole_mask
from wsss_blocks.data import CamStore, CamStoreWriter, class_table, export_masks, write_mask
from wsss_blocks.metrics import hardware
from wsss_blocks.refine import NoRefiner, refine_to_label

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 82_081
NAMES = class_table("coco").names
SIZES = {  # height, width: share
    (480, 640): 0.36, (640, 480): 0.13, (427, 640): 0.26, (640, 427): 0.09, (375, 500): 0.08,
    (333, 500): 0.05, (640, 640): 0.03,
}  # fmt: skip
STORES = {"uint8": 8, "float16": 4}  # dtype: stride
FORMATS: dict[str, dict[str, Any]] = {
    "coco-json, run lengths": {"to": "coco-json", "segmentation": "rle"},
    "coco-json, polygons": {"to": "coco-json", "segmentation": "polygon"},
    **{name: {"to": name} for name in ("voc-png", "mmseg", "labelme", "yolo-seg", "npz")},
}
COPYING = ("mmseg", "yolo-seg")
MASKS = "masks-uint8"  # that are exported
WARM = 2
Found = dict[str, Any]


class Drawn(NamedTuple):
    """An image that stands for one of COCO: its classes, and the blobs of each."""

    size: tuple[int, int]
    classes: list[int]
    blobs: list[NDArray[np.float64]]  # of each class (n, 6): y, x, radius, stretch, angle, height
    ground: list[NDArray[np.float64]]  # coarse noise

    @classmethod
    def at(cls, index: int) -> "Drawn":
        """Draw one; the mean number of classes is 2.9, and one is the most frequent."""
        rng = np.random.default_rng([0, index])
        size = list(SIZES)[rng.choice(len(SIZES), p=list(SIZES.values()))]
        classes = sorted(rng.choice(80, min(18, rng.geometric(1 / 2.9)), replace=False).tolist())
        blobs = [
            np.stack([
                rng.uniform(0.1, 0.9, n), rng.uniform(0.1, 0.9, n), rng.uniform(0.05, 0.3, n),
                rng.uniform(0.6, 1.6, n), rng.uniform(0, np.pi, n), rng.uniform(0.6, 1.0, n),
            ], 1)
            for n in rng.integers(1, 4, len(classes))
        ]  # fmt: skip
        return cls(size, classes, blobs, [rng.normal(0, 0.08, (12, 16)) for _ in classes])

    @property
    def labels(self) -> Tensor:
        """Multi-hot, ``(80,)``."""
        return torch.zeros(80).index_fill_(0, torch.tensor(self.classes), 1)

    def cam(self, stride: int) -> Tensor:
        """Return scores ``(80, h, w)``, not negative, 0 for absent classes."""
        h, w = (-(-side // stride) for side in self.size)
        y, x = np.mgrid[0.5:h, 0.5:w] / np.array([h, w])[:, None, None]
        cam = torch.zeros(80, h, w)
        for k, blobs, ground in zip(self.classes, self.blobs, self.ground, strict=True):
            found = np.zeros((h, w))
            for top, left, radius, stretch, angle, height in blobs:
                dy, dx = y - top, x - left
                a = (np.cos(angle) * dy + np.sin(angle) * dx) / (radius * stretch)
                b = (np.cos(angle) * dx - np.sin(angle) * dy) / (radius / stretch)
                found = np.maximum(found, height * np.exp(-(a * a + b * b)))
            coarse = torch.from_numpy(ground)[None, None]
            uneven = F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=False)
            cam[k] = (torch.from_numpy(found) + uneven[0, 0]).clamp_min(0).float()
        return cam


class Meter:
    """Count CPU time where it is asked to, and the most memory inside of ``with``."""

    def __init__(self) -> None:
        self.seconds = 0.0
        _trim()
        self._before = {name: _status(name) for name in ("RssAnon", "RssFile")}
        self._most = dict(self._before)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done in the block."""
        start = time.process_time()
        yield
        self.seconds += time.process_time() - start

    def mib(self) -> dict[str, float]:
        """Return what the process took of its own and what it mapped."""
        grown = {name: (self._most[name] - self._before[name]) / 1024 for name in self._most}
        return {"mib": round(grown["RssAnon"], 1), "mapped_mib": round(grown["RssFile"], 1)}

    def _look(self) -> None:
        while True:
            for name in self._most:
                self._most[name] = max(self._most[name], _status(name))
            if self._end.wait(0.01):
                return


def write(source: Path, target: Path, images: int, meter: Meter, *, dtype: Any) -> Found:
    """Write a store of maps."""
    with meter.timed():
        writer = CamStoreWriter(
            target / dtype, ids(images), NAMES, dtype=dtype, progress=lambda line: None
        )
    for i, name in enumerate(ids(images)):
        drawn = Drawn.at(i)
        cam, labels = drawn.cam(STORES[dtype]), drawn.labels
        with meter.timed():
            writer.write(name, cam, labels, image_size=drawn.size)
    with meter.timed():
        writer.flush()
    return {"bytes": used(target / dtype)}


def read(source: Path, target: Path, images: int, meter: Meter, *, dtype: str) -> Found:
    """Read all maps of a store in random order."""
    names = ids(images)
    order = np.random.default_rng(0).permutation(images).tolist()
    with meter.timed():
        store = CamStore(source / dtype)
        for i in order:
            store[names[i]]
    return {}


def label(source: Path, target: Path, images: int, meter: Meter, *, dtype: str) -> Found:
    """Make masks as ``examples/export_pseudo_labels.py`` does without a refiner."""
    store, refiner = CamStore(source / dtype), NoRefiner()
    place = target / f"masks-{dtype}"
    place.mkdir()

    def pseudo_label(name: str, images: Tensor, labels: Tensor, box: Tensor) -> Tensor:
        shown = normalize_cam(store.dense(name)[None]) * labels[:, :, None, None]
        return refine_to_label(shown, images, labels, refiner)

    for i, name in enumerate(ids(images)):
        drawn = Drawn.at(i)
        box = torch.tensor([0, 0, *drawn.size])
        sample = {"image": torch.zeros(3, *drawn.size), "labels": drawn.labels, "box": box}
        with meter.timed():
            write_mask(place / f"{name}.png", whole_mask(partial(pseudo_label, name), sample))
    return {"bytes": used(place)}


def photograph(source: Path, target: Path, images: int, meter: Meter) -> Found:
    """Write files about as large as COCO's photographs, for what copies them."""
    place = target / "photographs"
    place.mkdir()
    for i, name in enumerate(ids(images)):
        rng, size = np.random.default_rng([1, i]), Drawn.at(i).size
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 12)))
        smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
        pixels = smooth.permute(1, 2, 0).numpy() + rng.normal(0, 12, (*size, 1))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(place / f"{name}.jpg", quality=90)
    return {"bytes": used(place)}


def export(source: Path, target: Path, images: int, meter: Meter, *, name: str) -> Found:
    """Export the masks; copies of photographs do not count as bytes."""
    options = FORMATS[name]
    place = target / ("out.json" if options["to"] == "coco-json" else "out")
    photographs = source / "photographs" if options["to"] in COPYING else None
    with meter.timed():
        export_masks(source / MASKS, place, names=NAMES, images=photographs, **options)
    found = {"bytes": used(place) - (0 if photographs is None else used(photographs))}
    if place.is_dir():
        shutil.rmtree(place)
    else:
        found["objects"] = place.read_bytes().count(b'"bbox"') / images
        place.unlink()
    return found


Step = Callable[[Path, Path, int, Meter], Found]
STEPS: dict[str, Step] = {
    **{
        f"{what}, {dtype}, stride {stride}": partial(step, dtype=dtype)
        for what, step in (("write maps", write), ("read maps", read), ("masks of maps", label))
        for dtype, stride in STORES.items()
    },
    "photographs": photograph,
    **{f"export {name}": partial(export, name=name) for name in FORMATS},
}


def measure(step: str, folder: Path, images: int) -> dict[str, Any]:
    """Do a step for two images, so that all code is loaded, and then for all."""
    warm = folder.parent / "warm"
    with tempfile.TemporaryDirectory() as name, Meter() as meter:
        STEPS[step](warm, Path(name), WARM, meter)
    with Meter() as meter:
        found = STEPS[step](folder, folder, images, meter)
    return {"cpu_ms": 1e3 * meter.seconds / images, **meter.mib(), **found}


def apart(step: str, folder: Path, images: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.coco_export", "--step", step]
    words += ["--work", str(folder), "--images", str(images)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coco_export")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--work", type=Path, help="folder for what is written, removed after it")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    output = ROOT / "benchmarks" / "results" / "coco_export.json"
    parser.add_argument("--output", type=Path, default=output)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.step:
        print(json.dumps(measure(chosen.step, chosen.work, chosen.images)))
        return
    counts = (max(1, chosen.images // 2), chosen.images)
    found: dict[int, dict[str, dict[str, Any]]] = {count: {} for count in counts}
    with tempfile.TemporaryDirectory(dir=chosen.work) as name:
        warm = Path(name, "warm")
        warm.mkdir()
        for step in STEPS.values():
            step(warm, warm, WARM, Meter())
        for count in counts:
            folder = Path(name, str(count))
            folder.mkdir()
            for step in STEPS:
                found[count][step] = apart(step, folder, count)
                print(count, step, found[count][step], flush=True)
    drawn = [Drawn.at(i) for i in range(chosen.images)]
    half, full = (found[count] for count in counts)
    objects = full[f"export {next(iter(FORMATS))}"]["objects"]
    content = {
        "command": command("coco_export"),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "images": chosen.images,
        "half": counts[0],
        "whole": WHOLE,
        "classes": statistics.fmean(len(one.classes) for one in drawn),
        "objects": objects,
        "photograph_bytes": full["photographs"]["bytes"],
        "rows": [
            {"step": step, **row, "half_mib": half[step]["mib"]}
            for step, row in full.items()
            if step != "photographs"
        ],
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {chosen.output}")


def ids(images: int) -> list[str]:
    return [f"COCO_train2014_{i:012d}" for i in range(images)]


def used(path: Path) -> int:
    """Add up the bytes of a file, or of the files of a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


if __name__ == "__main__":
    main()
