"""The masks that predictions or class maps are scored against, found without reading them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from wsss_blocks.cli.commands._common import class_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Data", "DataOption", "GroundTruth", "ground_truth"]

Data = Literal["voc", "coco", "coco-object", "context", "ade20k", "coco-stuff", "folder"]
DataOption = Annotated[
    Data | None,
    arg(metavar="{voc,coco,coco-object,context,ade20k,coco-stuff,folder}", help_behavior_hint=""),
]


class GroundTruth(NamedTuple):
    """Mask files of a split.

    Attributes:
        ids: of the images.
        paths: of the masks, one for each id.
        lookup: ``(256,)`` uint8 from the ids in the files to ours; None where they are the same.
        names: the K classes, without background.
        background: whether 0 is a class.
        dataset: what the protocol calls the data.
        split: likewise.
        images: the photographs, one for each id; None if nobody said where they are.
    """

    ids: list[str]
    paths: list[Path]
    lookup: "NDArray[np.uint8] | None"
    names: tuple[str, ...]
    background: bool
    dataset: str
    split: str
    images: list[Path] | None

    def only(self, kept: list[int]) -> "GroundTruth":
        """Keep some of the images."""
        return self._replace(
            ids=[self.ids[i] for i in kept],
            paths=[self.paths[i] for i in kept],
            images=None if self.images is None else [self.images[i] for i in kept],
        )

    def read(self, position: int) -> "NDArray[np.integer[Any]]":
        """Return the ids of a true mask."""
        from wsss_blocks.data._mask_files import look_up_ids, read_mask_ids

        path = self.paths[position]
        return look_up_ids(read_mask_ids(path), self.lookup, path)


def ground_truth(
    *,
    data: Data | None,
    root: Path | None,
    split: str,
    masks: Path | None,
    ids: Path | None,
    names: str | None,
    images: Path | None = None,
) -> GroundTruth:
    """Find masks by data set (``data``, ``root``, ``split``) or in a folder (``masks``, ``names``).

    Raises:
        ValueError: neither or both are given, or the folder has no masks.
        FileNotFoundError: a folder, or the mask of a listed id, is not there.
    """
    from wsss_blocks.data._files import files_below, read_ids
    from wsss_blocks.data._tables import CLASS_TABLES, read_table

    if (data is None) == (masks is None):
        raise ValueError("say where the true masks are: either --data and --root, or --masks.")
    wanted = None if ids is None else read_ids(ids)
    if masks is not None:
        if names is None:
            raise ValueError("--names must say what the ids in --masks mean (voc, coco, a,b,...).")
        if not masks.is_dir():
            raise FileNotFoundError(f"no folder of masks at {masks}.")
        found = wanted or list(files_below(masks, ".png"))
        if not found:
            raise ValueError(f"no masks (*.png) in {masks}.")
        paths = [masks / f"{name}.png" for name in found]
        if wanted:
            _all_there(paths)
        background = names not in CLASS_TABLES or read_table(names)["background"]
        known = class_names(names)
        photographs = None if images is None else _photographs(images, found)
        return GroundTruth(found, paths, None, known, background, masks.name, split, photographs)
    assert data is not None
    if images is not None:
        raise ValueError("--images goes with --masks; --data knows its photographs.")
    from wsss_blocks.data import open_dataset

    samples = open_dataset(data, split, root=root, with_masks=True)
    position = {name: i for i, name in enumerate(samples.ids)}
    if wanted is not None and not position.keys() >= set(wanted):
        missing = [name for name in wanted if name not in position]
        raise ValueError(f"{ids} lists {len(missing)} ids that {split} has not: {missing[:3]}.")
    found = samples.ids if wanted is None else wanted
    paths = [samples.mask_path(position[name]) for name in found]  # type: ignore[attr-defined]
    _all_there(paths)
    lookup = samples.mask_ids  # type: ignore[attr-defined]
    return GroundTruth(
        ids=found,
        paths=paths,
        lookup=None if lookup is None else lookup.numpy(),
        names=samples.names,
        background=data not in CLASS_TABLES or read_table(data)["background"],
        dataset=data,
        split=split,
        images=[samples.path(position[name]) for name in found],  # type: ignore[attr-defined]
    )


def _photographs(folder: Path, ids: list[str]) -> list[Path]:
    from wsss_blocks.data import FolderDataset

    dataset = FolderDataset(folder, None, ids=ids)
    return [dataset.path(i) for i in range(len(dataset))]


def _all_there(paths: list[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} masks are missing, the first is {missing[0]}."
        )
