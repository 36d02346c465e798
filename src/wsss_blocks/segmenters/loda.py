"""Locality-driven alignment of images and captions (SimSeg, CVPR 2023)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import check_choice, check_positive
from wsss_blocks.backbones.features import Encoder, Features, TextEncoder
from wsss_blocks.segmenters._loda_sides import ImageSide, Pool, TextSide

__all__ = ["LoDAModel"]


class LoDAModel(nn.Module):
    r"""Align images with captions by the strongest responses of their tokens.

    .. math::

        P = E(x) W, \qquad
        z_c = \frac{1}{k} \sum_{m=1}^{k} \operatorname{top}_m \{P_{n,c}\}, \qquad
        s = \frac{z^I}{\lVert z^I \rVert} \cdot \frac{z^T}{\lVert z^T \rVert}

    with the final tokens :math:`E(x)` of patches or words and a bias-free :math:`W` for each side.
    Trained with :func:`~wsss_blocks.losses.image_text_contrastive_loss`, single patches come to
    match words, so that :meth:`encode_patches` compared with texts segments an image.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        eq. 2-5: https://doi.org/10.1109/CVPR52729.2023.00683. Eq. 4 averages the products of all
        pairs of selected responses, which is the product of their means. That the projection comes
        before the pooling and the norm after it is from the released code. "average" is the
        paper's dense baseline as read from there (inferred), "class_token" is CLIP.

    Note:
        The authors say that the published model pools over all 25 positions in training, padding
        and special tokens included, and over real tokens in evaluation; the released code masks in
        both. ``mask_padding`` sets each; without masks the padding counts, so pad all captions to
        one length. ``k`` follows each caption; the released code lowers it for the whole batch to
        its shortest. The scale is learnt as a logarithm, as in CLIP; the paper learns
        :math:`\tau` itself, in the released code at most at 1000. It is brought back to
        ``max_scale`` when it is used in training, so that it can come down again.

    Args:
        image_encoder: its class tokens take no part, except with "class_token".
        text_encoder: with ``dim``, the number of channels of its tokens.
        dim: channels of the joint space. None: that of encoders which have one already (CLIP):
            ``image_encoder.project``, and the tokens of the text encoder as they are.
        pool: "max_response", "average" (of patches and of real tokens) or "class_token" (the
            global token of each encoder).
        image_k: responses kept per channel over patches.
        text_k: over words, in training.
        eval_text_k: over words, in evaluation.
        mask_padding: leave padding out of the pooling in training, in evaluation.
        exclude_special: leave start and end tokens out; a caption without a word keeps them.
        image_norm: LayerNorm of the image tokens before the projection, for encoders that do not
            end with one (CNNs). Transformers of timm and open_clip do.
        temperature: :math:`\tau` at the start.
        max_scale: largest :math:`1 / \tau`.

    Attributes:
        image: ``encoder``, ``norm``, ``projection``; called with images it returns pooled vectors.
        text: ``encoder``, ``projection``; a ``TextEncoder`` whose ``global_token`` is the pooled
            unit vector, for :meth:`TextBank.from_encoder
            <wsss_blocks.backbones.TextBank.from_encoder>`.
        recipe: what :func:`create_loda` built it of; None if something else did.
        size: side of the square that it wants to see, as its file says; None: any.
        source: what it is, for a :class:`~wsss_blocks.backbones.TextBank`.
        log_scale: scalar parameter, without weight decay in
            :func:`~wsss_blocks.training.param_groups` like all that has no second axis.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``, or what the image encoder made of them
          (:class:`~wsss_blocks.backbones.Features`), as a frozen one is run once
        - ids, mask: ``(B, T)``
        - output: ``image_features`` and ``text_features (B, dim)`` of norm 1, ``logit_scale``

    Raises:
        ValueError: an unknown ``pool``, a number that is too small, ``image_norm`` without
            ``dim``, a caption without real token, or sides that differ in channels.
        TypeError: an encoder is not an ``nn.Module``.

    Example:
        >>> import torch
        >>> from open_clip.transformer import TextTransformer
        >>> from wsss_blocks.backbones import OpenCLIPTextEncoder, SmallCNN
        >>> words = OpenCLIPTextEncoder(TextTransformer(width=16, heads=2, layers=1, output_dim=8))
        >>> model = LoDAModel(SmallCNN(), words, dim=32, image_norm=True)
        >>> ids, mask = model.tokenize(["a cat", "two dogs"])
        >>> found = model(torch.rand(2, 3, 64, 48), ids, mask)
        >>> {name: tuple(x.shape) for name, x in found.items()}
        {'image_features': (2, 32), 'text_features': (2, 32), 'logit_scale': ()}
        >>> model.encode_patches(torch.rand(2, 3, 64, 48)).shape
        torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: TextEncoder,
        *,
        dim: int | None = 512,
        pool: Pool = "max_response",
        image_k: int = 5,
        text_k: int = 5,
        eval_text_k: int = 1,
        mask_padding: tuple[bool, bool] = (False, True),
        exclude_special: bool = False,
        image_norm: bool = False,
        temperature: float = 0.07,
        max_scale: float = 100.0,
    ) -> None:
        super().__init__()
        check_choice("pool", pool, ("max_response", "average", "class_token"))
        check_positive("temperature", temperature)
        check_positive("max_scale", max_scale)
        if max_scale * temperature < 1:
            raise ValueError(
                f"max_scale must be at least 1 / temperature ({1 / temperature:g}), "
                f"got {max_scale:g}."
            )
        text = TextSide(
            text_encoder,
            dim=dim,
            pool=pool,
            k=text_k,
            eval_k=eval_text_k,
            mask_padding=mask_padding,
            exclude_special=exclude_special,
        )
        self.dim: int = text.dim
        self.image = ImageSide(
            image_encoder, dim=dim, joint_dim=text.dim, pool=pool, k=image_k, norm=image_norm
        )
        self.text = text
        self.max_scale = max_scale
        self.recipe: dict[str, object] | None = None
        self.size: int | None = None
        self.source = "LoDA"
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def logit_scale(self) -> Tensor:
        r"""The scale of the cosines :math:`1 / \tau`, at most ``max_scale``."""
        most = math.log(self.max_scale)
        if not self.training:
            return self.log_scale.clamp(max=most).exp()
        with torch.no_grad():  # a clamp in the graph has no gradient that could lead back
            self.log_scale.clamp_(max=most)
        return self.log_scale.exp()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ``ids`` and ``mask``, both ``(B, T)``, on the CPU."""
        return self.text.tokenize(texts)

    def encode_image(self, images: Tensor | Features, normalize: bool = True) -> Tensor:
        """Return one vector per image ``(B, dim)``, of norm 1 unless told otherwise."""
        pooled: Tensor = self.image(images)
        return l2_normalize(pooled) if normalize else pooled

    def encode_text(
        self, ids: Tensor, mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """Return one vector per caption ``(B, dim)``; without a mask the encoder must know it."""
        pooled = self.text.pooled(ids, mask)
        return l2_normalize(pooled) if normalize else pooled

    def encode_patches(self, images: Tensor | Features) -> Tensor:
        """Return the projected patches ``(B, dim, h, w)``, not normalised."""
        return self.image.dense(images)[1]

    def encode_dense(self, images: Tensor | Features) -> tuple[Tensor, Tensor]:
        """Return :meth:`encode_image` and :meth:`encode_patches` of one pass."""
        pooled, patches = self.image.dense(images)
        return l2_normalize(pooled), patches

    def forward(
        self, images: Tensor | Features, ids: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode pairs; the keys are the arguments of open_clip's ``ClipLoss``, in its order."""
        return {
            "image_features": self.encode_image(images),
            "text_features": self.encode_text(ids, mask),
            "logit_scale": self.logit_scale,
        }
