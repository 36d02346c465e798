import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from contract import assert_same
from strategies import generator
from torch import nn

from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import (
    DeepLabV2Network,
    DeepLabV3PlusNetwork,
    SegmentationNetwork,
    Segmenter,
    deploy,
    export_onnx,
    export_program,
    export_pt2,
)

SHAPES = [(1, 61, 93), (2, 97, 131), (1, 64, 96), (3, 33, 200), (1, 5, 7), (1, 1, 1), (1, 300, 17)]
NETWORKS = {
    "skip": lambda: SegmentationNetwork(
        "small-cnn", num_classes=3, hidden_dim=8, skip=2, neck_dim=4
    ),
    "small-vit": lambda: SegmentationNetwork("small-vit", num_classes=3, hidden_dim=8),
    "mobilenet": lambda: SegmentationNetwork("mobilenet", num_classes=3, hidden_dim=8),
    "vit": lambda: SegmentationNetwork("test_vit", num_classes=3, hidden_dim=8),
    "deeplabv2": lambda: DeepLabV2Network("resnet10t", num_classes=3),
    "deeplabv3plus": lambda: DeepLabV3PlusNetwork("resnet10t", num_classes=3, hidden_dim=16),
}


def protocol(*scales, flip=True, **options):
    data = {"dataset": "toy", "split": "val", "num_images": 3, "refiner": "none"}
    return EvaluationProtocol(**data, scales=scales, flip=flip, labels_used=False, **options)


ONE = protocol(1.0, flip=False)


class Stripes(nn.Module):
    """Logits at half the image's grid that tell an image from its mirror image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(10 * torch.randn(3, 3, 3, 3, generator=generator(0)))
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(F.conv2d(images - 0.5, self.weight, stride=2, padding=1))


def segmenter(network, *, protocol=ONE, **options):
    return Segmenter(network, names=("Katze", "großer 犬"), protocol=protocol, **options)


def trained(name):
    """A network with the statistics that training would have left, and all classes in its masks."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def photos(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=generator(height * width))


