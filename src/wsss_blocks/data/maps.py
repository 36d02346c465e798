"""Cached maps that follow the random geometry of their image."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsss_blocks._validate import (
    check_choice,
    check_floating,
    check_sequence,
    check_shape,
    check_size,
)
from wsss_blocks.data.geometry import replay
from wsss_blocks.data.sample import Sample, SampleSource, Transform
from wsss_blocks.data.sampling import Augmented

__all__ = ["MapFiles", "WithMaps", "compute_maps"]


def compute_maps(
    maps_fn: Callable[[Tensor], Tensor],
    dataset: SampleSource,
    transform: Transform,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float16,
) -> list[Tensor]:
    """Run a frozen network once over each image and keep its maps in memory.

    Args:
        maps_fn: images ``(1, 3, H, W)`` -> maps ``(1, C, h, w)``.
        dataset: samples.
        transform: resizes the image; it must show all of it, as :class:`Resize` does.
        device: where ``maps_fn`` wants its argument.
        dtype: of the maps that are kept.

    Returns:
        One map ``(C, h, w)`` per image, on the CPU, for :class:`WithMaps`.

    Example:
        >>> from wsss_blocks.data import Resize, Scenes
        >>> maps = compute_maps(lambda x: x[..., ::8, ::8], Scenes(size=2), Resize((64, 64)))
        >>> len(maps), tuple(maps[0].shape), maps[0].dtype
        (2, (3, 8, 8), torch.float16)
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}.")
    generator, found = torch.Generator(), []
    with torch.no_grad():
        for index in range(len(dataset)):
            image = transform(dataset[index], generator)["image"]
            found.append(maps_fn(image[None].to(device))[0].to("cpu", dtype))
    return found


class MapFiles(Sequence[Tensor]):
    """Read the map of an image when it is asked for: maps too large for memory.

    Args:
        read: id -> map ``(C, h, w)``; with worker processes it must be picklable.
        ids: of the images, in the data set's order.

    Example:
        >>> maps = MapFiles(lambda image: torch.full((1, 2, 2), len(image)), ["a", "bcd"])
        >>> len(maps), maps[1].unique().tolist()
        (2, [3])
    """

    def __init__(self, read: Callable[[str], Tensor], ids: Sequence[str]) -> None:
        check_sequence("ids", ids)
        self.read, self.ids = read, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "MapFiles": ...
    def __getitem__(self, index: int | slice) -> "Tensor | MapFiles":
        """Read one map; a slice reads none yet."""
        if isinstance(index, slice):
            return MapFiles(self.read, self.ids[index])
        return self.read(self.ids[index])


class WithMaps(Dataset[Sample]):
    """Add cached maps to augmented samples, resampled under the geometry that was drawn.

    A map covers its source image on any grid: the features of a frozen encoder, the pseudo-labels
    of another method. :func:`replay` moves it under the same scale, flip and crop as the image,
    onto a grid of its own size or, where maps differ in size, of one size, so that maps collate.
    Colour changes do not reach a cached map. The map is in ``sample["maps"][name]``, and
    ``sample["valid"][name]`` is True where the crop shows the image and not padding. Each view of
    the sample (:class:`AddView`) gets ``maps`` and ``valid`` likewise.

    Args:
        dataset: augmented samples.
        maps: name -> one floating-point map ``(C, h, w)`` for each image, in the data set's order.
        sizes: name -> grid ``(h, w)`` over the crop; without one, the map's own.

    Raises:
        ValueError: a name has not one map per image, or ``sizes`` names no map.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import RandomHorizontalFlip, Scenes
        >>> features = [torch.rand(8, 12, 12) for _ in range(4)]
        >>> augmented = Augmented(Scenes(size=4), RandomHorizontalFlip(1.0))
        >>> sample = WithMaps(augmented, {"features": features})[0, 7]
        >>> torch.equal(sample["maps"]["features"], features[0].flip(-1))
        True
    """

    def __init__(
        self,
        dataset: Augmented,
        maps: Mapping[str, Sequence[Tensor]],
        *,
        sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        for name, size in sizes.items():
            check_choice("sizes", name, tuple(maps))
            check_size(f"sizes[{name!r}]", size)
        for name, cached in maps.items():
            if len(cached) != len(dataset):
                raise ValueError(
                    f"maps must hold one {name!r} map for each of {len(dataset)} images, "
                    f"got {len(cached)}."
                )
        self.dataset, self.maps, self.sizes = dataset, maps, dict(sizes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample = self.dataset[key]
        shown = [sample, *sample.get("views", {}).values()]
        for view in shown:
            view["maps"], view["valid"] = {}, {}
        for name, cached in self.maps.items():
            source = cached[key[0]]
            check_shape("map", source, "C h w")
            check_floating("map", source)
            size = self.sizes.get(name, (source.shape[-2], source.shape[-1]))
            for view in shown:
                moved, valid = replay(source.float(), view["geometry"], size=size)
                view["maps"][name], view["valid"][name] = moved, valid
        return sample
