"""Features of a frozen encoder on disk, one file per image (the unsupervised features of DHR)."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._validate import check_size
from wsss_blocks.backbones.features import Encoder
from wsss_blocks.data._cache_info import DiskEstimate, estimate, read_info, same_or_raise, settings
from wsss_blocks.data._feature_files import file_of, probe, read_features, weight_of, write_features
from wsss_blocks.data.frozen_features import check_frozen, dense_features
from wsss_blocks.data.maps import MapFiles
from wsss_blocks.data.opening import WeakDataset

__all__ = ["DiskEstimate", "FeatureCache"]

_FILES = "*.safetensors"


class FeatureCache:
    """Read features that :meth:`build` computed once over whole, untouched images.

    ``cache.json`` says what they were made with: the encoder's name, the SHA-256 of its weights,
    scales, flip, layer, size and the rule of the grid, beside the disk estimate. Each image has a
    safetensors file in float16, written under a temporary name first, with its id and its size.
    Reading maps a file into memory: what is not looked at is not read, and a change of the tensor
    does not reach the file.

    Args:
        folder: where :meth:`build` wrote.

    Raises:
        FileNotFoundError: there is no ``cache.json``; on reading, no file of an image.
        ValueError: ``cache.json`` is damaged; on reading, a file is damaged or of another cache.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.backbones import SmallCNN
        >>> from wsss_blocks.data import Augmented, RandomCrop, Scenes, WithMaps
        >>> scenes = Scenes(size=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = FeatureCache.build(scenes, SmallCNN(), folder, scales=(2.0, 1.0))
        ...     maps = {"uss": cache.maps(scenes.ids)}
        ...     crops = Augmented(scenes, RandomCrop(64))
        ...     sample = WithMaps(crops, maps, sizes={"uss": (16, 16)})[0, 7]
        2 images, 128 channels, mean grid 24.0 x 24.0, float16: about 0.000295 GB
        1 of 2 images cached
        2 of 2 images cached
        >>> sample["maps"]["uss"].shape, sample["valid"]["uss"].shape
        (torch.Size([128, 16, 16]), torch.Size([16, 16]))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder / "cache.json")

    def __len__(self) -> int:
        """Count the files."""
        return sum(1 for _ in self.folder.glob(_FILES))

    def __contains__(self, image: str) -> bool:
        """Tell whether there is a file of an image."""
        return file_of(self.folder, image).is_file()

    def __getitem__(self, image: str) -> Tensor:
        """Return the float16 features ``(D, h, w)`` of the image with this id."""
        path = file_of(self.folder, image)
        if not path.is_file():
            raise FileNotFoundError(
                f"no features of {image!r} at {path}: build the cache to its end."
            )
        made_with, dim = self.info["made_with"], self.info["dim"]
        return read_features(path, image=image, made_with=made_with, dim=dim)

    def maps(self, ids: Iterable[str]) -> MapFiles:
        """Return the features of images as a sequence for :class:`WithMaps`.

        Args:
            ids: of the images, in the order of the data set (``dataset.ids``).

        Raises:
            FileNotFoundError: an image has no file.
        """
        ids = list(ids)
        missing = [image for image in ids if image not in self]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks the features of {len(missing)} of {len(ids)} images "
                f"({', '.join(map(repr, missing[:3]))}): build the cache to its end."
            )
        return MapFiles(self.__getitem__, ids)

    @classmethod
    def build(
        cls,
        dataset: WeakDataset,
        encoder: Encoder,
        folder: str | Path,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        layer: int | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        progress: Callable[[str], object] = print,
    ) -> Self:
        """Compute the features of each image that has none yet; see :func:`dense_features`.

        Args:
            dataset: has ``ids``, a length, and samples with whole images.
            encoder: frozen network, on the device where it is to run.
            folder: made if need be; a second call continues what a first one began, and may add
                another data set.
            scales: image scales.
            flip: also look at the mirrored images.
            layer: intermediate layer, or None for the final features.
            size: grid of all images, or None for each image's own.
            name: of the encoder, for people; by default that of its class.
            progress: takes lines of text: the disk estimate before anything is computed, then how
                far it has come, about 20 times.

        Returns:
            The cache.

        Raises:
            ValueError: the folder holds features made with something else (the message names
                what), ids repeat, or features do not fit into float16.
            OSError: the disk has less room than the estimate.
        """
        module, folder = check_frozen(encoder), Path(folder)
        check_size("size", size, optional=True)
        grid = probe(encoder, module, layer)
        expected = estimate(dataset, grid, scales=scales, size=size)
        progress(str(expected))
        info = settings(module, grid, scales=scales, flip=flip, size=size, name=name)
        if (folder / "cache.json").is_file():
            same_or_raise(info, read_info(folder / "cache.json"), folder)
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
        if expected.bytes - sum(path.stat().st_size for path in folder.glob(_FILES)) > room:
            raise OSError(f"{folder} has {room / 1e9:.3g} GB of room left: the features take more.")
        with replaced(folder / "cache.json") as temporary:
            text = json.dumps({**info, "estimate": expected._asdict()}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
        cache, weight = cls(folder), weight_of(module)
        lines = {round(len(dataset) * i / 20) for i in range(1, 21)}
        for index, image in enumerate(dataset.ids):
            if not cache._has(image):
                pixels = dataset[index]["image"]
                features = dense_features(
                    encoder,
                    pixels[None].to(weight),
                    scales=scales,
                    flip=flip,
                    layer=layer,
                    size=size,
                )
                write_features(
                    file_of(folder, image),
                    features[0],
                    image=image,
                    made_with=cache.info["made_with"],
                    size=(pixels.shape[-2], pixels.shape[-1]),
                )
            if index + 1 in lines:
                progress(f"{index + 1} of {len(dataset)} images cached")
        return cache

    def _has(self, image: str) -> bool:
        try:
            self[image]
        except (FileNotFoundError, ValueError):
            return False
        return True
