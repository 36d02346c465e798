"""Frozen features of the images of a run: cached once, or saved by others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wsss_blocks.backbones import create_encoder
from wsss_blocks.data import FeatureCache, SavedFeatures, UsableImages, WeakDataset
from wsss_blocks.distributed import gather_objects, rank, world_size

__all__ = ["frozen_features"]


def frozen_features(
    encoder: str,
    folder: Path,
    datasets: Sequence[WeakDataset],
    *,
    weights: str | None = None,
    layer: int | None = None,
    scales: Sequence[float] = (1.0,),
    device: torch.device | str = "cpu",
) -> FeatureCache | SavedFeatures:
    """Open the features of images by their ids; those of an encoder are computed where missing.

    Each process computes its share; the first one prints how much disk its own takes beforehand.

    Args:
        encoder: a name for :func:`~wsss_blocks.backbones.create_encoder`, as a DINOv2 of timm, or
            ``"saved"`` for files of others (CAUSE).
        folder: of the cache, or of those files.
        datasets: whose images are needed.
        weights: of the encoder.
        layer: of the encoder; None: the final features.
        scales: image scales, each mirrored too, that are averaged.
        device: where the encoder runs.

    Returns:
        What gives ``[id]`` and ``.maps(ids)``; errors are those of
        :meth:`FeatureCache.build <wsss_blocks.data.FeatureCache.build>`.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     features = frozen_features("small-cnn", Path(folder), [Scenes(size=1)])
        ...     features["train_00000"].shape
        1 images, 128 channels, mean grid 12.0 x 12.0, float16: about 3.69e-05 GB
        1 of 1 images cached
        torch.Size([128, 12, 12])
    """
    if encoder == "saved":
        return SavedFeatures(folder)
    network: Any = create_encoder(encoder, weights=weights).to(device)
    options: dict[str, Any] = {"scales": scales, "layer": layer, "name": encoder}
    options["progress"] = print if rank() == 0 else str  # that says nothing
    for dataset in datasets:
        mine = UsableImages(dataset, range(rank(), len(dataset), world_size()), {})
        FeatureCache.build(mine, network, folder, **options)
    gather_objects(rank())  # all are done
    return FeatureCache(folder)
