import numpy as np
import pytest
import timm
import torch
from contract import assert_close, assert_compiles, covers
from packed import Packed
from torch import nn

from wsss_blocks.backbones import TimmCNN, mobilenet_v1


@covers("mobilenet_v1", "oracle")
def test_width_one_is_timms_mobilenetv1_100():
    torch.manual_seed(0)
    own = mobilenet_v1(1.0).eval()
    options = {"pad_type": "same", "bn_eps": 1e-3}
    known = timm.create_model("mobilenetv1_100", pretrained=False, **options).eval()
    known.load_state_dict(own.state_dict(), strict=True)
    for size in ((64, 75), (33, 98), (31, 1)):
        images = torch.rand(1, 3, *size)
        assert_close(own(images), known(images))


@covers("mobilenet_v1", "properties")
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_width_padding_and_stride(output_stride):
    model = mobilenet_v1(0.75, output_stride=output_stride)
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert model.classifier.weight.shape == (1000, 768)
    widths = [info["num_chs"] for info in model.feature_info]
    assert widths == [48, 96, 192, 384, 768]
    assert model.feature_info[-1]["reduction"] == output_stride
    assert sum(p.numel() for p in model.parameters()) == 2_585_560
    encoder = TimmCNN(model)
    assert encoder.mean.tolist() == encoder.std.tolist() == [0.5, 0.5, 0.5]
    assert encoder.stride == output_stride


@covers("mobilenet_v1", "module")
def test_weights_load_strictly_from_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = mobilenet_v1(0.125).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    again = mobilenet_v1(0.125, weights=tmp_path / "w.safetensors").state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[k], state[k]) for k in state)


@covers("mobilenet_v1", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    out = mobilenet_v1(0.125).eval().to(dtype)(torch.rand(1, 3, 32, 32, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@covers("mobilenet_v1", "compile")
def test_compiles():
    encoder = TimmCNN(mobilenet_v1(0.125, output_stride=8))
    assert_compiles(Packed(encoder).eval(), torch.rand(2, 3, 33, 40))


@covers("mobilenet_v1", "errors")
def test_refuses(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="multiplier must be positive"):
        mobilenet_v1(0.0)
    with pytest.raises(ValueError, match="output_stride must be one of '8', '16', '32', got '4'"):
        mobilenet_v1(output_stride=4)
    with pytest.raises(FileNotFoundError):
        mobilenet_v1(weights=tmp_path / "none.safetensors")
    save_file({"conv_stem.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors lacks \d+ \(.*\) of its"):
        mobilenet_v1(0.125, weights=tmp_path / "w.safetensors")


@covers("mobilenet_v1", "degenerate")
def test_a_single_pixel():
    assert torch.isfinite(mobilenet_v1(0.125).eval()(torch.zeros(1, 3, 1, 1))).all()


@pytest.mark.real_data
def test_real_weights_know_real_photographs(shared_data):
    image_module = pytest.importorskip("PIL.Image")
    weights = shared_data / "weights" / "mobilenetv1_075_imagenet.safetensors"
    model = mobilenet_v1(weights=weights).eval()
    voc = shared_data / "VOCdevkit" / "VOC2012"
    # ImageNet's classes of dogs are 151..268, of cats 281..285.
    hits = {"dog": 0, "cat": 0}
    kinds = {"dog": range(151, 269), "cat": range(281, 286)}
    for name, expected in kinds.items():
        ids = alone(voc, name)[:8]
        assert len(ids) >= 4
        for image_id in ids:
            photo = image_module.open(voc / "JPEGImages" / f"{image_id}.jpg").convert("RGB")
            pixels = torch.from_numpy(np.array(photo.resize((224, 224), 2)))
            images = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                best = model(images)[0].softmax(0).topk(5)
            assert torch.isfinite(best.values).all()
            assert best.values[0] > 0.01  # far from uniform over 1,000 classes
            hits[name] += any(int(i) in expected for i in best.indices)
        assert hits[name] >= 0.6 * len(ids), hits
    encoder = TimmCNN(model, frozen=True)
    assert encoder(images / 2 + 0.5).feature_map.shape == (1, 768, 7, 7)


def alone(voc, name):
    """Ids of training photos whose annotation names only this class."""
    found = []
    for image_id in (voc / "ImageSets/Segmentation/train.txt").read_text().split():
        text = (voc / "Annotations" / f"{image_id}.xml").read_text()
        names = {part.split("</name>")[0].strip() for part in text.split("<name>")[1:]}
        names -= {"head", "hand", "foot"}
        if names == {name}:
            found.append(image_id)
    return found
