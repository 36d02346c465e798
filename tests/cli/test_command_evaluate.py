import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_blocks.cli import segment_files
from wsss_blocks.cli.main import main
from wsss_blocks.data import (
    COCO,
    COCO_NAMES,
    VOC2012,
    VOC_NAMES,
    WeakLabels,
    read_mask,
    write_coco_layout,
    write_mask,
    write_voc_layout,
)
from wsss_blocks.metrics import EvaluationProtocol, evaluate_masks, hash_masks, read_metrics
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter

NAMES = ["b c", "Straße", "a", "sub/ü 1", "d", "e", "f"]
CLASSES = ("cat", "dog", "cow")


def pair(seed, classes=4):
    rng = np.random.default_rng(seed)
    size = (20 + seed, 31 - seed)
    truth = np.kron(rng.integers(0, classes, (4, 4)), np.ones((8, 8))).astype(np.uint8)
    truth = np.resize(truth, size)
    pred = np.where(rng.random(size) < 0.1 * (seed + 1), rng.integers(0, classes, size), truth)
    truth[:2] = 255
    return pred.astype(np.uint8), truth


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        pred, truth = pair(i)
        write_mask(tmp_path / "pred" / f"{name}.png", pred)
        write_mask(tmp_path / "masks" / f"{name}.png", truth)
    return tmp_path


def run(folder, *more, names="cat,dog,cow", labels=("--image-labels", "not-used")):
    words = [folder / "pred", "--masks", folder / "masks", "--names", names, *labels]
    return main(["evaluate", *map(str, [*words, "--workers", 1, "--replicates", 50, *more])])


def confusion(pairs, classes=4):
    table = np.zeros((classes, classes), np.int64)
    for pred, truth in pairs:
        kept = truth != 255
        index = classes * truth[kept].astype(int) + pred[kept]
        table += np.bincount(index, minlength=classes**2).reshape(classes, classes)
    return table


def iou(table):
    tp = np.diag(table)
    with np.errstate(invalid="ignore"):
        return tp / (table.sum(0) + table.sum(1) - tp)


def shown(out, row):
    """Numbers of a row of the printed table."""
    line = next(line for line in out.splitlines() if re.match(rf"{re.escape(row)} +[\dn]", line))
    return [float(v) for v in re.findall(r"nan|\d+\.\d\d", line[len(row) :])]


def test_scores_of_a_folder(folder, capsys):
    assert run(folder, "--output", folder / "out é") == 0
    out, err = capsys.readouterr()
    assert err == ""
    table = confusion(pair(i) for i in range(7))
    expected = iou(table)
    for k, name in enumerate(("background", *CLASSES)):
        numbers = shown(out, name)
        assert numbers[0] == pytest.approx(100 * expected[k], abs=5.1e-3)
        assert numbers[1] == pytest.approx(100 * table[k, k] / table[:, k].sum(), abs=5.1e-3)
        assert numbers[2] == pytest.approx(100 * table[k, k] / table[k].sum(), abs=5.1e-3)
    miou, low, high = shown(out, "mIoU")[:3]
    assert miou == pytest.approx(100 * expected.mean(), abs=5.1e-3)
    assert low < miou < high
    assert shown(out, "pixel accuracy")[0] == pytest.approx(
        100 * np.diag(table).sum() / table.sum(), abs=5.1e-3
    )
    first = out.splitlines()[0]
    assert first.startswith(
        "masks val, 7 images, scales not stated, flip not stated, refiner not stated, "
        "image labels not used, absent both, ignore 255, masks "
    )
    written = sorted(p.name for p in (folder / "out é").iterdir())
    assert written == ["images.csv", "metrics.json", "report.html"]


