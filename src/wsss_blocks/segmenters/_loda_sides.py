"""The two sides of LoDA: an encoder, a projection per token, the pooling over tokens."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32, l2_normalize
from wsss_blocks._validate import check_int, check_sequence, values_are_checked
from wsss_blocks.backbones.features import Encoder, Features, TextEncoder, TextFeatures
from wsss_blocks.pooling import max_response_pool

__all__ = ["ImageSide", "Pool", "TextSide"]

Pool = Literal["max_response", "average", "class_token"]


class ImageSide(nn.Module):
    """Encode images into the joint space, as a map and as one vector.

    Args:
        encoder: image encoder.
        dim: channels of the projection; None asks the encoder's own ``project``.
        joint_dim: channels of the joint space.
        pool: "max_response", "average" or "class_token".
        k: responses kept per channel.
        norm: LayerNorm of the tokens in front of the projection.
    """

    def __init__(
        self, encoder: Encoder, *, dim: int | None, joint_dim: int, pool: Pool, k: int, norm: bool
    ) -> None:
        super().__init__()
        self.encoder = _checked_encoder("image_encoder", encoder)
        check_int("image_k", k, least=1)
        if norm and dim is None:
            raise ValueError(
                "image_norm must be False with dim=None, as a joint space is as it is, got True."
            )
        self.joint_dim, self.pool, self.k = joint_dim, pool, k
        self.norm = nn.LayerNorm(encoder.dim) if norm else nn.Identity()
        self.projection = _projection(encoder.dim, dim)

    def forward(self, images: Tensor | Features) -> Tensor:
        """Return one vector per image ``(B, dim)``, not normalised."""
        if self.pool == "class_token":
            return self._project(self._encoded(images).global_token)
        return self.dense(images)[0]

    def dense(self, images: Tensor | Features) -> tuple[Tensor, Tensor]:
        """Return the vectors and the projected patches ``(B, dim, h, w)``, not normalised."""
        found = self._encoded(images)
        patches = self._project(found.patch_tokens)
        if self.pool == "class_token":
            pooled = self._project(found.global_token)
        else:
            pooled = _pooled(patches, None, self.pool, self.k)
        return pooled, patches.mT.reshape(*patches.mT.shape[:2], *found.feature_map.shape[2:])

    def _encoded(self, images: Tensor | Features) -> Features:
        found: Features = images if isinstance(images, Features) else self.encoder(images)
        return found

    def _project(self, tokens: Tensor) -> Tensor:
        project = self.encoder.project if self.projection is None else self.projection
        tokens = project(self.norm(tokens))
        if tokens.shape[-1] != self.joint_dim:
            raise ValueError(
                "dim must be given where the encoders share no space, got None with "
                f"{tokens.shape[-1]} channels of images and {self.joint_dim} of texts."
            )
        return tokens


class TextSide(nn.Module):
    """Encode captions into the joint space: a ``TextEncoder`` whose global token is pooled.

    Args:
        encoder: text encoder.
        dim: channels of the joint space; None takes the tokens as they are.
        pool: "max_response", "average" or "class_token".
        k: responses kept per channel in training.
        eval_k: the same in evaluation.
        mask_padding: whether padding is left out of the pooling, in training and in evaluation.
        exclude_special: whether tokens that are no words are left out.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        dim: int | None,
        pool: Pool,
        k: int,
        eval_k: int,
        mask_padding: tuple[bool, bool],
        exclude_special: bool,
    ) -> None:
        super().__init__()
        self.encoder = _checked_encoder("text_encoder", encoder)
        words: int = self.encoder.dim
        check_int("text_k", k, least=1)
        check_int("eval_text_k", eval_k, least=1)
        check_sequence("mask_padding", mask_padding)
        if len(mask_padding) != 2:
            raise ValueError(
                f"mask_padding must be two bools (training, evaluation), got {mask_padding!r}."
            )
        self.pool, self.k, self.eval_k = pool, k, eval_k
        self.mask_padding = (bool(mask_padding[0]), bool(mask_padding[1]))
        self.exclude_special = exclude_special
        self.projection = _projection(words, dim)
        self.dim: int = words if dim is None else dim

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ``ids`` and ``mask``, both ``(B, T)``, on the CPU."""
        return cast(tuple[Tensor, Tensor], self.encoder.tokenize(texts))

    def token_mask(self, ids: Tensor) -> Tensor:
        """Return the mask of ids where the encoder can tell it from them."""
        find = getattr(self.encoder, "token_mask", None)
        if find is None:
            raise ValueError(
                "mask must be given where ids do not tell it, as with a "
                f"{type(self.encoder).__name__}, got None."
            )
        return cast(Tensor, find(ids))

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Return projected tokens, and as global token the pooled vector of norm 1."""
        found, pooled = self._encode(ids, mask)
        return found._replace(global_token=l2_normalize(pooled))

    def pooled(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return one vector per caption ``(B, dim)``, not normalised."""
        return self._encode(ids, self.token_mask(ids) if mask is None else mask)[1]

    def _encode(self, ids: Tensor, mask: Tensor) -> tuple[TextFeatures, Tensor]:
        found: TextFeatures = self.encoder(ids, mask)
        if values_are_checked(found.mask) and not bool(found.mask.any(1).all()):
            raise ValueError("mask must have a real token in each caption, got one without.")
        project = nn.Identity() if self.projection is None else self.projection
        found = found._replace(tokens=project(found.tokens))
        if self.pool == "class_token":
            return found, project(found.global_token)
        k = self.k if self.training else self.eval_k
        return found, _pooled(found.tokens, self._kept(found), self.pool, k)

    def _kept(self, found: TextFeatures) -> Tensor | None:
        """Return which positions are pooled, None for all of them."""
        masked = self.pool == "average" or self.mask_padding[0 if self.training else 1]
        if not self.exclude_special:
            return found.mask if masked else None
        words = found.mask & ~found.special
        kept = words if masked else ~found.special
        return torch.where(words.any(1, keepdim=True), kept, found.mask)


def _checked_encoder(name: str, encoder: Any) -> Any:
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"{name} must be an nn.Module, got {type(encoder).__name__}.")
    check_int(f"{name}.dim", cast(Any, encoder).dim, least=1)
    return encoder


def _projection(dim: int, out_dim: int | None) -> nn.Linear | None:
    if out_dim is None:
        return None
    check_int("dim", out_dim, least=1)
    return nn.Linear(dim, out_dim, bias=False)


def _pooled(tokens: Tensor, mask: Tensor | None, pool: Pool, k: int) -> Tensor:
    if pool == "max_response":
        return max_response_pool(tokens, k=k, mask=mask)
    values = at_least_float32(tokens)
    if mask is None:
        return values.mean(1).to(tokens.dtype)
    total = values.masked_fill(~mask[..., None], 0).sum(1)
    return (total / mask.sum(1, keepdim=True).clamp_min(1)).to(tokens.dtype)
