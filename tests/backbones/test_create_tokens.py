import copy

import pytest
import timm
import torch
from contract import assert_close, assert_compiles, covers
from packed import Packed
from safetensors.torch import save_file
from strategies import generator
from torch import nn

from wsss_blocks.backbones import Encoder, SmallCNN, create_encoder, create_token_encoder


def images(*size, batch=1):
    return torch.rand(batch, 3, *size, generator=generator(0))


def cnn_of(encoder):
    return encoder.model.patch_embed.proj.encoder


@covers("create_token_encoder", "oracle")
def test_small_vit_cuts_patches_with_the_stages_of_the_small_cnn():
    encoder, stem = create_token_encoder("small-vit", 3).eval(), SmallCNN().eval()
    stem.stages.load_state_dict(encoder.model.patch_embed.proj.state_dict())
    assert_close(encoder.embed(images(40, 64)), stem(images(40, 64)).feature_map)


@covers("create_token_encoder", "oracle")
@pytest.mark.parametrize("name", ["mobilenet", "resnet10t"])
def test_a_cnn_gives_its_cells_as_patches(name):
    torch.manual_seed(0)
    encoder = create_token_encoder(name, 3).eval()
    torch.manual_seed(0)
    cnn = create_encoder(name).eval()
    cached = cnn(images(40, 70)).feature_map
    project = encoder.model.patch_embed.proj.project
    rows = cached.flatten(2).mT @ project.weight[:, :, 0, 0].T + project.bias
    patches = rows.mT.reshape(1, 256, *cached.shape[2:])
    assert_close(encoder.embed(images(40, 70)), patches)
    out = encoder(images(40, 70))
    assert_close(encoder.encode_patches(project(cached)).feature_map, out.feature_map)
    assert out.feature_map.shape == patches.shape


def deit_file(path):
    """Random weights by the names, and in the wrapping, of the files of DeiT."""
    model, some = timm.create_model("test_vit").eval(), generator(1)
    state = {k: 0.1 * torch.randn(v.shape, generator=some) for k, v in model.state_dict().items()}
    torch.save({"model": state}, path)
    return state


@covers("create_token_encoder", "oracle")
def test_a_vit_starts_from_a_file_of_deit(tmp_path):
    state = deit_file(tmp_path / "deit.pth")
    encoder = create_token_encoder("test_vit", 4, weights=tmp_path / "deit.pth", background=True)
    token = state["cls_token"][0] + state["pos_embed"][0, :1]
    assert_close(encoder.class_tokens(), token.expand(5, -1))
    assert_close(encoder.model.pos_embed, state["pos_embed"][:, 1:])
    assert all(p.requires_grad for p in encoder.parameters())
    # With one class it is the encoder without class tokens, but for the last norm.
    one = create_token_encoder("test_vit", 1, weights=str(tmp_path / "deit.pth")).eval()
    plain = create_encoder("test_vit", weights=tmp_path / "deit.pth").eval()
    x = images(160, 160)
    last = plain(x, layers=(-1,)).taps[max(plain.layer_dims)]
    assert_close(one(x).class_tokens, last[:, :1])
    assert_close(one(x).patch_tokens, last[:, 1:])


