import copy
import json
import pickle

import pytest
import torch
from contract import assert_close, assert_compiles, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import segmenters as oracle
from strategies import generator, seeds

from wsss_blocks.backbones import Features, mobilenet_v1
from wsss_blocks.segmenters import SegmentationNetwork

SMALL = {"num_classes": 3, "hidden_dim": 4, "dilation": 2}


def network(seed=0, encoder="small-cnn", **options):
    torch.manual_seed(seed)
    return SegmentationNetwork(encoder, **(SMALL | options)).eval()


def images(seed=0, batch=1, size=(16, 24), dtype=torch.float32):
    return torch.rand(batch, 3, *size, generator=generator(seed), dtype=dtype)


@settings(max_examples=8)
@given(seeds, st.sampled_from([0, 2]), st.sampled_from([None, 3]))
def test_oracle(seed, neck_dim, skip):
    module = network(seed, neck_dim=neck_dim, skip=skip, hidden_dim=2).double()
    with torch.no_grad():
        x = images(seed, dtype=torch.float64)
        features = module.encoder(x, layers=() if skip is None else (skip,))
        expected = oracle.network(
            features.feature_map, features.intermediates.get(skip), module.state_dict(), 2
        )
        assert_close(module(x), expected)


def test_names_of_parts_and_parameters():
    module = network(neck_dim=5, skip=2)
    assert [name for name, _ in module.named_children()] == ["encoder", "neck", "decoder"]
    assert (module.dim, module.num_classes, module.skip) == (5, 3, 2)
    state = {k: tuple(v.shape) for k, v in module.state_dict().items() if "encoder." not in k}
    assert state == {
        "neck.0.weight": (5, 128, 1, 1),
        "neck.0.bias": (5,),
        "decoder.conv1.weight": (4, 5, 3, 3),
        "decoder.conv2.weight": (4, 4, 3, 3),
        "decoder.skip_proj.weight": (48, 64, 1, 1),
        "decoder.skip_norm.weight": (48,),
        "decoder.skip_norm.bias": (48,),
        "decoder.fuse.weight": (4, 52, 3, 3),
        "decoder.classifier.weight": (3, 4, 1, 1),
    }
    plain = network()
    assert (plain.dim, len(plain.neck)) == (128, 0)
    x = images()
    assert plain.neck(x) is x


