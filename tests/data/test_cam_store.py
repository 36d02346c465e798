import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from kill_points import die, in_child
from torch.utils.data import DataLoader
from two_ranks import run_two_ranks

from wsss_blocks import data
from wsss_blocks.cam import cam_to_label
from wsss_blocks.data import CamStore, CamStoreWriter, StoredCam, estimate_cam_store

NAMES = ("cat", "dog", "cow", "hen")
IDS = ["b", "a/ü 猫", "..", "c", "d", "e", "f"]


def silent(line):
    del line


def writer(folder, ids=IDS, names=NAMES, **options):
    return CamStoreWriter(folder, ids, names, **{"progress": silent, **options})


def example(image):
    """Each image has maps of its own; some show no class."""
    g = torch.Generator().manual_seed(sum(image.encode()))
    k, size = len(NAMES), (3 + len(image), 5)
    labels = (torch.rand(k, generator=g) < 0.5).float()
    return torch.randn(k, *size, generator=g), labels, (8 * size[0] - 3, 40)


def fill(folder, ids=IDS, **options):
    with writer(folder, ids, **options) as stored:
        for image in stored.todo:
            cam, labels, size = example(image)
            stored.write(image, cam, labels, image_size=size)
    return CamStore(folder)


def half_of(maps):
    return maps.half().float()


def check_examples(store, ids=IDS, halves=True):
    for image in ids:
        cam, labels, size = example(image)
        found = store[image]
        assert found.classes.tolist() == [i for i in range(len(NAMES)) if labels[i]]
        assert found.image_size == size
        if halves:
            assert torch.equal(found.cam, half_of(cam[labels > 0]))
            assert torch.equal(store.dense(image), half_of(cam) * labels[:, None, None])
        assert torch.equal(store.labels(image), labels)


# --- round trip ------------------------------------------------------------------------------


