"""The chunked peer has the gradients of the plain step; its scale gets them once per chunk."""

import torch
from torch import nn

from benchmarks.baselines.accumulated_contrast import accumulated
from wsss_blocks.losses import image_text_contrastive_loss


def test_accumulated():
    torch.manual_seed(0)
    image, text = nn.Linear(6, 4).double(), nn.Linear(5, 4).double()
    scale = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))
    x, t = torch.randn(7, 6).double(), torch.randn(7, 5).double()
    leaves = [image.weight, text.weight, scale]

    def loss_fn(u, v):
        return image_text_contrastive_loss(u, v, scale)

    plain = loss_fn(image(x), text(t))
    expected = torch.autograd.grad(plain, leaves)
    loss = accumulated(image, text, x, t, loss_fn, chunk_size=3)
    assert torch.allclose(loss, plain)
    for leaf, grad, times in zip(leaves, expected, (1, 1, 3), strict=True):
        assert torch.allclose(leaf.grad, times * grad, atol=1e-12)
