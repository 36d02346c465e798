"""Linear probing of frozen features: how well one linear layer tells the classes apart."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_non_negative,
    check_number,
    check_positive,
    check_same_device,
    check_sequence,
    check_shape,
    values_are_checked,
)
from wsss_blocks.metrics import topk_accuracy

__all__ = ["LinearProbe", "linear_probe"]


class LinearProbe(NamedTuple):
    """The outcome of :func:`linear_probe`.

    Attributes:
        accuracy: share of the validation samples whose class is among the first k, for each k.
        train_accuracy: the same of the training samples.
        head: the layer, with the statistics of its batch norm if it has one, in eval mode.
    """

    accuracy: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    head: nn.Sequential


def linear_probe(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    num_classes: int,
    epochs: int = 90,
    base_lr: float = 0.1,
    batch_size: int = 32768,
    warmup: int = 10,
    momentum: float = 0.9,
    batch_norm: bool = False,
    ks: Sequence[int] = (1, 5),
    seed: int = 0,
) -> LinearProbe:
    r"""Train a linear classifier on cached features with LARS and score it.

    With batch size b (at most the number of samples), learning rate
    :math:`\eta = \mathrm{base} \cdot b / 256`, T steps of which W are warm-up, and step t from 0,

    .. math::

        \eta_t = \eta \cdot \begin{cases} t / W & t < W \\
            \tfrac12 \bigl(1 + \cos \pi \tfrac{t - W}{T - W}\bigr) & t \ge W \end{cases}
        \qquad
        w \leftarrow w - \eta_t m, \quad
        m \leftarrow \mu m + 10^{-3} \frac{\lVert w \rVert}{\lVert g \rVert} g

    The bias takes the plain gradient g; there is no weight decay. Which feature of an image to
    probe is up to the caller: the pooled one that was trained, the mean patch, or the class token,
    which LoDA never supervises although its published probe reads it.

    Reference:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, appendix A.1;
        LoDA's supplement: base rate 0.1, momentum 0.9, no weight decay, 32,768 samples per batch,
        90 epochs, 10 of warm-up.

    Note:
        - The published probes crop and mirror images at random in each epoch. Cached features are
          those of one view, or of as many as the caller stacks.
        - LoDA's released configuration has 16,384 samples per batch and AutoAugment, which the
          paper does not mention.
        - MAE puts a batch norm without affine parameters before the layer (``batch_norm=True``),
          LoDA's configuration does not.
        - LARS adapts the rate to the norm of the weights: with a few hundred steps, as on small
          data, ``base_lr`` must be larger.

    Args:
        features: ``(N, D)`` of the training images.
        labels: ``(N,)`` class ids.
        val_features: ``(M, D)`` of the validation images.
        val_labels: ``(M,)`` class ids.
        num_classes: K.
        epochs: passes over the training features; a last batch that is not full is left out.
        base_lr: learning rate for 256 samples per batch.
        batch_size: samples per step.
        warmup: epochs of linear warm-up, less than ``epochs``.
        momentum: :math:`\mu`.
        batch_norm: normalise features with the statistics of the batch, then of training.
        ks: for each k a prediction is right if the class is among the first k.
        seed: of the layer's initial values (normal, deviation 0.01) and of the order.

    Returns:
        Accuracies in [0, 1] and the trained layer. Two calls return the same on one device.

    Raises:
        ValueError: a shape or device does not fit, a value is not finite, a label is not in
            ``[0, K)``, ``warmup >= epochs``, or a number out of range.
        TypeError: features are not floating-point or labels not integers.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, 3.0]]).repeat(8, 1)
        >>> labels = torch.tensor([0, 1]).repeat(8)
        >>> data = (features, labels, features, labels)
        >>> linear_probe(*data, num_classes=2, ks=(1,), base_lr=10.0).accuracy
        (1.0,)
    """
    for name, value in (
        ("num_classes", num_classes),
        ("epochs", epochs),
        ("batch_size", batch_size),
    ):
        check_int(name, value, least=1)
    _check_rows("features", features, "labels", labels, num_classes)
    _check_rows("val_features", val_features, "val_labels", val_labels, num_classes)
    check_shape("val_features", val_features, "M D", D=features.shape[1])
    check_same_device("val_features", val_features, "features", features)
    check_sequence("ks", ks)
    for k in ks:
        check_int("ks", k, least=1)
    check_int("seed", seed, least=0)
    check_int("warmup", warmup, least=0)
    if warmup >= epochs:
        raise ValueError(f"warmup must be less than epochs={epochs}, got {warmup}.")
    check_positive("base_lr", base_lr)
    check_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    random = torch.Generator().manual_seed(seed)
    head = _head(features, num_classes, batch_norm, random)
    batch = min(batch_size, len(features))
    if batch_norm and batch < 2:
        raise ValueError(f"batch_size must be at least 2 for batch_norm, got {batch} samples.")
    per_epoch = len(features) // batch
    optimizer = _lars(head[-1], momentum)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=random).to(features.device)
        for i in range(per_epoch):
            rate = _rate(epoch * per_epoch + i, total=epochs * per_epoch, warmup=warmup * per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = base_lr * batch / 256 * rate
            rows = order[i * batch : (i + 1) * batch]
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(head(features[rows].detach()), labels[rows].long())
                torch.autograd.backward(loss)
            optimizer.step()
    head.eval()
    with torch.no_grad():
        accuracy = topk_accuracy(head(val_features.to(features.dtype)), val_labels, ks=ks)
        return LinearProbe(accuracy, topk_accuracy(head(features), labels, ks=ks), head)


def _head(
    features: Tensor, num_classes: int, batch_norm: bool, random: torch.Generator
) -> nn.Sequential:
    dim = features.shape[1]
    layer = nn.Linear(dim, num_classes, device="meta", dtype=features.dtype).to_empty(device="cpu")
    nn.init.trunc_normal_(layer.weight, std=0.01, generator=random)
    nn.init.zeros_(layer.bias)
    norm = [nn.BatchNorm1d(dim, affine=False, eps=1e-6, dtype=features.dtype)] if batch_norm else []
    return nn.Sequential(*norm, layer).to(features.device)


def _lars(layer: nn.Module, momentum: float) -> Any:
    from timm.optim.lars import Lars  # only backbones/ imports timm at module top

    # Without weight decay timm's LARS is plain SGD unless it is told to adapt always.
    groups = [
        {"params": [layer.weight], "always_adapt": True},
        {"params": [layer.bias], "always_adapt": False},
    ]
    return Lars(groups, lr=0.0, momentum=momentum, weight_decay=0.0, trust_coeff=1e-3)


def _rate(step: int, *, total: int, warmup: int) -> float:
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def _check_rows(name: str, features: Tensor, label_name: str, labels: Tensor, classes: int) -> None:
    check_shape(name, features, "N D")
    check_floating(name, features)
    check_finite(name, features)
    check_shape(label_name, labels, "N", N=len(features))
    check_integer(label_name, labels)
    check_same_device(label_name, labels, name, features)
    check_non_negative(label_name, labels)
    if values_are_checked(labels) and int(labels.max()) >= classes:
        raise ValueError(f"{label_name} must be in [0, {classes}), got {int(labels.max())}.")
