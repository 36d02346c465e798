import open_clip.transformer
import pytest
import timm.models
import torch
import torch.nn.functional as F
from contract import assert_close, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import gradient as oracle
from strategies import generator, random_labels, seeds, sizes, small
from timm.models.resnet import BasicBlock
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsss_blocks.backbones import OpenCLIPImageEncoder, SmallCNN, TimmCNN, TimmViT
from wsss_blocks.cam import class_weight_cam, gradient_cam, present_softmax_scores, tap_output
from wsss_blocks.heads import ClassHead
from wsss_blocks.pooling import global_average_pool, global_max_pool

MODES = ("gradcam", "layercam", "hirescam")
modes = pytest.mark.parametrize("mode", MODES)


def head(tap, weight):
    """A head whose gradient differs from place to place."""
    places = tap.flatten(2) if tap.ndim == 4 else tap.mT
    ramp = torch.linspace(-1, 1, places.shape[2], dtype=tap.dtype)
    return (places.tanh() + ramp * places.square()).mean(2) @ weight.T.to(tap.dtype)


def problem(seed=0, batch=2, dim=3, classes=4, size=(3, 2), prefix=None):
    g = generator(seed)
    shape = (batch, dim, *size) if prefix is None else (batch, prefix + size[0] * size[1], dim)
    tap = torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(classes, dim, generator=g, dtype=torch.float64)
    return head(tap, weight), tap, random_labels(batch, classes, g).double()


