"""Checks that the figures share."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_integer,
    check_labels,
    check_mask_values,
    check_same_device,
    check_sequence,
    check_shape,
    values_are_checked,
)
from wsss_blocks.data.names import voc_palette

__all__ = [
    "Color",
    "Images",
    "check_batch",
    "check_examples",
    "check_grid",
    "check_texts",
    "check_unit_range",
    "class_colors",
]

Color = Sequence[int]
Images = Tensor | Sequence[Tensor]

_ROUNDING = 1e-3  # scores may leave [0, 1] by as much


def check_grid(
    rows: Sequence[Sequence[Tensor | None]],
    titles: Sequence[str] | None,
    row_labels: Sequence[str] | None,
    captions: Sequence[Sequence[str]] | None,
    legend: Mapping[str, Color] | None,
) -> None:
    """Raise unless rows of finite images have texts and colours that fit."""
    if not rows or not any(rows):
        raise ValueError("rows must hold at least one image, got none.")
    for row in rows:
        for image in row:
            if image is not None:
                check_shape("rows", image, "3 H W")
                check_floating("rows", image)
                check_finite("rows", image)
    columns = max(len(row) for row in rows)
    check_texts("titles", titles, columns)
    check_texts("row_labels", row_labels, len(rows))
    if captions is not None:
        check_sequence("captions", captions)
        for texts in captions:
            check_sequence("captions", texts)
        if list(map(len, captions)) != list(map(len, rows)):
            raise ValueError(f"captions must have one entry per image of rows, got {captions!r}.")
        for texts in captions:
            check_texts("captions", texts, len(texts))
    if legend is not None and not isinstance(legend, Mapping):
        raise TypeError(f"legend must be a mapping from names to colours, got {legend!r}.")
    for color in (legend or {}).values():
        check_sequence("legend", color)
        if len(color) != 3 or not all(isinstance(level, int) for level in color):
            raise ValueError(f"legend must hold three whole numbers per colour, got {color!r}.")


def check_texts(name: str, texts: Sequence[str] | None, count: int) -> None:
    """Raise unless ``texts`` is None or ``count`` strings."""
    if texts is None:
        return
    check_sequence(name, texts)
    if len(texts) != count:
        raise ValueError(f"{name} must have {count} entries, got {len(texts)}.")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must hold strings, got {text!r}.")


def check_examples(images: Images, labels: Tensor, names: Sequence[str]) -> None:
    """Raise unless there are multi-hot labels of each image for names that begin with background.

    The images themselves are for :func:`check_batch`.
    """
    check_sequence("names", names)
    check_sequence("images", images)
    check_shape("labels", labels, "B K", B=len(images), K=len(names) - 1)
    check_labels(labels, batch=len(images), num_classes=len(names) - 1, device=labels.device)
    if labels.is_meta:
        raise ValueError("labels must hold data, got a tensor on the meta device.")
    check_texts("names", names, len(names))


def check_batch(
    name: str,
    batch: Images | None,
    axes: str,
    images: Images,
    *,
    num_classes: int = 256,
    ignore_index: int = 255,
    **sizes: int,
) -> None:
    """Raise unless ``batch`` is None or holds maps or masks that fit the images."""
    if batch is None:
        return
    check_sequence(name, batch)
    if len(batch) != len(images):
        raise ValueError(f"{name} must have {len(images)} entries, got {len(batch)}.")
    for x, image in zip(batch, images, strict=True):
        if axes == "H W":
            check_shape(name, x, axes, H=image.shape[1], W=image.shape[2])
            check_integer(name, x)
            check_same_device(name, x, "images", image)
            check_mask_values(name, x, num_classes=num_classes, ignore_index=ignore_index)
        else:
            check_shape(name, x, axes, **sizes)
            check_floating(name, x)
            check_finite(name, x)
        if x.is_meta:
            raise ValueError(f"{name} must hold data, got tensors on the meta device.")


def check_unit_range(name: str, batch: Images) -> None:
    """Raise on scores outside [0, 1], but for rounding, where values are checked."""
    for x in batch:
        if values_are_checked(x) and x.numel():
            low, high = (float(v) for v in x.detach().aminmax())
            if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
                raise ValueError(
                    f"{name} must hold scores in [0, 1], got values from {low:.4g} to {high:.4g}."
                )


def class_colors(palette: Tensor | None, classes: int) -> Tensor:
    """Return the ``(n, 3)`` levels of a palette, VOC's by default, if it has enough colours."""
    colors = voc_palette() if palette is None else palette
    check_shape("palette", colors, "n 3")
    check_integer("palette", colors)
    if colors.is_meta:
        raise ValueError("palette must hold data, got a tensor on the meta device.")
    colors = colors.cpu().long()
    low, high = int(colors.min()), int(colors.max())
    if not 0 <= low <= high <= 255:
        raise ValueError(f"palette must hold levels in 0..255, got {low} to {high}.")
    if len(colors) < classes:
        raise ValueError(
            f"palette must have a colour for each of {classes} names, got {len(colors)}."
        )
    return colors