def onnx_answer(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(answer)


def assert_scores(found, model, images):
    with torch.no_grad():
        wanted = model.eval()(images).softmax(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def assert_masks(found, model, images):
    """Equal but where the best two scores are equal up to rounding."""
    assert found.dtype == torch.uint8
    assert found.shape == (len(images), *images.shape[2:])
    for mask, image in zip(found, images, strict=True):
        wanted = model.segment(image).mask
        with torch.no_grad():
            first, second = model.eval()(image[None]).softmax(1)[0].topk(2, dim=0).values
        assert ((mask == wanted) | (first - second < 1e-4)).all()
        assert (mask == wanted).float().mean() > 0.99


VIEWS = protocol(1.0, 1.5, flip_reduce="max", scale_reduce="sum")


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=8)
    return segmenter(network, protocol=VIEWS)


@pytest.fixture(scope="module")
def written(cnn, tmp_path_factory):
    path = tmp_path_factory.mktemp("deployed") / "ordner é" / "model.onnx"
    return export_onnx(cnn, path, output="scores")


def test_onnx_fuses_the_views_of_the_protocol_at_any_size(cnn, written):
    assert written.score_difference < 1e-4
    assert written.mask_difference < 1e-3
    for shape in SHAPES:
        images = photos(*shape)
        assert_scores(onnx_answer(written.path, images), cnn, images)


def test_an_onnx_file_says_what_it_is_and_nothing_of_this_machine(cnn, written):
    assert [p.name for p in written.path.parent.iterdir()] == ["model.onnx"]  # weights inside
    model = onnx.load(written.path)
    onnx.checker.check_model(model)
    about = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert about.pop("library").startswith("wsss-blocks ")
    assert about == {
        "names": ["background", "Katze", "großer 犬"],
        "palette": cnn.palette.tolist(),
        "protocol": cnn.protocol.describe(),
        "views": "protocol",
        "output": "scores",
        "size": None,
    }
    session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    (images,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(float)")
    assert images.shape == ["batch", 3, "height", "width"]
    assert (scores.name, scores.shape) == ("scores", ["batch", 3, "height", "width"])
    assert {(i.domain, i.version) for i in model.opset_import} == {("", 18)}
    data = written.path.read_bytes()
    assert b"site-packages" not in data
    assert not re.search(rb"\w{4,}\.py", data)


@pytest.mark.parametrize("name", ["small-vit", "deeplabv3plus"])
def test_graphs_of_other_networks_hold_at_any_size(name):
    model = segmenter(trained(name))
    run = export_program(model, output="scores").module()
    for shape in SHAPES:
        images = photos(*shape)
        with torch.no_grad():
            assert_scores(run(images), model, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_of_each_network(tmp_path, name):
    model = segmenter(trained(name), protocol=protocol(1.25))
    done = export_onnx(model, tmp_path / "model.onnx", output="scores")
    assert done.mask_difference < 1e-3
    for shape in SHAPES:
        images = photos(*shape)
        assert_scores(onnx_answer(done.path, images), model, images)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    model = segmenter(Stripes(), protocol=protocol(0.3, 1.25), size=None)
    return model, export_onnx(model, tmp_path_factory.mktemp("masks") / "model.onnx")


def test_onnx_masks_are_those_of_segment(masks):
    model, done = masks
    assert done.score_difference is None
    assert done.mask_difference < 1e-3
    seen = set()
    for shape in SHAPES:
        images = photos(*shape)
        found = onnx_answer(done.path, images)
        assert_masks(found, model, images)
        seen |= set(found.unique().tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("scale", [0.3, 0.75, 1.5])
def test_scaled_sides_are_rounded_as_in_the_segmenter(scale):
    class Size(nn.Module):  # logits that tell the size of the view
        def forward(self, images):
            height, width = images.shape[2:]
            grey = images.mean(1, keepdim=True).mean((2, 3), keepdim=True)
            return torch.cat([0 * grey, 0 * grey + height / 100, 0 * grey + width / 100], 1)

    model = segmenter(Size(), protocol=protocol(scale, flip=False))
    run = export_program(model, output="scores").module()
    for side in (*range(1, 12), 75, 76, 77, 301):
        images = torch.zeros(1, 3, side, side + 1)
        assert_same(run(images), model(images).softmax(1))


def test_the_lowest_of_equal_classes_wins(tmp_path):
    class Equal(nn.Module):
        def forward(self, images):
            grey = images.mean(1, keepdim=True)
            return torch.cat([0 * grey + 0.5, grey, grey], 1)

    model = segmenter(Equal())
    images = torch.cat([torch.full((1, 3, 4, 5), value) for value in (0.2, 0.5, 0.9)])
    path = export_onnx(model, tmp_path / "model.onnx", check=False).path
    for found in (onnx_answer(path, images), export_program(model).module()(images)):
        assert found.flatten(1).unique(dim=1).tolist() == [[0], [0], [1]]


def test_images_are_squeezed_into_the_square_of_the_segmenter():
    model = segmenter(Stripes(), protocol=protocol(1.0, 1.5), size=24)
    run = export_program(model).module()
    for shape in ((2, 61, 93), (1, 24, 24), (1, 3, 5)):
        images = photos(*shape)
        assert_masks(run(images), model, images)


def test_weights_with_channels_last_as_in_training():
    network = trained("skip").to(memory_format=torch.channels_last)
    model = segmenter(network).eval()
    run = export_program(model, output="scores").module()
    for shape in ((1, 61, 93), (2, 64, 96)):
        assert_scores(run(photos(*shape)), model, photos(*shape))
    first = next(p for p in model.parameters() if p.ndim == 4)
    assert not first.is_contiguous(), "the segmenter stays as it is"


def test_one_view_is_the_image_as_it_is():
    model = segmenter(Stripes(), protocol=protocol(0.5, 1.5, scale_reduce="sum"))
    images = photos(1, 31, 44)
    found = export_program(model, output="scores", views="one").module()(images)
    assert_same(found, segmenter(model.network).eval()(images).softmax(1))
    assert not torch.equal(found, model(images).softmax(1))


def test_one_view_is_said_in_the_file(tmp_path):
    model = segmenter(Stripes(), protocol=protocol(0.5, 1.5))
    path = export_onnx(model, tmp_path / "m.onnx", views="one", size=(31, 45), check=True).path
    found = onnx.load(path)
    about = {p.key: json.loads(p.value) for p in found.metadata_props}
    assert (about["views"], about["size"]) == ("one", [31, 45])
    assert about["protocol"] == model.protocol.describe()  # of the number that was published
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 31, 45]


class EvenOnly(nn.Module):
    """Do different things at even and odd widths."""

    def forward(self, images):
        return images if images.shape[-1] % 2 else 1 - images


class OfOneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.rand(1, 3, 20, 30, generator=generator(0)))

    def forward(self, images):
        return images + self.bias


@pytest.mark.parametrize("network", [EvenOnly(), OfOneSize()], ids=["branch", "one size"])
def test_a_network_of_fixed_size(tmp_path, network):
    model = segmenter(network)
    path = tmp_path / "model.pt2"
    with pytest.raises(ValueError, match=r"for images of any size; size=\(height, width\) fixes"):
        export_pt2(model, path)
    assert not list(tmp_path.iterdir())
    done = export_pt2(model, path, size=(20, 30), output="scores")
    assert done.score_difference < 1e-6
    run = torch.export.load(path).module()
    for batch in (1, 2, 5):
        images = photos(batch, 20, 30)
        assert_scores(run(images), model, images)
    with pytest.raises(ValueError, match=r"cannot be exported at size=\(21, 0\)|size must be"):
        export_pt2(model, path, size=(21, 0))


def test_a_network_that_cannot_be_exported():
    class Values(nn.Module):
        def forward(self, images):
            return images if images.sum() > 3 else 1 - images

    with pytest.raises(ValueError, match=r"segmenter cannot be exported at size=\(8, 9\). \w+: "):
        export_program(segmenter(Values()), size=(8, 9))


def test_a_torch_file_says_what_it_is(tmp_path):
    model = segmenter(Stripes())
    done = export_pt2(model, tmp_path / "new" / "model.pt2")
    assert [p.name for p in done.path.parent.iterdir()] == ["model.pt2"]
    extra = dict.fromkeys(("names", "views", "protocol"), "")
    torch.export.load(done.path, extra_files=extra)
    about = {key: json.loads(value) for key, value in extra.items()}
    assert about["names"] == ["background", "Katze", "großer 犬"]
    assert (about["views"], about["protocol"]) == ("protocol", ONE.describe())
    data = done.path.read_bytes()
    assert b"test_deploy.py" not in data
    assert len(data) < 100_000  # no example images


@pytest.mark.slow
def test_a_torch_file_needs_torch_alone(tmp_path):
    export_pt2(segmenter(trained("vit")), tmp_path / "model.pt2")
    code = (
        "import sys, torch; run = torch.export.load('model.pt2').module(); "
        "print(tuple(run(torch.rand(1, 3, 41, 57)).shape)); "
        "assert not {'wsss_blocks', 'timm'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[0] == "(1, 41, 57)", done.stderr


class Cheat(Stripes):
    """Do something else in a graph."""

    def forward(self, images):
        x = super().forward(images)
        return x.flip(1) if torch.compiler.is_exporting() else x


@pytest.mark.parametrize(("export", "output"), [(export_onnx, "mask"), (export_pt2, "scores")])
def test_a_file_that_differs_never_appears(tmp_path, export, output):
    path = tmp_path / "model"
    path.write_text("old")
    says = "scores differ by up to 1, " if output == "scores" else ""
    with pytest.raises(ValueError, match=rf"not do what segmenter does: {says}\d+ % of the pixels"):
        export(segmenter(Cheat()), path, output=output)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    export(segmenter(Cheat()), path, output=output, check=False)
    assert path.stat().st_size > 1000


def test_nothing_is_left_of_a_failed_writing(tmp_path, monkeypatch):
    def full(model, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(segmenter(Stripes()), tmp_path / "model.onnx", size=(8, 9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_the_segmenter_stays_as_it_is(dtype):
    model = segmenter(Stripes().to(dtype))
    model.train()
    model.network.drop.eval()
    modes = [part.training for part in model.modules()]
    program = export_program(model)
    assert [part.training for part in model.modules()] == modes
    assert model.network.weight.dtype == dtype
    assert {x.dtype for x in program.state_dict.values()} == {torch.float32}
    images = photos(1, 20, 31)
    wanted = segmenter(Stripes())
    wanted.network.weight.data.copy_(model.network.weight)
    assert_masks(program.module()(images), wanted, images)


def test_errors(tmp_path):
    model = segmenter(Stripes())
    path = tmp_path / "m.onnx"
    with pytest.raises(TypeError, match="segmenter must be a Segmenter, got Stripes"):
        export_program(Stripes())
    with pytest.raises(ValueError, match="output must be one of 'mask', 'scores', got 'logits'"):
        export_pt2(model, path, output="logits")
    with pytest.raises(ValueError, match="views must be one of 'protocol', 'one', got 'all'"):
        export_onnx(model, path, views="all")
    with pytest.raises(ValueError, match="size must be None or two positive sides"):
        export_onnx(model, path, size=(3, 0))
    for opset in (17, 24):
        with pytest.raises(ValueError, match=f"opset must be 18 to 23, got {opset}"):
            export_onnx(model, path, opset=opset)
    with pytest.raises(TypeError, match=r"opset must be an int, got 18\.0"):
        export_onnx(model, path, opset=18.0)
    with pytest.raises(ValueError, match="must be a file, or not exist yet"):
        export_pt2(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_many_weights_for_one_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "_LARGEST", 100)
    with pytest.raises(ValueError, match="less than 2 GiB of weights"):
        export_onnx(segmenter(Stripes()), tmp_path / "m.onnx")


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_is_asked_for_before_anything_is_done(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    wanted = rf"export_onnx needs {module}: pip install 'wsss-blocks\[export\]'"
    with pytest.raises(ImportError, match=wanted):
        export_onnx(segmenter(Stripes()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_no_check_needs_no_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = export_onnx(segmenter(Stripes()), tmp_path / "m.onnx", size=(9, 8), check=False)
    assert done == (tmp_path / "m.onnx", None, None)
    monkeypatch.undo()
    assert onnx_answer(done.path, photos(2, 9, 8)).numpy().dtype == np.uint8
