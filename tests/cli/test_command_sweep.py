import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_blocks.cam import cam_to_label
from wsss_blocks.cli.main import main
from wsss_blocks.data import (
    COCO,
    VOC2012,
    CamStoreWriter,
    WeakLabels,
    write_class_maps,
    write_coco_layout,
    write_mask,
)
from wsss_blocks.metrics import hash_masks, read_metrics

NAMES = ("cat", "dog", "cow")


@pytest.fixture
def folder(tmp_path):
    """Seven images of different sizes; one without classes, one in a folder, several formats."""
    g = torch.Generator().manual_seed(0)
    for i in range(7):
        name = ["a", "b c", "é", "sub/d", "e", "f", "g"][i]
        labels = torch.tensor([i % 2, i % 3 == 0, i == 5]).float()
        target = torch.randint(0, 4, (20 + i, 31 - i), generator=g)
        target[torch.rand(target.shape, generator=g) < 0.1] = 255
        # What the maps see is partly right.
        right = torch.stack([target[::4, ::4] == k for k in (1, 2, 3)])
        cam = (0.5 * right + torch.rand(right.shape, generator=g)).half().float()
        write_mask(tmp_path / "masks" / f"{name}.png", target)
        path = tmp_path / "maps" / f"{name}.npz"
        write_class_maps(path, cam, labels)
        torch.save((cam, labels, target), tmp_path / f"{i}.pt")
        if i in (1, 5):
            keys = labels.nonzero()[:, 0].numpy()
            path.unlink()
            irn = {"keys": keys, "cam": cam[keys].numpy()}
            psa = {int(k): cam[k].numpy() for k in keys}
            np.save(path.with_suffix(".npy"), irn if i == 1 else psa)
    return tmp_path


def images(folder, indices=range(7)):
    return [torch.load(folder / f"{i}.pt") for i in indices]


def by_hand(samples, normalize="minmax"):
    """Label at each threshold, count with numpy."""
    curve, iou = [], []
    for threshold in [t / 100 for t in range(100)]:
        confusion = np.zeros((4, 4), dtype=np.int64)
        for cam, labels, target in samples:
            label = cam_to_label(
                cam[None], labels[None], size=tuple(target.shape), threshold=threshold,
                normalize=normalize,
            )[0].numpy()  # fmt: skip
            truth = target.numpy()
            kept = truth < 255
            confusion += np.bincount(4 * truth[kept] + label[kept], minlength=16).reshape(4, 4)
        tp = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - tp
        iou.append(tp / union)
        curve.append((tp / union).mean())
    return np.array(curve), np.array(iou)


def sweep(folder, *more):
    out = folder / "out"
    arguments = [str(folder / "maps"), "--masks", str(folder / "masks"), "--names", "cat,dog,cow"]
    code = main(["sweep", *arguments, "--output", str(out), *map(str, more)])
    if code:
        return code, None, None
    run = json.loads((out / "sweep.json").read_text())
    return code, run["run"]["sweep"], read_metrics(out / "sweep.json")


@pytest.mark.parametrize("normalize", ["minmax", "none"])
def test_equals_a_loop_over_thresholds(folder, normalize):
    code, curve, recorded = sweep(folder, "--normalize", normalize, "--workers", 2)
    assert code == 0
    expected, iou = by_hand(images(folder), None if normalize == "none" else "minmax")
    np.testing.assert_allclose(curve["miou"], 100 * expected, atol=5.1e-5, rtol=0)
    assert curve["thresholds"] == [t / 100 for t in range(100)]
    best = int(expected.argmax())
    assert recorded.results["cam_best_miou"] == pytest.approx(expected[best], abs=1e-6)
    assert recorded.protocol["cam_best_miou"].threshold == best / 100
    for k, name in enumerate(("background", *NAMES)):
        found = curve["classes"][name]
        own = int(iou[:, k].argmax())
        assert found["iou"] == pytest.approx(100 * iou[best, k], abs=1e-4)
        assert found["own_threshold"] == own / 100
        assert found["iou_at_own_threshold"] == pytest.approx(100 * iou[own, k], abs=1e-4)
    for name in ("otsu", "mixture"):
        threshold = recorded.protocol[f"cam_{name}_miou"].threshold
        assert 0.05 < threshold < 0.95
        at = round(100 * threshold)
        assert recorded.results[f"cam_{name}_miou"] == pytest.approx(expected[at], abs=1e-6)
        assert "without masks" in recorded.protocol[f"cam_{name}_miou"].threshold_source