class Branching(torch.autograd.Function):
    """A backward that looks at values, which vmap refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g if g.abs().sum() > 0 else torch.zeros_like(g)


@covers("gradient_cam", "oracle")
@given(
    seeds,
    small,
    small,
    st.integers(1, 5),
    sizes(3),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from(MODES),
    st.booleans(),
)
def test_oracle(seed, batch, dim, classes, size, prefix, mode, relu):
    scores, tap, labels = problem(seed, batch, dim, classes, size, prefix)
    grid = None if prefix is None else size
    cam = gradient_cam(scores, tap, labels, mode=mode, grid=grid, relu=relu)
    assert cam.dtype == torch.float64
    assert not cam.requires_grad
    assert_close(cam, oracle.gradient_cam(scores, tap, labels, mode, size, relu))


@covers("gradient_cam", "properties")
@modes
def test_a_backward_that_cannot_be_batched_runs_slot_by_slot(mode):
    _, tap, _ = problem(1)
    scores = Branching.apply(tap).mean((2, 3)) @ torch.randn(4, 3, dtype=torch.float64).T
    labels = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).double()
    rows = torch.eye(4, dtype=torch.float64)[:, None].expand(-1, 2, -1)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(scores, tap, rows, is_grads_batched=True, retain_graph=True)
    expected = oracle.gradient_cam(scores, tap, labels, mode, (3, 2), True)
    assert_close(gradient_cam(scores, tap, labels, mode=mode), expected)


@covers("gradient_cam", "properties")
def test_the_backward_has_as_many_rows_as_the_fullest_image_has_classes():
    seen = []
    _, tap, _ = problem(2, batch=3, classes=20)
    watched = tap * 1
    scores = head(watched, torch.randn(20, 3))
    watched.register_hook(lambda g: seen.append(g))
    labels = torch.zeros(3, 20)
    labels[0, [3, 7]], labels[2, [1, 7, 19]] = 1, 1
    cam = gradient_cam(scores, watched, labels)
    assert len(seen) == 1  # one backward, whatever the number of classes
    assert_close(gradient_cam(scores, watched, labels, max_classes=7), cam)
    assert len(seen) == 2
    assert gradient_cam(scores, watched, labels, max_classes=99).equal(cam)
    assert not cam[labels == 0].any()
    assert all(cam[b, c].any() for b, c in labels.nonzero().tolist())


@covers("gradient_cam", "properties")
def test_where_values_are_not_looked_at_classes_beyond_the_most_are_left_out(monkeypatch):
    scores, tap, _ = problem(11)
    labels = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]]).double()
    full = gradient_cam(scores, tap, labels, relu=False)
    monkeypatch.setattr("wsss_blocks.cam.gradient.values_are_checked", lambda x: False)
    cam = gradient_cam(scores, tap, labels, relu=False, max_classes=2)
    assert full[0, 3].any()
    full[0, 3] = 0
    assert_close(cam, full)


@covers("gradient_cam", "properties")
@modes
def test_equivariant_to_the_order_of_classes_and_images(mode):
    scores, tap, labels = problem(3, batch=3)
    cam = gradient_cam(scores, tap, labels, mode=mode)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(gradient_cam(scores[:, order], tap, labels[:, order], mode=mode), cam[:, order])
    images = torch.tensor([1, 2, 0])
    there = tap[images].detach().requires_grad_()
    g = generator(3)
    torch.randn(tap.shape, generator=g, dtype=torch.float64)
    weight = torch.randn(4, 3, generator=g, dtype=torch.float64)
    assert_close(gradient_cam(head(there, weight), there, labels[images], mode=mode), cam[images])


@covers("gradient_cam", "properties")
@pytest.mark.parametrize("pool", [global_average_pool, global_max_pool])
def test_behind_a_linear_head_it_is_the_class_weight_cam(pool):
    torch.manual_seed(0)
    own = ClassHead(5, 3, pool=pool)
    features = torch.randn(2, 5, 4, 6, requires_grad=True)
    logits, cam = own(features)
    labels = torch.ones(2, 3)
    weight = class_weight_cam(features, own.weight)
    assert torch.equal(weight, cam)
    found = gradient_cam(logits, features, labels, relu=False)
    assert_close(found, weight / 24)
    same = gradient_cam(logits, features, labels, mode="hirescam", relu=False)
    if pool is global_average_pool:
        assert_close(same, weight / 24)
        positive = class_weight_cam(features, own.weight.relu()) / 24
        layer = gradient_cam(logits, features, labels, mode="layercam", relu=False)
        assert_close(layer, positive)
    else:
        assert not torch.allclose(same, weight / 24, atol=1e-3)


@covers("gradient_cam", "properties")
def test_the_graph_stays_for_a_loss():
    scores, tap, labels = problem(4)
    (before,) = torch.autograd.grad(scores.sum(), tap, retain_graph=True)
    cam = gradient_cam(scores, tap, labels)
    with torch.no_grad():
        assert torch.equal(gradient_cam(scores, tap, labels), cam)
    scores.sum().backward()
    assert torch.equal(tap.grad, before)


@covers("gradient_cam", "gradcheck")
@modes
@pytest.mark.parametrize("prefix", [None, 1])
def test_gradcheck(mode, prefix):
    _, tap, _ = problem(5, prefix=prefix)
    weight = torch.randn(4, 3, generator=generator(6), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).double()

    def fn(x, w):
        tap = x * 1
        grid = None if prefix is None else (3, 2)
        return gradient_cam(head(tap, w), tap, labels, mode=mode, grid=grid, create_graph=True)

    assert_gradcheck(fn, tap, weight)


@covers("gradient_cam", "dtypes")
@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(mode, dtype):
    _, tap, labels = problem(7)
    exact = tap.detach().to(dtype).double().requires_grad_()
    rough = tap.detach().to(dtype).requires_grad_()
    weight = torch.randn(4, 3, generator=generator(8))
    cam = gradient_cam(head(rough, weight), rough, labels, mode=mode)
    assert cam.dtype == dtype
    expected = gradient_cam(head(exact, weight), exact, labels, mode=mode)
    assert expected.any()
    tolerance = torch.float32 if dtype == torch.float64 else dtype
    assert_close(cam, expected, dtype=tolerance)


@covers("gradient_cam", "dtypes")
def test_autocast():
    torch.manual_seed(0)
    net, images = SmallCNN((8, 16), blocks=(0, 1)).eval(), torch.rand(2, 3, 12, 16)
    classifier, labels = nn.Linear(16, 3), torch.ones(2, 3)

    def cams():
        out = net(images, layers=(1,))
        return gradient_cam(classifier(out.global_token), out.taps[1], labels)

    expected = cams()
    with torch.autocast("cpu", torch.bfloat16):
        cam = cams()
    assert cam.isfinite().all()
    assert (cam - expected).abs().max() < 0.05 * expected.max()


@covers("gradient_cam", "errors")
def test_errors():
    scores, tap, labels = problem(9)
    tokens = torch.randn(2, 7, 3, requires_grad=True)
    for bad, match in (
        ((scores[0], tap, labels), r"scores must have shape \(B, K\), got \(4,\)"),
        ((scores, tap[:1], labels), r"tap must have shape \(B, D, h, w\) with B=2, got \(1"),
        ((scores, tap[:, 0, 0], labels), r"tap must have shape .* got \(2, 2\)"),
        ((scores, tap, labels[:, :3]), r"labels must have shape \(B, K\) with B=2, K=4"),
        ((scores, tap, -labels - 1), "labels must be multi-hot"),
        ((scores.detach(), tap, labels), "scores must require a gradient"),
        ((scores, tap.detach(), labels), "tap must require a gradient"),
        ((scores, tap * 1, labels), r"tap must be what scores .* got \(2, 3, 3, 2\) off the path"),
        ((scores / 0, tap, labels), "scores must be finite"),
        ((scores, tap / 0, labels), "tap must be finite"),
        ((scores, tap.to("meta"), labels), "tap must be on the device of scores"),
        ((scores, tokens, labels), "grid must be two positive sides"),
    ):
        with pytest.raises(ValueError, match=match):
            gradient_cam(*bad)
    with pytest.raises(TypeError, match="scores must be a floating-point tensor"):
        gradient_cam(labels.long(), tap, labels)
    with pytest.raises(TypeError, match="tap must be a floating-point tensor"):
        gradient_cam(scores, tap.detach().long(), labels)
    with pytest.raises(ValueError, match=r"grid must hold at most the N=7 tokens .* \(2, 4\)"):
        gradient_cam(head(tokens, torch.randn(4, 3)), tokens, labels, grid=(2, 4))
    with pytest.raises(ValueError, match=r"grid must be that of tap, \(3, 2\), got \(2, 3\)"):
        gradient_cam(scores, tap, labels, grid=(2, 3))
    with pytest.raises(ValueError, match="mode must be one of 'gradcam'"):
        gradient_cam(scores, tap, labels, mode="score")
    with pytest.raises(ValueError, match="max_classes must be at least 1"):
        gradient_cam(scores, tap, labels, max_classes=0)
    with pytest.raises(ValueError, match="at most max_classes=3 classes in an image, got 4"):
        gradient_cam(scores, tap, torch.ones(2, 4), max_classes=3)


@covers("gradient_cam", "degenerate")
@modes
def test_degenerate(mode):
    scores, tap, labels = problem(10)
    assert not gradient_cam(scores, tap, torch.zeros(2, 4), mode=mode).any()
    assert gradient_cam(scores, tap, torch.zeros(2, 4), mode=mode, max_classes=2).shape[1] == 4
    constant = torch.zeros(2, 3, 1, 1, requires_grad=True)
    assert not gradient_cam(head(constant, torch.randn(1, 3)), constant, torch.ones(2, 1)).any()
    none = torch.zeros(0, 3, 2, 2, requires_grad=True)
    cam = gradient_cam(head(none, torch.randn(4, 3)), none, torch.zeros(0, 4), mode=mode)
    assert cam.shape == (0, 4, 2, 2)
    # An image without classes beside one with: the empty slots bring no NaN in.
    bad = torch.zeros(2, 1, 2, 2, requires_grad=True)
    odd = bad.sqrt().sum((2, 3)).expand(-1, 2)
    labels = torch.tensor([[0, 0], [0, 0]])
    assert torch.equal(gradient_cam(odd, bad, labels, mode=mode), torch.zeros(2, 2, 2, 2))


def timm_cnn():
    model = timm.models.ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 8, 8, 12), num_classes=5)
    return TimmCNN(model)


def timm_vit():
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, reg_tokens=1
    )
    return TimmViT(model)


def open_clip_vit():
    tower = open_clip.transformer.VisionTransformer(
        32, 8, width=16, layers=3, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return OpenCLIPImageEncoder(tower)


ENCODERS = pytest.mark.parametrize("make", [timm_cnn, timm_vit, open_clip_vit])


def encoded(make, size):
    """Scores by the global token, the tap before the last layer, its grid."""
    torch.manual_seed(0)
    encoder = in_double(make())
    out = encoder(torch.rand(2, 3, *size, dtype=torch.float64), layers=(-2,))
    scores = cosines(encoder.project(out.global_token), 5)
    (layer,) = out.taps
    return scores, out.taps[layer], tuple(out.intermediates[layer].shape[-2:])


def in_double(encoder):
    for weight in encoder.parameters():
        nn.init.normal_(weight, std=0.3)
    return encoder.double().eval()


def cosines(token, count):
    text = torch.randn(count, token.shape[1], dtype=token.dtype)
    return F.normalize(token, dim=1) @ F.normalize(text, dim=1).T


LABELS = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).float()


@covers("gradient_cam", "oracle")
@modes
@ENCODERS
@pytest.mark.parametrize("size", [(32, 32), (40, 72)])
def test_encoders(make, size, mode):
    scores, tap, grid = encoded(make, size)
    present = present_softmax_scores(2 * scores, LABELS, background=torch.zeros(2, 2))
    for target in (scores, present):
        cam = gradient_cam(target, tap, LABELS, mode=mode, grid=grid, relu=False)
        assert cam.shape == (2, 5, *grid)
        expected = oracle.gradient_cam(target, tap, LABELS, mode, grid, False)
        scale = expected.abs().amax((2, 3), keepdim=True)
        assert (scale[..., 0, 0] > 1e-12).equal(LABELS > 0)
        scale = scale.where(scale > 0, 1)
        assert_close(cam / scale, expected / scale, dtype=torch.float32)


@covers("gradient_cam", "gradcheck")
@ENCODERS
def test_encoders_are_differentiable_twice(make):
    with sdpa_kernel(SDPBackend.MATH):
        scores, tap, grid = encoded(make, (32, 40))
    cam = gradient_cam(scores, tap, LABELS, grid=grid, create_graph=True)
    (gradient,) = torch.autograd.grad(cam.square().sum(), tap)
    assert gradient.isfinite().all()
    assert gradient.any()


def clip_es(images, *, frozen):
    """The pieces of CLIP-ES: ln_1 of the last block, softmax over present classes and words."""
    torch.manual_seed(0)
    encoder = in_double(open_clip_vit()).requires_grad_(not frozen)
    with tap_output(encoder.model.transformer.resblocks[-1].ln_1) as taps:
        out = encoder(images)
    logits = 20 * cosines(encoder.project(out.global_token), 9)
    scores = present_softmax_scores(logits[:, :5], LABELS, background=logits[:, 5:])
    return scores, taps[0], tuple(out.feature_map.shape[-2:])


@covers("tap_output", "oracle", "properties")
def test_clip_es_on_a_frozen_tower():
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    scores, tap, grid = clip_es(images, frozen=True)
    assert tap.is_leaf  # the graph begins here: no earlier block is differentiated
    cam = gradient_cam(scores, tap, LABELS, grid=grid)
    assert (cam.amax((2, 3)) > 0).any()
    assert_close(cam, oracle.gradient_cam(scores, tap, LABELS, "gradcam", grid, True))
    warm = clip_es(images, frozen=False)
    assert not warm[1].is_leaf
    assert_close(gradient_cam(*warm[:2], LABELS, grid=warm[2]), cam)


@covers("gradient_cam", "properties")
def test_patches_after_the_last_block_have_no_say_in_the_class_token():
    torch.manual_seed(0)
    out = timm_vit().eval()(torch.rand(2, 3, 32, 32), layers=(-1, -2))
    scores = out.global_token[:, :5]
    assert not gradient_cam(scores, out.taps[2], LABELS, grid=(4, 4), relu=False).any()
    assert gradient_cam(scores, out.taps[1], LABELS, grid=(4, 4), relu=False).any()


def resnet():
    """A plain network for the packages, its layers as our scores and taps come from them."""
    torch.manual_seed(0)
    net = timm.models.ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 8, 8, 12), num_classes=5)
    return net.eval(), torch.randn(2, 3, 64, 96)


def package_maps(net, layer, images, mode):
    with tap_output(layer) as taps:
        scores = net(images)
    return gradient_cam(scores, taps[0], torch.ones(2, 5), mode=mode)


@modes
@pytest.mark.parametrize("stage", ["layer2", "layer4"])
def test_equals_grad_cam(mode, stage):
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    form = {"gradcam": "GradCAM", "layercam": "LayerCAM", "hirescam": "HiResCAM"}[mode]
    net, images = resnet()
    layer = getattr(net, stage)
    ours = package_maps(net, layer, images, mode)
    assert ours.amax((0, 2, 3)).gt(0).all()
    with getattr(package, form)(model=net, target_layers=[layer]) as theirs:
        for k in range(5):
            wanted = [targets.ClassifierOutputTarget(k)] * 2
            theirs(input_tensor=images, targets=wanted)
            kept = theirs.activations_and_grads
            raw = [x[0].detach().numpy() for x in (kept.activations, kept.gradients)]
            cam = theirs.get_cam_image(images, layer, wanted, *raw, False)
            expected = torch.from_numpy(cam).relu()
            scale = expected.amax().clamp_min(1e-12)
            assert_close(ours[:, k] / scale, expected / scale)


@pytest.mark.parametrize("mode", ["gradcam", "layercam"])
@pytest.mark.parametrize("stage", ["layer2", "layer4"])
def test_equals_torchcam(mode, stage):
    package = pytest.importorskip("torchcam.methods")
    net, images = resnet()
    ours = package_maps(net, getattr(net, stage), images, mode)
    form = {"gradcam": "GradCAM", "layercam": "LayerCAM"}[mode]
    with getattr(package, form)(net, target_layer=stage) as theirs:
        scores = net(images)
        for k in range(5):
            (expected,) = theirs([k, k], scores, normalized=False, retain_graph=True)
            scale = expected.amax().clamp_min(1e-12)
            assert_close(ours[:, k] / scale, expected / scale)
