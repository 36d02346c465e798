import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from packed import Packed
from timm.models import ResNet, VisionTransformer
from timm.models.resnet import BasicBlock
from torch import nn

from wsss_blocks.backbones import Encoder, TimmViT

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
KINDS = {
    "class": {},
    "none": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2},
    "late position": {"reg_tokens": 1, "no_embed_class": True},
    "no position": {"pos_embed": "none"},
    "dynamic": {"dynamic_img_size": True, "pre_norm": True},
}


def vit(*, seed=0, **kwargs):
    torch.manual_seed(seed)
    options = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 5,
    }
    model = VisionTransformer(**options | kwargs).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("_token", "norm.weight", "norm.bias", "pos_embed")):
            nn.init.normal_(parameter)
    return model


def encoder(**kwargs):
    return TimmViT(vit(**kwargs), mean=MEAN, std=STD)


def normalized(images):
    shape = (3, 1, 1)
    return (images - images.new_tensor(MEAN).view(shape)) / images.new_tensor(STD).view(shape)


@covers("TimmViT", "oracle")
@pytest.mark.parametrize("kind", KINDS)
def test_equals_timms_own_forward(kind):
    model, images = vit(**KINDS[kind]), torch.rand(2, 3, 32, 32)
    own = TimmViT(copy.deepcopy(model), mean=MEAN, std=STD)
    expected = model.fc_norm(model.forward_features(normalized(images)))
    out = own(images, layers=(0, 2))
    prefix = model.num_prefix_tokens
    assert_close(out.patch_tokens, expected[:, prefix:])
    n = int(model.has_class_token)
    assert own.num_class_tokens == n
    assert_close(out.class_tokens, expected[:, :n])
    raw = model.forward_intermediates(
        normalized(images), indices=[0, 2], return_prefix_tokens=True, intermediates_only=True
    )
    for layer, item in zip((0, 2), raw, strict=True):
        patches, first = item if prefix else (item, torch.zeros(2, 0, 16))
        assert_close(out.intermediates[layer], patches)
        assert_close(out.class_tokens_at[layer], first[:, :n])
        assert out.taps[layer].shape == (2, prefix + 16, 16)


@covers("TimmViT", "oracle")
@pytest.mark.parametrize("kind", KINDS)
def test_another_size_equals_timm_built_at_that_size(kind):
    model, images = vit(**KINDS[kind]), torch.rand(1, 3, 24, 56)
    there = vit(**KINDS[kind] | {"img_size": (24, 56)})
    state = model.state_dict()
    if "pos_embed" in state:
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        grid = state["pos_embed"][:, prefix:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(3, 7), mode="bicubic", align_corners=False)
        grid = grid.permute(0, 2, 3, 1).reshape(1, 21, 16)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :prefix], grid], dim=1)
    there.load_state_dict(state)
    out = TimmViT(model, mean=MEAN, std=STD)(images)
    expected = there.fc_norm(there.forward_features(normalized(images)))
    assert out.feature_map.shape == (1, 16, 3, 7)
    assert_close(out.patch_tokens, expected[:, there.num_prefix_tokens :])


