import pytest
import torch
from contract import covers

from wsss_blocks.backbones import Encoder, SmallCNN, create_encoder, mobilenet_v1


@covers("create_encoder", "oracle")
@pytest.mark.parametrize("name", ["small-cnn", "mobilenet"])
def test_names_build_what_they_say(name):
    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    torch.manual_seed(0)
    expected = SmallCNN() if name == "small-cnn" else mobilenet_v1(output_stride=16)
    images = torch.rand(1, 3, 64, 96)
    if name == "mobilenet":
        reference = expected.eval().forward_features(2 * images - 1)
    else:
        reference = expected.eval()(images).feature_map
    torch.testing.assert_close(encoder(images).feature_map, reference, rtol=1e-4, atol=1e-5)


@covers("create_encoder", "properties")
@pytest.mark.parametrize(
    ("name", "stride", "tokens"),
    [
        ("small-cnn", 8, 0),
        ("small-vit", 8, 1),
        ("mobilenet", 16, 0),
        ("vit_tiny_patch16_224", 16, 1),
    ],
)
def test_each_keeps_the_encoder_contract(name, stride, tokens):
    encoder = create_encoder(name)
    assert isinstance(encoder, Encoder)
    layer = next(iter(encoder.layer_dims))
    features = encoder(torch.rand(2, 3, 48, 80), layers=(layer,))
    assert features.feature_map.shape == (2, encoder.dim, 48 // stride, 80 // stride)
    assert features.class_tokens.shape == (2, tokens, encoder.dim)
    assert features.intermediates[layer].shape[1] == encoder.layer_dims[layer]


@covers("create_encoder", "properties")
def test_what_is_frozen_and_what_learns():
    assert not any(p.requires_grad for p in create_encoder("mobilenet").parameters())
    assert all(p.requires_grad for p in create_encoder("small-vit").parameters())
    vit = create_encoder("vit_tiny_patch16_224")
    frozen = [n for n, p in vit.named_parameters() if not p.requires_grad]
    assert len(frozen) == 1
    assert "pos_embed" in frozen[0]


@covers("create_encoder", "dtypes")
def test_autocast():
    encoder, images = create_encoder("small-vit").eval(), torch.rand(1, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(images).feature_map
    torch.testing.assert_close(out.float(), encoder(images).feature_map, rtol=0.1, atol=0.1)


@covers("create_encoder", "errors")
def test_refuses():
    with pytest.raises(ValueError, match="weights must be None for 'small-cnn'"):
        create_encoder("small-cnn", weights="pretrained")
    with pytest.raises(ValueError, match="weights must be None or 'pretrained' for"):
        create_encoder("vit_tiny_patch16_224", weights="x.safetensors")
    with pytest.raises(RuntimeError, match="nothing"):
        create_encoder("nothing")


@covers("create_encoder", "degenerate")
@pytest.mark.parametrize("name", ["small-cnn", "small-vit", "mobilenet"])
def test_one_pixel(name):
    encoder = create_encoder(name).eval()
    assert encoder(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, encoder.dim, 1, 1)
