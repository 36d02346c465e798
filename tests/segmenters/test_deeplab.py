import copy
import json
import pickle
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import segmenters as oracle
from safetensors.torch import save_file
from strategies import generator, seeds
from torch import nn

from wsss_blocks.backbones import Encoder, Features
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import DeepLabV3PlusNetwork, Segmenter

SMALL = {"num_classes": 3, "hidden_dim": 4}
TINY = "test_resnet"  # timm's, 32 to 192 channels
VIEWS = {"scales": (1.0, 0.5), "flip": True, "refiner": "none", "labels_used": False}
PROTOCOL = EvaluationProtocol(dataset="toy", split="val", num_images=3, **VIEWS)


def network(seed=0, encoder=TINY, **options):
    torch.manual_seed(seed)
    module = DeepLabV3PlusNetwork(encoder, **(SMALL | options)).eval()
    for part in module.modules():  # statistics and scales that training would have left
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return module


def images(seed=0, batch=1, size=(32, 48), dtype=torch.float32):
    return torch.rand(batch, 3, *size, generator=generator(seed), dtype=dtype)


@settings(max_examples=4)
@given(seeds, st.sampled_from([8, 16]), st.booleans(), st.sampled_from([(1, 2, 3), (12, 24, 36)]))
def test_oracle(seed, output_stride, separable, rates):
    options = {"output_stride": output_stride, "separable": separable, "rates": rates}
    module = network(seed, hidden_dim=2, **options).double()
    with torch.no_grad():
        x = images(seed, batch=2, size=(24, 40), dtype=torch.float64)
        features = module.encoder(x, layers=(2, 5))
        low, high = features.intermediates[2], features.intermediates[5]
        assert_close(module(x), oracle.deeplab_v3_plus(low, high, module.state_dict(), rates))


@pytest.mark.parametrize("separable", [False, True])
def test_is_smps_network_but_for_corners_and_bias(separable):
    module = network(encoder="resnet18", separable=separable, num_classes=5, hidden_dim=8)
    other = smp.DeepLabV3Plus(
        "tu-resnet18", encoder_weights=None, encoder_output_stride=8, decoder_channels=8,
        decoder_aspp_separable=separable, classes=5, upsampling=1,
    ).eval()  # fmt: skip
    other.encoder.model.load_state_dict(module.encoder.model.state_dict())
    other.decoder.load_state_dict(module.decoder.state_dict())
    other.decoder.up.align_corners = False
    other.segmentation_head[0].weight.data.copy_(module.classifier.weight)
    other.segmentation_head[0].bias.data.zero_()
    x = images(size=(64, 96))
    normalised = (x - module.encoder.mean[:, None, None]) / module.encoder.std[:, None, None]
    with torch.no_grad():
        assert_close(module(x), other(normalised))