def test_workers_do_not_change_anything(folder):
    _, one, first = sweep(folder, "--workers", 1)
    _, four, second = sweep(folder, "--workers", 4)
    assert one == four
    assert first.results == second.results
    assert first.protocol == second.protocol
    assert torch.get_num_threads() == 1


def test_the_protocol_says_what_was_done(folder, capsys):
    _, _, recorded = sweep(
        folder, "--split", "val", "--scales", "1.0", "0.5", "--flip", "yes", "--refiner", "PAR"
    )
    protocol = recorded.protocol["cam_best_miou"]
    assert (protocol.dataset, protocol.split, protocol.num_images) == ("masks", "val", 7)
    assert protocol.labels_used
    assert (protocol.scales, protocol.flip, protocol.refiner) == ((1.0, 0.5), True, "PAR")
    assert protocol.threshold_source == "the scored masks of val (an oracle)"
    order = ["a", "b c", "e", "f", "g", "sub/d", "é"]
    masks = [np.array(Image.open(folder / "masks" / f"{name}.png")) for name in order]
    assert protocol.ground_truth_hash == hash_masks(torch.from_numpy(m) for m in masks)
    out = capsys.readouterr().out
    assert "masks val, 7 images, scales 1/0.5 (mean), flip" in out
    assert re.search(r"\n +0\.\d\d +\d+\.\d\d  the scored masks of val \(an oracle\)\n", out)
    assert re.search(r"\ncow +\d+\.\d\d +\d+\.\d\d  at 0\.\d\d\n", out)
    assert "an oracle's.\nChoose on training images" in out
    with Image.open(folder / "out" / "sweep.png") as picture:
        assert picture.format == "PNG"
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["sweep.json", "sweep.png"]


def test_labels_leave_out_stored_classes(folder, capsys):
    ids = ["a", "b c", "é", "sub/d", "e", "f", "g"]
    rows = {name: ["cat"] if name == "a" else [] for name in ids}
    rows["f"] = ["cat", "cow"]
    WeakLabels(NAMES, rows).save(folder / "labels.json")
    _, curve, _ = sweep(folder, "--labels", folder / "labels.json")
    samples = [
        (cam, labels * torch.tensor([float(n in rows[ids[i]]) for n in NAMES]), target)
        for i, (cam, labels, target) in enumerate(images(folder))
    ]
    expected, _ = by_hand(samples)
    np.testing.assert_allclose(curve["miou"], 100 * expected, atol=5.1e-5, rtol=0)
    assert curve["labelled_classes_without_maps"] == 1  # a shows no cat in its maps
    assert "1 times a class that" in capsys.readouterr().out
    WeakLabels(NAMES, {"a": []}).save(folder / "few.json")
    assert sweep(folder, "--labels", folder / "few.json")[0] == 2
    err = capsys.readouterr().err
    assert re.search(r"few.json has no row for 6 of 7 images, among them b c, e, f\.", err)


def test_missing_maps_are_an_error_unless_told_otherwise(folder, capsys):
    for name in ("a.npz", "b c.npy"):
        (folder / "maps" / name).unlink()
    assert sweep(folder)[0] == 2
    err = capsys.readouterr().err
    assert "2 of 7 images have no class maps" in err
    assert "among them a, b c; --allow-missing" in err
    assert not (folder / "out").exists()
    _, curve, recorded = sweep(folder, "--allow-missing")
    expected, _ = by_hand(images(folder, range(2, 7)))
    np.testing.assert_allclose(curve["miou"], 100 * expected, atol=5.1e-5, rtol=0)
    protocol = recorded.protocol["cam_best_miou"]
    assert (protocol.num_images, protocol.missing) == (5, 2)
    assert "2 images MISSING" in protocol.describe()
    for path in (folder / "maps").rglob("*.np?"):
        path.unlink()
    assert sweep(folder, "--allow-missing")[0] == 2
    assert "7 of 7 images have no class maps" in capsys.readouterr().err


