"""The augmented training set of VOC 2012: masks of VOC where there are any, else those of SBD."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._parallel import ordered_map
from wsss_blocks.data._built_masks import Progress, no_progress, put_mask
from wsss_blocks.data._files import named, read_ids
from wsss_blocks.data.classes import class_table
from wsss_blocks.data.images import read_mask
from wsss_blocks.data.voc import find_layout
from wsss_blocks.ops.mask_pairs import hash_digests, mask_digest

__all__ = ["VocAug", "build_voc_aug"]


class VocAug(NamedTuple):
    """What :func:`build_voc_aug` made.

    Attributes:
        ids: the images of ``train_aug.txt``, sorted.
        written: masks written in this call; the others were there.
        hash: of the masks of ``ids``, by :func:`~wsss_blocks.metrics.hash_masks`.
    """

    ids: list[str]
    written: int
    hash: str


def build_voc_aug(
    voc_root: str | Path,
    sbd_root: str | Path,
    *,
    overwrite: bool = False,
    allow_incomplete: bool = False,
    workers: int = 4,
    progress: Progress = no_progress,
) -> VocAug:
    """Build ``SegmentationClassAug`` and ``ImageSets/Segmentation/train_aug.txt`` in a VOC folder.

    The list holds SBD's ``train.txt`` and ``val.txt`` and VOC's ``train.txt``, without the images
    of VOC's ``val.txt``: 10,582 ids. Masks are VOC's own where the image is in VOC's train list,
    else SBD's; VOC's val masks are copied too, so that one folder serves every split. All are
    indexed PNG files with the VOC palette, written under a temporary name and renamed. Masks that
    are there already and right are kept, so a call that was interrupted can be repeated; the list
    is written last.

    Note:
        SBD marks no borders: its masks hold no 255, those of VOC do.

    Args:
        voc_root: the folder ``VOC2012``, the ``VOCdevkit`` around it, or the folder around that.
        sbd_root: ``benchmark_RELEASE`` as it is unpacked, its ``dataset`` folder, or the folder
            around either: where ``cls/*.mat``, ``train.txt`` and ``val.txt`` are.
        overwrite: replace files that differ from what is built.
        allow_incomplete: accept another number of images than 10,582.
        workers: threads.
        progress: called with the masks as they get ready and ``total=``, such as ``tqdm.tqdm``.

    Returns:
        The ids, how many masks were written, and a hash.

    Raises:
        FileNotFoundError: there is no such layout or list.
        FileExistsError: a list is there that differs, and ``overwrite`` is False.
        ValueError: another number of images; or masks that are missing, broken, not of the size of
            their image, or there and different. All are counted and named; the list is not written.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from scipy.io import savemat
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     voc, sbd = write_voc_layout(folder, train=2, val=1), Path(folder, "sbd")
        ...     (sbd / "cls").mkdir(parents=True)
        ...     mask = np.ones((96, 96), np.uint8)
        ...     savemat(sbd / "cls" / "more.mat", {"GTcls": {"Segmentation": mask}})
        ...     chars = [(sbd / f"{split}.txt").write_text("more") for split in ("train", "val")]
        ...     build_voc_aug(voc, sbd, allow_incomplete=True).ids
        ['more', 'train_00000', 'train_00001']
    """
    voc = find_layout(Path(voc_root), "VOC2012")
    sbd = _find_sbd(Path(sbd_root))
    lists = voc / "ImageSets" / "Segmentation"
    train, val = read_ids(lists / "train.txt"), read_ids(lists / "val.txt")
    parts = [read_ids(sbd / "train.txt"), read_ids(sbd / "val.txt"), train]
    ids = sorted(set().union(*parts) - set(val))
    if len(ids) not in class_table("voc").sizes["train_aug"] and not allow_incomplete:
        raise ValueError(
            f"train_aug must have 10,582 images, got {len(ids):,}: SBD train {len(parts[0]):,} "
            f"(official 8,498), SBD val {len(parts[1]):,} (2,857), VOC train {len(train):,} "
            f"(1,464), without those of VOC val {len(val):,} (1,449). Nothing was written; "
            "allow_incomplete accepts a subset."
        )
    listed = lists / "train_aug.txt"
    kept = listed.is_file() and sorted(read_ids(listed)) == ids
    if listed.is_file() and not kept and not overwrite:
        raise FileExistsError(
            f"{listed} exists and is another list: nothing is replaced unless overwrite is set."
        )
    own = {*train, *val}

    def build(name: str) -> tuple[bytes, bool] | str:
        png, mat = voc / "SegmentationClass" / f"{name}.png", sbd / "cls" / f"{name}.mat"
        try:
            mask = _read_voc(png) if name in own else _read_sbd(mat)
            _check_size(mask, png if name in own else mat, voc / "JPEGImages" / f"{name}.jpg")
            target = voc / "SegmentationClassAug" / f"{name}.png"
            return mask_digest(mask), put_mask(target, mask, overwrite=overwrite)
        except (OSError, ValueError) as error:
            return str(error)

    every = [*ids, *val]
    results = list(progress(ordered_map(build, every, workers=workers), total=len(every)))
    errors = [result for result in results if isinstance(result, str)]
    if errors:
        count = f"{len(errors)} of {len(every):,} masks could not be built"
        raise ValueError("\n  ".join([f"{count}, so {listed.name} was not written:", *errors]))
    if not kept:
        with replaced(listed) as temporary:
            temporary.write_text("\n".join(ids) + "\n", encoding="utf-8")
    digests = [digest for digest, _ in results]
    return VocAug(ids, sum(new for _, new in results), hash_digests(digests[: len(ids)]))


def _find_sbd(root: Path) -> Path:
    candidates = [root, root / "dataset", root / "benchmark_RELEASE" / "dataset"]
    for folder in candidates:
        if (folder / "cls").is_dir():
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"no SBD (cls/*.mat, train.txt and val.txt) in any of: {tried}. It is unpacked from "
        "benchmark.tgz."
    )


def _read_voc(path: Path) -> NDArray[np.uint8]:
    ids = read_mask(path).numpy()
    return _checked(ids, path, (*range(21), 255))


def _read_sbd(path: Path) -> NDArray[np.uint8]:
    """Read the field ``Segmentation`` of the 1 x 1 structure ``GTcls``."""
    load = require("scipy.io", extra="cli", what="build_voc_aug").loadmat
    if not path.is_file():
        raise FileNotFoundError(f"no SBD mask at {path}.")
    try:
        ids = load(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises whatever the broken bytes lead to
        raise ValueError(f"{path} cannot be read as an SBD mask: {error!r}") from error
    return _checked(ids, path, range(21))


def _checked(ids: NDArray[Any], path: Path, allowed: Any) -> NDArray[np.uint8]:
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold ids (H, W), got {ids.dtype} {ids.shape}.")
    found = set(np.unique(ids).tolist()) - set(allowed)
    if found:
        raise ValueError(f"{path} must hold VOC's ids 0..20, got {sorted(found)[:5]}.")
    return ids.astype(np.uint8)


def _check_size(mask: NDArray[np.uint8], path: Path, image: Path) -> None:
    """Raise unless the mask has the size of its image, if that is there; its header says."""
    if not image.is_file():
        return
    pillow = require("PIL.Image", extra="cli", what="build_voc_aug")
    with named(image), pillow.open(image) as file:
        width, height = file.size
    if mask.shape != (height, width):
        raise ValueError(
            f"{path} must have the size {(height, width)} of {image}, got {mask.shape}."
        )
