import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contract import assert_same
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import wsss_blocks
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter
from wsss_blocks.training import load_weights

PROTOCOL = EvaluationProtocol(
    dataset="toy", split="val", num_images=3, scales=(1.0, 1.5), flip=True, refiner="none",
    labels_used=False, flip_reduce="max", scale_reduce="sum", size_policy="32 square",
    absent_rule="target", ignore_index=254, ground_truth_hash="abc", text="stand-in",
)  # fmt: skip
KEY = "wsss_blocks.segmenter"


def segmenter(encoder="small-cnn", *, seed=0, palette=None, size=32, **options):
    torch.manual_seed(seed)
    network = SegmentationNetwork(encoder, num_classes=3, hidden_dim=8, **options)
    for module in network.modules():  # statistics that training would have left
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    names = ("猫", "großer Hund")
    return Segmenter(network, names=names, protocol=PROTOCOL, palette=palette, size=size).eval()


def logits(model, size=(40, 50)):
    with torch.no_grad():
        return model(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)))


def header(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def rewrite(path, *, drop=(), add=None, **changes):
    """Change the description or the weights of a file."""
    about = {k: v for k, v in (header(path) | changes).items() if v is not ...}
    with safe_open(path, framework="pt") as file:
        state = {k: file.get_tensor(k).clone() for k in file.keys() if k not in drop}  # noqa: SIM118
    save_file(state | (add or {}), path, metadata={KEY: json.dumps(about)})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "toy.safetensors"
    segmenter().save(path)
    return path


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("small-cnn", {"skip": 2, "neck_dim": 4}),
        ("small-cnn", {}),
        ("small-vit", {"skip": 1}),
        ("mobilenet", {"neck_dim": 4}),
        ("vit_tiny_patch16_224", {}),
    ],
)
def test_loaded_equals_saved_to_the_bit(tmp_path, encoder, options):
    model = segmenter(encoder, **options)
    model.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    assert_same(logits(loaded), logits(model))
    assert not any(module.training for module in loaded.modules())
    assert loaded.network.recipe == model.network.recipe
    frozen = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == frozen