@pytest.mark.parametrize("encoder", ["small-cnn", "small-vit", "mobilenet"])
def test_grid_of_the_logits(encoder):
    module = network(encoder=encoder)
    x = images(size=(30, 50))
    h, w = -(-30 // module.encoder.stride), -(-50 // module.encoder.stride)
    assert module(x).shape == (1, 3, h, w)
    assert module(images(size=(1, 1))).shape == (1, 3, 1, 1)


def test_encode_asks_for_the_skip_layer_itself():
    module = network(skip=2)
    x, features = module.encode(images())
    assert set(features.intermediates) == {2}
    assert set(module.encode(images(), layers=(1, 2))[1].intermediates) == {1, 2}
    assert_same(module.decode(x, features), module(images()))
    assert not network().encode(images())[1].intermediates


def test_a_cached_map_goes_through_the_neck():
    module = network(neck_dim=4)
    cached = module.encoder(images()).feature_map
    empty = Features(cached, cached.flatten(2).mT[:, :0], {}, {}, {})
    assert_same(module.decode(module.neck(cached), empty), module(images()))


def test_recipe_builds_the_same_network():
    module = network(1, neck_dim=3, skip=1)
    recipe = json.loads(json.dumps(module.recipe))
    assert recipe == {
        "kind": "large-fov",
        "encoder": "small-cnn",
        "num_classes": 3,
        "neck_dim": 3,
        "skip": 1,
        "hidden_dim": 4,
        "dilation": 2,
    }
    del recipe["kind"]
    other = SegmentationNetwork(**recipe).eval()
    assert other.recipe == module.recipe
    other.load_state_dict(module.state_dict())
    assert_same(other(images()), module(images()))
    module.recipe["encoder"] = "other"
    assert module.recipe["encoder"] == "small-cnn"


def test_weights_are_no_part_of_the_recipe(tmp_path):
    from safetensors.torch import save_file

    donor = mobilenet_v1(output_stride=16)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    module = network(3, encoder="mobilenet", weights=str(tmp_path / "w.safetensors"))
    loaded = module.encoder.model.state_dict()
    for key in loaded:
        assert torch.equal(loaded[key], donor.state_dict()[key]), key
    assert "weights" not in module.recipe
    assert str(tmp_path) not in json.dumps(module.recipe)


def test_gradients_reach_every_trainable_parameter():
    module = network(neck_dim=4, skip=2).train()
    module(images(batch=2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    frozen = network(encoder="mobilenet").train()
    frozen(images(batch=2)).sum().backward()
    assert all(p.grad is None for p in frozen.encoder.parameters())
    assert not frozen.encoder.training


def test_module_copies():
    module, x = network(neck_dim=4, skip=2), images()
    expected = module(x)
    assert_same(copy.deepcopy(module)(x), expected)
    assert_same(pickle.loads(pickle.dumps(module))(x), expected)
    assert "SegmentationNetwork" in repr(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    module, x = network(neck_dim=4, skip=2), images(size=(24, 24))
    expected = module(x)
    actual = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert_close(actual / expected.abs().max(), expected / expected.abs().max(), dtype=dtype if
                 dtype == torch.bfloat16 else torch.float32)  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(module(x)).all()


def test_compile():
    module = network(neck_dim=4, skip=2)
    with torch.no_grad():
        assert_compiles(module, images(batch=2, size=(24, 32)))


def test_an_image_does_not_depend_on_its_batch():
    module, x = network(skip=2), images(batch=3)
    assert_close(module(x)[1:2], module(x[1:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck_dim": -1}, r"neck_dim must be 0 \(no neck\) or positive, got -1"),
        ({"skip": 7}, r"skip must be None or a layer of 'small-cnn' \(1, 2, 3\), got 7"),
        ({"skip": -1}, "skip must be None or a layer"),
        ({"num_classes": 0}, r"num_classes must be .*, got 0"),
        ({"hidden_dim": 0}, r"hidden_dim must be .*, got 0"),
        ({"dilation": 0}, r"dilation must be .*, got 0"),
        ({"encoder": "hf-hub:someone/vit"}, "encoder must be a name that timm can build by itself"),
        ({"encoder": "local-dir:vit"}, "encoder must be a name"),
        ({"weights": "pretrained"}, "weights must be None for 'small-cnn'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationNetwork(**(SMALL | options))


def test_errors_of_others():
    with pytest.raises(ValueError, match="no-such-net"):
        network(encoder="no-such-net")
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        network(encoder="mobilenet", weights="gone.safetensors")
    module = network(skip=2)
    x, features = module.encode(images())
    with pytest.raises(ValueError, match="skip must be given"):
        module.decode(x, features._replace(intermediates={}))
    with pytest.raises(ValueError, match="images must be RGB in"):
        module(255 * images())


def test_degenerate():
    module = network(num_classes=1, skip=1)
    assert module(images(size=(1, 1))).shape == (1, 1, 4, 4)
    assert torch.isfinite(module(torch.zeros(2, 3, 8, 8))).all()


def test_cached_maps_stand_in_for_the_encoder():
    network = SegmentationNetwork("mobilenet", num_classes=3, neck_dim=6, hidden_dim=4).eval()
    images = torch.rand(2, 3, 48, 32)
    for layers in ((), (4,)):
        x, features = network.encode(images, layers=layers)
        maps = network.frozen_maps(images, layers=layers)
        assert maps.shape[1] == sum(network.encoder.layer_dims[i] for i in (*layers, 5))
        again, cached = network.encode_cached(maps, layers=layers)
        torch.testing.assert_close(again, x, rtol=0, atol=0)
        torch.testing.assert_close(cached.feature_map, features.feature_map, rtol=0, atol=0)
        assert list(cached.intermediates) == list(layers)
        for layer in layers:
            torch.testing.assert_close(cached.intermediates[layer], features.intermediates[layer])
        assert cached.global_token.shape == (2, network.encoder.dim)
        torch.testing.assert_close(network.decode(again, cached), network(images))
