"""The guide from a folder of photographs to numbers, run as it is written."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import train_dalnet  # noqa: E402

from wsss_blocks import backbones, cli, data  # noqa: E402
from wsss_blocks.cli.main import main  # noqa: E402

PAGE = (ROOT / "docs" / "guides" / "trust.md").read_text()


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """The folder that the guide describes: of scenes, those with a three and those with a seven."""
    monkeypatch.chdir(tmp_path)
    scenes = data.Scenes("val", size=200, with_masks=True)
    for number, (name, digit) in enumerate({"cat": 3, "dog": 7}.items(), 1):
        other = 10 - digit
        drawn = (scenes.draw(i) for i in range(200))
        alone = [s for s in drawn if digit in s.digits and other not in s.digits]
        for n, scene in enumerate(alone[:6]):
            split = "train" if n < 3 else "val"
            path = Path(f"pets/{split}/images/{name}/{n}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(path)
            if split == "val":
                mask = np.where(scene.mask == digit + 1, number, 0)
                data.write_mask(f"pets/val/masks/{name}/{n}.png", mask)
    return tmp_path


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def train(arguments, monkeypatch):
    real = backbones.create_encoder
    monkeypatch.setattr(backbones, "create_encoder", lambda name, weights: real(name))
    monkeypatch.setattr(
        backbones, "create_text_bank",
        lambda text, names, dim: backbones.TextBank.stand_in(names, dim=512, seed=0),
    )  # fmt: skip
    monkeypatch.setattr(backbones, "outside_text", lambda *a, bank: bank.stand_in_row(seed=0))
    cfg = cli.parse_config(train_dalnet.PRESETS, args=[*arguments, "--preset", "folder-small"])
    cfg = dataclasses.replace(
        cfg, steps=2, batch_size=2, lea_start=0, seg_start=0, size=64, warmup=0, workers=0,
        device="cpu", eval_size=cfg.eval_size and 64, cam_scales=(), eval_scales=(1.0,),
    )  # fmt: skip
    return train_dalnet.main(cfg)


def test_from_photographs_to_numbers(pets, monkeypatch, capsys):
    told, results = {}, {}
    for program, *words in commands():
        if program == "python":
            assert words[0] == "examples/train_dalnet.py"
            results = train(words[1:], monkeypatch)
            continue
        assert program == "wsss"
        if words[0] == "compare":  # the run that the reader has from before
            Path("runs/baseline").mkdir()
            shutil.copy("runs/pets/val/metrics.json", "runs/baseline")
        if words[0] == "sweep":
            for path in Path("pets/val/masks").rglob("*.png"):
                mask = data.read_mask(path)
                cam = torch.stack([mask == 1, mask == 2]).float()
                name = path.relative_to("pets/val/masks").with_suffix(".npz")
                data.write_class_maps(Path("cams") / name, cam, cam.amax((1, 2)))
        capsys.readouterr()
        code = main(words)
        told[words[0]] = capsys.readouterr().out
        assert code == 0, words
    labels = json.loads(Path("pets/train/labels.json").read_text())
    assert labels["counts"] == {"cat": 3, "dog": 3}
    assert "seg_miou" in results
    assert (pets / "runs/pets/report.html").is_file()
    assert len(list(Path("predictions").rglob("*.png"))) == 12
    metrics = json.loads(Path("runs/pets/val/metrics.json").read_text())
    protocol = metrics["protocol"]["segmentation"]
    assert (protocol["labels_used"], protocol["num_images"]) == (False, 6)
    # The same masks were scored at the end of the training.
    assert metrics["results"]["segmentation"]["miou"] == pytest.approx(
        100 * results["seg_miou"], abs=1e-3
    )
    page = Path("runs/pets/val/report.html").read_text()
    assert f"{metrics['results']['segmentation']['miou']:.2f}" in page
    assert "mIoU" in told["evaluate"]
    assert "+0.00" in told["compare"]
    swept = json.loads(Path("runs/pets/cams/sweep.json").read_text())
    assert swept["results"]["cam_best_miou"] == 100.0
    assert np.asarray(Image.open("runs/pets/cams/sweep.png")).ndim == 3
