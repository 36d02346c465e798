import copy
import json
import pickle

import pytest
import timm
import torch
from contract import assert_close, assert_same
from oracles import decoders as oracle
from safetensors.torch import save_file
from strategies import generator
from torch import nn

from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import DeepLabV2Network, Segmenter

TINY = "test_resnet"  # timm's, 32 to 192 channels
VIEWS = {"scales": (1.0, 0.5), "flip": True, "refiner": "none", "labels_used": False}
PROTOCOL = EvaluationProtocol(dataset="toy", split="val", num_images=3, **VIEWS)


def network(seed=0, encoder=TINY, **options):
    torch.manual_seed(seed)
    module = DeepLabV2Network(encoder, **({"num_classes": 3, "rates": (1, 2)} | options)).eval()
    for part in module.modules():  # statistics that training would have left
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
    return module


def images(seed=0, batch=1, size=(16, 24), dtype=torch.float32):
    return torch.rand(batch, 3, *size, generator=generator(seed), dtype=dtype)


def norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_oracle(output_stride):
    module, x = network(output_stride=output_stride).double(), images(dtype=torch.float64)
    with torch.no_grad():
        features = module.encoder(x).feature_map
        expected = oracle.deeplab_v2(features, module.decoder.state_dict(), (1, 2))
        assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("encoder", "stride"), [(TINY, 8), ("mobilenet", 8), (TINY, 32), ("small-cnn", None)]
)
def test_grid_of_the_logits(encoder, stride):
    module, cells = network(encoder=encoder, output_stride=stride), stride or 8
    assert module(images(size=(30, 50))).shape == (1, 3, -(-30 // cells), -(-50 // cells))
    assert module(images(size=(1, 1))).shape == (1, 3, 1, 1)
    assert torch.isfinite(module(0 * images())).all()


def test_the_default_is_the_network_of_the_paper():
    with torch.device("meta"):
        module = DeepLabV2Network(num_classes=21)
        assert module(torch.empty(1, 3, 321, 321)).shape == (1, 21, 41, 41)
    assert (module.dim, module.num_classes) == (2048, 21)
    assert [branch.dilation[0] for branch in module.decoder.branches] == [6, 12, 18, 24]


@pytest.mark.parametrize("frozen", [True, False])
def test_all_learns_but_frozen_norms(frozen):
    module = network(frozen_norms=frozen).train()
    before = {k: v.clone() for k, v in module.named_buffers()}
    module(images(batch=2)).square().sum().backward()
    of_norms = {id(p) for norm in norms(module) for p in norm.parameters()}
    assert of_norms
    for parameter in module.parameters():
        learns = not (frozen and id(parameter) in of_norms)
        assert (parameter.grad is not None) == parameter.requires_grad == learns
    assert {norm.training for norm in norms(module)} == {not frozen}
    same = all(torch.equal(v, before[k]) for k, v in module.named_buffers())
    assert same == frozen
    assert not any(part.training for part in module.eval().modules())


def test_a_file_holds_all_that_builds_it(tmp_path):
    model = Segmenter(network(1), names=("a", "b"), protocol=PROTOCOL).eval()
    model.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    assert_same(loaded.segment(images()[0]).mask, model.segment(images()[0]).mask)
    with torch.no_grad():
        assert_same(loaded(images()), model(images()))
    assert loaded.network.recipe == model.network.recipe
    assert json.loads(json.dumps(model.network.recipe)) == {
        "kind": "deeplabv2", "encoder": TINY, "num_classes": 3, "output_stride": 8,
        "rates": [1, 2], "frozen_norms": True,
    }  # fmt: skip
    learns = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == learns
    assert {norm.training for norm in norms(loaded.network.train())} == {False}


def test_weights_are_no_part_of_the_recipe(tmp_path):
    donor = timm.create_model(TINY)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    module = DeepLabV2Network(TINY, num_classes=3, weights=tmp_path / "w.safetensors")
    for key, value in module.encoder.model.state_dict().items():
        assert torch.equal(value, donor.state_dict()[key]), key
    assert str(tmp_path) not in json.dumps(module.recipe)


def test_module_copies():
    module, x = network(), images()
    expected = module(x)
    assert_same(copy.deepcopy(module)(x), expected)
    assert_same(pickle.loads(pickle.dumps(module))(x), expected)
    assert "DeepLabV2Network" in repr(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    module, x = network(), images()
    expected = module(x)
    actual = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    scale = expected.abs().max()
    torch.testing.assert_close(
        actual.float() / scale, expected / scale, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"rates": (0,)}, "rates must be at least 1, got 0"),
        ({"output_stride": 4}, "output_stride must be None, 8, 16 or 32, got 4"),
        ({"encoder": "hf-hub:someone/resnet"}, "encoder must be a name that timm can build"),
        ({"encoder": "small-cnn"}, "output_stride and frozen must be None for 'small-cnn'"),
        ({"encoder": "vgg11"}, "output_stride must be 32 for 'vgg11', which cannot dilate, got 8"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_type_errors():
    with pytest.raises(TypeError, match=r"output_stride must be an int, got 8\.0"):
        network(output_stride=8.0)
    with pytest.raises(TypeError, match="rates must be a sequence, got 6"):
        network(rates=6)