@covers("create_token_encoder", "properties")
@pytest.mark.parametrize(
    ("name", "dim", "stride", "blocks"),
    [("small-vit", 128, 8, 3), ("resnet10t", 256, 16, 3), ("test_vit", 64, 16, 6)],
)
@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_each_keeps_the_encoder_contract(name, dim, stride, blocks, generator, background):
    encoder = create_token_encoder(name, 3, background=background, generator=generator).eval()
    assert isinstance(encoder, Encoder)
    assert (encoder.dim, encoder.stride) == (dim, stride)
    assert encoder.num_class_tokens == 3 + background
    assert encoder.layer_dims == dict.fromkeys(range(blocks), dim)
    assert (encoder.class_tokens.generator is not None) == generator
    out = encoder(images(48, 80, batch=2), layers=(0,), attention_layers=(-1,))
    assert out.feature_map.shape == (2, dim, 48 // stride, 80 // stride)
    assert out.class_tokens_at[0].shape == (2, 3 + background, dim)
    assert list(out.attention) == [blocks - 1]


@covers("create_token_encoder", "properties")
@pytest.mark.parametrize("name", ["mobilenet", "resnet10t"])
def test_a_cnn_stays_frozen_in_training(name):
    encoder = create_token_encoder(name, 2).train()
    norms = [m for m in cnn_of(encoder).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    before = copy.deepcopy(cnn_of(encoder).state_dict())
    out = encoder(images(32, 48, batch=2))
    (out.feature_map.square().sum() + out.class_tokens.square().sum()).backward()
    assert all(torch.equal(v, before[k]) for k, v in cnn_of(encoder).state_dict().items())
    without = {n for n, p in encoder.named_parameters() if p.grad is None}
    prefix = "model.patch_embed.proj.encoder."
    assert without == {n for n, _ in encoder.named_parameters() if n.startswith(prefix)}


@covers("create_token_encoder", "properties")
def test_a_cnn_takes_a_file(tmp_path):
    model = timm.create_model("resnet10t", output_stride=16).eval()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "resnet.safetensors")
    weights = tmp_path / "resnet.safetensors"
    encoder = create_token_encoder("resnet10t", 2, weights=weights).eval()
    expected = create_encoder("resnet10t", weights=weights).eval()(images(64, 64)).feature_map
    assert_close(cnn_of(encoder)(images(64, 64)).feature_map, expected)


@covers("create_token_encoder", "dtypes")
@pytest.mark.parametrize("name", ["small-vit", "resnet10t", "test_vit"])
def test_dtypes(name):
    torch.manual_seed(0)
    encoder, x = create_token_encoder(name, 2).eval(), images(48, 64)
    expected = encoder(x).feature_map
    for dtype in (torch.float64, torch.bfloat16):
        out = copy.deepcopy(encoder).to(dtype)(x.to(dtype)).feature_map
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(x).feature_map
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


@covers("create_token_encoder", "compile")
@pytest.mark.parametrize("name", ["small-vit", pytest.param("resnet10t", marks=pytest.mark.slow)])
def test_compiles(name):
    encoder = create_token_encoder(name, 2).eval()
    assert_compiles(Packed(encoder, layers=(0,)), images(40, 64, batch=2))


@covers("create_token_encoder", "errors")
def test_refuses(tmp_path):
    known = "name must be 'small-vit', 'mobilenet' or a name of timm, got "
    for name in ("nothing", "small-cnn"):
        with pytest.raises(ValueError, match=f"{known}'{name}'"):
            create_token_encoder(name, 2)
    with pytest.raises(ValueError, match=r"weights must be None for 'small-vit', .*'pretrained'"):
        create_token_encoder("small-vit", 2, weights="pretrained")
    for name in ("test_vit", "resnet10t"):
        with pytest.raises(FileNotFoundError, match=r"None, 'pretrained' or a file .*'x\.pth'"):
            create_token_encoder(name, 2, weights="x.pth")
    with pytest.raises(FileNotFoundError, match="None or a file for 'mobilenet', got 'pretrained'"):
        create_token_encoder("mobilenet", 2, weights="pretrained")
    deit_file(tmp_path / "deit.pth")
    with pytest.raises(ValueError, match=r"resnet10t.*deit\.pth lacks .*conv1"):
        create_token_encoder("resnet10t", 2, weights=tmp_path / "deit.pth")
    with pytest.raises(ValueError, match=r"for this encoder: .*deit\.pth"):
        create_token_encoder("vit_tiny_patch16_224", 2, weights=tmp_path / "deit.pth")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        create_token_encoder("small-vit", 0)


@covers("create_token_encoder", "degenerate")
@pytest.mark.parametrize("name", ["small-vit", "mobilenet", "resnet10t", "test_vit"])
def test_one_pixel_and_no_images(name):
    encoder = create_token_encoder(name, 1).eval()
    assert encoder(images(1, 1)).feature_map.shape == (1, encoder.dim, 1, 1)
    assert encoder(torch.rand(0, 3, 32, 32)).class_tokens.shape == (0, 1, encoder.dim)