def test_a_list_of_ids_chooses_the_images(folder):
    (folder / "ids.txt").write_text("a\ne\n")
    _, curve, recorded = sweep(folder, "--ids", folder / "ids.txt", "--flip", "no")
    expected, _ = by_hand(images(folder, [0, 4]))
    np.testing.assert_allclose(curve["miou"], 100 * expected, atol=5.1e-5, rtol=0)
    assert recorded.protocol["cam_best_miou"].num_images == 2
    stated = "2 images, scales not stated, no flip, refiner not stated, image labels USED"
    assert stated in recorded.protocol["cam_best_miou"].describe()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "maps" / "e.npz").write_bytes(b"PK"), "e.npz must hold class maps"),
        (lambda f: (f / "masks" / "e.png").write_bytes(b"\x89PNG"), "e.png cannot be read"),
        (
            lambda f: write_mask(f / "masks" / "e.png", torch.full((4, 4), 9)),
            r"e.npz with .*e.png: target must hold ids in \[0, 4\).*got 9",
        ),
        (
            lambda f: write_class_maps(f / "maps" / "e.npz", torch.rand(5, 2, 2), torch.ones(5)),
            r"e.npz with .*e.png: classes must be less than num_classes=3",
        ),
    ],
)
def test_what_is_broken_is_named(folder, capsys, spoil, message):
    spoil(folder)
    assert sweep(folder, "--workers", 2)[0] == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list((folder / "out").iterdir())


def stored(folder, dtype, indices=range(7), names=NAMES):
    """Put the maps of images into a store in the place of the files."""
    shutil.rmtree(folder / "maps")
    ids = ["a", "b c", "é", "sub/d", "e", "f", "g"]
    with CamStoreWriter(
        folder / "maps", ids, names, dtype=dtype, shard_size=3, progress=lambda line: None
    ) as writer:
        for i in indices:
            cam, labels, target = torch.load(folder / f"{i}.pt")
            writer.write(ids[i], cam, labels, image_size=tuple(target.shape))


@pytest.mark.parametrize("normalize", ["minmax", "none"])
def test_a_store_counts_like_its_files(folder, normalize):
    _, files, first = sweep(folder, "--normalize", normalize)
    stored(folder, "float16")
    _, store, second = sweep(folder, "--normalize", normalize, "--workers", 3)
    assert store == files  # the maps of the files are halves, too
    assert second.results == first.results
    assert second.protocol == first.protocol
    stored(folder, "uint8")
    _, rounded, _ = sweep(folder, "--normalize", normalize)
    assert rounded["miou"] != files["miou"]
    # Of the map's range of 255 steps, a threshold is passed half a step sooner or later.
    np.testing.assert_allclose(rounded["miou"], files["miou"], atol=1.0, rtol=0)