def test_initial_weights_are_those_of_smp():
    torch.manual_seed(0)
    fresh = DeepLabV3PlusNetwork(TINY, num_classes=9, hidden_dim=32)
    assert all((m.weight == 1).all() for m in fresh.decoder.modules()
               if isinstance(m, nn.BatchNorm2d))  # fmt: skip
    conv = fresh.decoder.aspp[0].convs[1][0].weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.05)
    weight = fresh.classifier.weight
    assert weight.std().item() == pytest.approx((2 / (32 + 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("name", "block"), [("resnet101.tv_in1k", 4), ("resnet18", 1)])
def test_strides_and_channels_of_the_layers(name, block):
    with torch.device("meta"):
        module = DeepLabV3PlusNetwork(name, num_classes=21).eval()
        x, features = module.encode(torch.empty(2, 3, 512, 512), layers=(1, 2, 3, 4, 5))
        logits = module.decode(x, features)
    shapes = {layer: tuple(v.shape) for layer, v in features.intermediates.items()}
    assert shapes == {
        1: (2, 64, 256, 256),
        2: (2, 64 * block, 128, 128),
        3: (2, 128 * block, 64, 64),
        4: (2, 256 * block, 64, 64),
        5: (2, 512 * block, 64, 64),
    }
    assert x is features.feature_map
    assert (module.dim, module.low_dim) == (512 * block, 64 * block)
    assert x.shape == (2, 512 * block, 64, 64)
    assert logits.shape == (2, 21, 128, 128)
    assert features.class_tokens.shape == (2, 0, 512 * block)
    assert isinstance(module.encoder, Encoder)
    assert (module.encoder.stride, module.encoder.layer_dims[4]) == (8, 256 * block)


def dilations(resnet, layer):
    """Dilation of the 3x3 convolutions of each block, and the strides of the stage."""
    blocks = list(getattr(resnet, f"layer{layer}"))
    convs = [[m for m in b.modules() if isinstance(m, nn.Conv2d)] for b in blocks]
    found = [tuple(c.dilation[0] for c in block if c.kernel_size[0] == 3) for block in convs]
    return found, {c.stride[0] for block in convs for c in block}


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_of_the_resnet(output_stride):
    with torch.device("meta"):
        module = DeepLabV3PlusNetwork(num_classes=21, output_stride=output_stride)
        dilate = [False, output_stride == 8, True]
        other = torchvision.models.resnet101(replace_stride_with_dilation=dilate)
    found = {layer: dilations(module.encoder.model, layer) for layer in (1, 2, 3, 4)}
    assert found == {layer: dilations(other, layer) for layer in (1, 2, 3, 4)}
    if output_stride == 8:
        assert found == {
            1: ([(1,)] * 3, {1}),
            2: ([(1,)] * 4, {1, 2}),
            3: ([(1,)] + [(2,)] * 22, {1}),
            4: ([(2,)] + [(4,)] * 2, {1}),  # DHR's first block: 1
        }


def test_names_of_parts_and_parameters():
    module = network()
    parts = ["encoder", "decoder", "dropout", "classifier"]
    assert [name for name, _ in module.named_children()] == parts
    model = {f"encoder.model.{k}" for k in timm.create_model(TINY, num_classes=0).state_dict()}
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if k not in model}
    state = {
        "decoder.aspp.0.convs.0.0.weight": (4, 96, 1, 1),
        "decoder.aspp.0.convs.1.0.weight": (4, 96, 3, 3),
        "decoder.aspp.0.convs.2.0.weight": (4, 96, 3, 3),
        "decoder.aspp.0.convs.3.0.weight": (4, 96, 3, 3),
        "decoder.aspp.0.convs.4.1.weight": (4, 96, 1, 1),
        "decoder.aspp.0.project.0.weight": (4, 20, 1, 1),
        "decoder.aspp.1.0.weight": (4, 1, 3, 3),
        "decoder.aspp.1.1.weight": (4, 4, 1, 1),
        "decoder.block1.0.weight": (48, 32, 1, 1),
        "decoder.block2.0.0.weight": (52, 1, 3, 3),
        "decoder.block2.0.1.weight": (4, 52, 1, 1),
        "classifier.weight": (3, 4, 1, 1),
        "encoder.mean": (3,),
        "encoder.std": (3,),
    }
    norms = dict.fromkeys((f"aspp.0.convs.{k}.1" for k in range(4)), 4)
    norms |= {"aspp.0.convs.4.2": 4, "aspp.0.project.1": 4, "aspp.2": 4}
    for name, width in (norms | {"block1.1": 48, "block2.1": 4}).items():
        for entry in ("weight", "bias", "running_mean", "running_var"):
            state[f"decoder.{name}.{entry}"] = (width,)
        state[f"decoder.{name}.num_batches_tracked"] = ()
    assert shapes == state
    shapes = {k: tuple(v.shape) for k, v in network(separable=True).state_dict().items()}
    del shapes["decoder.aspp.0.convs.0.0.weight"]
    assert shapes["decoder.aspp.0.convs.1.0.0.weight"] == (96, 1, 3, 3)
    assert shapes["decoder.aspp.0.convs.1.0.1.weight"] == (4, 96, 1, 1)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(30, 50), (33, 17), (1, 1), (64, 8)])
