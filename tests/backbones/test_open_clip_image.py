import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from open_clip.transformer import VisionTransformer
from packed import Packed
from torch import nn

from wsss_blocks.backbones import Encoder, OpenCLIPImageEncoder

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def tower(size=32, *, layers=3, **kwargs):
    torch.manual_seed(0)
    options = {"width": 16, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6, "layers": layers}
    model = VisionTransformer(size, kwargs.pop("patch_size", 8), **options | kwargs).eval()
    nn.init.normal_(model.ln_post.weight)
    nn.init.normal_(model.ln_post.bias)
    return model


def clip():
    """A whole two-tower model."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, image_size=32, patch_size=8)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=8, heads=1, layers=1)
    return open_clip.CLIP(6, vision, text).eval()


def encoder(model=None, **kwargs):
    return OpenCLIPImageEncoder(model or tower(), mean=MEAN, std=STD, **kwargs).eval()


def normalized(images):
    shape = (3, 1, 1)
    return (images - images.new_tensor(MEAN).view(shape)) / images.new_tensor(STD).view(shape)


@covers("OpenCLIPImageEncoder", "oracle")
def test_projected_global_token_is_encode_image():
    model, images = clip(), torch.rand(2, 3, 32, 32)
    own = encoder(model)
    assert_close(own.project(own(images).global_token), model.encode_image(normalized(images)))


@covers("OpenCLIPImageEncoder", "oracle")
@pytest.mark.parametrize("pool_type", ["tok", "avg"])
def test_tokens_and_layers_equal_open_clips(pool_type):
    model, images = tower(pool_type=pool_type), torch.rand(2, 3, 32, 32)
    own = encoder(model)
    out = own(images, layers=(0, 2))
    x = normalized(images)
    final = model.forward_intermediates(
        x, indices=1, normalize_intermediates=True, output_extra_tokens=True
    )
    assert_close(out.feature_map, final["image_intermediates"][-1])
    assert_close(own.project(out.global_token), final["image_features"])
    n = int(pool_type == "tok")
    assert own.num_class_tokens == n
    assert_close(out.class_tokens, final["image_intermediates_prefix"][-1][:, :n])
    raw = model.forward_intermediates(x, indices=[0, 2], output_extra_tokens=True)
    for i, layer in enumerate((0, 2)):
        assert_close(out.intermediates[layer], raw["image_intermediates"][i])
        assert_close(out.class_tokens_at[layer], raw["image_intermediates_prefix"][i][:, :n])
        assert out.taps[layer].shape == (2, 17, 16)


@covers("OpenCLIPImageEncoder", "oracle")
def test_another_size_equals_a_tower_of_that_size():
    model, images = tower(), torch.rand(1, 3, 24, 56)
    there, state = tower((24, 56)), model.state_dict()
    grid = state["positional_embedding"][1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(3, 7), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(21, 16)
    state["positional_embedding"] = torch.cat([state["positional_embedding"][:1], grid])
    there.load_state_dict(state)
    out = encoder(model)(images)
    assert out.feature_map.shape == (1, 16, 3, 7)
    assert_close(encoder(model).project(out.global_token), there(normalized(images)))


@covers("OpenCLIPImageEncoder", "properties")
def test_contract_taps_and_projection():
    model = encoder()
    out = model(torch.rand(2, 3, 32, 32), layers=(-3,))
    (grad,) = torch.autograd.grad(model.project(out.patch_tokens).sum(), out.taps[0])
    assert grad.abs().sum() > 0
    assert isinstance(model, Encoder)
    assert (model.dim, model.stride, model.layer_dims) == (16, 8, {0: 16, 1: 16, 2: 16})
    assert model.project(out.patch_tokens).shape == (2, 16, 6)
    bare = tower()
    bare.proj = None
    tokens = out.patch_tokens
    assert encoder(bare).project(tokens) is tokens


@covers("OpenCLIPImageEncoder", "properties")
def test_images_do_not_meet_each_other():
    model, images = encoder(), torch.rand(3, 3, 32, 32)
    order = torch.tensor([2, 0, 1])
    assert_close(model(images[order]).feature_map, model(images).feature_map[order])


@covers("OpenCLIPImageEncoder", "properties")
def test_checkpointing_changes_no_gradient():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    weight = model.model.conv1.weight
    (plain,) = torch.autograd.grad(model(images).feature_map.square().sum(), weight)
    model.model.set_grad_checkpointing()
    (again,) = torch.autograd.grad(model(images).feature_map.square().sum(), weight)
    assert torch.equal(plain, again)


def test_frozen_and_statistics():
    model = OpenCLIPImageEncoder(tower(), frozen=True).train()
    assert not model.model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert_close(model.mean, open_clip.OPENAI_DATASET_MEAN)
    known = tower()
    known.image_mean, known.image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    assert_close(OpenCLIPImageEncoder(known).std, [0.25, 0.25, 0.25])


@covers("OpenCLIPImageEncoder", "gradcheck")
def test_gradient():
    model = encoder(tower(layers=1)).double()
    images = torch.rand(1, 3, 8, 20, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: model.project(model(x).patch_tokens), images)


@covers("OpenCLIPImageEncoder", "module")
def test_state_and_copies():
    model = Packed(encoder(tower(layers=1)), layers=(0,)).eval()
    images = torch.rand(1, 3, 32, 32)
    keys = [f"encoder.model.{k}" for k in tower(layers=1).state_dict()]
    assert_module(model, model(images), images, state_keys=("encoder.mean", "encoder.std", *keys))


@covers("OpenCLIPImageEncoder", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, images = encoder(), torch.rand(1, 3, 24, 40)
    out = copy.deepcopy(model).to(dtype)(images.to(dtype)).feature_map
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("OpenCLIPImageEncoder", "dtypes")
def test_autocast():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images).feature_map
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("OpenCLIPImageEncoder", "compile")
def test_compiles():
    assert_compiles(Packed(encoder(tower(layers=2)), layers=(0,)), torch.rand(2, 3, 20, 40))


@covers("OpenCLIPImageEncoder", "errors")
def test_refuses():
    with pytest.raises(TypeError, match="as image tower, got Linear"):
        OpenCLIPImageEncoder(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="pretrained must be None"):
        OpenCLIPImageEncoder(tower(), pretrained="openai")
    with pytest.raises(ValueError, match="class token or the mean, got attention"):
        OpenCLIPImageEncoder(tower(attentional_pool=True, attn_pooler_heads=2))
    with pytest.raises(ValueError, match="got attention or none"):
        OpenCLIPImageEncoder(tower(pool_type="none"))
    with pytest.raises(ValueError, match="final_ln_after_pool"):
        OpenCLIPImageEncoder(tower(pool_type="avg", final_ln_after_pool=True))
    with pytest.raises(ValueError, match="patch_dropout > 0"):
        OpenCLIPImageEncoder(tower(patch_dropout=0.5))
    with pytest.raises(ValueError, match="square patches, got 4 x 8"):
        OpenCLIPImageEncoder(tower(patch_size=(4, 8)))
    with pytest.raises(ValueError, match="size_policy must be one of"):
        OpenCLIPImageEncoder(tower(), size_policy="crop")
    late = tower()
    late.transformer.batch_first = False
    with pytest.raises(ValueError, match="batch_first=True"):
        OpenCLIPImageEncoder(late)
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2 .*got 3"):
        encoder()(torch.rand(1, 3, 32, 32), layers=(3,))
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\]"):
        encoder()(torch.full((1, 3, 32, 32), 255.0))


@covers("OpenCLIPImageEncoder", "degenerate")
def test_one_patch_a_constant_and_no_images():
    model = encoder()
    assert model(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, 16, 1, 1)
    assert model(torch.rand(0, 3, 32, 32)).feature_map.shape == (0, 16, 4, 4)
    assert torch.isfinite(model(torch.full((1, 3, 32, 32), 0.1)).feature_map).all()
