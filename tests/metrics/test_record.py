import json
import math
import shlex
import subprocess
import sys

import pytest
import torch

from wsss_blocks.metrics import (
    EvaluationProtocol,
    SegmentationEvaluator,
    hardware,
    read_metrics,
    record,
    write_metrics,
)

CAM = EvaluationProtocol(
    dataset="scenes",
    split="val",
    num_images=200,
    scales=(1.0, 0.5),
    flip=True,
    refiner="none",
    labels_used=True,
    threshold=0.4,
    threshold_source="preset",
)
SEGMENTER = EvaluationProtocol(
    dataset="scenes",
    split="val",
    num_images=200,
    scales=(1.0,),
    flip=False,
    refiner="none",
    labels_used=False,
)


def some_scores():
    evaluator = SegmentationEvaluator(3, names=["background", "cat", "dog"])
    evaluator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    return evaluator.compute()


def test_writes_per_cent_with_protocol_and_run(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    write_metrics(
        path,
        {"cam": 0.4125, "segmentation": some_scores()},
        {"cam": CAM, "segmentation": SEGMENTER},
        seed=3,
        command="train --seed 3",
        extra={"minutes": 2.5},
    )
    content = json.loads(path.read_text())
    assert content["unit"] == "per cent"
    assert content["results"]["cam"] == 41.25
    assert content["results"]["segmentation"] == {
        "miou": 50.0,
        "mfpr": 25.0,
        "mfnr": 25.0,
        "pixel_accuracy": 66.6667,
        "iou": {"background": 50.0, "cat": 50.0, "dog": None},
    }
    assert content["protocol"]["cam"]["line"] == CAM.describe()
    assert content["protocol"]["segmentation"]["labels_used"] is False
    assert content["run"]["seed"] == 3
    assert content["run"]["command"] == "train --seed 3"
    assert content["run"]["minutes"] == 2.5
    assert content["run"]["hardware"] == hardware()
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_reads_fractions_back(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"cam": math.nan, "segmentation": some_scores()}, SEGMENTER)
    recorded = read_metrics(path)
    assert math.isnan(recorded.results["cam"])
    assert recorded.results["segmentation/miou"] == 0.5
    assert math.isnan(recorded.results["segmentation/iou/dog"])
    assert recorded.results["segmentation/pixel_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert recorded.protocol == {"cam": SEGMENTER, "segmentation": SEGMENTER}
    assert recorded.run["command"] == shlex.join(sys.argv)


def test_a_number_without_a_protocol_is_refused(tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(TypeError, match="protocol"):
        write_metrics(path, {"miou": 0.5})
    for wrong in (None, "VOC val", {"miou": "VOC val"}):
        with pytest.raises(TypeError, match="protocol must be an EvaluationProtocol"):
            write_metrics(path, {"miou": 0.5}, wrong)
    with pytest.raises(ValueError, match=r"protocol must name the results \['cam', 'miou'\]"):
        write_metrics(path, {"miou": 0.5, "cam": 0.4}, {"miou": SEGMENTER})
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (50.0, ValueError, r"results\['miou'\] must be a fraction in \[0, 1\], got 50"),
        (-0.1, ValueError, "must be a fraction"),
        ("0.5", TypeError, "must be a number or scores"),
        (True, TypeError, "must be a number or scores"),
    ],
)
def test_wrong_results(tmp_path, value, error, message):
    with pytest.raises(error, match=message):
        write_metrics(tmp_path / "metrics.json", {"miou": value}, SEGMENTER)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"miou": 0.5}, SEGMENTER)
    before = path.read_text()
    with pytest.raises(TypeError):
        write_metrics(path, {"miou": 0.6}, SEGMENTER, extra={"model": object()})
    with pytest.raises(ValueError, match="JSON"):
        write_metrics(path, {"miou": 0.6}, SEGMENTER, extra={"loss": math.nan})
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_other_files_are_not_read_as_metrics(tmp_path):
    path = tmp_path / "metrics.json"
    for text in ("{}", "[1]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be a file written by write_metrics"):
            read_metrics(path)


def test_hardware_names_the_cpu_and_the_threads():
    facts = hardware()
    assert facts["cpu"]
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())
    json.dumps(facts)


def test_the_commit_of_a_clone_is_recorded_and_an_installed_library_has_none(tmp_path, monkeypatch):
    path = tmp_path / "lib" / "src" / "wsss_blocks" / "metrics" / "record.py"
    monkeypatch.setattr(record, "__file__", str(path))
    assert record._commit() is None
    git = ["git", "-C", str(tmp_path / "lib"), "-c", "user.name=a", "-c", "user.email=a@b"]
    path.parent.mkdir(parents=True)
    path.write_text("1")
    subprocess.run(["git", "init", "-q", str(tmp_path / "lib")], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    found = record._commit()
    assert found
    assert done.stdout.startswith(found)
    path.write_text("2")
    assert record._commit() == f"{found}-dirty"