def test_sizes_that_the_stride_does_not_divide(output_stride, size):
    module = network(output_stride=output_stride)
    h, w = (-(-side // output_stride) for side in size)
    x, features = module.encode(images(size=size))
    assert x.shape == (1, 96, h, w)
    cells = output_stride // 4
    assert module.decode(x, features).shape == (1, 3, cells * h, cells * w)
    # Resized up: the grid covers exactly the image.
    up = nn.functional.interpolate(
        images(size=size), (output_stride * h, output_stride * w), mode="bilinear"
    )
    assert_close(module(images(size=size)), module(up), dtype=torch.float32)


@pytest.mark.parametrize("encoder", ["mobilenet", "convnext_atto"])
def test_other_networks(encoder):
    module = network(encoder=encoder)
    assert module(images(size=(40, 64))).shape == (1, 3, 10, 16)
    assert all(p.requires_grad for p in module.parameters())
    module.train()
    assert module.encoder.training
    module(images(batch=2)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_encode_asks_for_layer_two_itself():
    module = network()
    x, features = module.encode(images())
    assert set(features.intermediates) == {2}
    assert list(features.taps) == [2]
    found = module.encode(images(), layers=(4, -1))[1]
    assert set(found.intermediates) == {2, 4, 5}
    assert_same(found.taps[5], x)
    assert_same(module.decode(x, features), module(images()))
    cached = Features(x, x.flatten(2).mT[:, :0], {2: features.intermediates[2]}, {}, {})
    assert_same(module.decode(x, cached), module(images()))


def test_gradients_reach_every_layer_and_parameter():
    module = network(num_classes=3, hidden_dim=16, dropout=(0.0, 0.0)).train()
    x, features = module.encode(images(batch=2), layers=(1, 2, 3, 4, 5))
    loss = module.decode(x, features).square().sum()
    maps = [features.taps[layer] for layer in (1, 2, 3, 4, 5)]
    for grad in torch.autograd.grad(loss, maps, retain_graph=True):
        assert grad.abs().sum() > 0
    loss.backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        # The scale that ends a residual branch starts at zero, and blocks all before it.
        if not name.startswith("encoder.model.layer"):
            assert p.grad.abs().sum() > 0, name


def test_gradcheck():
    module = network(rates=(1, 2, 3)).double()
    x, features = module.encode(images(size=(8, 16), dtype=torch.float64))
    low = features.intermediates[2].detach().requires_grad_()

    def decode(x, low):
        return module.decode(x, features._replace(intermediates={2: low}))

    assert_gradcheck(decode, x.detach().requires_grad_(), low)


def test_training_draws_dropout_and_updates_statistics():
    module, x = network(hidden_dim=16), images(batch=3)
    assert_same(module(x), module(x))
    before = copy.deepcopy(module.state_dict())
    module.train()
    assert not torch.equal(module(x), module(x))
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if "running_" in k or "num_batches" in k}
    still = network(dropout=(0.0, 0.0)).train()
    assert_same(still(x), still(x))
    assert (still.decoder.aspp[0].project[3].p, still.dropout.p) == (0.0, 0.0)
    assert (module.decoder.aspp[0].project[3].p, module.dropout.p) == (0.5, 0.1)


def test_one_image_in_training_mode():
    module = network().train()
    with pytest.raises(ValueError, match=r"images must be at least two in training mode.*got 1"):
        module(images())
    assert module(images(batch=2)).shape == (2, 3, 8, 12)
    module.decoder.eval()
    assert torch.isfinite(module(images())).all()
    module.train()
    module.decoder.aspp[0].convs[-1].eval()
    assert torch.isfinite(module(images())).all()
    assert torch.isfinite(network()(images())).all()
    # Over processes one image each is enough: torch knows how many there are.
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(network()).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        synced(images())


def test_images_do_not_meet_each_other_in_eval_mode():
    module, x = network(), images(batch=3)
    assert_close(module(x)[1:2], module(x[1:2]))


def test_recipe_builds_the_same_network():
    options = {"output_stride": 16, "rates": (2, 4, 6), "separable": True, "dropout": (0.2, 0.3)}
    module = network(1, **options)
    recipe = json.loads(json.dumps(module.recipe))
    assert recipe == module.recipe == {
        "kind": "deeplabv3plus",
        "encoder": TINY,
        "num_classes": 3,
        "output_stride": 16,
        "rates": [2, 4, 6],
        "hidden_dim": 4,
        "separable": True,
        "dropout": [0.2, 0.3],
    }  # fmt: skip
    del recipe["kind"]
    other = DeepLabV3PlusNetwork(**recipe).eval()
    assert other.recipe == module.recipe
    other.load_state_dict(module.state_dict())
    assert_same(other(images()), module(images()))
    module.recipe["rates"][0] = 9
    assert module.recipe["rates"] == [2, 4, 6]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_segmenter_comes_back_to_the_bit(tmp_path, channels_last):
    module = network(1, separable=channels_last)
    if channels_last:
        module.to(memory_format=torch.channels_last)
    segmenter = Segmenter(module, names=("cat", "dog"), protocol=PROTOCOL, size=40).eval()
    segmenter.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    x = images(batch=2, size=(50, 41))
    with torch.no_grad():
        assert_same(loaded(x), segmenter(x))
    assert loaded(x).shape == (2, 3, 50, 41)
    assert loaded.network.recipe == module.recipe
    assert not any(part.training for part in loaded.modules())
    assert all(p.requires_grad for p in loaded.parameters())
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value), key
    mask = loaded.segment(images(size=(21, 30))[0]).mask
    assert_same(mask, segmenter.segment(images(size=(21, 30))[0]).mask)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("source", ["timm", "torchvision", "old torchvision"])
def test_a_file_of_weights(tmp_path, source, suffix):
    torch.manual_seed(3)
    donor = timm.create_model("resnet18") if source == "timm" else torchvision.models.resnet18()
    state = {k: torch.rand_like(v) if v.ndim else v + 7 for k, v in donor.state_dict().items()}
    if source.startswith("old"):
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / f"resnet{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    module = network(encoder="resnet18.tv_in1k", weights=path)
    fresh = DeepLabV3PlusNetwork("resnet18", num_classes=3, hidden_dim=4, weights=str(path))
    own = fresh.encoder.model.state_dict()
    assert set(own) == {k for k in donor.state_dict() if not k.startswith("fc.")}
    for key, value in own.items():
        assert torch.equal(value, state.get(key, torch.tensor(0))), key
    assert all(p.requires_grad for p in fresh.parameters())
    assert str(tmp_path) not in json.dumps(module.recipe)
    assert "weights" not in module.recipe


def test_plain_resnets_have_torchvisions_keys():
    with torch.device("meta"):
        ours = DeepLabV3PlusNetwork(num_classes=2).encoder.model.state_dict()
        theirs = torchvision.models.resnet101().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.startswith("fc.")
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    module, x = network(), images(size=(24, 24))
    expected = module(x)
    actual = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        (actual / expected.abs().max()).float(), expected / expected.abs().max(),
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x)
    torch.testing.assert_close(
        (mixed / expected.abs().max()).float(), expected / expected.abs().max(), rtol=0.1, atol=0.1
    )
    training = module.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        training(images(batch=2)).float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_compile():
    module = network()
    with torch.no_grad():
        assert_compiles(module, images(batch=2, size=(30, 41)))


