import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_blocks.cli import MaskFiles, _mask_pairs, evaluate_files
from wsss_blocks.metrics import SplitEvaluator, hash_masks

CLASSES = 5


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def masks(seed):
    """Prediction and truth: regions, or noise that is not worth cutting into runs."""
    rng = np.random.default_rng(seed)
    size = (17 + seed % 3, 64)
    truth = rng.integers(0, CLASSES, size, dtype=np.uint8)
    if seed % 2:
        truth = np.kron(truth[:4, :2], np.ones((5, 32), np.uint8))[: size[0]]
        pred = truth.copy()
        pred[8, 20:23] = 1
    else:
        pred = np.where(rng.random(size) < 0.02, 1, truth).astype(np.uint8)
    truth[:2, :5] = 255
    return pred, truth


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Twelve pairs; three to a process at once."""
    monkeypatch.setattr(_mask_pairs, "_AT_ONCE", 3)
    found = []
    for i in range(12):
        pred, truth = masks(i)
        name = f"Bild {i} ß"
        found.append(
            MaskFiles(
                name,
                save(tmp_path / "pre dictions" / f"{name}.png", pred),
                save(tmp_path / "truth" / f"{name}.png", truth),
            )
        )
    return found


def scored(files, **options):
    settings = {k: options.pop(k) for k in ("undecided", "boundary") if k in options}
    evaluator = SplitEvaluator(CLASSES, replicates=10, **settings)
    return evaluate_files(files, evaluator, **options), evaluator


def assert_equal(one, other):
    assert one.compute().images == other.compute().images
    assert torch.equal(one.regions.counts, other.regions.counts)
    assert torch.equal(one.bootstrap.counts, other.bootstrap.counts)
    if one.boundary is not None:
        assert torch.equal(one.boundary.counts, other.boundary.counts)


@pytest.mark.parametrize("boundary", [True, False])
def test_equals_the_evaluator_on_tensors(files, boundary):
    expected = SplitEvaluator(CLASSES, replicates=10, boundary=boundary)
    truths = []
    for i, pair in enumerate(files):
        pred, truth = map(torch.from_numpy, masks(i))
        expected.update(pair.id, pred, truth)
        truths.append(truth)
    seen = []

    def watch(pairs):
        for pair in pairs:
            seen.append(pair.id)
            yield pair

    digest, found = scored(files, boundary=boundary, watch=watch)
    assert_equal(found, expected)
    assert digest == hash_masks(truths)
    assert seen == [pair.id for pair in files]


def test_processes_change_nothing(files):
    digest, one = scored(files)
    other_digest, three = scored(files, workers=3)
    assert digest == other_digest
    assert_equal(one, three)
    assert not multiprocessing.active_children()


def test_more_workers_than_files(files):
    assert scored(files[:2], workers=50)[0] == scored(files[:2])[0]
    digest, nothing = scored([], workers=2)
    assert digest == hash_masks([])
    assert nothing.compute().images == ()


@pytest.mark.parametrize("rule", ["ignored", "background"])
def test_undecided_pixels_mean_what_they_mean_in_memory(files, rule):
    expected = SplitEvaluator(CLASSES, replicates=10, undecided=rule)
    for i, pair in enumerate(files):
        pred, truth = masks(i)
        if i % 3:
            pred[5:9, 3:8] = 255
        save(pair.prediction, pred)
        expected.update(pair.id, torch.from_numpy(pred), torch.from_numpy(truth))
    digest, found = scored(files, undecided=rule)
    assert_equal(found, expected)
    assert digest == scored(files, undecided="background")[0]  # of the truth as it is


def test_a_lookup_translates_the_truth_alone(files):
    raw = np.full(256, 254, np.uint8)
    raw[[*range(CLASSES), 255]] = [*(10 * k + 7 for k in range(CLASSES)), 255]
    lookup = torch.full((256,), 255, dtype=torch.uint8)
    lookup[[10 * k + 7 for k in range(CLASSES)]] = torch.arange(CLASSES, dtype=torch.uint8)
    expected = scored(files)
    for i, pair in enumerate(files):
        save(pair.truth, raw[masks(i)[1]])
    for workers in (1, 2):
        digest, found = scored(files, lookup=lookup, workers=workers)
        assert digest == expected[0]
        assert_equal(found, expected[1])
    save(files[4].truth, np.full((17 + 4 % 3, 64), 300, np.uint16))
    with pytest.raises(ValueError, match=r"Bild 4 ß\.png must hold ids in \[0, 256\), got 300"):
        scored(files, lookup=lookup)


def test_masks_of_16_bits(files):
    expected = scored(files)
    for i, pair in enumerate(files):
        pred, truth = (m.astype(np.uint16) for m in masks(i))
        save(pair.prediction, pred)
        save(pair.truth, truth)
    digest, found = scored(files)
    assert digest == expected[0]
    assert_equal(found, expected[1])


FAULTS = {
    "a missing prediction": (
        lambda pair: pair.prediction.unlink(),
        FileNotFoundError,
        r"no image at .*pre dictions.Bild 7 ß\.png",
    ),
    "a missing truth": (
        lambda pair: pair.truth.unlink(),
        FileNotFoundError,
        r"no image at .*truth.Bild 7 ß\.png",
    ),
    "another size": (
        lambda pair: save(pair.prediction, np.zeros((9, 4), np.uint8)),
        ValueError,
        r"Bild 7 ß\.png must have the size \(18, 64\) of .*Bild 7 ß\.png, got \(9, 4\)",
    ),
    "an impossible prediction": (
        lambda pair: save(pair.prediction, np.full((18, 64), 77, np.uint8)),
        ValueError,
        r"pre dictions.Bild 7 ß\.png must hold ids in \[0, 5\) wherever the truth is not 255, "
        r"got \[77\]\.",
    ),
    "an undecided prediction": (
        lambda pair: save(pair.prediction, np.full((18, 64), 255, np.uint8)),
        ValueError,
        r"Bild 7 ß\.png must hold .*got \[255\] \(undecided pixels: score them as background",
    ),
    "an impossible truth": (
        lambda pair: save(pair.truth, np.full((18, 64), 9, np.uint8)),
        ValueError,
        r"truth.Bild 7 ß\.png must hold ids in \[0, 5\).*got \[9\]\.",
    ),
    "a broken file": (
        lambda pair: pair.prediction.write_bytes(pair.prediction.read_bytes()[:70]),
        OSError,
        r"Bild 7 ß\.png cannot be read as an image",
    ),
    "a colour picture": (
        lambda pair: save(pair.prediction, np.zeros((18, 64, 3), np.uint8)),
        ValueError,
        r"Bild 7 ß\.png must be an indexed or grey mask of class ids, got mode 'RGB'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_the_file(files, fault):
    spoil, error, message = FAULTS[fault]
    spoil(files[7])
    with pytest.raises(error, match=message):
        scored(files)


def test_errors_come_from_processes_too(files):
    spoilt = ["a missing prediction", "an undecided prediction", "a broken file"]
    content = files[7].prediction.read_bytes()
    for fault in spoilt:
        spoil, error, message = FAULTS[fault]
        spoil(files[7])
        with pytest.raises(error, match=message):
            scored(files, workers=2)
        assert not multiprocessing.active_children()
        files[7].prediction.write_bytes(content)


def test_wrong_workers(files):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        scored(files, workers=0)


class Pool:
    """Runs at once what it is given, and remembers how much nobody has taken."""

    waiting = most = total = 0
    cancelled = False

    def __init__(self, workers, context, initializer):
        assert context.get_start_method() == "spawn"

    def submit(self, fn, *args):
        pool = Pool

        class Result(Future):
            def result(self, timeout=None):
                pool.waiting -= 1
                return super().result(timeout)

        found = Result()
        found.set_result(fn(*args))
        Pool.waiting, Pool.total = Pool.waiting + 1, Pool.total + 1
        Pool.most = max(Pool.most, Pool.waiting)
        return found

    def shutdown(self, cancel_futures):
        Pool.cancelled = cancel_futures


def test_the_processes_are_ahead_by_a_bounded_number(files, monkeypatch):
    monkeypatch.setattr(_mask_pairs, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(_mask_pairs, "_AHEAD", 5)
    many = [pair._replace(id=f"{i}") for i in range(10) for pair in files]
    digest, found = scored(many, workers=2)
    assert len(found.compute().images) == 120
    assert digest == hash_masks(10 * [torch.from_numpy(masks(i)[1]) for i in range(12)])
    assert Pool.total == 40
    assert 0 < Pool.most <= 5
    assert Pool.cancelled


def test_an_interrupt_ends_the_processes(files):
    def interrupted(pairs):
        for i, pair in enumerate(pairs):
            if i == 4:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        scored(files, workers=2, watch=interrupted)
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


SLOW = """
import importlib, sys, time
from wsss_blocks.cli import _mask_pairs
from wsss_blocks.cli.main import main

