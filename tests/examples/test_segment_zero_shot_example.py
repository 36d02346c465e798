"""The zero-shot example scores generated scenes and segments files, with a tiny random model."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_open_clip import tiny_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import segment_zero_shot  # noqa: E402
from segment_zero_shot import Config, main  # noqa: E402

from wsss_blocks import data, metrics  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402
from wsss_blocks.segmenters import ZeroShotSegmenter, create_loda, save_loda  # noqa: E402


@pytest.fixture
def options(monkeypatch, tmp_path, few_scenes):
    few = ("a photo of a {}.", "{}")
    monkeypatch.setattr("wsss_blocks.segmenters.name_bank.imagenet_templates", lambda: few)
    model = tiny_weights(monkeypatch, tmp_path)
    return {"model": model, "output": tmp_path / "out", "device": "cpu", "size": 32}


def test_scenes_are_scored(options, capsys):
    found = main(Config(data="scenes", **options))
    told = capsys.readouterr().out
    saved = read_metrics(options["output"] / "metrics.json")
    assert set(found) == {"zero_shot_miou", "zero_shot_labels_miou", "class_ap"}
    assert saved.results["zero_shot/miou"] == pytest.approx(found["zero_shot_miou"], abs=1e-4)
    assert told.startswith("scenes val, 4 images, ")
    assert re.search(rf"^zero_shot_miou +{100 * found['zero_shot_miou']:.2f}$", told, re.M)
    seven = saved.results["zero_shot/iou/seven"]
    assert re.search(rf"^seven +{100 * seven:.2f}$", told, re.M)
    assert len(told.splitlines()) == 2 + 11 + 3 + 2
    protocol = saved.protocol["zero_shot"]
    assert (protocol.dataset, protocol.split, protocol.num_images) == ("scenes", "val", 4)
    scenes = data.Scenes("val", size=4, with_masks=True)
    assert protocol.ground_truth_hash == metrics.hash_masks(s["mask"] for s in scenes)
    assert protocol.refiner.startswith("binary DenseCRF")
    figures = options["output"] / "figures"
    names = {"class_scores.png", "masks.png", "patches.png"}
    assert {p.name for p in figures.iterdir()} == names
    # The number is that of the segmenter's own masks.
    segmenter = segment_zero_shot.build(Config(data="scenes", **options), scenes.names, "cpu")
    evaluator = metrics.SegmentationEvaluator(11)
    for scene in scenes:
        evaluator.update(segmenter.segment(scene["image"]).mask[None], scene["mask"][None])
    assert evaluator.compute().miou == pytest.approx(found["zero_shot_miou"])


def test_a_published_protocol(options, voc):
    main(Config(data="voc", root=voc, eval_images=1, crf=False, sigma=0.0, **options))
    protocol = read_metrics(options["output"] / "metrics.json").protocol["zero_shot"]
    assert (protocol.dataset, protocol.num_images, protocol.threshold) == ("voc", 1, 0.5)
    assert "tvmonitor: monitor; the 5 best names above mean + 0 deviations" in protocol.text
    built = segment_zero_shot.build(Config(data="voc", **options), data.VOC_NAMES, "cpu")
    assert isinstance(built, ZeroShotSegmenter)
    assert (built.size, built.sigma, built.top) == (32, 1.0, 10)
    plain = segment_zero_shot.build(
        Config(data="voc", **options | {"size": None}), data.VOC_NAMES, "cpu"
    )
    assert plain.size == 288


def test_a_run_of_simseg_says_its_size(options, tmp_path):
    model = create_loda(words=["dog", "grass"], dim=8, image_norm=True)
    save_loda(tmp_path / "model.safetensors", model, size=64)
    given = options | {"model": str(tmp_path / "model.safetensors"), "size": None}
    built = segment_zero_shot.build(Config(**given), ("dog", "grass"), "cpu")
    assert built.size == 64
    found = main(Config(data="scenes", crf=False, eval_images=2, **given))
    assert 0 <= found["zero_shot_miou"] <= 1
    protocol = read_metrics(options["output"] / "metrics.json").protocol["zero_shot"]
    assert (protocol.size_policy, protocol.num_images) == ("64 square", 2)


def test_data_without_labels_or_without_masks(options, tmp_path, folder):
    """COCO-Object has no image labels: the masks say which classes are there."""
    shade = Image.fromarray(np.full((20, 30), 17, np.uint8))  # raw id 17: dogs
    for split in ("val2017", "stuffthingmaps/val2017"):
        (tmp_path / split).mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (30, 20), (9, 90 * i, 60)).save(tmp_path / "val2017" / f"{i:012d}.jpg")
        shade.save(tmp_path / "stuffthingmaps" / "val2017" / f"{i:012d}.png")
    found = main(Config(data="coco-object", root=tmp_path, crf=False, **options))
    assert found["zero_shot_labels_miou"] > 0
    protocol = read_metrics(options["output"] / "metrics.json").protocol["zero_shot"]
    assert (protocol.dataset, protocol.split) == ("coco-object", "val2017")
    shutil.copytree(folder, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "val" / "masks")
    with pytest.raises(SystemExit, match="--data folder needs masks to score"):
        main(Config(data="folder", root=tmp_path / "folder", **options))


def test_files_by_names(options, tmp_path):
    Image.new("RGB", (30, 20), (200, 30, 60)).save(tmp_path / "photo.jpg")
    main(Config(images=(tmp_path / "photo.jpg",), classes=("dog", "grass"), **options))
    written = sorted(p.name for p in options["output"].iterdir())
    assert written == ["photo.png", "photo_overlay.png", "protocol.json"]
    assert json.loads((options["output"] / "protocol.json").read_text())["labels_used"] is False
    with pytest.raises(SystemExit, match="give --images and --classes, or --data"):
        main(Config(classes=("dog",), **options))
    with pytest.raises(SystemExit, match="--images and --classes are instead of --data"):
        main(Config(data="scenes", classes=("dog",), **options))
    with pytest.raises(SystemExit, match="--root, --split and --eval-images go with --data"):
        main(Config(images=(tmp_path,), classes=("dog",), eval_images=1, **options))


def test_the_file_is_short_and_loads_models_in_one_place():
    text = (EXAMPLES / "segment_zero_shot.py").read_text()
    assert len(text.splitlines()) <= 120
    assert text.count("load_image_text_model(") == 1
