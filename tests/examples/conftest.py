"""Small data in the layouts that the examples read, and few scenes."""

import pytest
from PIL import Image

from wsss_blocks import data


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """Scenes in VOC's layout, under VOC's class names."""
    root = tmp_path_factory.mktemp("voc")
    data.write_voc_layout(root, train=6, val=2)
    base = root / "VOC2012"
    for xml in (base / "Annotations").glob("*.xml"):
        text = xml.read_text()
        for digit, name in zip(data.DIGIT_NAMES, data.VOC_NAMES, strict=False):
            text = text.replace(f"<name>{digit}</name>", f"<name>{name}</name>")
        xml.write_text(text)
    lists = base / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text((lists / "train.txt").read_text())
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Scenes as plain folders with a label file."""
    root = tmp_path_factory.mktemp("folder")
    for split in ("train", "val"):
        rows = {}
        for i, sample in enumerate(data.Scenes(split, size=4, with_masks=True)):
            if i == 4:
                break
            path = root / split / "images" / f"{sample['id']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (sample["image"].permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(path)
            data.write_mask(root / split / "masks" / path.name, sample["mask"])
            present = sample["labels"].nonzero().flatten().tolist()
            rows[sample["id"]] = [data.DIGIT_NAMES[k] for k in present]
        data.WeakLabels(data.DIGIT_NAMES, rows).save(root / split / "labels.json")
    return root


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Scenes in COCO's layout, under COCO's class names."""
    return data.write_coco_layout(tmp_path_factory.mktemp("coco"), train=6, val=2)


@pytest.fixture
def few_scenes(monkeypatch):
    """Twelve scenes instead of 2,200: generating and scoring them is not what is tested here."""

    class Few(data.Scenes):
        def __init__(self, split="train", **options):
            super().__init__(split, size=8 if split == "train" else 4, **options)

    monkeypatch.setattr("wsss_blocks.data.opening.Scenes", Few)
