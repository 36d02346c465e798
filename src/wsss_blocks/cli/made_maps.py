"""Class maps of the training images, kept for a threshold sweep, refinement and a second stage."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks.cli.whole import whole_image
from wsss_blocks.data import CamStoreWriter, WeakDataset
from wsss_blocks.data._feature_files import weights_hash

__all__ = ["write_train_cams"]


def write_train_cams(
    class_maps: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    dataset: WeakDataset,
    folder: str | Path,
    *,
    name: str,
    model: nn.Module,
    size: int | None = None,
    dtype: Literal["uint8", "float16"] = "uint8",
    device: torch.device | str = "cpu",
) -> Path:
    """Keep one kind of class maps of labelled images in a :class:`~wsss_blocks.data.CamStore`.

    ``wsss sweep`` finds the best background threshold of them, ``examples/export_pseudo_labels.py``
    makes masks. What is stored already stays: an interrupted run goes on. In a process group each
    process writes its share; wait for the others before reading.

    Args:
        class_maps: images ``(1, 3, H, W)`` and labels ``(1, K)`` -> raw maps ``(1, K, h, w)`` by
            name, as for :func:`evaluate_system`.
        dataset: its samples have ``labels``; masks are not read.
        folder: made if need be.
        name: of the maps to keep.
        model: what makes them, in evaluation mode meanwhile: maps of other weights are refused.
        size: side of the square that the function sees; None shows it the image as it is.
        dtype: of the maps in the store.
        device: where the function wants its arguments.

    Returns:
        The folder.

    Raises:
        ValueError: there is no map of that name, or the folder holds maps made with something else.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import CamStore, Scenes
        >>> head, scenes = nn.Conv2d(3, 10, 1), Scenes(size=2)
        >>> maps = lambda images, labels: {"cam": head(images[..., ::8, ::8])}
        >>> with tempfile.TemporaryDirectory() as output:
        ...     kept = write_train_cams(maps, scenes, f"{output}/cams", name="cam", model=head)
        ...     CamStore(kept)[scenes.ids[0]].cam.shape[1:]
        2 images, 1.50 classes and 216 cells each, uint8: about 7.08e-07 GB
        2 of 2 images stored
        torch.Size([12, 12])
    """
    places = {image: index for index, image in enumerate(dataset.ids)}
    about = {"maps": name, "weights": weights_hash(model), "size": size}

    def made(sample: Mapping[str, Any]) -> Tensor:
        batch = whole_image(sample, size=size, device=device)
        found = class_maps(batch["image"], batch["labels"])
        if name not in found:
            raise ValueError(f"name must be one of {', '.join(found)}, got {name!r}.")
        return found[name][0]

    with torch.no_grad(), evaluating(model):
        made(dataset[0])  # a wrong name shows before the folder is made
        with CamStoreWriter(folder, dataset.ids, dataset.names, dtype=dtype, about=about) as writer:
            for image in writer.todo:
                sample = dataset[places[image]]
                height, width = sample["image"].shape[-2:]
                writer.write(image, made(sample), sample["labels"], image_size=(height, width))
    return Path(folder)
