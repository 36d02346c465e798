"""An open_clip model as one pair of encoders: images, patches and texts in one space."""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import check_choice
from wsss_blocks.backbones._open_clip import create_open_clip
from wsss_blocks.backbones.create_text import named_open_clip
from wsss_blocks.backbones.features import Features
from wsss_blocks.backbones.open_clip_image import OpenCLIPImageEncoder
from wsss_blocks.backbones.open_clip_text import OpenCLIPTextEncoder

__all__ = ["OpenCLIPModel"]


class OpenCLIPModel(nn.Module):
    r"""Give images, image patches and texts of an open_clip model as vectors of one space.

    What a zero-shot segmenter asks of a model, for any size of image. A patch is the projected
    final token, or, with ``patches="value"``, what MaskCLIP reads out of the last block: its input
    :math:`x`, attended to nothing but itself,

    .. math::

        p_i = W_{proj} \operatorname{LN}_{post} \bigl(W_{out} (W_v \operatorname{LN}_1(x_i) + b_v)
            + b_{out}\bigr) .

    Reference:
        "Learning Transferable Visual Models From Natural Language Supervision", section 2.4,
        https://arxiv.org/abs/2103.00020; values: Zhou et al., "Extract Free Dense Labels from
        CLIP" (MaskCLIP), ECCV 2022, section 3.2, https://arxiv.org/abs/2112.01071

    Note:
        CLIP is trained on its class token alone: nothing asks a final patch token to look like the
        name of what it shows, and maps made of them are poor. The values need no training and are
        what to take with released CLIP weights. A model trained on its patches (LoDA) wants
        ``"token"``.

    Args:
        model: open_clip's name, or a CLIP model with a plain image tower and a causal text tower
            (shared, not copied).
        pretrained: open_clip's tag or a file of weights (by name only).
        tokenizer: list of texts to ids; default the one of the name, else CLIP's.
        patches: what a patch is, ``"token"`` or ``"value"``.
        source: which weights these are, for the record.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - encode_image, encode_text: ``(B, E)``
        - encode_patches: ``(B, E, h, w)``, not normalised

    Raises:
        TypeError: a tower is not of open_clip's own kind.
        ValueError: a tower pools otherwise, a module together with ``pretrained``, an unknown
            ``patches``, or values of a tower with less than two blocks or another attention.

    Example:
        >>> import open_clip
        >>> vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=8)
        >>> text = open_clip.CLIPTextCfg(width=8, heads=1, layers=1)
        >>> model = OpenCLIPModel(open_clip.CLIP(6, vision, text))
        >>> model.encode_patches(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 6, 4, 6])
        >>> model.encode_text(*model.tokenize(["a cat", "a dog"])).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: str | None = None,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
        patches: Literal["token", "value"] = "token",
        source: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("patches", patches, ("token", "value"))
        label = f"open_clip {type(model).__name__}"
        if isinstance(model, str):
            label = f"open_clip {model} {pretrained or '(random weights)'}"
            tokenizer = tokenizer or open_clip.get_tokenizer(model)
            model = create_open_clip(model, pretrained)
        elif pretrained is not None:
            raise ValueError("pretrained must be None for a model that is already built.")
        self.image = OpenCLIPImageEncoder(model)
        self.text = OpenCLIPTextEncoder(model, tokenizer=tokenizer)
        if patches == "value":
            _check_values(self.image.model.transformer.resblocks)
        self.patches, self.source = patches, source or label

    @classmethod
    def from_name(cls, text: str, *, patches: Literal["token", "value"] = "token") -> Self:
        """Build a model of ``"ARCH/TAG"``, which open_clip downloads, or ``"ARCH/PATH"``.

        Args:
            text: ``"ViT-B-16/openai"``, or ``"ViT-B-16//path/to/weights.safetensors"``.
            patches: as in the constructor.

        Raises:
            ValueError: no such architecture, tag or file, or weights that do not fit.
            OSError: the weights could not be downloaded; the message says what to do.
        """
        model, tokenizer, label = named_open_clip(
            text,
            argument="model",
            choices="'ARCH/TAG' or 'ARCH/PATH' of open_clip (as 'ViT-B-16/openai')",
        )
        return cls(model, tokenizer=tokenizer, patches=patches, source=label)

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Return the tower's own image vectors ``(B, E)``, of unit length unless told otherwise."""
        pooled = self.image.project(self.image(images).global_token)
        return l2_normalize(pooled).to(pooled.dtype) if normalize else pooled

    def encode_patches(self, images: Tensor) -> Tensor:
        """Return the projected patches ``(B, E, h, w)``."""
        return self.encode_dense(images)[1]

    def encode_dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit image vectors ``(B, E)`` and patches ``(B, E, h, w)`` of one pass."""
        features = self.image(images, layers=(-2,) if self.patches == "value" else ())
        pooled = self.image.project(features.global_token)
        tokens = self._values(features) if self.patches == "value" else features.patch_tokens
        projected = self.image.project(tokens).mT
        grid = features.feature_map.shape[-2:]
        patches = projected.reshape(*projected.shape[:2], *grid)
        return l2_normalize(pooled).to(pooled.dtype), patches

    def encode_text(
        self, ids: Tensor, mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """Return text vectors ``(B, E)``; a causal tower does not need the mask of padding."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        row = self.text(ids, mask).global_token
        return l2_normalize(row).to(row.dtype) if normalize else row

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn B texts into ``ids (B, T)`` and ``mask (B, T)``."""
        return self.text.tokenize(texts)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"source={self.source!r}, patches={self.patches!r}"

    def _values(self, features: Features) -> Tensor:
        """Return what MaskCLIP takes for the final patch tokens."""
        (taps,) = features.taps.values()
        count = features.patch_tokens.shape[1]
        block = self.image.model.transformer.resblocks[-1]
        attention, width = block.attn, self.image.dim
        x = block.ln_1(taps[:, -count:])
        bias = attention.in_proj_bias
        x = F.linear(x, attention.in_proj_weight[-width:], None if bias is None else bias[-width:])
        tokens: Tensor = self.image.model.ln_post(block.ls_1(attention.out_proj(x)))
        return tokens


def _check_values(blocks: Sequence[nn.Module]) -> None:
    attention = getattr(blocks[-1], "attn", None)
    if len(blocks) < 2 or not isinstance(attention, nn.MultiheadAttention):
        raise ValueError(
            'patches="value" must have two blocks or more with plain attention, '
            f"got {len(blocks)} with {type(attention).__name__}."
        )