def test_metrics_can_be_read_back_and_compared(folder, capsys):
    assert run(folder, "--output", folder / "one") == 0
    out = capsys.readouterr().out
    found = read_metrics(folder / "one" / "metrics.json")
    expected = iou(confusion(pair(i) for i in range(7)))
    results = found.results
    assert results["segmentation/miou"] == pytest.approx(expected.mean(), abs=1e-6)
    for k, name in enumerate(("background", *CLASSES)):
        assert results[f"segmentation/iou/{name}"] == pytest.approx(expected[k], abs=1e-6)
        assert 0 < results[f"segmentation/boundary/{name}"] < 1
    total = sum(results[f"segmentation/{k}"] for k in ("miou", "mfpr", "mfnr"))
    assert total == pytest.approx(1, abs=2e-6)
    protocol = found.protocol["segmentation"]
    assert protocol.describe() == out.splitlines()[0]
    order = sorted(NAMES)
    truths = [torch.from_numpy(pair(NAMES.index(name))[1]) for name in order]
    assert protocol.ground_truth_hash == hash_masks(truths)
    interval = found.run["bootstrap"]["segmentation"]
    assert interval["low"] < 100 * expected.mean() < interval["high"]
    assert len(interval["replicates"]) == 50

    assert run(folder, "--output", folder / "two") == 0
    again = read_metrics(folder / "two" / "metrics.json")
    assert again.results == results
    assert again.protocol == found.protocol
    files = [str(folder / run / "metrics.json") for run in ("one", "two")]
    assert main(["compare", *files]) == 0
    assert run(folder, "--output", folder / "two", labels=("--image-labels", "used")) == 0
    assert main(["compare", *files]) == 2
    assert "labels_used" in capsys.readouterr().err


def test_the_page_and_the_list_of_images(folder, capsys):
    assert run(folder, "--output", folder / "out") == 0
    out = capsys.readouterr().out
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    for name in ("background", *CLASSES, "mIoU"):
        for number in shown(out, name):
            assert f"{number:.2f}" in page
    assert out.splitlines()[0] in page
    assert "http" not in page
    assert "<script" not in page
    with (folder / "out" / "images.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["id", "mIoU in per cent"]
    assert sorted(name for name, _ in rows) == sorted(NAMES)
    values = [float(v) for _, v in rows]
    assert values == sorted(values)
    for name, value in rows:
        table = confusion([pair(NAMES.index(name))])
        with np.errstate(invalid="ignore"):
            expected = 100 * np.nanmean(iou(table))
        assert float(value) == pytest.approx(expected, abs=5.1e-3)
        assert page.count(f"<b>{name}</b> mIoU {value} of this image") == 1
    at = [page.index(f"<b>{name}</b>") for name, _ in rows]
    assert at == sorted(at)  # worst first


def test_only_the_worst_and_the_best_are_on_the_page(tmp_path, capsys):
    truth = np.zeros((10, 10), np.uint8)
    truth[5:] = 1
    for i in range(20):
        pred = truth.copy()
        pred.ravel()[:i] = 1
        write_mask(tmp_path / "pred" / f"{i:02}.png", pred)
        write_mask(tmp_path / "masks" / f"{i:02}.png", truth)
    for i in range(20):
        Image.new("RGB", (10, 10), (i, 2, 3)).save(tmp_path / f"{i:02}.jpg")
    output = ("--output", tmp_path / "out", "--images", tmp_path)
    assert run(tmp_path, *output, names="cat,dog") == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    named = re.findall(r"<figcaption><b>(\d\d)</b>", page)
    assert named == [*["19", "18", "17", "16", "15", "14"], *["05", "04", "03", "02", "01", "00"]]
    assert page.count('alt="image of') == 12
    dog = shown(capsys.readouterr().out, "dog")
    assert np.isnan(dog).all()


def test_photographs_are_shown_if_they_are_given(folder):
    photos = folder / "photos"
    for i, name in enumerate(NAMES):
        path = photos / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (31 - i, 20 + i)).save(path)
    assert run(folder, "--output", folder / "out") == 0
    assert 'alt="image of' not in (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert run(folder, "--output", folder / "out", "--images", photos) == 0
    assert 'alt="image of Straße"' in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_what_predictions_say_of_themselves(folder, capsys):
    stated = {
        "dataset": "other", "split": "train", "num_images": 3, "scales": [1.0, 0.5], "flip": True,
        "refiner": "PAR", "labels_used": True, "ground_truth_hash": "0" * 16, "threshold": 0.4,
        "threshold_source": "preset",
    }  # fmt: skip
    (folder / "pred" / "protocol.json").write_text(json.dumps({"line": "x", **stated}))
    assert run(folder, labels=()) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "masks val, 7 images, scales 1/0.5 (mean), flip (mean), refiner PAR, image labels USED, "
        "threshold 0.4 from preset, absent both"
    )
    assert "0000" not in out.splitlines()[0]
    more = ("--scales", "1.0", "--flip", "no", "--refiner", "CRF(10)", "--split", "test")
    assert run(folder, *more) == 0
    expected = "masks test, 7 images, scales 1, no flip, refiner CRF(10), image labels not used"
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize(
    "content", ["{", "[1]", "3", '{"labels_used": true, "no such": 1}', '{"scales": "x"}']
)
def test_a_broken_protocol_is_named(folder, capsys, content):
    (folder / "pred" / "protocol.json").write_text(content)
    assert run(folder) == 2
    err = capsys.readouterr().err
    assert re.search(r"protocol\.json must hold a protocol, got: ", err), err


