import os

import pytest
import timm
import torch
import torch.nn.functional as F
from contract import assert_close, covers
from safetensors.torch import save_file
from strategies import generator

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
        ("resnet10t", 16, 0),
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


def vit_shapes(dim=64, depth=6, hidden=192, patch=16, tokens=101, classes=1000):
    """Key -> shape, as files of timm's plain ViTs list them; the defaults are those of test_vit."""
    found = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim)}
    found["patch_embed.proj.weight"] = (dim, 3, patch, patch)
    found["patch_embed.proj.bias"] = (dim,)
    linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
    linear |= {"mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            found[f"blocks.{i}.{norm}.weight"] = found[f"blocks.{i}.{norm}.bias"] = (dim,)
        for layer, shape in linear.items():
            found[f"blocks.{i}.{layer}.weight"] = shape
            found[f"blocks.{i}.{layer}.bias"] = shape[:1]
    found["norm.weight"] = found["norm.bias"] = (dim,)
    if classes:
        found["head.weight"], found["head.bias"] = (classes, dim), (classes,)
    return found


def vit_state(seed=0, **options):
    g = generator(seed)
    return {k: torch.randn(s, generator=g) * 0.1 for k, s in vit_shapes(**options).items()}


def same_as(encoder, state):
    own = encoder.model.state_dict()
    return all(torch.equal(value, state[key]) for key, value in own.items())


def test_the_key_list_is_that_of_the_papers_vit():
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224")
    expected = {key: tuple(value.shape) for key, value in base.state_dict().items()}
    assert vit_shapes(dim=768, depth=12, hidden=3072, tokens=197) == expected


@covers("create_encoder", "oracle")
@pytest.mark.parametrize("classes", [0, 21843])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_a_local_file_gives_its_weights(tmp_path, suffix, classes):
    state, path = vit_state(classes=classes), tmp_path / f"vit{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = create_encoder("test_vit", weights=str(path)).eval()
    assert same_as(encoder, state)
    assert [n for n, p in encoder.named_parameters() if not p.requires_grad] == ["model.pos_embed"]
    reference = timm.create_model("test_vit", num_classes=0).eval()
    reference.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    images = torch.rand(1, 3, 160, 160, generator=generator(1))
    tokens = reference.forward_features((images - 0.5) / 0.5)
    assert_close(encoder(images).patch_tokens, tokens[:, 1:])
    assert_close(encoder(images).class_tokens, tokens[:, :1])


@covers("create_encoder", "properties")
def test_wrapped_and_distilled_files(tmp_path):
    state, path = vit_state(), tmp_path / "deit.pth"
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    assert same_as(create_encoder("test_vit", weights=path), state)
    names = {"pre_logits.fc.weight": (64, 64), "head_dist.weight": (9, 64), "head_dist.bias": (9,)}
    torch.save(state | {key: torch.zeros(shape) for key, shape in names.items()}, path)
    assert same_as(create_encoder("test_vit", weights=path), state)
    # A model with a distillation token needs that of the file.
    deit = timm.create_model("deit_tiny_distilled_patch16_224").state_dict()
    torch.save({k: v for k, v in deit.items() if k != "dist_token"}, path)
    with pytest.raises(ValueError, match=r"lacks 1 \(dist_token\) of its 151 keys"):
        create_encoder("deit_tiny_distilled_patch16_224", weights=path)


@covers("create_encoder", "oracle")
@pytest.mark.parametrize("side", [4, 14])
def test_the_position_embedding_of_another_grid_is_resampled(tmp_path, side):
    state, path = vit_state(tokens=1 + side**2), tmp_path / "vit.pth"
    torch.save(state, path)
    own = create_encoder("test_vit", weights=path).model.pos_embed
    grid = state["pos_embed"][:, 1:].reshape(1, side, side, 64).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(10, 10), mode="bicubic", align_corners=False)
    expected = torch.zeros(1, 101, 64)
    expected[0, 0] = state["pos_embed"][0, 0]
    for i in range(10):
        for j in range(10):
            expected[0, 1 + 10 * i + j] = grid[0, :, i, j]
    assert_close(own, expected)


@covers("create_encoder", "oracle")
def test_mobilenet_takes_a_file(tmp_path):
    torch.manual_seed(0)
    state, path = mobilenet_v1().state_dict(), tmp_path / "mobilenet.safetensors"
    save_file(state, path)
    own = create_encoder("mobilenet", weights=path).model.state_dict()
    assert own
    assert all(torch.equal(value, state[key]) for key, value in own.items())


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


