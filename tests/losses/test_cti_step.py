"""A training step of CTI from public blocks equals the loops of the spec, gradients included."""

from typing import NamedTuple

import pytest
import torch
from contract import assert_close
from oracles import cti as oracle
from strategies import generator
from torch import Tensor

from wsss_blocks.cam import foreground_map, fuse_cams
from wsss_blocks.heads import PatchCAMHead, class_token_logits, infuse_class_tokens
from wsss_blocks.losses import (
    background_consistency_loss,
    cam_consistency_loss,
    multi_label_soft_margin_loss,
)
from wsss_blocks.memory import ClassTokenBank

DIM, CLASSES, GRID, BLOCKS, HEADS = 4, 2, (2, 3), 3, 2
LAYERS = {
    "infuse": 0,  # after this block, before the next one
    "background_attention": (0, 1, 2),
    "affinity": (1, 2),
    "cross_attention": (1, 2),
}


class Passed(NamedTuple):
    patches: Tensor
    tokens: list[Tensor]
    attention: list[Tensor]


def network_and_parameters(seed):
    """A transformer of three blocks with a background token; both sides call it."""
    g = generator(seed)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    parameters = {"tokens": draw(CLASSES + 1, DIM)}
    for block in range(BLOCKS):
        parameters[f"qkv{block}"], parameters[f"mlp{block}"] = draw(DIM, 3 * DIM), draw(DIM, DIM)

    def network(images, infuse=None):
        n = CLASSES + 1
        start = parameters["tokens"].expand(len(images), -1, -1)
        x = torch.cat([start, images.flatten(2).mT], 1)
        tokens, attention = [], []
        for block in range(BLOCKS):
            if infuse is not None and block == LAYERS["infuse"] + 1:
                x = torch.cat([infuse(x[:, :n]), x[:, n:]], 1)
            q, k, v = (
                t.unflatten(2, (HEADS, -1)).transpose(1, 2)
                for t in (x @ parameters[f"qkv{block}"]).chunk(3, 2)
            )
            a = (q @ k.mT).div(2).softmax(3)
            x = x + (a @ v).transpose(1, 2).flatten(2)
            x = x + (x @ parameters[f"mlp{block}"]).tanh()
            tokens.append(x[:, :n])
            attention.append(a.mean(1))
        patches = x[:, n:].mT.unflatten(2, GRID)
        return Passed(patches, tokens, attention)

    return network, parameters


def step(network, head, views, labels, bank, detach_cam, mask_absent):
    """The losses from public names."""
    n, place = CLASSES + 1, LAYERS["infuse"]

    def to_patches(out, which):
        total = sum(out.attention[i] for i in which)
        return total[:, :n, n:].unflatten(2, GRID)

    first, second = network(views[0]), network(views[1])
    (z_pat, cam), (z_pat2, _) = head(first.patches), head(second.patches)
    z_cls, z_cls2 = (class_token_logits(o.tokens[-1], background=True) for o in (first, second))
    classification = sum(
        multi_label_soft_margin_loss(z, labels) for z in (z_cls, z_pat, z_cls2, z_pat2)
    )

    attention = to_patches(first, LAYERS["background_attention"])
    affinity = sum(first.attention[i] for i in LAYERS["affinity"])[:, n:, n:]
    inside = cam.detach() if detach_cam else cam
    foreground = foreground_map(fuse_cams(attention[:, 1:], inside[:, 1:]), labels)
    both = torch.cat([foreground, fuse_cams(attention[:, :1], cam[:, :1])], 1)
    both = (affinity @ both.flatten(2).mT).mT.unflatten(2, GRID)
    background = background_consistency_loss(both[:, :1], both[:, 1:])

    given = second.tokens[place]
    intra_cam = head(network(views[0], lambda t: infuse_class_tokens(t, given)).patches).cam
    compared = labels if mask_absent else None
    intra = cam_consistency_loss(cam, intra_cam, labels=compared)

    bank.push(first.tokens[place][:, 1:], labels)
    prototypes = bank.prototypes().tokens

    def cross(t):
        if mask_absent:  # a label mask
            return infuse_class_tokens(t, prototypes, labels=labels)
        own = t[:, 1:].detach()  # absent classes meet themselves: the released code
        return infuse_class_tokens(t, prototypes.where(labels.unsqueeze(2) > 0, own))

    infused = network(views[0], cross)
    fused = fuse_cams(to_patches(infused, LAYERS["cross_attention"]), head(infused.patches).cam)
    across = cam_consistency_loss(cam[:, 1:], fused[:, 1:], labels=compared)
    return classification, background, intra, across


@pytest.mark.parametrize(
    ("detach_cam", "mask_absent"), [(False, False), (True, False), (False, True)]
)
def test_losses_and_gradients_equal_the_loops(detach_cam, mask_absent):
    network, parameters = network_and_parameters(3)
    g = generator(4)
    views = torch.randn(2, 2, DIM, *GRID, generator=g, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    head = PatchCAMHead(DIM, CLASSES, background=True, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=g))
        head.bias.copy_(torch.rand(head.bias.shape, generator=g))  # maps with a positive part
    old = torch.randn(3, CLASSES, DIM, generator=g, dtype=torch.float64)
    bank = ClassTokenBank(CLASSES, DIM, size=4, dtype=torch.float64)
    lists = oracle.Bank(CLASSES, 4)
    bank.push(old, torch.ones(3, CLASSES))
    lists.push(old.tolist(), [[1] * CLASSES] * 3)

    ours = step(network, head, views, labels, bank, detach_cam, mask_absent)
    theirs = oracle.step(
        network, head.weight, head.bias, views, labels, lists, LAYERS, detach_cam, mask_absent
    )
    trained = {**parameters, "weight": head.weight, "bias": head.bias}
    for name, a, b in zip(("cls", "background", "intra", "cross"), ours, theirs, strict=True):
        assert_close(a, b)
        assert a > 1e-3, name
        grads = [
            torch.autograd.grad(
                x, list(trained.values()), retain_graph=True, materialize_grads=True
            )
            for x in (a, b)
        ]
        for parameter, x, y in zip(trained, *grads, strict=True):
            assert_close(x, y)
            assert bool(x.abs().max() > 1e-6), f"{name} does not move {parameter}"