def test_somebody_has_to_say_whether_labels_were_used(folder, capsys):
    assert run(folder, "--output", folder / "out", labels=()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wsss: say whether the labels of the scored images were used")
    assert "--image-labels used, or not-used" in err
    assert not (folder / "out").exists()


def test_missing_predictions_are_errors_unless_told_otherwise(folder, capsys):
    for name in ("a", "d"):
        (folder / "pred" / f"{name}.png").unlink()
    assert run(folder, "--output", folder / "out") == 2
    err = capsys.readouterr().err
    assert "2 of 7 images have no prediction ID.png in" in err
    assert "among them a, d; --allow-missing scores the others." in err
    assert not (folder / "out").exists()
    assert run(folder, "--allow-missing", "--output", folder / "out") == 0
    out = capsys.readouterr().out
    assert "masks val, 5 images" in out
    assert "2 images MISSING" in out
    expected = iou(confusion(pair(NAMES.index(n)) for n in NAMES if n not in "ad")).mean()
    assert shown(out, "mIoU")[0] == pytest.approx(100 * expected, abs=5.1e-3)
    protocol = read_metrics(folder / "out" / "metrics.json").protocol["segmentation"]
    assert (protocol.missing, protocol.num_images) == (2, 5)
    for path in (folder / "pred").rglob("*.png"):
        path.unlink()
    assert run(folder, "--allow-missing") == 2
    assert "7 of 7 images have no prediction" in capsys.readouterr().err


def test_undecided_pixels(folder, capsys):
    pairs = [pair(i) for i in range(7)]
    for i, name in enumerate(NAMES):
        pairs[i][0][5:9, :7] = 255
        write_mask(folder / "pred" / f"{name}.png", pairs[i][0])
    assert run(folder) == 2
    err = capsys.readouterr().err
    assert re.search(r"\.png must hold ids in \[0, 4\).*got \[255\] \(undecided pixels:", err)
    ignored = [(p, np.where(p == 255, 255, t)) for p, t in pairs]
    background = [(np.where(p == 255, 0, p), t) for p, t in pairs]
    for rule, expected in (("ignored", ignored), ("background", background)):
        assert run(folder, "--undecided", rule) == 0
        out = capsys.readouterr().out
        assert f"undecided pixels {rule}" in out.splitlines()[0]
        miou = iou(confusion(expected)).mean()
        assert shown(out, "mIoU")[0] == pytest.approx(100 * miou, abs=5.1e-3)


def test_options_that_leave_out(folder, capsys):
    output = ("--output", folder / "out")
    for options, shows in (
        ((), False),
        (("--boundary", "yes"), True),
        (output, True),
        (
            (*output, "--boundary", "no"),
            False,
        ),
    ):
        assert run(folder, *options) == 0
        assert ("boundary" in capsys.readouterr().out) == shows
    assert run(folder, "--replicates", 0) == 0
    out = capsys.readouterr().out
    assert "resamplings" not in out
    assert len(shown(out, "mIoU")) == 1
    (folder / "ids.txt").write_text("a\ne\n")
    assert run(folder, "--ids", folder / "ids.txt") == 0
    out = capsys.readouterr().out
    assert "masks val, 2 images" in out
    expected = iou(confusion(pair(NAMES.index(n)) for n in "ae")).mean()
    assert shown(out, "mIoU")[0] == pytest.approx(100 * expected, abs=5.1e-3)


def test_absent_classes(tmp_path, capsys):
    truth = np.zeros((6, 6), np.uint8)
    truth[3:] = 1
    pred = truth.copy()
    pred[0] = 2
    for name, mask in (("pred", pred), ("masks", truth)):
        write_mask(tmp_path / name / "a.png", mask)
    for rule, expected in (("both", (2 / 3 + 1 + 0) / 3), ("target", (2 / 3 + 1) / 2)):
        assert run(tmp_path, "--absent", rule) == 0
        out = capsys.readouterr().out
        assert f"absent {rule}" in out.splitlines()[0]
        assert shown(out, "mIoU")[0] == pytest.approx(100 * expected, abs=5.1e-3)


def test_processes_do_not_change_anything(tmp_path, capsys):
    for i in range(140):  # more than one process is handed at once
        truth = np.full((4, 5), i % 3, np.uint8)
        write_mask(tmp_path / "masks" / f"{i}.png", truth)
        write_mask(tmp_path / "pred" / f"{i}.png", np.roll(truth, i) * (i % 7 > 0))
    assert run(tmp_path, "--workers", 2) == 0
    out = capsys.readouterr().out
    assert run(tmp_path, "--workers", 1) == 0
    assert capsys.readouterr().out == out


def assert_perfect(out, head, classes):
    assert out.splitlines()[0].startswith(head)
    assert shown(out, "mIoU")[0] == 100
    assert shown(out, "boundary IoU")[0] == 100
    for name in classes:
        assert shown(out, name)[0] == 100


def written(data, folder):
    """Predict the truth; return the names of the classes that occur."""
    found = set()
    for sample in data:
        write_mask(folder / f"{sample['id']}.png", sample["mask"].clamp_max(254) % 254)
        found |= set(sample["mask"].unique().tolist()) - {0, 255}
    return [data.names[k - 1] for k in found]


def test_voc(tmp_path, capsys):
    root = write_voc_layout(tmp_path, train=1, val=3, names=VOC_NAMES)
    present = written(VOC2012(tmp_path, "val", with_masks=True), tmp_path / "pred")
    words = ["--data", "voc", "--root", root.parent, "--image-labels", "not-used"]
    assert main(["evaluate", *map(str, [tmp_path / "pred", *words, "--output", tmp_path])]) == 0
    assert_perfect(capsys.readouterr().out, "voc val, 3 images", present)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'alt="image of val_00000"' in page


def test_coco(tmp_path, capsys):
    root = write_coco_layout(tmp_path, train=1, val=2)
    present = written(COCO(root, "val", with_masks=True), tmp_path / "pred")
    words = ["--data", "coco", "--root", root, "--image-labels", "used"]
    assert main(["evaluate", *map(str, [tmp_path / "pred", *words, "--output", tmp_path])]) == 0
    out = capsys.readouterr().out
    assert_perfect(out, "coco val, 2 images", present)
    absent = set(COCO_NAMES) - set(present)
    assert all(np.isnan(shown(out, name)).all() for name in absent)


def test_a_folder_data_set(tmp_path, capsys):
    for i in range(3):
        pred, truth = pair(i)
        (tmp_path / "val" / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", truth.shape[::-1]).save(tmp_path / "val" / "images" / f"ä {i}.jpg")
        write_mask(tmp_path / "val" / "masks" / f"ä {i}.png", truth)
        write_mask(tmp_path / "pred" / f"ä {i}.png", pred)
    rows = {f"ä {i}": ["cat"] for i in range(3)}
    WeakLabels(CLASSES, rows).save(tmp_path / "val" / "labels.json")
    words = ["--data", "folder", "--root", tmp_path, "--image-labels", "used"]
    assert main(["evaluate", *map(str, [tmp_path / "pred", *words])]) == 0
    out = capsys.readouterr().out
    expected = iou(confusion(pair(i) for i in range(3))).mean()
    assert shown(out, "mIoU")[0] == pytest.approx(100 * expected, abs=5.1e-3)
    assert out.startswith("folder val, 3 images")


def test_data_without_background(tmp_path, capsys):
    """0 in the files means nothing there; in predictions it is a mistake as any other."""
    (tmp_path / "images" / "validation").mkdir(parents=True)
    truth = np.zeros((12, 10), np.uint8)
    truth[:, 2:6], truth[:, 6:] = 1, 150
    pred = truth.copy()
    pred[:, :2], pred[:6, 2:4], pred[:6, 8:] = 7, 0, 1
    for i in range(2):
        name = f"ADE_val_0000000{i}"
        Image.new("RGB", (10, 12)).save(tmp_path / "images" / "validation" / f"{name}.jpg")
        write_mask(tmp_path / "annotations" / "validation" / f"{name}.png", truth)
        write_mask(tmp_path / "pred" / f"{name}.png", pred)
    words = ["--data", "ade20k", "--root", tmp_path, "--image-labels", "not-used"]
    assert main(["evaluate", *map(str, [tmp_path / "pred", *words, "--output", tmp_path])]) == 0
    out = capsys.readouterr().out
    assert "absent target" in out.splitlines()[0]
    wall, flag = shown(out, "wall")[0], shown(out, "flag")[0]
    assert (wall, flag) == (60.0, 75.0)  # 36 of 48 + 12; 36 of 48
    assert shown(out, "mIoU")[0] == 67.5
    assert np.isnan(shown(out, "(no class)")[0])
    found = read_metrics(tmp_path / "metrics.json")
    assert found.results["segmentation/miou"] == pytest.approx(0.675)
    assert (tmp_path / "report.html").is_file()


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=21, hidden_dim=16).eval()
    protocol = EvaluationProtocol(
        dataset="pets", split="train", num_images=9, scales=(1.0,), flip=True, refiner="none",
        labels_used=False, text="stand-in",
    )  # fmt: skip
    return Segmenter(network, names=VOC_NAMES, protocol=protocol)


def test_a_segmenter_scores_as_evaluate_masks_does(segmenter, tmp_path, capsys):
    root = write_voc_layout(tmp_path, train=1, val=3, names=VOC_NAMES)
    data = VOC2012(tmp_path, "val", with_masks=True)
    file = tmp_path / "segmenter.safetensors"
    segmenter.save(file)
    words = ["--data", "voc", "--root", tmp_path, "--replicates", 20]
    out_dir = tmp_path / "out"
    assert main(["evaluate", *map(str, [file, *words, "--output", out_dir])]) == 0
    out = capsys.readouterr().out
    where = {name: root / "JPEGImages" / f"{name}.jpg" for name in data.ids}
    expected = evaluate_masks(
        lambda s: segmenter.segment(where[s["id"]]).mask, data, num_classes=21
    ).compute()
    found = read_metrics(out_dir / "metrics.json")
    assert found.results["segmentation/miou"] == pytest.approx(expected.miou, abs=1e-6)
    assert found.results["segmentation/boundary_iou"] == pytest.approx(
        expected.boundary.mean, abs=1e-6
    )
    protocol = found.protocol["segmentation"]
    assert (protocol.dataset, protocol.split, protocol.num_images) == ("voc", "val", 3)
    assert (protocol.flip, protocol.text) == (True, "stand-in")
    assert protocol.ground_truth_hash == hash_masks(s["mask"] for s in data)
    assert "voc val, 3 images, scales 1, flip (mean), refiner none, image labels not used" in out

    # Its masks as files, with the protocol that `wsss segment` writes beside them.
    segment_files(segmenter, list(where.values()), output=tmp_path / "pred")
    again = tmp_path / "again"
    assert main(["evaluate", *map(str, [tmp_path / "pred", *words, "--output", again])]) == 0
    from_files = read_metrics(again / "metrics.json")
    assert from_files.results == found.results
    assert from_files.protocol == found.protocol


def test_a_segmenter_that_does_not_fit(segmenter, folder, capsys):
    file = folder / "segmenter.safetensors"
    segmenter.save(file)
    masks = ["--masks", folder / "masks", "--names"]

    def refused(*words):
        assert main(["evaluate", *map(str, [file, *masks, *words])]) == 2
        return capsys.readouterr().err

    assert "a segmenter needs photographs" in refused("voc")
    assert "a segmenter says itself how it predicts" in refused("voc", "--flip", "no")
    for i, name in enumerate(NAMES):
        path = folder / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (31 - i, 20 + i)).save(path)
    err = refused("cat,dog", "--images", folder / "photos")
    assert (
        "knows 20 classes (aeroplane, bicycle, bird, ...), the masks have 2 (cat, dog, ...)" in err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone", "--masks", "masks", "--names", "a,b,c"], "no segmenter, at gone"),
        (["pred", "--masks", "masks"], "--names must say what the ids in --masks mean"),
        (["pred", "--masks", "gone", "--names", "a,b"], "no folder of masks at gone"),
        (["pred"], "either --data and --root, or --masks"),
        (["pred", "--data", "voc", "--masks", "masks"], "either --data and --root, or --masks"),
        (["pred", "--data", "voc"], "root must be given for 'voc' data"),
        (["pred", "--data", "voc", "--root", "."], "no "),
        (["pred", "--masks", "empty", "--names", "a,b"], r"no masks \(\*\.png\) in empty"),
        (["pred", "--masks", "masks", "--names", "a"], "names must be one of voc, coco"),
        (["pred", "--masks", "masks", "--names", "a,b"], r"must hold ids in \[0, 3\).*got \[3\]"),
        (["pred", "--masks", "masks", "--names", "a,b,c", "--replicates", "1"], "replicates must"),
        (["pred", "--masks", "masks", "--names", "a,b,c", "--workers", "-1"], "workers must be at"),
        (["pred", "--masks", "masks", "--names", "a,b,c", "--ids", "gone.txt"], "no id list at"),
    ],
)
def test_errors_are_one_line_and_write_nothing(folder, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    said = [] if "--workers" in words else ["--workers", "1"]
    assert main(["evaluate", *words, *said, "--image-labels", "used", "--output", "out"]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("wsss: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(folder.rglob("*")) == before


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "wsss evaluate predictions --masks masks --names cat,dog --image-labels not-used" in out
    assert "--allow-missing" in out
    assert "Exit code 0: done; 2: could not be done" in out


@pytest.mark.real_data
def test_shifted_voc(shared_data, tmp_path, capsys):
    root = shared_data / "VOCdevkit"
    ids = (root / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()[:40]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    pairs = []
    for name in ids:
        truth = read_mask(root / "VOC2012" / "SegmentationClass" / f"{name}.png").numpy()
        pred = np.roll(np.where(truth == 255, 0, truth), (5, 8), (0, 1))
        write_mask(tmp_path / "pred" / f"{name}.png", torch.from_numpy(pred))
        pairs.append((pred, truth))
    words = ["--data", "voc", "--root", root, "--ids", tmp_path / "ids.txt", "--replicates", 100]
    command = [tmp_path / "pred", *words, "--image-labels", "not-used", "--output", tmp_path]
    assert main(["evaluate", *map(str, [*command, "--workers", 1])]) == 0
    out = capsys.readouterr().out
    expected = iou(confusion(pairs, 21))
    found = read_metrics(tmp_path / "metrics.json")
    assert found.results["segmentation/miou"] == pytest.approx(np.nanmean(expected), abs=1e-6)
    assert found.results["segmentation/iou/cat"] == pytest.approx(
        expected[1 + VOC_NAMES.index("cat")], abs=1e-6, nan_ok=True
    )
    assert 0 < found.results["segmentation/boundary_iou"] < found.results["segmentation/miou"]
    assert out.startswith("voc val, 40 images")
    assert (tmp_path / "report.html").stat().st_size > 100_000