def test_memory_layout_comes_back(tmp_path):
    # Sums in another order differ in the last bits.
    model = segmenter(skip=2, neck_dim=4).to(memory_format=torch.channels_last)
    model.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    assert_same(logits(loaded), logits(model))
    weight = loaded.network.decoder.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert header(tmp_path / "a.safetensors")["channels_last"] is True


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_comes_back(tmp_path, dtype):
    model = segmenter().to(dtype)
    model.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    x = torch.rand(1, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        assert_same(loaded(x), model(x))
    assert next(loaded.parameters()).dtype == dtype


def test_everything_beside_the_weights_comes_back(tmp_path):
    palette = torch.randint(0, 256, (3, 3), dtype=torch.uint8)
    model = segmenter(palette=palette)
    model.save(str(tmp_path / "new" / "ä b.safetensors"))
    loaded = Segmenter.load(str(tmp_path / "new" / "ä b.safetensors"))
    assert loaded.names == ("猫", "großer Hund")
    assert loaded.protocol == PROTOCOL
    assert loaded.size == 32
    assert torch.equal(loaded.palette, palette)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ä b.safetensors"]
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_mean_and_std_of_the_encoder_come_back(tmp_path):
    model = segmenter()
    model.network.encoder.mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    model.network.encoder.std.fill_(0.7)
    model.save(tmp_path / "a.safetensors")
    loaded = Segmenter.load(tmp_path / "a.safetensors")
    assert loaded.network.encoder.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert loaded.network.encoder.std.tolist() == pytest.approx([0.7] * 3)
    assert_same(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(segmenter()))


def test_what_is_in_the_file(saved):
    about = header(saved)
    assert set(about) == {
        "version", "library", "network", "channels_last", "names", "palette", "protocol", "size",
    }  # fmt: skip
    assert about["version"] == 1
    assert about["library"] == wsss_blocks.__version__
    assert about["network"]["kind"] == "large-fov"
    assert about["protocol"] == PROTOCOL.to_dict()
    with safe_open(saved, framework="pt") as file:
        assert set(file.metadata()) == {KEY}
        keys = set(file.keys())
    assert keys == set(segmenter().network.state_dict())
    # The weights are those of the network: they also load without a segmenter.
    network = segmenter(seed=5).network
    load_weights(saved, network)
    assert_same(network.state_dict()["decoder.conv1.weight"],
                segmenter().network.state_dict()["decoder.conv1.weight"])  # fmt: skip


def test_two_saves_are_one_file(saved, tmp_path):
    segmenter().save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def broken(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        segmenter(seed=1).save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_the_file_may_go_once_it_is_loaded(saved):
    loaded = Segmenter.load(saved)
    saved.write_bytes(b"")
    assert_same(logits(loaded), logits(segmenter()))
    loaded.save(saved)
    assert_same(logits(Segmenter.load(saved)), logits(loaded))


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Segmenter.load(saved)
    assert torch.equal(torch.rand(2), expected)


def test_three_lines_in_a_fresh_process_without_network(saved, tmp_path):
    from PIL import Image

    Image.new("RGB", (33, 20), (200, 30, 60)).save(tmp_path / "photo.jpg")
    code = """
import socket
def refuse(*a, **k):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from wsss_blocks.segmenters import Segmenter
segmenter = Segmenter.load("toy.safetensors")
segmenter.segment("photo.jpg").save("mask.png")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (33, 20))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.safetensors")  # a pickle under a safe name
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or no safetensors file"):
        Segmenter.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_files(saved, part):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"toy\.safetensors is truncated or no safetensors file"):
        Segmenter.load(saved)


def test_files_that_are_no_segmenters(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no segmenter at .*gone\.safetensors"):
        Segmenter.load(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="no segmenter at"):
        Segmenter.load(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello, I am a text " * 9)
    with pytest.raises(ValueError, match=r"text\.safetensors is truncated or no safetensors"):
        Segmenter.load(tmp_path / "text.safetensors")
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=r"weights\.safetensors holds weights but no segm"):
            Segmenter.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2, "library": "9.9"}, r"format 2, written by wsss-blocks 9\.9; .* reads form"),
        ({"version": ...}, "format None"),
        ({"network": {"kind": "deeplab"}}, "network of kind 'deeplab', .* knows large-fov"),
        ({"network": {"encoder": "small-cnn"}}, "network of kind None"),
        ({"network": ...}, "network of kind None"),
        ({"network": {"kind": "large-fov", "depth": 3}}, "cannot be built, TypeError: .*depth"),
        ({"network": {"kind": "large-fov", "num_classes": -1}}, "cannot be built, ValueError: num"),
        (
            {"network": {"kind": "large-fov", "num_classes": 3, "encoder": "no-such"}},
            "cannot be built, ValueError: .*no-such",
        ),
        (
            {"network": {"kind": "large-fov", "num_classes": 3, "encoder": "hf-hub:a/b"}},
            "cannot be built, ValueError: encoder must be a name",
        ),
        (
            {"network": {"kind": "large-fov", "num_classes": 3, "hidden_dim": 9}},
            r"but 3 of them are .* another shape: decoder\.",
        ),
        ({"names": ["cat"]}, "cannot be built, ValueError: names must hold one name"),
        ({"names": ...}, "cannot be built, KeyError: 'names'"),
        ({"protocol": {"dataset": "toy"}}, "cannot be built, TypeError"),
        ({"protocol": PROTOCOL.to_dict() | {"flip_reduce": "min"}}, "flip_reduce must be one of"),
        ({"palette": [[0, 0, 0]]}, "cannot be built, ValueError: palette"),
        ({"size": 0}, "cannot be built, ValueError: size"),
    ],
)
def test_descriptions_that_do_not_fit(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=r"toy\.safetensors .*" + message):
        Segmenter.load(saved)


def test_weights_that_do_not_fit(saved):
    rewrite(saved, drop=("decoder.conv1.weight",), add={"head.weight": torch.zeros(1)})
    message = r"toy\.safetensors .* but 2 of them .*: decoder\.conv1\.weight, head\.weight"
    with pytest.raises(ValueError, match=message):
        Segmenter.load(saved)


def test_only_networks_with_a_recipe_are_saved(tmp_path):
    model = segmenter()
    for network in (torch.compile(model.network, backend="eager"), nn.Conv2d(3, 3, 1)):
        other = Segmenter(network, names=model.names, protocol=PROTOCOL)
        with pytest.raises(TypeError, match="DeepLabV2Network or DeepLabV3PlusNetwork to be"):
            other.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_protocol_fields_are_all_tested():
    # A field that the file forgot would come back as its default.
    defaults = EvaluationProtocol(
        dataset="x", split="x", num_images=9, scales=(2.0,), flip=False, refiner="x",
        labels_used=False,
    ).to_dict()  # fmt: skip
    same = {k for k, v in PROTOCOL.to_dict().items() if defaults[k] == v}
    assert same == {"labels_used", "threshold", "threshold_source", "undecided", "missing"}
    half = replace(PROTOCOL, threshold=(0.2, 0.4), threshold_source="preset")
    assert EvaluationProtocol.from_dict(json.loads(json.dumps(half.to_dict()))) == half
