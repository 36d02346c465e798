"""The latest class tokens of each class, from many images (CTI, CVPR 2024)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_same_device,
    check_shape,
)
from wsss_blocks.distributed import all_gather_with_grad

__all__ = ["ClassTokenBank", "StoredTokens"]


class StoredTokens(NamedTuple):
    """Tokens ``(K, D)`` or ``(B, K, D)``, and ``valid (K,)`` bool: the bank holds enough of it."""

    tokens: Tensor
    valid: Tensor


class ClassTokenBank(nn.Module):
    r"""Keep the latest class tokens of each class in a ring, and return their mean.

    .. math:: p_c = \frac{1}{|R_c|} \sum_{T \in R_c} \operatorname{LN}(T)

    with the ring :math:`R_c` of the last ``size`` tokens of images that show class c. Tokens, their
    number and the place of the next one are in ``state_dict``: a resumed run goes on exactly. There
    is no loop over classes and no sync with a device.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024,
        released code: layer norm without affine weights, 30 tokens per class. The paper speaks of
        tokens of other images: :meth:`sample` draws those.

    Note:
        The released code waits until *every* class is full, so that a single rare class silences
        the loss for ever; here each class counts for itself (``valid.all()`` is the official
        wait). ``normalize=False`` keeps raw tokens, of the scale of those that they are mixed
        with. ``DistributedDataParallel`` copies buffers of rank 0 to all ranks unless
        ``broadcast_buffers=False``: without ``gather_distributed`` keep the bank outside of it.

    Args:
        num_classes: number of classes K, without background.
        dim: number of channels D of a token.
        size: most tokens that are kept per class.
        min_entries: number of tokens from which a class is valid; ``size`` if None.
        normalize: store tokens after a layer norm.
        gather_distributed: push the tokens of all ranks on every rank, in the order of the ranks;
            each rank then gives the same number of images.
        device: device of the tokens.
        dtype: dtype of the tokens.

    Raises:
        ValueError: a size is less than 1, or ``min_entries`` is more than ``size``.

    Example:
        >>> import torch
        >>> bank = ClassTokenBank(3, 2, size=2, min_entries=1, normalize=False)
        >>> for value in (1.0, 2.0, 4.0):
        ...     bank.push(torch.full((1, 3, 2), value), torch.tensor([[1, 0, 1]]))
        >>> bank.prototypes()
        StoredTokens(tokens=tensor([[3., 3.],
                [0., 0.],
                [3., 3.]]), valid=tensor([ True, False,  True]))
    """

    tokens: Tensor
    num_pushed: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        size: int = 30,
        min_entries: int | None = None,
        normalize: bool = True,
        gather_distributed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("num_classes", num_classes, least=1)
        check_int("dim", dim, least=1)
        check_int("size", size, least=1)
        if min_entries is not None:
            check_int("min_entries", min_entries, least=1)
            if min_entries > size:
                raise ValueError(f"min_entries must be at most size={size}, got {min_entries}.")
        self.num_classes, self.dim, self.size = num_classes, dim, size
        self.min_entries = size if min_entries is None else min_entries
        self.normalize, self.gather_distributed = normalize, gather_distributed
        empty = torch.zeros(num_classes, size, dim, device=device, dtype=dtype)
        self.register_buffer("tokens", empty)
        pushed = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.register_buffer("num_pushed", pushed)

    @property
    def num_stored(self) -> Tensor:
        """Number of tokens that are kept of each class, ``(K,)``."""
        return self.num_pushed.clamp_max(self.size)

    @torch.no_grad()
    def push(self, tokens: Tensor, labels: Tensor) -> None:
        """Append the tokens of the classes of each image, image after image; the oldest go.

        Args:
            tokens: ``(B, K, D)`` class tokens without background, of the layer of the infusion.
            labels: ``(B, K)`` multi-hot; tokens of absent classes are not stored.

        Raises:
            ValueError: a shape, device or label does not fit, or ``tokens`` are not finite.
            TypeError: ``tokens`` is not floating-point.
        """
        check_shape("tokens", tokens, "B K D", K=self.num_classes, D=self.dim)
        check_floating("tokens", tokens)
        check_same_device("tokens", tokens, "the bank", self.tokens)
        batch = tokens.shape[0]
        check_labels(labels, batch=batch, num_classes=self.num_classes, device=tokens.device)
        check_finite("tokens", tokens)
        new = at_least_float32(tokens.detach())
        if self.normalize:
            new = F.layer_norm(new, (self.dim,))
        present = labels > 0
        if self.gather_distributed:
            new = all_gather_with_grad(new)
            present = all_gather_with_grad(present.to(torch.uint8)) > 0
        if not len(new):
            return
        # Each place of the ring asks which image wrote it last: of the images of its class
        # numbered from 0, the last one whose number is congruent to its distance from the start.
        number = present.T.long().cumsum(1).contiguous()  # searchsorted warns of strides
        total = number[:, -1:]
        places = torch.arange(self.size, device=new.device)
        first = (places - self.num_pushed[:, None]) % self.size
        written = first < total
        last = first + (total - 1 - first).div(self.size, rounding_mode="floor") * self.size
        image = torch.searchsorted(number, last.where(written, 0) + 1)
        image = image.clamp_max(len(new) - 1).unsqueeze(2).expand(-1, -1, self.dim)
        values = new.transpose(0, 1).gather(1, image).to(self.tokens.dtype)
        self.tokens.copy_(values.where(written.unsqueeze(2), self.tokens))
        self.num_pushed += total.squeeze(1)

    def prototypes(self) -> StoredTokens:
        """Return the mean of the tokens of each class ``(K, D)``, 0 without any, and validity."""
        # Places are filled from the first on and are zero before.
        total = at_least_float32(self.tokens).sum(1)
        mean = total / self.num_stored.clamp_min(1).unsqueeze(1)
        return StoredTokens(mean.to(self.tokens.dtype), self.num_stored >= self.min_entries)

    def sample(self, batch: int, *, generator: torch.Generator | None = None) -> StoredTokens:
        """Draw a stored token of each class for each image, uniformly and with replacement.

        Args:
            batch: number of images B.
            generator: source of randomness; on any device.

        Returns:
            Tokens ``(B, K, D)``, 0 of a class without any, and validity ``(K,)``.

        Raises:
            ValueError: ``batch`` is negative.
        """
        check_int("batch", batch, least=0)
        device = self.tokens.device if generator is None else generator.device
        drawn = torch.rand(batch, self.num_classes, generator=generator, device=device)
        stored = self.num_stored
        place = (drawn.to(self.tokens.device) * stored).long()
        place = place.minimum((stored - 1).clamp_min(0))  # the product may round up
        classes = torch.arange(self.num_classes, device=self.tokens.device)
        return StoredTokens(self.tokens[classes, place], stored >= self.min_entries)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return (
            f"{self.num_classes}, {self.dim}, size={self.size}, min_entries={self.min_entries}, "
            f"normalize={self.normalize}"
        )
