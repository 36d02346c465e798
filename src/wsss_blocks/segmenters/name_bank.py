"""Text rows of class names, encoded by a model of images and texts (CLIP, LoDA)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks._validate import check_int, check_sequence
from wsss_blocks.backbones import TextBank, TextFeatures
from wsss_blocks.backbones.templates import imagenet_templates

__all__ = ["ImageTextModel", "zero_shot_bank"]


class ImageTextModel(Protocol):
    """Describe an ``nn.Module`` whose images, patches and texts are vectors of one space.

    If it has ``encode_dense(images)``, too, which gives unit image vectors and patches of one pass
    through its image encoder, a segmenter uses that.
    """

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Return one vector per image, ``(B, 3, H, W)`` in [0, 1] -> ``(B, D)``."""

    def encode_patches(self, images: Tensor) -> Tensor:
        """Return the patches ``(B, D, h, w)``, of any length."""

    def encode_text(
        self, ids: Tensor, mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """Return one vector per text, ``(B, D)``."""

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ``ids`` and ``mask``, both ``(B, T)``, on the CPU."""


def zero_shot_bank(
    model: ImageTextModel,
    names: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    spoken: Mapping[str, str] | None = None,
    background: str | None = "background",
    source: str | None = None,
    batch_size: int = 256,
) -> TextBank:
    r"""Encode each name, and the background as if it were one, in each template.

    .. math::

        U_c = \frac{\bar u_c}{\lVert \bar u_c \rVert}, \qquad
        \bar u_c = \frac1{|T|} \sum_{t \in T} \frac{g(t(c))}{\lVert g(t(c)) \rVert}

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        section 4.1: 80 templates, background included (released code).

    Args:
        model: encodes texts; in evaluation mode while it does, without gradient.
        names: K class names.
        templates: each with one ``{}``; default
            :func:`~wsss_blocks.backbones.imagenet_templates`.
        spoken: name -> what is said in its place (``{"tvmonitor": "monitor"}``).
        background: what is said for the background; None for a bank without it.
        source: say which weights; default what ``model.source`` says, else its class.
        batch_size: texts per forward pass.

    Returns:
        A bank of ``names`` with one background row, or none.

    Raises:
        ValueError: no name, a name (or what is said for it, or for the background) twice, no
            template, or one without ``{}``; something is spoken for what is no name; a
            ``batch_size`` below 1.
        TypeError: ``names`` or ``templates`` is no sequence of texts, or ``spoken`` no mapping.

    Example:
        >>> import open_clip
        >>> from wsss_blocks.backbones import OpenCLIPModel
        >>> vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=8)
        >>> text = open_clip.CLIPTextCfg(width=8, heads=1, layers=1)
        >>> model = OpenCLIPModel(open_clip.CLIP(6, vision, text))
        >>> bank = zero_shot_bank(model, ["cat", "dog"], templates=["a photo of a {}.", "a {}."])
        >>> bank.classes.shape, bank.background.shape
        (torch.Size([2, 6]), torch.Size([1, 6]))
    """
    check_sequence("names", names)
    if spoken is not None and not isinstance(spoken, Mapping):
        raise TypeError(f"spoken must be a mapping from names to words, got {spoken!r}.")
    said = dict(spoken or {})
    templates = imagenet_templates() if templates is None else templates
    check_sequence("templates", templates)
    first = [] if background is None else [background]
    check_int("batch_size", batch_size, least=1)
    for argument, texts in (
        ("names", names),
        ("templates", templates),
        ("spoken", said.values()),
        ("background", first),
    ):
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{argument} must hold texts, got {text!r}.")
    unknown = [name for name in said if name not in names]
    if unknown:
        raise ValueError(f"spoken must be for names, got {unknown}.")
    words = [*first, *(said.get(name, name) for name in names)]
    if not names or len(set(words)) < len(words):
        raise ValueError(f"names must be one or more different names, got {words}.")
    encoder = _Texts(model)
    with evaluating(encoder):
        both = TextBank.from_encoder(
            encoder, words, templates=templates, background=(), batch_size=batch_size
        )
    rows = both.classes
    label = source or getattr(model, "source", None) or type(model).__name__
    shown = templates[0] if len(templates) == 1 else f"{len(templates)} templates"
    said_so = "".join(f"; {name}: {word}" for name, word in said.items())
    others = None if background is None else rows[:1]
    return TextBank(rows[len(first) :], others, names=names, source=f"{label}: {shown}{said_so}")


class _Texts(nn.Module):
    """The text half of a model, as a text encoder."""

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model = model

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.model.tokenize(texts)

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        rows = self.model.encode_text(ids, mask, normalize=True)
        tokens = rows[:, None]
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=rows.device)
        return TextFeatures(tokens, real, ~real, rows)