@given(
    k=st.integers(1, 5),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    shift=st.sampled_from([0.0, -7.0, 3e4]),
    dtype=st.sampled_from(["float16", "uint8"]),
)
def test_maps_come_back_within_the_stated_error(
    tmp_path_factory, k, size, seed, scale, shift, dtype
):
    folder = tmp_path_factory.mktemp("store")
    g = torch.Generator().manual_seed(seed)
    images = []
    with writer(folder, ["a", "b"], [str(i) for i in range(k)], dtype=dtype) as w:
        for image in ("a", "b"):
            cam = torch.randn(k, *size, generator=g).clamp(-2, 2) * scale + shift
            labels = (torch.rand(k, generator=g) < 0.6).float()
            w.write(image, cam, labels, image_size=(64, 50))
            images.append((image, cam, labels))
    store = CamStore(folder)
    for image, cam, labels in images:
        found, present = store[image], cam[labels > 0]
        assert found.cam.dtype == torch.float32
        assert found.classes.dtype == torch.int64
        assert found.cam.shape == (int(labels.sum()), *size)
        if dtype == "float16":
            assert torch.equal(found.cam, present.half().float())
            continue
        low, high = present.amin((1, 2)), present.amax((1, 2))
        assert torch.equal(found.cam.amin((1, 2)), low)
        assert torch.equal(found.cam.amax((1, 2)), high)
        error = (found.cam.double() - present.double()).abs().numpy()
        bound = ((high.double() - low.double()) / 510).numpy()[:, None, None]
        rounding = np.spacing(np.abs(present.numpy())) / 2
        assert (error <= bound * (1 + 1e-12) + rounding).all()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize(
    "map",
    [
        torch.zeros(4, 6),
        torch.full((4, 6), -3.25),
        torch.full((1, 1), 0.5),
        torch.tensor([[0.0, 1.0]]),
        torch.arange(256.0).view(16, 16) - 20,  # 256 values: a step of one
        torch.tensor([[2.0**-24, 0.0]]),
    ],
)
def test_maps_that_are_exact_either_way(tmp_path, dtype, map):
    with writer(tmp_path, ["a"], dtype=dtype) as stored:
        stored.write(
            "a", map.expand(4, *map.shape), torch.tensor([0.0, 0, 1, 0]), image_size=(9, 9)
        )
    found = CamStore(tmp_path)["a"]
    assert torch.equal(found.cam, map[None])
    assert found.classes.tolist() == [2]


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("labels", [torch.zeros(80), torch.ones(80)])
def test_no_class_and_all_of_80(tmp_path, dtype, labels):
    cam = torch.rand(80, 3, 2)
    with writer(tmp_path, ["a", "b"], list(map(str, range(80))), dtype=dtype) as stored:
        for image in ("a", "b"):
            stored.write(image, cam, labels, image_size=(24, 16))
    store = CamStore(tmp_path)
    assert store["a"].cam.shape == (int(labels.sum()), 3, 2)
    assert torch.allclose(store.dense("b"), cam * labels[:, None, None], atol=1 / 510)
    assert torch.equal(store.labels("a"), labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_maps_of_any_precision_with_gradients_and_unsorted_classes(tmp_path, dtype):
    cam = torch.tensor([[[2.0]], [[1.0]]], dtype=dtype, requires_grad=True)
    with writer(tmp_path, ["a"]) as stored:
        classes = torch.tensor([3, 1], dtype=torch.uint8)
        stored.write_present("a", classes, cam, image_size=(1, 1))
    found = CamStore(tmp_path)["a"]
    assert (found.classes.tolist(), found.cam.flatten().tolist()) == ([1, 3], [1.0, 2.0])


def test_the_largest_range_of_float32_does_not_overflow(tmp_path):
    most = torch.finfo(torch.float32).max
    cam = torch.tensor([[[-most, 0.0, most]]])
    with writer(tmp_path, ["a"]) as stored:
        stored.write_present("a", torch.tensor([0]), cam, image_size=(1, 3))
    found = CamStore(tmp_path)["a"].cam
    assert torch.equal(found[..., [0, 2]], cam[..., [0, 2]])
    assert found.isfinite().all()


# --- reading ---------------------------------------------------------------------------------


def test_store_knows_its_images(tmp_path):
    store = fill(tmp_path, dtype="float16", shard_size=2, about={"weights": "abc", "scales": [1]})
    check_examples(store)
    assert (store.ids, store.missing, len(store)) == (IDS, [], 7)
    assert (store.names, store.dtype) == (NAMES, "float16")
    assert store.about == {"weights": "abc", "scales": [1]}
    assert "b" in store
    assert "x" not in store
    with pytest.raises(KeyError, match="has no maps of 'x': 7 images are there"):
        store["x"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"shard-000-0000{i}.safetensors" for i in range(4)] + ["store.json"]


def test_labels_of_a_stored_cam_are_those_of_the_cam(tmp_path):
    cam, labels = torch.rand(4, 6, 7), torch.tensor([1.0, 0.0, 1.0, 0.0])
    with writer(tmp_path, ["a"], dtype="float16") as stored:
        stored.write("a", cam.half().float(), labels, image_size=(31, 40))
    store = CamStore(tmp_path)
    found = store["a"]
    expected = cam_to_label(cam.half().float()[None], labels[None], size=(31, 40), threshold=0.3)
    again = cam_to_label(
        store.dense("a")[None], store.labels("a")[None], size=found.image_size, threshold=0.3
    )
    assert torch.equal(again, expected)
    assert set(expected.unique().tolist()) == {0, 1, 3}


def test_geometry_says_where_cells_lie():
    stored = StoredCam(torch.rand(1, 3, 5), torch.tensor([0]), (30, 40))
    moved, valid = data.replay(torch.rand(2, 30, 40), stored.geometry)
    assert moved.shape[-2:] == (3, 5)
    assert valid.all()
    matrix = stored.geometry.matrix
    assert (matrix @ torch.tensor([2.0, 1.0, 1.0])).tolist() == [19.5, 14.5]  # of 40 and 30


def test_maps_follow_the_augmentation(tmp_path):
    scenes = data.Scenes(size=3)
    g = torch.Generator().manual_seed(0)
    kept = []
    with writer(tmp_path, scenes.ids, scenes.names, dtype="float16") as stored:
        for i, image in enumerate(scenes.ids):
            cam, labels = torch.rand(10, 6 + i, 5, generator=g).half().float(), scenes[i]["labels"]
            stored.write(image, cam, labels, image_size=(96, 96))
            kept.append(cam * labels[:, None, None])
    crops = data.Augmented(
        scenes, data.Compose(data.RandomHorizontalFlip(0.5), data.RandomCrop(64))
    )
    ids = scenes.ids[::-1]
    assert torch.equal(CamStore(tmp_path).maps(ids)[0], kept[2])
    maps = {"cam": CamStore(tmp_path).maps(scenes.ids)}
    found = data.WithMaps(crops, maps, sizes={"cam": (8, 8)})
    expected = data.WithMaps(crops, {"cam": kept}, sizes={"cam": (8, 8)})
    for seed in range(6):
        one, other = found[seed % 3, seed], expected[seed % 3, seed]
        assert torch.equal(one["maps"]["cam"], other["maps"]["cam"])
        assert torch.equal(one["valid"]["cam"], other["valid"]["cam"])
    with pytest.raises(ValueError, match=r"lacks the maps of 2 of 3 images \('x', 'y'\)"):
        CamStore(tmp_path).maps(["x", scenes.ids[0], "y"])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_with_two_workers(tmp_path, start):
    store = fill(tmp_path, dtype="float16", shard_size=3)
    if start == "fork":
        check_examples(store)  # mapped before the fork
    loader = DataLoader(
        store.maps(IDS), batch_size=None, num_workers=2, multiprocessing_context=start
    )
    for _ in range(2 if start == "fork" else 1):
        for image, found in zip(IDS, loader, strict=True):
            assert torch.equal(found, store.dense(image))


def test_store_pickles_as_its_folder(tmp_path):
    store = fill(tmp_path)
    packed = pickle.dumps(store)
    assert len(packed) < 200 + len(str(tmp_path))
    assert torch.equal(pickle.loads(packed).dense("b"), store.dense("b"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux shows what is mapped")
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_shards_are_mapped_when_they_are_read_and_never_changed(tmp_path, dtype):
    store = fill(tmp_path, dtype=dtype, shard_size=4)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def mapped():
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sorted({line.split("/")[-1] for line in lines if str(tmp_path) in line})

    assert mapped() == []
    first = store["b"]
    assert mapped() == ["shard-000-00000.safetensors"]
    expected = first.cam.clone()
    first.cam.fill_(7)
    assert torch.equal(store["b"].cam, expected)
    store["f"]
    assert len(mapped()) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- resuming --------------------------------------------------------------------------------


def test_interrupted_writing_goes_on(tmp_path):
    made = []

    def interrupted():
        with writer(tmp_path, shard_size=2, dtype="float16") as w:
            for image in w.todo:
                if len(made) == 5:
                    raise KeyboardInterrupt
                made.append(image)
                cam, labels, size = example(image)
                w.write(image, cam, labels, image_size=size)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    store = CamStore(tmp_path)  # what was held in memory is there, too
    assert (store.ids, store.missing) == (IDS[:5], IDS[5:])
    check_examples(store, IDS[:5])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert writer(tmp_path, shard_size=2, dtype="float16").todo == IDS[5:]
    check_examples(fill(tmp_path, shard_size=2, dtype="float16"))
    assert all(path.stat().st_mtime_ns == before[path] for path in before)
    assert writer(tmp_path, dtype="float16").todo == []
    with pytest.raises(FileExistsError, match="holds a CAM store: remove it, or resume"):
        writer(tmp_path, dtype="float16", resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "got dtype 'uint8' instead of 'float16':"),
        ({"names": ("cat", "dog", "cow", "owl")}, "the first other 'hen' instead of 'owl'"),
        ({"names": (*NAMES, "owl")}, "got 4 names instead of 5:"),
        ({"ids": IDS[:3]}, "got 7 ids instead of 3:"),
        ({"ids": [IDS[1], IDS[0], *IDS[2:]]}, "7 ids instead of 7, the first other 'b' instead of"),
        ({"about": {"weights": "2"}}, "got weights '1' instead of '2':"),
        ({"about": {}}, "got weights '1' instead of None:"),
        ({"about": {"weights": "1", "scales": (1, 2)}}, r"got scales None instead of \[1, 2\]:"),
    ],
)
def test_a_store_is_never_mixed(tmp_path, change, message):
    fill(tmp_path, about={"weights": "1"})
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"must hold maps made as those asked for.*{message}"):
        writer(tmp_path, **{"about": {"weights": "1"}, **change})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


