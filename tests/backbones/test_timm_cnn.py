import copy

import pytest
import timm
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from packed import Packed
from timm.models import ResNet
from timm.models.resnet import BasicBlock
from torch import nn

from wsss_blocks.backbones import Encoder, TimmCNN, mobilenet_v1

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def resnet(**kwargs):
    torch.manual_seed(0)
    options = {"layers": (1, 1, 1, 1), "channels": (4, 6, 8, 10), "num_classes": 3}
    model = ResNet(BasicBlock, **options | {"zero_init_last": False} | kwargs).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    return model


def encoder(model=None, **kwargs):
    return TimmCNN(model or resnet(), mean=MEAN, std=STD, **kwargs).eval()


def normalized(images):
    shape = (3, 1, 1)
    return (images - images.new_tensor(MEAN).view(shape)) / images.new_tensor(STD).view(shape)


@covers("TimmCNN", "oracle")
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_equals_timms_own_forward(output_stride, family):
    if family == "resnet":
        model = resnet(output_stride=output_stride)
    else:
        model = mobilenet_v1(0.125, output_stride=output_stride).eval()
    images = torch.rand(1, 3, 64, 96)
    own = encoder(copy.deepcopy(model))
    out = own(images, layers=(1, 2, 3, 4, 5))
    assert_close(out.feature_map, model.forward_features(normalized(images)))
    assert own.stride == output_stride
    for layer in range(1, 6):
        stride = min(2**layer, output_stride)
        shape = (1, own.layer_dims[layer], 64 // stride, 96 // stride)
        assert out.intermediates[layer].shape == shape
    stages = model.forward_intermediates(normalized(images), intermediates_only=True)
    for layer, stage in enumerate(stages, start=1):
        assert_close(out.intermediates[layer], stage)


@covers("TimmCNN", "properties")
def test_dilation_computes_the_strided_features_in_between():
    # "Same" padding centres a stride-2 cell on the odd pixel, so the dilated network holds the
    # strided one's features at the odd cells.
    state = mobilenet_v1(0.25).state_dict()
    images, maps = torch.rand(1, 3, 64, 96), {}
    for output_stride in (8, 16, 32):
        model = mobilenet_v1(0.25, output_stride=output_stride)
        model.load_state_dict(state)
        maps[output_stride] = TimmCNN(model).eval()(images).feature_map
    assert_close(maps[16][..., 1::2, 1::2], maps[32])
    assert_close(maps[8][..., 1::2, 1::2], maps[16])


@covers("TimmCNN", "properties")
def test_taps_contract_and_negative_layers():
    model = encoder()
    out = model(torch.rand(2, 3, 64, 64), layers=(-2,))
    assert list(out.taps) == [4]
    (grad,) = torch.autograd.grad(out.feature_map.sum(), out.taps[4])
    assert grad.abs().sum() > 0
    assert out.class_tokens.shape == (2, 0, 10)
    assert out.class_tokens_at[4].shape == (2, 0, 8)
    assert isinstance(model, Encoder)
    assert model.layer_dims == {1: 64, 2: 4, 3: 6, 4: 8, 5: 10}
    assert (model.dim, model.num_class_tokens) == (10, 0)
    tokens = out.patch_tokens
    assert model.project(tokens) is tokens


@covers("TimmCNN", "properties")
def test_stages_are_numbered_by_stride():
    model = TimmCNN(timm.create_model("convnext_atto", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1)))
    assert list(model.layer_dims) == [2, 3, 4, 5]
    assert model(torch.rand(1, 3, 32, 32), layers=(2,)).intermediates[2].shape == (1, 8, 8, 8)


@covers("TimmCNN", "properties")
def test_images_do_not_meet_each_other_in_eval_mode():
    model, images = encoder(), torch.rand(3, 3, 32, 32)
    order = torch.tensor([2, 0, 1])
    assert_close(model(images[order]).feature_map, model(images).feature_map[order])


def test_frozen_keeps_statistics_and_parameters():
    model = encoder(frozen=True)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model(torch.rand(4, 3, 32, 32))
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    free = encoder().train()
    before = free.model.bn1.running_mean.clone()
    free(torch.rand(4, 3, 32, 32))
    assert not torch.equal(free.model.bn1.running_mean, before)


def test_what_follows_the_last_stage_is_removed():
    model = TimmCNN("mobilenetv3_small_050")
    names = [n for n, _ in model.named_parameters()]
    assert not [n for n in names if "conv_head" in n or "classifier" in n]
    out = model(torch.rand(2, 3, 32, 32)).feature_map
    assert out.shape == (2, model.dim, 1, 1)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@covers("TimmCNN", "gradcheck")
def test_gradient():
    model = encoder(resnet(output_stride=8)).double()
    images = torch.rand(1, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: model(x).feature_map, images)


@covers("TimmCNN", "module")
def test_state_and_copies():
    model, images = Packed(encoder(), layers=(2,)).eval(), torch.rand(1, 3, 32, 32)
    keys = [f"encoder.model.{k}" for k in resnet().state_dict() if not k.startswith("fc.")]
    assert_module(model, model(images), images, state_keys=("encoder.mean", "encoder.std", *keys))


@covers("TimmCNN", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, images = encoder(), torch.rand(1, 3, 40, 32)
    out = copy.deepcopy(model).to(dtype)(images.to(dtype)).feature_map
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("TimmCNN", "dtypes")
def test_autocast():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images).feature_map
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("TimmCNN", "compile")
def test_compiles():
    assert_compiles(Packed(encoder(), layers=(2,)), torch.rand(2, 3, 40, 64))


@covers("TimmCNN", "errors")
def test_refuses():
    with pytest.raises(TypeError, match="convolutional timm model with feature_info, got Linear"):
        TimmCNN(nn.Linear(1, 1))
    vit = timm.models.VisionTransformer(img_size=16, embed_dim=8, depth=1, num_heads=1)
    with pytest.raises(TypeError, match="got VisionTransformer"):
        TimmCNN(vit)
    with pytest.raises(ValueError, match="pretrained must be False"):
        TimmCNN(resnet(), pretrained=True)
    with pytest.raises(ValueError, match=r"output_stride must be that of the model \(32\), got 16"):
        TimmCNN(resnet(), output_stride=16)
    with pytest.raises(ValueError, match="size_policy must be one of"):
        TimmCNN(resnet(), size_policy="crop")
    with pytest.raises(ValueError, match=r"layers must lie in 1\.\.5 .*got 6"):
        encoder()(torch.rand(1, 3, 32, 32), layers=(6,))
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\]"):
        encoder()(torch.full((1, 3, 32, 32), 200.0))


@covers("TimmCNN", "degenerate")
def test_one_cell_a_constant_and_no_images():
    model = encoder()
    assert model(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, 10, 1, 1)
    assert model(torch.rand(0, 3, 32, 32)).feature_map.shape == (0, 10, 1, 1)
    flat = model(torch.full((1, 3, 32, 32), 0.5)).feature_map
    assert torch.isfinite(flat).all()
