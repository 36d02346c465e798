"""Masks of training images, from a trained network and from a store of class maps."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import export_pseudo_labels  # noqa: E402
from export_pseudo_labels import PRESETS, Config, main  # noqa: E402

from wsss_blocks import cli, data, segmenters  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402

pytestmark = pytest.mark.usefixtures("few_scenes")


def config(output: Path, source: Path, **changes) -> Config:
    return Config(output=output, source=str(source), device="cpu", **changes)


def scenes():
    return list(data.Scenes(size=8, with_masks=True))


def masks_in(folder: Path) -> list[torch.Tensor]:
    return [data.read_mask(folder / f"{sample['id']}.png") for sample in scenes()]


@pytest.fixture
def segmenter(tmp_path):
    torch.manual_seed(0)
    network = segmenters.SegmentationNetwork(num_classes=11, hidden_dim=8)
    found = cli.run_segmenter(Config(), network, data.DIGIT_NAMES)
    found.save(tmp_path / "segmenter.safetensors")
    return tmp_path / "segmenter.safetensors"


def write_store(folder: Path, samples, names=data.DIGIT_NAMES) -> Path:
    """Maps that know the masks, 0.9 inside and 0.1 outside."""
    with data.CamStoreWriter(folder, [s["id"] for s in scenes()], names) as writer:
        for sample in samples:
            ids = torch.arange(1, len(names) + 1)[:, None, None]
            maps = (sample["mask"] == ids) * 0.8 + 0.1
            writer.write(sample["id"], maps, sample["labels"], image_size=(96, 96))
    return folder


@pytest.mark.parametrize("refiner", ["none", "par", "crf"])
def test_masks_of_a_network_are_within_the_labels(refiner, segmenter, tmp_path):
    folder = main(config(tmp_path / "masks", segmenter, refiner=refiner))
    for sample, mask in zip(scenes(), masks_in(folder), strict=True):
        assert mask.shape == sample["image"].shape[-2:]
        known = {0, *(sample["labels"].nonzero().flatten() + 1).tolist()}
        assert set(mask.unique().tolist()) <= known
    trained = segmenters.Segmenter.load(segmenter)
    plain = cli.write_train_masks(trained, data.Scenes(size=8), tmp_path / "plain")
    same = [torch.equal(a, b) for a, b in zip(masks_in(folder), masks_in(plain), strict=True)]
    assert all(same) if refiner == "none" else not all(same)


def test_a_refiner_that_does_nothing_changes_nothing(segmenter, tmp_path, monkeypatch):
    plain = main(config(tmp_path / "plain", segmenter))
    monkeypatch.setitem(export_pseudo_labels.REFINERS, "par", export_pseudo_labels.refine.NoRefiner)
    other = main(config(tmp_path / "other", segmenter, refiner="par"))
    assert all(torch.equal(a, b) for a, b in zip(masks_in(plain), masks_in(other), strict=True))


@pytest.mark.parametrize("refiner", ["none", "par", "crf"])
def test_maps_that_know_the_masks_give_them_back(refiner, tmp_path):
    store = write_store(tmp_path / "cams", scenes())
    folder = main(config(tmp_path / "masks", store, refiner=refiner))
    for sample, mask in zip(scenes(), masks_in(folder), strict=True):
        decided = mask != 255
        assert decided.float().mean() > 0.9
        right = (mask == sample["mask"])[decided].float().mean()
        assert right == 1 if refiner == "none" else right > 0.9


def test_thresholds_leave_what_is_between_undecided(tmp_path):
    store = write_store(tmp_path / "cams", scenes())
    folder = main(config(tmp_path / "masks", store, thresholds=(0.0, 1.0)))
    for sample, mask in zip(scenes(), masks_in(folder), strict=True):
        assert torch.equal(mask == 255, sample["mask"] > 0)  # the highest score is 1, no more


def test_what_is_there_stays(tmp_path):
    store = write_store(tmp_path / "cams", scenes())
    cfg = config(tmp_path / "masks", store)
    expected = masks_in(main(cfg))
    one, other = (cfg.output / f"{scene['id']}.png" for scene in scenes()[:2])
    one.unlink()
    data.write_mask(other, torch.full((96, 96), 7))
    found = masks_in(main(cfg))
    assert torch.equal(found[0], expected[0])
    assert (found[1] == 7).all()
    with pytest.raises(ValueError, match="masks made with other options: refiner, thresholds"):
        main(dataclasses.replace(cfg, refiner="crf", thresholds=(0.3, 0.3)))


def test_a_second_stage_reads_them(tmp_path):
    folder = main(config(tmp_path / "masks", write_store(tmp_path / "cams", scenes())))
    given = data.WithPseudoMasks(data.Scenes(size=8), folder)
    assert torch.equal(given[3]["pseudo_mask"], masks_in(folder)[3])


def test_errors(segmenter, tmp_path):
    with pytest.raises(SystemExit, match="--source must be a segmenter"):
        main(config(tmp_path / "a", ""))
    part = write_store(tmp_path / "part", scenes()[:3])
    with pytest.raises(ValueError, match="lacks the maps of 5 of 8 images"):
        main(config(tmp_path / "b", part))
    assert not list((tmp_path / "b").glob("*.png"))
    names = tuple(f"n{i}" for i in range(10))
    other = write_store(tmp_path / "other", scenes(), names)
    with pytest.raises(ValueError, match=r"other must know the classes \('zero', .* got \('n0'"):
        main(config(tmp_path / "c", other))
    network = segmenters.SegmentationNetwork(num_classes=11, hidden_dim=8)
    cli.run_segmenter(Config(), network, names).save(segmenter)
    for refiner in ("none", "crf"):
        with pytest.raises(ValueError, match=r"segmenter.safetensors must know the classes"):
            main(config(tmp_path / "d", segmenter, refiner=refiner))


def test_no_mask_of_the_data_set_is_read(voc, tmp_path, monkeypatch):
    def refuse(path):
        raise AssertionError(f"read the mask {path}")

    network = segmenters.SegmentationNetwork(num_classes=21, hidden_dim=8)
    path = tmp_path / "segmenter.safetensors"
    cli.run_segmenter(Config(), network, data.VOC_NAMES).save(path)
    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    cfg = dataclasses.replace(PRESETS["voc"], root=voc, output=tmp_path / "masks")
    main(dataclasses.replace(cfg, source=str(path), device="cpu"))
    assert len(list((tmp_path / "masks").glob("*.png"))) == 6