@covers("TimmViT", "oracle")
def test_distillation_token_is_no_class_token():
    options = {"patch_size": 16, "img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, **options).eval()
    images = torch.rand(1, 3, 32, 32)
    expected = model.forward_features(normalized(images))
    out = TimmViT(model, mean=MEAN, std=STD)(images)
    assert_close(out.class_tokens, expected[:, :1])
    assert_close(out.patch_tokens, expected[:, 2:])


@covers("TimmViT", "properties")
def test_taps_are_on_the_path_and_negative_layers_resolve():
    model = encoder(reg_tokens=1)
    out = model(torch.rand(2, 3, 32, 32), layers=(-3, 1))
    assert list(out.taps) == [0, 1]
    total = out.class_tokens.sum()
    for layer in (0, 1):
        (grad,) = torch.autograd.grad(total, out.taps[layer], retain_graph=True)
        assert grad.abs().sum() > 0
        # Why there are taps: the reshaped map is not on the path.
        map_of = out.intermediates[layer]
        assert torch.autograd.grad(total, map_of, retain_graph=True, allow_unused=True) == (None,)
    assert isinstance(model, Encoder)
    assert (model.dim, model.stride, model.layer_dims) == (16, 8, {0: 16, 1: 16, 2: 16})
    tokens = out.patch_tokens
    assert model.project(tokens) is tokens


@covers("TimmViT", "oracle")
@pytest.mark.parametrize("kind", ["class", "registers", "none"])
def test_attention_is_what_unfused_attention_computes(kind):
    model, images = encoder(**KINDS[kind]), torch.rand(2, 3, 24, 32)
    out = model(images, attention_layers=(0, -1))
    assert list(out.attention) == [0, 2]
    seen = {}
    for i in (0, 2):
        attn = model.model.blocks[i].attn
        attn.fused_attn = False
        attn.attn_drop.register_forward_hook(lambda m, args, y, i=i: seen.update({i: args[0]}))
    model(images)
    for i, (q, k, scale) in out.attention.items():
        assert_close((scale * q @ k.mT).softmax(-1), seen[i])


@covers("TimmViT", "properties")
def test_images_do_not_meet_each_other():
    model, images = encoder(), torch.rand(3, 3, 32, 32)
    order = torch.tensor([2, 0, 1])
    assert_close(model(images[order]).feature_map, model(images).feature_map[order])


@covers("TimmViT", "properties")
@pytest.mark.parametrize(
    ("policy", "height", "width"), [("resize", 3, 5), ("pad", 3, 5), ("floor", 2, 4)]
)
def test_size_policies(policy, height, width):
    model = TimmViT(vit(), size_policy=policy)
    assert model(torch.rand(1, 3, 23, 33)).feature_map.shape == (1, 16, height, width)


@covers("TimmViT", "properties")
def test_checkpointing_changes_no_gradient():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    plain = torch.autograd.grad(model(images).feature_map.square().sum(), model.parameters())
    model.model.set_grad_checkpointing()
    again = torch.autograd.grad(model(images).feature_map.square().sum(), model.parameters())
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@covers("TimmViT", "properties")
def test_each_parameter_gets_a_gradient():
    # DistributedDataParallel refuses parameters that are never used.
    for kind in KINDS.values():
        model = encoder(**kind)
        out = model(torch.rand(1, 3, 32, 32))
        (out.feature_map.square().sum() + out.class_tokens.square().sum()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_frozen_parts():
    model = TimmViT(vit(), frozen=True).train()
    assert not model.training
    assert not model.model.training
    assert not any(p.requires_grad for p in model.parameters())
    model = TimmViT(vit(), freeze_pos_embed=True).train()
    assert model.model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["model.pos_embed"]


def test_statistics_come_from_timm():
    model = TimmViT("vit_tiny_patch16_224")
    assert model.mean.tolist() == model.std.tolist() == [0.5, 0.5, 0.5]
    assert_close(TimmViT(vit()).mean, [0.485, 0.456, 0.406])


@covers("TimmViT", "gradcheck")
def test_gradient():
    model = encoder(depth=1).double()
    images = torch.rand(1, 3, 8, 20, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: model(x).feature_map, images)


@covers("TimmViT", "module")
def test_state_and_copies():
    model = Packed(encoder(depth=1), layers=(0,)).eval()
    images = torch.rand(1, 3, 32, 32)
    keys = [f"encoder.model.{k}" for k in vit(depth=1).state_dict() if not k.startswith("head.")]
    assert_module(model, model(images), images, state_keys=("encoder.mean", "encoder.std", *keys))


@covers("TimmViT", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, images = encoder(), torch.rand(1, 3, 24, 40)
    out = copy.deepcopy(model).to(dtype)(images.to(dtype))
    assert out.feature_map.dtype == out.global_token.dtype == dtype
    torch.testing.assert_close(
        out.feature_map.float(), model(images).feature_map, rtol=0.1, atol=0.1
    )


@covers("TimmViT", "dtypes")
def test_autocast():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images).feature_map
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("TimmViT", "compile")
def test_compiles():
    assert_compiles(Packed(encoder(depth=1), layers=(0,)), torch.rand(2, 3, 20, 40))


@covers("TimmViT", "errors")
def test_refuses():
    with pytest.raises(TypeError, match="VisionTransformer or the name of one, got Linear"):
        TimmViT(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="got ResNet"):
        TimmViT(ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 4, 4, 4)))
    with pytest.raises(ValueError, match="square patches, got 4 x 8"):
        TimmViT(vit(patch_size=(4, 8)))
    with pytest.raises(ValueError, match="patch_drop_rate > 0"):
        TimmViT(vit(patch_drop_rate=0.5))
    with pytest.raises(ValueError, match="pretrained must be False"):
        TimmViT(vit(), pretrained=True)
    with pytest.raises(ValueError, match="size_policy must be one of"):
        TimmViT(vit(), size_policy="crop")
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2 .*got 3"):
        encoder()(torch.rand(1, 3, 32, 32), layers=(3,))
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        encoder()(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\]"):
        encoder()(torch.randn(1, 3, 32, 32) * 3)


@covers("TimmViT", "degenerate")
def test_one_patch_a_constant_and_no_images():
    model = encoder()
    assert model(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, 16, 1, 1)
    assert model(torch.rand(0, 3, 32, 32)).feature_map.shape == (0, 16, 4, 4)
    flat = model(torch.full((1, 3, 32, 32), 0.1)).feature_map
    flat.sum().backward()
    assert torch.isfinite(flat).all()
    assert torch.isfinite(model.model.patch_embed.proj.weight.grad).all()