@covers("create_encoder", "properties")
@pytest.mark.parametrize("name", ["mobilenet", "resnet10t", "resnet18.tv_in1k"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_a_cnn_at_another_stride_that_learns(name, output_stride):
    encoder = create_encoder(name, output_stride=output_stride, frozen=False).train()
    assert encoder.stride == output_stride
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(m.training for m in encoder.modules())
    cells = 64 // output_stride
    assert encoder(torch.rand(2, 3, 64, 64)).feature_map.shape == (2, encoder.dim, cells, cells)
    still = create_encoder(name, output_stride=output_stride, frozen=True).train()
    assert not any(p.requires_grad for p in still.parameters())
    assert not any(m.training for m in still.modules())


@covers("create_encoder", "errors")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "small-cnn",
            {"output_stride": 8},
            "output_stride and frozen must be None for 'small-cnn",
        ),
        ("small-vit", {"frozen": True}, "must be None for 'small-vit', which .* got None and True"),
        (
            "test_vit",
            {"frozen": False},
            "must be None for 'test_vit', which is no CNN of timm",
        ),
        ("mobilenet", {"output_stride": 4}, "output_stride must be None, 8, 16 or 32, got 4"),
        ("resnet10t", {"output_stride": "8"}, "output_stride must be None, 8, 16 or 32, got '8'"),
        ("vgg11", {}, "output_stride must be 32 for 'vgg11', which cannot dilate, got 16"),
        ("resnet18.none", {}, "name must be one that timm can build, got 'resnet18.none'"),
    ],
)
def test_refuses_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(name, **options)


@covers("create_encoder", "errors")
def test_refuses():
    with pytest.raises(ValueError, match="weights must be None for 'small-cnn'"):
        create_encoder("small-cnn", weights="pretrained")
    with pytest.raises(FileNotFoundError, match=r"None, 'pretrained' or a file .*got 'x\.bin'"):
        create_encoder("vit_tiny_patch16_224", weights="x.bin")
    with pytest.raises(FileNotFoundError, match="weights must be None or a file for 'mobilenet'"):
        create_encoder("mobilenet", weights="pretrained")
    with pytest.raises(ValueError, match=r"name must be .* got .nothing."):
        create_encoder("nothing")


@covers("create_encoder", "errors")
def test_refuses_a_wrong_file(tmp_path):
    path = tmp_path / "wrong.pth"

    def refused(match, name="test_vit"):
        with pytest.raises(ValueError, match=match) as caught:
            create_encoder(name, weights=path)
        assert "weights must be" in str(caught.value)
        assert "wrong.pth" in str(caught.value)

    state = vit_state()
    torch.save({k: v for k, v in state.items() if not k.startswith("blocks.3.mlp")}, path)
    refused(r"of 'test_vit': \S*wrong\.pth lacks 4 \(blocks\.3\.mlp\.fc1\.weight, .* 78 keys")
    torch.save(state | {"blocks.6.norm1.weight": torch.zeros(64)}, path)
    refused(r"holds 1 \(blocks\.6\.norm1\.weight\) that it has not")
    torch.save(vit_state(hidden=128), path)
    refused(r"blocks\.0\.mlp\.fc1\.weight must have shape \(192, 64\), got \(128, 64\) in")
    for shape in ((1, 100, 64), (1, 101, 32), (101, 64), (1, 1, 64)):
        torch.save(state | {"pos_embed": torch.zeros(shape)}, path)
        refused(r"pos_embed must have shape \(1, 101, 64\), got \(")
    refused(r"lacks \d+ \(conv_stem\.weight, .* holds 80 \(cls_token, ", name="mobilenet")
    torch.save({"w": Evil()}, path)
    refused("UnpicklingError|weights_only")
    torch.save(state | {"epoch": 3}, path)
    refused(r"tensors alone, but \S*wrong\.pth also holds 1 \(epoch\)")
    torch.save(torch.zeros(3), path)
    refused("whole file of tensors")
    torch.save(state, path)
    whole = path.read_bytes()
    for end in (0, 1000, len(whole) - 9):
        path.write_bytes(whole[:end])
        refused("whole file of tensors")
    path = tmp_path / "wrong.pth.safetensors"
    path.write_bytes(b"\x10\x00")
    refused("whole file of tensors")


@covers("create_encoder", "degenerate")
@pytest.mark.parametrize("name", ["small-cnn", "small-vit", "mobilenet"])
def test_one_pixel(name):
    encoder = create_encoder(name).eval()
    assert encoder(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, encoder.dim, 1, 1)


def test_a_timm_cnn_takes_a_file_with_its_classifier_and_is_frozen(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", output_stride=16).eval()
    path = tmp_path / "resnet.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    encoder = create_encoder("resnet10t", weights=path)
    images = torch.rand(1, 3, 64, 96, generator=generator(0))
    normalised = (images - encoder.mean[:, None, None]) / encoder.std[:, None, None]
    with torch.no_grad():
        expected = model.forward_features(normalised)
    assert_close(encoder(images).feature_map, expected)
    assert not any(p.requires_grad for p in encoder.parameters())
    state = model.state_dict()
    # torchvision's files have no counters of batches.
    old = {k: v.contiguous() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(old, path)
    assert_close(create_encoder("resnet10t", weights=path)(images).feature_map, expected)
    state.pop("conv1.0.weight")
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    with pytest.raises(ValueError, match=r"resnet\.safetensors lacks 1 \(conv1\.0\.weight\)"):
        create_encoder("resnet10t", weights=path)
