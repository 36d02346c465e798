"""What the blocks of open_clip's tower attend with, against the weights that torch reports."""

import open_clip
import pytest
import torch
from contract import assert_close, assert_compiles, covers
from tiny_open_clip import tiny_clip

from wsss_blocks.backbones import OpenCLIPImageEncoder
from wsss_blocks.cam import tap_output


def reported(encoder, images):
    """The attention that each block's own module reports, mean over heads."""
    found = []

    def hook(module, inputs, output):
        with torch.no_grad():
            found.append(module.forward(*inputs, need_weights=True)[1])

    blocks = encoder.model.transformer.resblocks
    handles = [block.attn.register_forward_hook(hook) for block in blocks]
    encoder(images)
    for handle in handles:
        handle.remove()
    return found


@covers("OpenCLIPImageEncoder", "oracle")
def test_attention_is_that_of_the_blocks():
    encoder, images = OpenCLIPImageEncoder(tiny_clip()), torch.rand(2, 3, 32, 40)
    out = encoder(images, attention_layers=(0, -1))
    assert list(out.attention) == [0, 1]
    expected = reported(encoder, images)
    for (q, k, scale), weights in zip(out.attention.values(), expected, strict=True):
        assert q.shape == k.shape == (2, 1, 1 + 20, 64)
        assert_close((scale * q @ k.mT).softmax(-1).mean(1), weights)
    assert_close(encoder(images).feature_map, out.feature_map)
    assert not encoder(images).attention


@covers("OpenCLIPImageEncoder", "properties")
def test_a_tap_on_the_last_norm_sees_one_call():
    encoder = OpenCLIPImageEncoder(tiny_clip(), frozen=True)
    with tap_output(encoder.model.transformer.resblocks[-1].ln_1) as taps:
        out = encoder(torch.rand(1, 3, 32, 32), attention_layers=(0, 1))
    assert len(taps) == 1
    (gradient,) = torch.autograd.grad(out.global_token.square().sum(), taps)
    assert gradient.abs().sum() > 0
    assert not out.attention[1].q.requires_grad


@covers("OpenCLIPImageEncoder", "compile")
def test_attention_compiles():
    encoder = OpenCLIPImageEncoder(tiny_clip(), frozen=True)

    def run(images):
        out = encoder(images, attention_layers=(1,))
        return out.feature_map, out.attention[1].q

    assert_compiles(run, torch.rand(1, 3, 32, 32))


@covers("OpenCLIPImageEncoder", "errors")
def test_other_blocks_are_refused():
    options = {"width": 16, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6, "layers": 1}
    tower = open_clip.transformer.VisionTransformer(32, 8, **options)
    tower.transformer.resblocks[0].attn = torch.nn.Identity()
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="plain attention, got 0: ResidualAttentionBlock with Id"):
        OpenCLIPImageEncoder(tower)(images, attention_layers=(0,))
    with pytest.raises(ValueError, match=r"attention_layers must lie in 0..1"):
        OpenCLIPImageEncoder(tiny_clip())(images, attention_layers=(2,))