OPERATIONS = ("mkdir", "write_text", "replace", "unlink")


def arm(number, report):
    """Die at the ``number``-th file operation, a written file half-way; 0 counts them only."""
    calls = []

    def hook(real, half=None):
        def call(*args, **kwargs):
            calls.append(1)
            report.write_bytes(bytes([len(calls)]))
            if len(calls) == number:
                if half is not None:
                    half(real, *args, **kwargs)
                die()
            return real(*args, **kwargs)

        return call

    def half_file(real, content, path, **kwargs):
        real(content, path, **kwargs)
        os.truncate(path, os.path.getsize(path) // 2)

    def half_text(real, path, text, **kwargs):
        real(path, text[: len(text) // 2], **kwargs)

    for name in OPERATIONS:
        half = half_text if name == "write_text" else None
        setattr(Path, name, hook(getattr(Path, name), half))
    os.fsync = hook(os.fsync)
    safetensors.torch.save_file = hook(safetensors.torch.save_file, half_file)


def test_a_run_killed_at_any_file_operation_is_resumed(tmp_path):
    options = {"shard_size": 3, "dtype": "float16"}
    report = tmp_path / "calls"

    def doomed(folder, number, rank=0, world=1):
        torch.set_num_threads(1)
        arm(number, report)
        with writer(folder, rank=rank, world_size=world, **options) as stored:
            for image in stored.todo:
                cam, labels, size = example(image)
                stored.write(image, cam, labels, image_size=size)

    assert in_child(lambda: doomed(tmp_path / "whole", 0)) == 0
    total = report.read_bytes()[0]
    assert total == 4 + 3 * 5
    finished = set()
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        assert in_child(lambda f=folder, n=number: doomed(f, n)) == -signal.SIGKILL
        if (folder / "store.json").exists():
            store = CamStore(folder)
            check_examples(store, store.ids)
            finished.add(len(store))
        check_examples(fill(folder, **options))
        left = [path.name for path in folder.iterdir() if path.name.startswith(".shard")]
        assert left == [], number
        # again, with two processes and one of them killed, resumed by three
        folder = tmp_path / f"{number} of two"
        code = in_child(lambda f=folder, n=number: doomed(f, n, 1, 2))
        assert code == (-signal.SIGKILL if number <= 9 else 0)
        for rank in (2, 0, 1):
            fill(folder, rank=rank, world_size=3, **options)
        check_examples(CamStore(folder))
        assert not list(folder.glob(".shard*"))
    assert finished == {0, 3, 6, 7}


# --- several processes -----------------------------------------------------------------------


def test_two_ranks_write_shards_of_their_own(tmp_path):
    writers = [
        writer(tmp_path, shard_size=2, dtype="float16", rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert [w.todo for w in writers] == [IDS[::2], IDS[1::2]]
    for image in IDS:
        cam, labels, size = example(image)
        w = next(w for w in writers if image in w.todo)
        w.write(image, cam, labels, image_size=size)
    assert CamStore(tmp_path).missing == ["e"]  # the odd one of rank 1, not flushed yet
    for w in writers:
        w.flush()
    store = CamStore(tmp_path)
    check_examples(store)
    assert store.ids == IDS
    assert sorted(path.name for path in tmp_path.glob("shard*")) == [
        f"shard-00{rank}-0000{i}.safetensors" for rank in range(2) for i in range(2)
    ]
    cam, labels, size = example("c")
    with pytest.raises(ValueError, match=r"process 0 of 2 still has to write .*got 'c'"):
        writers[0].write("c", cam, labels, image_size=size)


def test_a_shard_of_another_writer_of_this_rank_is_not_overwritten(tmp_path, monkeypatch):
    w, path = writer(tmp_path), tmp_path / "shard-000-00000.safetensors"
    cam, labels, size = example("b")
    w.write("b", cam, labels, image_size=size)
    real = safetensors.torch.save_file

    def save(tensors, temporary, **options):
        real(tensors, temporary, **options)
        path.write_bytes(b"of another process")

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    with pytest.raises(FileExistsError, match="another process with this rank wrote it"):
        w.flush()
    assert path.read_bytes() == b"of another process"
    assert len(list(tmp_path.iterdir())) == 2


GLOO = """
import sys
import torch
import torch.distributed as dist
from wsss_blocks.data import CamStore, CamStoreWriter
from wsss_blocks.distributed import gather_objects

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
ids = [str(i) for i in range(7)]
with CamStoreWriter(folder + "/store", ids, ["cat", "dog"], dtype="float16", shard_size=2) as w:
    assert w.todo == ids[rank::2]
    for image in w.todo:
        cam = torch.full((2, 3, 4), float(image))
        w.write(image, cam, torch.tensor([0.0, 1.0]), image_size=(24, 32))
gather_objects(rank)
store = CamStore(folder + "/store")
assert store.ids == ids and not store.missing
assert all((store[i].cam == float(i)).all() and store[i].classes.tolist() == [1] for i in ids)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_of_a_group(tmp_path):
    run_two_ranks(GLOO, tmp_path)
    check = CamStore(tmp_path / "store")
    assert len(check) == 7


# --- damage ----------------------------------------------------------------------------------


def test_a_shard_cut_short_is_named_and_made_again(tmp_path):
    fill(tmp_path, dtype="float16", shard_size=3)
    path = tmp_path / "shard-000-00001.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{path.name} must be a whole shard"):
            CamStore(tmp_path)
    lines = []
    again = fill(tmp_path, dtype="float16", shard_size=3, progress=lines.append)
    assert path.name in lines[0]
    assert "removed, and its images are made again" in lines[0]
    check_examples(again)


def test_a_changed_byte_is_noticed_or_does_no_harm(tmp_path):
    fill(tmp_path, dtype="float16", shard_size=7)
    path = tmp_path / "shard-000-00000.safetensors"
    whole, draw, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(80):
        spoilt = bytearray(whole)
        spoilt[draw.integers(len(whole))] ^= int(draw.integers(1, 256))
        path.write_bytes(spoilt)
        try:
            check_examples(CamStore(tmp_path))
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
            noticed += 1
    assert noticed > 70


def test_maps_that_changed_on_the_disk_are_named(tmp_path):
    fill(tmp_path, dtype="float16", shard_size=7)
    path = tmp_path / "shard-000-00000.safetensors"
    whole = path.read_bytes()
    maps = torch.cat([example(i)[0][example(i)[1] > 0].half().flatten() for i in IDS[:1]])
    place = whole.index(maps.numpy().tobytes())
    path.write_bytes(whole[:place] + bytes(2) + whole[place + 2 :])
    store = CamStore(tmp_path)
    with pytest.raises(ValueError, match=rf"{path.name} must hold the maps of 'b' as they were"):
        store["b"]
    check_examples(store, IDS[1:])


def test_shards_of_others_are_refused(tmp_path):
    fill(tmp_path / "a", about={"weights": "1"})
    fill(tmp_path / "b", about={"weights": "2"})
    name = "shard-000-00000.safetensors"
    shutil.copy(tmp_path / "a" / name, tmp_path / "b" / "shard-001-00000.safetensors")
    for read in (CamStore, lambda folder: writer(folder, about={"weights": "2"})):
        with pytest.raises(ValueError, match=r"shard-001-00000.* must belong to the store"):
            read(tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 3
    shutil.copy(tmp_path / "a" / name, tmp_path / "a" / "shard-001-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-001-00000.*got 'b', which is also in shard-000"):
        CamStore(tmp_path / "a")


@pytest.mark.parametrize("change", ["{", "[]", "{}", "names", "format", "\xff"])
def test_a_damaged_description_is_named(tmp_path, change):
    with pytest.raises(FileNotFoundError, match=r"no CAM store at .*there is no store.json"):
        CamStore(tmp_path)
    fill(tmp_path)
    path = tmp_path / "store.json"
    info = json.loads(path.read_text())
    if change in info:
        info[change] = {"names": ["x"], "format": 2}[change]
        change = json.dumps(info)
    path.write_bytes(change.encode("latin-1"))
    for read in (CamStore, writer):
        with pytest.raises(ValueError, match=r"store.json must be what CamStoreWriter wrote"):
            read(tmp_path)


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "dtype"), [(8, "uint8"), (8, "float16"), (4, "uint8")])
def test_coco_fits(tmp_path, stride, dtype):
    draw, grid = torch.Generator().manual_seed(0), (480 // stride, 640 // stride)
    ids = [f"COCO_train2014_{i:012d}" for i in range(200)]
    counts = [2 if i % 20 < 2 else 3 for i in range(200)]  # 2.9 on average
    lines = []
    with CamStoreWriter(
        tmp_path, ids, list(map(str, range(80))), dtype=dtype, progress=lines.append
    ) as stored:
        for image, count in zip(stored.todo, counts, strict=True):
            cam = torch.rand(count, *grid, generator=draw)
            classes = torch.randperm(80, generator=draw)[:count]
            stored.write_present(image, classes, cam, image_size=(480, 640))
    measured = sum(path.stat().st_size for path in tmp_path.iterdir())
    expected = estimate_cam_store(200, classes=2.9, grid=grid, dtype=dtype)
    assert lines[0] == str(expected)
    assert measured == pytest.approx(expected.bytes, rel=0.02)
    coco = measured / 200 * 82_081
    print(f"{dtype} at stride {stride}: {coco / 1e9:.2f} GB")
    assert coco < 20e9
    cells = 82_081 * 2.9 * grid[0] * grid[1] * (2 if dtype == "float16" else 1)
    assert cells < coco < 1.02 * cells


def test_estimate_is_told_before_anything_is_written(tmp_path, monkeypatch):
    lines = []
    w = writer(tmp_path, progress=lambda line: lines.append((line, list(tmp_path.glob("s*-*")))))
    cam, _, size = example("b")
    w.write("b", cam, torch.tensor([1.0, 1.0, 0.0, 0.0]), image_size=size)
    assert lines == []
    full = os.statvfs_result((1, 1, 1, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OSError, match=r"0 GB of room left: 7 images, 2.00 classes and 40 cells"):
        w.flush()
    monkeypatch.undo()
    assert not list(tmp_path.glob("shard*"))
    w.flush()  # room was made
    assert [line for line, _ in lines] == [
        "7 images, 2.00 classes and 40 cells each, uint8: about 1.29e-06 GB",
        "1 of 7 images stored",
    ]
    assert lines[0][1] == []


# --- wrong arguments -------------------------------------------------------------------------

CAM, LABELS = torch.rand(4, 2, 3), torch.tensor([1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": "x"}, ValueError, r"image must be one of those that process 0 of 1 .*got 'x'"),
        ({"cam": CAM[0]}, ValueError, r"cam must have shape \(K, h, w\)"),
        ({"cam": CAM[:3]}, ValueError, r"cam must have shape \(K, h, w\) with K=4"),
        ({"cam": CAM[:, :0]}, ValueError, r"cam must have shape \(K, h, w\)"),
        ({"cam": CAM.long()}, TypeError, "cam must be a floating-point"),
        ({"cam": CAM / 0}, ValueError, "cam must be finite"),
        ({"cam": CAM.double() * 1e300}, ValueError, "cam must be finite"),
        ({"cam": CAM * 1e6}, ValueError, "cam must fit into float16, got"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(K,\) with K=4"),
        ({"labels": LABELS * 2}, ValueError, "labels must be multi-hot"),
        ({"image_size": (0, 3)}, ValueError, "image_size must be"),
    ],
)
def test_wrong_maps(tmp_path, change, error, message):
    stored = writer(tmp_path, ["a"], dtype="float16")
    call = {"image": "a", "cam": CAM, "labels": LABELS, "image_size": (16, 24), **change}
    with pytest.raises(error, match=message):
        stored.write(**call)
    assert stored.todo == ["a"]


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (torch.tensor([0, 4]), ValueError, r"classes must be different and in \[0, 4\), got"),
        (torch.tensor([-1, 0]), ValueError, r"classes must be different and in \[0, 4\), got"),
        (torch.tensor([1, 1]), ValueError, r"classes must be different .*got \[1, 1\]"),
        (torch.tensor([1]), ValueError, r"classes must have shape \(P,\) with P=2"),
        (torch.tensor([0.0, 1.0]), TypeError, "classes must be"),
        ([0, 1], TypeError, "classes must be"),
    ],
)
def test_wrong_classes(tmp_path, classes, error, message):
    with pytest.raises(error, match=message):
        writer(tmp_path).write_present("b", classes, CAM[:2], image_size=(3, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "float32"}, ValueError, "dtype must be one of 'uint8', 'float16'"),
        ({"shard_size": 0}, ValueError, "shard_size must be"),
        ({"ids": ["a", "a"]}, ValueError, "ids must differ, got 'a' twice"),
        ({"ids": [1]}, TypeError, "ids must be strings, got 1"),
        ({"ids": "ab"}, TypeError, "ids must be a sequence"),
        ({"names": []}, ValueError, "names must name at least one class"),
        ({"names": ["x", "x"]}, ValueError, "names must differ, got 'x' twice"),
        ({"about": {"x": torch.ones(1)}}, TypeError, "about must hold what JSON can write"),
        ({"about": {"x": float("nan")}}, TypeError, "about must hold what JSON can write"),
        ({"about": "x"}, TypeError, "about must be a mapping"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be less than world_size=2, got 2"),
        ({"rank": -1}, ValueError, "rank must be"),
        ({"world_size": 0}, ValueError, "world_size must be"),
    ],
)
def test_wrong_settings(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        writer(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": -1}, "images must be"),
        ({"classes": -1.0}, "classes must be finite and not negative"),
        ({"classes": float("inf")}, "classes must be"),
        ({"grid": (0, 2)}, "grid must be"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_wrong_estimates(change, message):
    call = {"images": 3, "classes": 1.0, "grid": (2, 2), "dtype": "uint8", **change}
    with pytest.raises(ValueError, match=message):
        estimate_cam_store(call.pop("images"), **call)
