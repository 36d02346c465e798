from dataclasses import replace

import pytest

from wsss_blocks.cli.main import main
from wsss_blocks.metrics import EvaluationProtocol, write_metrics

PROTOCOL = EvaluationProtocol(
    dataset="pets",
    split="val",
    num_images=3,
    scales=(1.0,),
    flip=False,
    refiner="none",
    labels_used=False,
)


def test_compares_two_files(tmp_path, capsys):
    boots = [
        {"level": 0.95, "low": 40, "high": 60, "replicates": [40.0 + d, 60.0 + d]} for d in (0, 3)
    ]
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_metrics(old, {"seg": 0.5, "cam": 0.4}, PROTOCOL, extra={"bootstrap": {"seg": boots[0]}})
    write_metrics(new, {"seg": 0.53, "crf": 0.6}, PROTOCOL, extra={"bootstrap": {"seg": boots[1]}})
    assert main(["compare", str(old), str(new)]) == 0
    out, err = capsys.readouterr()
    assert f"seg: {PROTOCOL.describe()}" in out
    assert "seg 50.00 53.00 +3.00 +3.00 to +3.00 (95%)" in " ".join(out.split())
    assert f"only in {old}: cam" in out
    assert f"only in {new}: crf" in out
    assert not err


def test_without_replicates_there_is_no_column_of_intervals(tmp_path, capsys):
    write_metrics(tmp_path / "a.json", {"seg": 0.5, "x": float("nan")}, PROTOCOL)
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "per cent    old    new  change" in lines
    assert "seg       50.00  50.00   +0.00" in lines
    assert "x             -      -       -" in lines


def test_refuses_other_protocols(tmp_path, capsys):
    write_metrics(tmp_path / "a.json", {"seg": 0.5}, PROTOCOL)
    write_metrics(tmp_path / "b.json", {"seg": 0.5}, replace(PROTOCOL, flip=True, refiner="CRF"))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "seg: flip False (old) and True (new)" in err
    assert "seg: refiner 'none' (old) and 'CRF' (new)" in err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    out = capsys.readouterr().out
    assert "wsss compare runs/baseline/metrics.json runs/mine/metrics.json" in out
    assert "Exit code 0" in out
