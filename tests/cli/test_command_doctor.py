import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctor_trees import LAYOUTS, write_photo

from wsss_blocks.cli.commands.doctor import doctor
from wsss_blocks.cli.main import main
from wsss_blocks.data import WeakLabels
from wsss_blocks.data._doctor.kinds import KINDS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "doctor.md"


@pytest.fixture
def photos(tmp_path):
    return LAYOUTS["folder"](tmp_path / "my photos")


def test_clean_data_exits_0_and_says_what_was_read(photos, capsys):
    assert main(["doctor", str(photos.root)]) == 0
    out, err = capsys.readouterr()
    assert "folder layout, 2 classes" in out
    assert "train  4 images, 4 labelled, 4 masks" in out
    assert out.endswith("6 images read: nothing found.\n")
    assert err == ""


def test_findings_exit_1_and_are_written_as_json(photos, capsys, tmp_path):
    photos.image["a"].write_bytes(b"")
    report = tmp_path / "reports" / "found.json"
    assert main(["doctor", str(photos.root), "--json", str(report)]) == 1
    content = json.loads(report.read_text())
    assert content["counts"] == {"empty-file": 1}
    assert content["findings"][0]["path"] == str(photos.image["a"])
    assert content["complete"] is True
    assert content["splits"]["val"] == {"images": 2, "labelled": 2, "masks": 2}
    assert str(photos.image["a"]) in capsys.readouterr().out
    assert main(["doctor", str(photos.root), "--ignore", "grey", "empty-file"]) == 0


def test_options_reach_the_examination(tmp_path, capsys):
    tree = LAYOUTS["voc"](tmp_path / "voc")
    WeakLabels(("cat", "dog", "cow"), {"a": ["cow"]}).save(tmp_path / "labels.json")
    (tree.root / "SegmentationClass").rename(tmp_path / "masks")
    root, masks, labels = str(tree.root), str(tmp_path / "masks"), str(tmp_path / "labels.json")
    assert main(["doctor", root, "--names", "cat,dog", "--layout", "voc", "--masks", masks]) == 0
    options = ["--names", "cat,dog,cow", "--labels", labels, "--masks", masks, "--workers", "1"]
    assert main(["doctor", root, *options, "--ignore", "empty-class"]) == 1
    out = capsys.readouterr().out
    assert "file-without-label: 3 (" in out
    assert "label-not-in-mask: 1 (" in out


def test_all_prints_all(photos, capsys):
    for path in photos.image.values():
        path.write_bytes(b"")
    assert main(["doctor", str(photos.root)]) == 1
    assert "... and 1 more" in capsys.readouterr().out
    assert main(["doctor", str(photos.root), "--all"]) == 1
    out = capsys.readouterr().out
    assert "more" not in out
    assert all(str(path) in out for path in photos.image.values())


def test_what_cannot_be_examined_exits_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for options, text in (
        ([str(tmp_path / "gone")], "root must be a folder"),
        ([str(tmp_path / "empty")], "no images to examine"),
        ([str(tmp_path), "--ignore", "gray"], "ignore must be one of"),
        ([str(tmp_path), "--layout", "voc"], "no VOC 2012 layout"),
        ([str(tmp_path), "--workers", "0"], "workers must be at least 1"),
        ([str(tmp_path), "--names", "no-such"], "names must be one of"),
    ):
        assert main(["doctor", *options]) == 2
        assert f"wsss: {text}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(tmp_path), "--layout", "pascal"])
    assert stopped.value.code == 2


def test_a_terminal_gets_a_table(photos, capsys, monkeypatch):
    photos.image["a"].write_bytes(b"")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor", str(photos.root)]) == 1
    out = capsys.readouterr().out
    assert "what to do" in out
    assert "empty-file: 1" in out


def test_help_and_guide_explain_each_kind():
    guide = GUIDE.read_text(encoding="utf-8")
    for kind, (what, advice) in KINDS.items():
        assert f"    {kind:18} {what}\n" in (doctor.__doc__ or "")
        assert f"| `{kind}` | {what} | {advice} |\n" in guide
    assert guide.count("\n| `") == len(KINDS)


def run(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsss_blocks", "doctor", *map(os.fspath, args)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_cannot_be_printed(tmp_path, encoding):
    root = tmp_path / "Bilder (ü) 日本"
    names = ["café 日本.jpg", "new\nline.jpg"]
    try:
        write_photo(root / "cat" / os.fsdecode(b"caf\xe9.jpg"), seed=0).write_bytes(b"")
        names.append(os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pass  # this file system takes UTF-8 only
    for name in names:
        write_photo(root / "cat" / name, seed=1).write_bytes(b"")
    write_photo(root / "cat" / "fine.jpg", seed=1)
    done = run(root, "--json", tmp_path / "out.json", PYTHONIOENCODING=encoding)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"empty-file: {len(names)} (" in done.stdout
    assert "new\\nline.jpg" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())["findings"]
    assert {finding["path"] for finding in found} == {str(root / "cat" / name) for name in names}


SLOW = """
import pathlib, sys, time
from wsss_blocks.cli.main import main
from wsss_blocks.data import doctor

check = doctor.check_files

def slowly(item, names):
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(0.05)
    return check(item, names)

doctor.check_files = slowly
sys.exit(main(["doctor", sys.argv[1], "--workers", "2", "--json", sys.argv[3]]))
"""


def test_an_interrupt_ends_soon_with_what_was_found(tmp_path):
    for number in range(2000):
        path = tmp_path / "photos" / "cat" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    marker, report = tmp_path / "started", tmp_path / "report.json"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "photos"), str(marker), str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not marker.exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - sent < 30  # all of it would take 50 seconds
    assert "Traceback" not in err
    assert "images read, then interrupted: " in out
    content = json.loads(report.read_text())
    assert content["complete"] is False
    assert 0 < content["images"] < 2000
    assert content["counts"] == {"empty-file": content["images"]}