def slow(items, **_):
    for item in items:
        print("counting", flush=True)
        time.sleep(0.2)
        yield item

if __name__ == "__main__":
    _mask_pairs._AT_ONCE = 2
    importlib.import_module("wsss_blocks.cli.commands.evaluate").progress = slow
    sys.exit(main(sys.argv[1:]))
"""


def ended(group):
    """Wait for the last process of a group."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.name == "nt", reason="signals of process groups")
def test_ctrl_c_is_one_line_and_leaves_nothing(files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    folders = [files[0].prediction.parent, "--masks", files[0].truth.parent]
    words = [*folders, "--names", "a,b,c,d", "--image-labels", "used", "--workers", 2]
    process = subprocess.Popen(
        [sys.executable, script, "evaluate", *map(str, words), "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "counting\n"
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "wsss: interrupted\n")
    assert not (tmp_path / "out").exists()
    assert ended(process.pid)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_masks(files):
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 5, (12, 16)), np.ones((4, 4))).astype(np.uint8)
    save(files[0].truth, truth)
    save(files[0].prediction, np.roll(truth, 3))

    def many(count):
        return (files[0]._replace(id=f"{i}") for i in range(count))

    evaluator = SplitEvaluator(21, replicates=200)
    evaluate_files(list(many(300)), evaluator)
    before = resident()
    evaluate_files(list(many(3000)), evaluator)
    assert resident() - before < 30
    assert len(evaluator.compute().images) == 3300


def test_counting_that_nobody_takes_ends(files, monkeypatch):
    """As where the command line turns out to be wrong while files are counted."""
    monkeypatch.setattr(_mask_pairs, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "cancelled", False)
    how = _mask_pairs.Counting(CLASSES, 255, "refused", None, None)
    pairs = _mask_pairs.count_pairs(files, how, workers=2)
    assert not Pool.cancelled
    del pairs
    assert Pool.cancelled


def test_interrupted_work_is_named_once(files, capfd):
    """Errors of a process are raised, not printed by it."""
    files[7].prediction.unlink()
    with pytest.raises(FileNotFoundError):
        scored(files, workers=2)
    assert not re.search("Traceback", capfd.readouterr().err)
