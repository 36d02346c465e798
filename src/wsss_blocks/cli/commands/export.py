"""``wsss export``: masks in the formats of other tools."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wsss_blocks.cli.commands._common import File, Folder, Names, class_names, progress

if TYPE_CHECKING:
    from torch import Tensor

    from wsss_blocks.data import CamStore, FolderDataset
    from wsss_blocks.segmenters import Segmenter

__all__ = ["export"]


def export(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MASKS|SEGMENTER|MAPS")],
    kind: Annotated[
        Literal["voc-png", "voc-server-tar", "coco-json", "mmseg", "labelme", "yolo-seg", "npz"],
        tyro.conf.arg(name="to"),
    ],
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER|FILE")],
    names: Names = None,
    images: Folder = None,
    val: File = None,
    segmentation: Literal["rle", "polygon"] = "rle",
    instances: Literal["components", "classes"] = "components",
    simplify: Annotated[float, tyro.conf.arg(metavar="PIXELS")] = 0.0,
    competition: Literal["comp5_val", "comp5_test", "comp6_val", "comp6_test"] = "comp6_val",
    threshold: Annotated[tuple[float, ...], tyro.conf.arg(metavar="T")] = (),
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu",
    workers: int = 4,
) -> int:
    """Write predicted or pseudo masks in the format of another tool.

    The source is a folder of masks ID.png (0 background, 1..K, 255 ignored), as `wsss segment` and
    the examples leave it; or the segmenter.safetensors of a run, which then segments all in
    --images; or a store of class maps (data.CamStore), each cut at --threshold at the size of its
    image.

        wsss export masks --to coco-json --names voc --images photos --output masks.json
        wsss export masks --to yolo-seg --names cat,dog --images photos --val val.txt --output yolo
        wsss export runs/voc/segmenter.safetensors --to labelme --images photos --output labelme
        wsss export cams --threshold 0.4 --to coco-json --output masks.json
        wsss export test_masks --to voc-server-tar --names voc --competition comp6_test
            --output results.tar.gz

    The output appears whole or not at all, and nothing is ever replaced. Exit code 0: written; 2:
    not written, with the reason.

    Args:
        source: a folder of masks, a segmenter or a store.
        kind: what to write:
            voc-png         a folder of indexed ID.png in VOC's colours
            voc-server-tar  a .tar.gz for VOC's evaluation server
            coco-json       a .json like instances_*.json
            mmseg           img_dir, ann_dir and dataset.json; background
                            is class 0 (reduce_zero_label=False)
            labelme         a folder of ID.json with polygons
            yolo-seg        images, labels and data.yaml
            npz             a folder of ID.npz, or one file if FILE ends
                            in .npz.
        output: a new or empty folder, or a new file.
        names: what the ids in the masks mean: voc, coco, ..., a file of names, or cat,dog. A
            segmenter and a store know.
        images: folder of the photographs. Masks must have their size; mmseg and yolo-seg get
            copies, coco-json and labelme name the files (else ID.jpg).
        val: a text file, an id a line: the images of the split val in mmseg and yolo-seg; the rest
            is train.
        segmentation: coco-json holds run lengths or polygons; both give exactly the mask.
        instances: an object in coco-json and labelme is what touches of a class, or all of a class.
        simplify: leave out corners of polygons that are no farther than this from what is kept; 0
            keeps the exact outline.
        competition: the folder in voc-server-tar.
        threshold: of a store: background is at or below it; of two, what lies between is 255.
        device: where a segmenter runs, as cuda.
        workers: threads.
    """
    from wsss_blocks.cli.commands._swept_maps import is_store
    from wsss_blocks.cli.commands.labels import count_table
    from wsss_blocks.data import export_masks
    from wsss_blocks.data._files import read_text

    masks: Any = source
    stored = is_store(source)
    if threshold and not stored:
        raise ValueError("--threshold is for a store of class maps.")
    if source.is_file():
        masks, known = _predicted(source, images, names, device)
    elif stored:
        masks, known = _cut(source, names, threshold)
    elif names is None:
        raise ValueError("--names must say what the ids in the masks mean (voc, coco, a,b,...).")
    else:
        known = class_names(names)
    lines = [] if val is None else read_text(val, "id list").splitlines()
    done = export_masks(
        masks,
        output,
        to=kind,
        names=known,
        images=images,
        instances=instances,
        segmentation=segmentation,
        simplify=simplify,
        val_ids=[line.strip() for line in lines if line.strip()],
        competition=competition,
        workers=workers,
        progress=partial(progress, text="masks"),
    )
    print(*count_table(done.counts), sep="\n")
    print(f"\n{len(done.ids):,} masks in {output}")
    if done.ignored and kind in ("coco-json", "labelme", "yolo-seg"):
        print(f"with ignored pixels, which {kind} cannot say (left out): {len(done.ignored):,}")
    return 0


class _Predicted:
    """What a segmenter says about each image of a folder, one after the other."""

    def __init__(self, segmenter: "Segmenter", images: "FolderDataset") -> None:
        self.segmenter, self.images = segmenter, images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> "Iterator[tuple[str, Tensor]]":
        for i, name in enumerate(self.images.ids):
            yield name, self.segmenter.segment(self.images.path(i)).mask


def _predicted(
    file: Path, images: Path | None, names: str | None, device: str
) -> tuple[_Predicted, tuple[str, ...]]:
    from wsss_blocks.data import FolderDataset
    from wsss_blocks.segmenters import Segmenter

    if images is None:
        raise ValueError("a segmenter needs photographs: give --images.")
    segmenter = Segmenter.load(file, device=device)
    _same_names(names, segmenter.names, file)
    return _Predicted(segmenter, FolderDataset(images, None)), segmenter.names


class _Cut:
    """Masks of stored class maps, one after the other."""

    def __init__(self, store: "CamStore", threshold: float | tuple[float, float]) -> None:
        self.store, self.threshold = store, threshold

    def __len__(self) -> int:
        return len(self.store)

    def __iter__(self) -> "Iterator[tuple[str, Tensor]]":
        from wsss_blocks.cam import cam_to_label

        for name in self.store.ids:
            cam, labels = self.store.dense(name)[None], self.store.labels(name)[None]
            size = self.store[name].image_size
            yield name, cam_to_label(cam, labels, size=size, threshold=self.threshold)[0]


def _cut(
    folder: Path, names: str | None, threshold: tuple[float, ...]
) -> tuple[_Cut, tuple[str, ...]]:
    from wsss_blocks.data import CamStore

    if len(threshold) not in (1, 2):
        raise ValueError("a store of class maps needs --threshold, one value or two.")
    store = CamStore(folder)
    if store.missing:
        raise ValueError(
            f"{folder} lacks the maps of {len(store.missing)} images, among them "
            f"{', '.join(store.missing[:3])}: write the store to its end."
        )
    _same_names(names, store.names, folder)
    low, high = threshold[0], threshold[-1]
    return _Cut(store, low if len(threshold) == 1 else (low, high)), store.names


def _same_names(given: str | None, known: tuple[str, ...], where: Path) -> None:
    if given is not None and class_names(given) != known:
        raise ValueError(
            f"{where} knows {len(known)} classes ({', '.join(known[:3])}, ...), leave out --names."
        )