def test_a_store_that_is_not_written_to_its_end(folder, capsys):
    stored(folder, "float16", range(2, 7))
    assert sweep(folder)[0] == 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"2 of 7 images have no class maps in {folder / 'maps'}, among them a, b c; --al" in err
    _, curve, recorded = sweep(folder, "--allow-missing")
    expected, _ = by_hand(images(folder, range(2, 7)))
    np.testing.assert_allclose(curve["miou"], 100 * expected, atol=5.1e-5, rtol=0)
    protocol = recorded.protocol["cam_best_miou"]
    assert (protocol.num_images, protocol.missing) == (5, 2)
    (folder / "ids.txt").write_text("e\n")
    WeakLabels(NAMES, {"e": ["cow"]}).save(folder / "labels.json")
    _, curve, _ = sweep(folder, "--ids", folder / "ids.txt", "--labels", folder / "labels.json")
    assert curve["labelled_classes_without_maps"] == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dog", "cat", "cow"), "got 3: 'dog' in the place of 'cat'"),
        (("cat", "dog", "cow", "pig"), "of the 3 classes of the masks, in their order, got 4."),
    ],
)
def test_a_store_of_other_classes_is_refused(folder, capsys, names, message):
    shutil.rmtree(folder / "maps")
    with CamStoreWriter(folder / "maps", ["a"], names, progress=lambda line: None) as writer:
        writer.write("a", torch.rand(len(names), 2, 2), torch.ones(len(names)), image_size=(4, 4))
    assert sweep(folder)[0] == 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"{folder / 'maps'} must be a store of the 3 classes of the masks" in err
    assert message in err
    assert not (folder / "out").exists()


def test_a_damaged_store_is_named(folder, capsys):
    stored(folder, "float16")
    path = max((folder / "maps").glob("shard-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert sweep(folder)[0] == 2
    assert path.name in capsys.readouterr().err


def test_a_data_set_knows_its_masks_and_names(tmp_path, capsys):
    root = write_coco_layout(tmp_path, train=1, val=2)
    data = COCO(root, "val", with_masks=True)
    for sample in data:
        cam = torch.stack([(sample["mask"] == k).float() for k in range(1, 81)])
        write_class_maps(tmp_path / "maps" / f"{sample['id']}.npz", cam, sample["labels"])
    arguments = ["sweep", str(tmp_path / "maps"), "--data", "coco", "--root", str(root)]
    assert main([*arguments, "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "coco val, 2 images" in out
    assert "0.00  100.00  the scored masks of val (an oracle)" in out
    shown = {data.names[k] for s in data for k in s["labels"].nonzero()[:, 0]}
    for name in data.names:  # those that are not shown are not counted
        line = next(line for line in out.splitlines() if line.startswith(f"{name}  "))
        assert ("100.00" in line) == (name in shown)


def test_data_without_background_is_refused(folder, capsys):
    code = main(
        ["sweep", str(folder / "maps"), "--masks", str(folder / "masks"), "--names", "ade20k"]
    )
    assert code == 2
    assert "has no background: there is no threshold" in capsys.readouterr().err


def test_without_scikit_learn_the_mixture_is_left_out(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    _, _, recorded = sweep(folder)
    assert list(recorded.results) == ["cam_best_miou", "cam_otsu_miou"]
    assert "left out: mixture_threshold needs" in capsys.readouterr().err


def test_nothing_is_written_without_an_output(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(["sweep", "maps", "--masks", "masks", "--names", "cat,dog,cow"]) == 0
    assert sorted(folder.rglob("*")) == before
    assert main(["sweep", "gone", "--masks", "masks", "--names", "cat,dog,cow"]) == 2
    assert "no folder of class maps at gone" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    out = capsys.readouterr().out
    assert "wsss sweep cams --data voc --root VOCdevkit --split train" in out


@pytest.mark.real_data
def test_the_shared_subset_of_voc(shared_data, tmp_path, capsys):
    data = VOC2012(shared_data / "VOCdevkit", "val", with_masks=True)
    (tmp_path / "ids.txt").write_text("\n".join(data.ids[:12]))
    for i in range(12):
        sample = data[i]
        cam = torch.stack([(sample["mask"] == k).float() for k in range(1, 21)])
        write_class_maps(tmp_path / "maps" / f"{sample['id']}.npz", cam, sample["labels"])
    arguments = ["--data", "voc", "--root", str(shared_data / "VOCdevkit"), "--split", "val"]
    ids = ["--ids", str(tmp_path / "ids.txt")]
    assert main(["sweep", str(tmp_path / "maps"), *arguments, *ids]) == 0
    out = capsys.readouterr().out
    assert "voc val, 12 images" in out
    # The labels of the XML files name more than the masks show, never less.
    assert "100.00  the scored masks of val (an oracle)" in out