def test_module_copies():
    module, x = network(), images()
    expected = module(x)
    assert_same(copy.deepcopy(module)(x), expected)
    assert_same(pickle.loads(pickle.dumps(module))(x), expected)
    assert "DeepLabV3PlusNetwork" in repr(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ({"output_stride": 32}, "output_stride must be 8 or 16, got 32"),
        ({"rates": (6, 12)}, "rates must hold 3 numbers, got 2"),
        ({"rates": (6, 12, 0)}, "rates must be at least 1, got 0"),
        ({"dropout": (0.5,)}, "dropout must hold 2 numbers, got 1"),
        ({"dropout": (0.5, 1.5)}, r"dropout must be in \[0, 1\], got 1.5"),
        ({"encoder": "hf-hub:someone/resnet"}, "encoder must be a name that timm can build"),
        ({"encoder": "no-such-net"}, "name must be .* got 'no-such-net'"),
        ({"encoder": "resnet18.none"}, "name must be .* got 'resnet18.none'"),
        ({"encoder": "small-cnn"}, "output_stride and frozen must be None for 'small-cnn'"),
        ({"encoder": "vit_tiny_patch16_224"}, "'vit_tiny_patch16_224', which is no CNN of timm"),
        ({"encoder": "vgg11"}, "output_stride must be 32 for 'vgg11', which cannot dilate, got 8"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DeepLabV3PlusNetwork(**({"encoder": TINY} | SMALL | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": 12}, "rates must be a sequence, got 12"),
        ({"rates": (6, 12, 1.5)}, "rates must be an int, got 1.5"),
        ({"dropout": 0.5}, "dropout must be a sequence, got 0.5"),
        ({"dropout": (0.5, "x")}, "dropout must be a number"),
        ({"output_stride": 8.0}, "output_stride must be an int, got 8.0"),
    ],
)
def test_type_errors(options, message):
    with pytest.raises(TypeError, match=message):
        DeepLabV3PlusNetwork(TINY, **(SMALL | options))


def test_errors_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        network(weights="gone.safetensors")
    path = tmp_path / "wrong.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"of 'resnet18': .*wrong\.safetensors lacks 101 \(bn1\."):
        network(encoder="resnet18", weights=path)


def test_errors_of_calls():
    module = network()
    x, features = module.encode(images())
    low = features.intermediates[2]
    with pytest.raises(ValueError, match="features must hold layer 2, got layers: none"):
        module.decode(x, features._replace(intermediates={}))
    with pytest.raises(ValueError, match=r"x must have shape \(B, D, h, w\) with D=96, got"):
        module.decode(low, features)
    message = r"layer 2 of features must have shape .* with B=1, D=32, h=8, w=12, got"
    with pytest.raises(ValueError, match=message):
        module.decode(x, features._replace(intermediates={2: low[..., 1:]}))
    with pytest.raises(TypeError, match="x must have the dtype of the weights"):
        module.decode(x.double(), features)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        module.decode(x.index_fill(1, torch.tensor([0]), float("nan"))[..., :4, :6][
            ..., :1, :1], features._replace(intermediates={2: low[..., :2, :2]}))  # fmt: skip
    with pytest.raises(ValueError, match="images must be RGB in"):
        module(255 * images())
    with pytest.raises(ValueError, match=r"layers must lie in 1\.\.5 .*got 6"):
        module.encode(images(), layers=(6,))


def test_error_without_smp(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    message = r"DeepLabV3PlusNetwork needs segmentation_models_pytorch: .*'wsss-blocks\[seg\]'"
    with pytest.raises(ImportError, match=message):
        network()


def test_degenerate():
    module = network(num_classes=1, hidden_dim=1)
    assert module(images(size=(1, 1))).shape == (1, 1, 2, 2)
    assert torch.isfinite(module(torch.zeros(2, 3, 8, 8))).all()
    assert module(images(batch=0)).shape == (0, 1, 8, 12)
