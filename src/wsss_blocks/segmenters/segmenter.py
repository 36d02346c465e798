"""A trained network with names, colours and protocol: one file, from image to mask."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_choice, check_floating, check_int, check_shape
from wsss_blocks.decoders import multi_scale_logits
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters._checkpoint import blamed_on, read_checkpoint, write_checkpoint
from wsss_blocks.segmenters._images import ImageLike, as_image
from wsss_blocks.segmenters._inference import resized, winners
from wsss_blocks.segmenters.deeplab import DeepLabV3PlusNetwork
from wsss_blocks.segmenters.deeplab_v2 import DeepLabV2Network
from wsss_blocks.segmenters.network import SegmentationNetwork
from wsss_blocks.segmenters.segmentation import Segmentation, class_colours

__all__ = ["Segmenter"]

Reduce = Literal["max", "mean", "sum"]
_KINDS: dict[str, type[nn.Module]] = {
    "large-fov": SegmentationNetwork,
    "deeplabv2": DeepLabV2Network,
    "deeplabv3plus": DeepLabV3PlusNetwork,
}


class Segmenter(nn.Module):
    """Segment images of any size as the network's published number was computed.

    The scales and mirror images of the protocol are fused by
    :func:`~wsss_blocks.decoders.multi_scale_logits` on the logit grid of the largest scale, then
    brought to the size of the image, as :func:`~wsss_blocks.cli.evaluate_system` does.

    Args:
        network: images ``(V, 3, h, w)``, RGB in [0, 1] -> logits ``(V, K+1, h', w')``, background
            first. To be saved it must be a :class:`SegmentationNetwork`,
            :class:`DeepLabV3PlusNetwork` or :class:`DeepLabV2Network`.
        names: the K classes, without background.
        protocol: of the network's evaluation.
        palette: ``(n, 3)`` uint8 with n > K, default :func:`~wsss_blocks.data.voc_palette`.
        size: side of the square that the network was trained on: the image is squeezed into it.
            None shows the network the image as it is.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - logits: ``(B, K+1, H, W)``, at least float32

    Raises:
        ValueError: the names are not 1 to 254 different words or not as many as the network's
            classes, the protocol needs image labels or a refiner, the palette does not cover the
            classes, or ``size`` is not positive.
        TypeError: the palette is not uint8.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.segmenters import SegmentationNetwork
        >>> data = {"dataset": "pets", "split": "val", "num_images": 9}
        >>> views = {"scales": (1.0,), "flip": True, "refiner": "none", "labels_used": False}
        >>> protocol = EvaluationProtocol(**data, **views)
        >>> network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/segmenter.safetensors"
        ...     Segmenter(network, names=("cat", "dog"), protocol=protocol).save(path)
        ...     segmenter = Segmenter.load(path)
        >>> segmenter.segment(torch.rand(3, 30, 41)).mask.shape
        torch.Size([30, 41])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        names: Sequence[str],
        protocol: EvaluationProtocol,
        palette: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(names, Sequence):
            raise TypeError(f"names must be a list of words, got {type(names).__name__}.")
        names = (names,) if isinstance(names, str) else tuple(names)
        classes = ("background", *names)
        if not 2 <= len(classes) <= 255 or len(set(classes)) < len(classes) or not all(names):
            raise ValueError(
                "names must be 1 to 254 different words, without background, "
                f"got {len(names)}: {', '.join(map(repr, names[:5]))}."
            )
        channels = getattr(network, "num_classes", len(classes))
        if channels != len(classes):
            raise ValueError(
                f"names must hold one name for each class of the network but background "
                f"({channels - 1}), got {len(names)}."
            )
        if protocol.labels_used or protocol.refiner != "none":
            raise ValueError(
                "protocol must be that of a network alone (no image labels, refiner 'none'), "
                f"got: {protocol.describe()}."
            )
        if protocol.scales is None or protocol.flip is None:
            raise ValueError(f"protocol must state scales and flip, got: {protocol.describe()}.")
        check_choice("protocol.flip_reduce", protocol.flip_reduce, ("max", "mean", "sum"))
        check_choice("protocol.scale_reduce", protocol.scale_reduce, ("max", "mean", "sum"))
        if size is not None:
            check_int("size", size)
        if size is not None and size < 1:
            raise ValueError(f"size must be None or a positive side, got {size}.")
        self.network, self.names, self.protocol, self.size = network, names, protocol, size
        self._scales, self._flip = protocol.scales, protocol.flip
        self.palette = class_colours(palette, len(classes))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, all that :meth:`load` needs.

        Args:
            path: the file, replaced as a whole; missing folders are made.

        Raises:
            TypeError: the network is none of those that can be saved (take the one inside
                ``torch.compile`` or ``DistributedDataParallel``).
        """
        about = {
            "names": self.names,
            "palette": self.palette.tolist(),
            "protocol": self.protocol.to_dict(),
            "size": self.size,
        }
        if not isinstance(self.network, tuple(_KINDS.values())):
            known = " or ".join(kind.__name__ for kind in _KINDS.values())
            found = type(self.network).__name__
            raise TypeError(f"network must be a {known} to be saved with its recipe, got {found}.")
        write_checkpoint(Path(path), self.network, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Self:
        """Build a segmenter from its file: no download, no pickle.

        Args:
            path: what :meth:`save` wrote.
            device: where the network goes.

        Returns:
            The segmenter in evaluation mode. On one device its logits are those of the saved one
            to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, no safetensors file, not a segmenter, of another format or
                kind, or its weights do not fit its network; the message names the file.
        """
        path = Path(path)
        network, about = read_checkpoint(path, _KINDS)
        with blamed_on(path):
            segmenter = cls(
                network,
                names=about["names"],
                protocol=EvaluationProtocol.from_dict(about["protocol"]),
                palette=torch.tensor(about["palette"], dtype=torch.uint8),
                size=about["size"],
            )
        return segmenter.to(device).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return fused logits at the size of the images; shapes as the class says."""
        check_shape("images", images, "B 3 H W")
        check_floating("images", images)
        return resized(self._fused(images), (images.shape[2], images.shape[3]))

    def segment(self, image: ImageLike) -> Segmentation:
        """Segment one image, in evaluation mode and without gradients.

        Args:
            image: a file (turned upright as its camera noted), a PIL image, a uint8 array
                ``(H, W, 3)`` or, grey, ``(H, W)``, or a tensor ``(3, H, W)`` in [0, 1].

        Returns:
            The mask at the size of the image, on the CPU. Background, then the lowest class, wins
            ties.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read as an image.
            ValueError: the array or tensor has another shape or range.
            TypeError: it is of another type.
            ImportError: pillow is needed and not installed.
        """
        pixels = as_image(image)
        with torch.no_grad(), evaluating(self):
            logits = self._fused(pixels[None].to(next(self.parameters(), pixels)))
        mask = winners(logits, (pixels.shape[1], pixels.shape[2])).cpu()
        return Segmentation(mask, ("background", *self.names), self.palette, pixels)

    def extra_repr(self) -> str:
        """Return the protocol as one line."""
        return f"{len(self.names)} classes, {self.protocol.describe()}"

    def _fused(self, images: Tensor) -> Tensor:
        x = images if self.size is None else resized(images, (self.size, self.size))
        logits = multi_scale_logits(
            self.network,
            x,
            scales=self._scales,
            flip=self._flip,
            flip_reduce=cast(Reduce, self.protocol.flip_reduce),
            scale_reduce=cast(Reduce, self.protocol.scale_reduce),
        )
        check_shape("logits of the network", logits, "B C h w", C=len(self.names) + 1)
        return at_least_float32(logits)
