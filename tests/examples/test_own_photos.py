"""The guide's way from photographs to masks, run as it is written."""

import dataclasses
import re
import shlex
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

PAGE = (ROOT / "docs" / "guides" / "your_own_data.md").read_text()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder and the table that the guide describes, and two files of the usual trouble."""
    monkeypatch.chdir(tmp_path)
    table = re.search(r"```text\n(id,labels\n.*?)```", PAGE, re.DOTALL)[1]
    Path("labels.csv").write_text(table)
    Path("photos").mkdir()
    scenes = data.Scenes(size=3)
    for sample, line in zip((scenes[i] for i in range(3)), table.splitlines()[1:], strict=True):
        pixels = (sample["image"].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(Path("photos") / line.split(",")[0])
    whole = Path("photos/IMG_0001.jpg").read_bytes()
    Path("photos/IMG_0004.jpg").write_bytes(whole[: len(whole) // 2])
    with Path("labels.csv").open("a") as file:
        file.write("IMG_0004.jpg,cat\n")
    return tmp_path


def commands() -> list[list[str]]:
    block = re.search(r"## From photographs to masks.*?```bash\n(.*?)```", PAGE, re.DOTALL)[1]
    lines = [shlex.split(line) for line in block.splitlines()]
    assert all(line[:2] == ["python", "examples/train_dalnet.py"] for line in lines)
    return [line[2:] for line in lines]


@pytest.mark.parametrize("preset", ["folder", "folder-small"])
def test_from_photographs_to_masks(photos, preset, monkeypatch, capsys):
    real = backbones.create_encoder
    monkeypatch.setattr(  # no downloads: random weights, in the smallest ViT
        backbones, "create_encoder",
        lambda name, weights: real("vit_tiny_patch16_224" if name.startswith("vit") else name),
    )  # fmt: skip
    monkeypatch.setattr(
        backbones, "create_text_bank",
        lambda text, names, dim: backbones.TextBank.stand_in(names, dim=512, seed=0),
    )  # fmt: skip
    monkeypatch.setattr(backbones, "outside_text", lambda *a, bank: bank.stand_in_row(seed=0))
    for arguments in commands():
        cfg = cli.parse_config(train_dalnet.PRESETS, args=[*arguments, "--preset", preset])
        cfg = dataclasses.replace(
            cfg, steps=2, batch_size=2, lea_start=0, seg_start=0, size=64, warmup=0, workers=0,
            device="cpu", eval_size=cfg.eval_size and 64, cam_scales=(), eval_scales=(1.0,),
        )  # fmt: skip
        assert train_dalnet.main(cfg) == {}, "there is nothing to score"
    told = capsys.readouterr().out
    assert "train: 3 images; 1 skipped: 1 cannot be read" in told
    assert "IMG_0004.jpg" in told
    assert "no masks: nothing is scored" in told
    assert "3 images segmented; 1 skipped:\n  photos/IMG_0004.jpg cannot be read" in told
    run = photos / "runs" / "pets"
    assert (run / "figures" / "segmentation.png").is_file()
    for name in ("IMG_0001", "IMG_0002", "IMG_0003"):
        mask = np.asarray(Image.open(run / "predictions" / f"{name}.png"))
        assert mask.shape == (96, 96)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert (run / "predictions" / f"{name}_overlay.png").is_file()
    state = torch.load(next((run / "checkpoint").glob("step-*/state.pt")), weights_only=True)
    assert state["step"] == 2
