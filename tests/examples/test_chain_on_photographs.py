"""The end of the chain on real photographs: masks, a second stage, its upper bound, one file."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import export_pseudo_labels  # noqa: E402
import train_segmenter  # noqa: E402

from wsss_blocks import data, segmenters  # noqa: E402
from wsss_blocks.cli.main import main as wsss  # noqa: E402

FEW = {"train": 4, "val": 2}


@pytest.fixture(scope="module")
def few_photos(shared_data, tmp_path_factory):
    """VOC's layout, of which the lists name a few images."""
    real, root = shared_data / "VOCdevkit" / "VOC2012", tmp_path_factory.mktemp("voc")
    base = root / "VOC2012"
    base.mkdir()
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (base / name).symlink_to(real / name)
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, count in FEW.items():
        ids = (real / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        (lists / f"{split}.txt").write_text("\n".join(ids[:count]))
    return root


@pytest.mark.real_data
def test_from_ground_truth_to_onnx_and_from_pseudo_masks_to_a_share(
    few_photos, shared_data, tmp_path, capsys
):
    pytest.importorskip("onnxruntime")
    small = dataclasses.replace(
        train_segmenter.PRESETS["voc-small"], root=few_photos, split="train", device="cpu",
        steps=2, batch_size=2, warmup=0, size=64, eval_size=64, eval_images=2,
        weights=str(shared_data / "weights" / "mobilenetv1_075_imagenet.safetensors"),
    )  # fmt: skip
    full = dataclasses.replace(small, output=tmp_path / "full", supervision="masks")
    assert 0 <= train_segmenter.main(full)["seg_miou"] <= 1
    trained = tmp_path / "full" / "segmenter.safetensors"

    cfg = export_pseudo_labels.Config(
        data="voc", root=few_photos, split="train", device="cpu", source=str(trained),
        refiner="par", output=tmp_path / "masks",
    )  # fmt: skip
    masks = export_pseudo_labels.main(cfg)
    photos = data.VOC2012(few_photos, "train")
    for sample in photos:
        mask = data.read_mask(masks / f"{sample['id']}.png")
        assert mask.shape == sample["image"].shape[-2:]
        shown = {0, *(sample["labels"].nonzero().flatten() + 1).tolist()}
        assert set(mask.unique().tolist()) <= shown

    record = str(tmp_path / "full" / "metrics.json")
    weak = dataclasses.replace(
        small, output=tmp_path / "weak", masks=str(masks), compare_with=Path(record)
    )
    assert {"seg_miou", "train_mask_miou"} <= train_segmenter.main(weak).keys()
    assert "weak / full" in capsys.readouterr().out

    store = tmp_path / "masks.json"
    export = ["export", str(masks), "--to", "coco-json", "--names", "voc", "--output", str(store)]
    assert wsss(export) == 0
    assert len(json.loads(store.read_text())["images"]) == FEW["train"]

    onnx = tmp_path / "voc.onnx"
    assert wsss(["deploy", str(trained), "--output", str(onnx)]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    segmenter = segmenters.Segmenter.load(trained)
    for name in photos.ids[:2]:
        path = few_photos / "VOC2012" / "JPEGImages" / f"{name}.jpg"
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
        (found,) = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
        expected = segmenter.segment(path).mask
        assert (torch.from_numpy(found[0]).long() == expected).float().mean() > 0.999
