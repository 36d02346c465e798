import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss_blocks.data import (
    CamStore,
    CamStoreWriter,
    export_irn,
    export_psa,
    import_irn,
    import_psa,
)

NAMES = ("cat", "dog", "cow", "hen")
SIZES = {"2007_000032": (37, 50), "b": (8, 12), "none": (9, 5)}
CLASSES = {"2007_000032": [0, 3], "b": [2], "none": []}


def silent(line):
    del line


def maps_of(image, size):
    g = torch.Generator().manual_seed(len(image))
    return torch.randn(len(CLASSES[image]), *size, generator=g)


@pytest.fixture
def store(tmp_path):
    with CamStoreWriter(
        tmp_path / "mine", list(SIZES), NAMES, dtype="float16", progress=silent
    ) as writer:
        for image, (height, width) in SIZES.items():
            cam = maps_of(image, (math.ceil(height / 8), math.ceil(width / 8)))
            classes = torch.tensor(CLASSES[image], dtype=torch.int64)
            writer.write_present(image, classes, cam, image_size=(height, width))
    return CamStore(tmp_path / "mine")


def load(path):
    return np.load(path, allow_pickle=True).item()


def enlarged(cam, size):
    if not len(cam):  # torch enlarges no empty maps
        return torch.zeros(0, *size)
    return F.interpolate(cam[None], size=size, mode="bilinear", align_corners=False)[0]


def divided(cam):
    cam = cam.relu()
    return cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_export_to_irn(tmp_path, store, normalize):
    export_irn(store, tmp_path / "irn", normalize=normalize)
    assert sorted(p.name for p in (tmp_path / "irn").iterdir()) == sorted(f"{i}.npy" for i in SIZES)
    for image, (height, width) in SIZES.items():
        found, cam = load(tmp_path / "irn" / f"{image}.npy"), store[image].cam
        assert set(found) == {"keys", "cam", "high_res"}
        # IRN: np.pad(keys + 1), cam.cuda(), high_res as an array
        assert np.pad(found["keys"] + 1, (1, 0)).tolist() == [0, *(c + 1 for c in CLASSES[image])]
        assert isinstance(found["cam"], torch.Tensor)
        assert isinstance(found["high_res"], np.ndarray)
        small = enlarged(cam, ((height - 1) // 4 + 1, (width - 1) // 4 + 1))
        large = enlarged(cam, (height, width))
        if normalize:
            small, large = divided(small), divided(large)
        torch.testing.assert_close(found["cam"], small)
        torch.testing.assert_close(torch.from_numpy(found["high_res"]), large)


@pytest.mark.parametrize("normalize", [True, False])
def test_export_to_psa(tmp_path, store, normalize):
    export_psa(store, tmp_path / "psa", normalize=normalize)
    for image, size in SIZES.items():
        found, cam = load(tmp_path / "psa" / f"{image}.npy"), enlarged(store[image].cam, size)
        assert list(found) == CLASSES[image]
        assert all(type(key) is int for key in found)
        cam = divided(cam) if normalize else cam
        for key, expected in zip(CLASSES[image], cam, strict=True):
            assert found[key].dtype == np.float32
            np.testing.assert_allclose(found[key], expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("grid", ["cam", "high_res"])
@pytest.mark.parametrize("tensors", [True, False])
def test_import_from_irn(tmp_path, dtype, grid, tensors):
    (tmp_path / "irn").mkdir()
    kept = {}
    for image, (height, width) in SIZES.items():
        cam = maps_of(image, ((height - 1) // 4 + 1, (width - 1) // 4 + 1))
        high, keys = maps_of(image, (height, width)).numpy(), torch.tensor(CLASSES[image]).long()
        kept[image] = cam if grid == "cam" else torch.from_numpy(high)
        content = {"keys": keys.flip(0), "cam": cam.flip(0), "high_res": high[::-1]}
        if not tensors:
            content = {name: np.asarray(value) for name, value in content.items()}
        np.save(tmp_path / "irn" / f"{image}.npy", content)
    store = import_irn(
        tmp_path / "irn", tmp_path / "store", NAMES, grid=grid, dtype=dtype, progress=silent
    )
    assert store.ids == sorted(SIZES)
    assert store.about == {"imported": "irn", "grid": grid}
    for image, size in SIZES.items():
        found = store[image]
        assert (found.classes.tolist(), found.image_size) == (CLASSES[image], size)
        if dtype == "float16":
            assert torch.equal(found.cam, kept[image].half().float())
        else:
            step = (kept[image].amax((1, 2)) - kept[image].amin((1, 2)))[:, None, None] / 255
            assert ((found.cam - kept[image]).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("stride", [1, 4])
def test_import_from_psa(tmp_path, stride):
    (tmp_path / "psa").mkdir()
    for image, size in SIZES.items():
        content = dict(zip(CLASSES[image], maps_of(image, size).numpy(), strict=True))
        np.save(tmp_path / "psa" / f"{image}.npy", content)
    options = {"stride": stride, "dtype": "float16", "progress": silent}
    with pytest.raises(ValueError, match=r"image_sizes must say how large 'none' is, as .*none.n"):
        import_psa(tmp_path / "psa", tmp_path / "store", NAMES, **options)
    sizes = {"none": SIZES["none"]}
    store = import_psa(tmp_path / "psa", tmp_path / "store", NAMES, image_sizes=sizes, **options)
    for image, size in SIZES.items():
        found, maps = store[image], maps_of(image, size)
        assert (found.classes.tolist(), found.image_size) == (CLASSES[image], size)
        if stride == 1 and image != "none":
            assert torch.equal(found.cam, maps.half().float())
    if stride == 4:
        mean = maps_of("b", (8, 12)).reshape(1, 2, 4, 3, 4).mean((2, 4))  # pixel by pixel
        torch.testing.assert_close(store["b"].cam, mean, rtol=0, atol=1e-3)
        assert store["2007_000032"].cam.shape == (2, 10, 13)


@pytest.mark.parametrize("kind", ["irn", "psa"])
def test_both_ways(tmp_path, store, kind):
    if kind == "irn":
        export_irn(store, tmp_path / "out", normalize=False, stride=8)  # the grid of the store
        again = import_irn(
            tmp_path / "out", tmp_path / "again", NAMES, dtype="float16", progress=silent
        )
        for image in SIZES:
            assert torch.equal(again[image].cam, store[image].cam)
    else:
        export_psa(store, tmp_path / "out", normalize=False)
        again = import_psa(
            tmp_path / "out", tmp_path / "again", NAMES, dtype="float16", progress=silent,
            image_sizes=SIZES,
        )  # fmt: skip
        for image in ("b", "2007_000032"):
            large = enlarged(store[image].cam, SIZES[image]).half().float()
            assert torch.equal(again[image].cam, large)
    for image in SIZES:
        assert again[image].classes.tolist() == CLASSES[image]
        assert again[image].image_size == SIZES[image]
    # and from there: the same dictionaries
    export = export_irn if kind == "irn" else export_psa
    export(again, tmp_path / "twice", normalize=False, **({"stride": 8} if kind == "irn" else {}))
    for image in SIZES:
        one, two = (load(tmp_path / f / f"{image}.npy") for f in ("out", "twice"))
        assert list(one) == list(two)
        for key in one:
            np.testing.assert_allclose(one[key], two[key], atol=2e-3)


def test_interrupted_import_goes_on(tmp_path):
    for image in ("a", "b", "c"):
        np.save(tmp_path / f"{image}.npy", {1: np.ones((3, 4), np.float32)})
    (tmp_path / "c.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"c.npy must hold class maps"):
        import_psa(tmp_path, tmp_path / "store", NAMES, progress=silent)
    assert CamStore(tmp_path / "store").ids == ["a", "b"]
    np.save(tmp_path / "c.npy", {2: np.ones((3, 4), np.float32)})
    (tmp_path / "a.npy").write_bytes(b"not read again")
    lines = []
    store = import_psa(tmp_path, tmp_path / "store", NAMES, progress=lines.append)
    assert (len(store), lines[-1]) == (3, "3 of 3 images stored")
    with pytest.raises(ValueError, match=r"got imported 'psa' instead of 'irn'; stride 1 instead"):
        import_irn(tmp_path, tmp_path / "store", NAMES, progress=silent, about={"grid": None})


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": [1], "high_res": np.ones((1, 4, 4))}, "expected 'keys' and 'cam', got"),
        ({1: np.ones((4, 4))}, r"expected 'keys' and 'cam', got \[1\]"),
        ({"keys": [4], "cam": np.ones((1, 1, 1)), "high_res": np.ones((1, 4, 4))}, "does not fit"),
        ({"keys": [1], "cam": np.ones((2, 1, 1)), "high_res": np.ones((1, 4, 4))}, "shape"),
        ({"keys": [1], "cam": np.ones((1, 1, 1))}, "image_sizes must say how large 'a' is"),
        ({"keys": [1], "cam": np.ones((1, 1, 1)), "x": Hostile("executed")}, "asks for _?io.open"),
    ],
)
def test_wrong_files_of_irn(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", content)
    with pytest.raises(ValueError, match=rf"a.npy.*{message}|{message}.*a.npy"):
        import_irn(tmp_path, tmp_path / "store", NAMES, progress=silent)
    assert not (tmp_path / "executed").exists()


def test_sizes_of_files_without_high_res(tmp_path):
    np.save(tmp_path / "a.npy", {"keys": [1], "cam": np.ones((1, 2, 3))})
    store = import_irn(
        tmp_path, tmp_path / "store", NAMES, image_sizes={"a": (8, 9)}, progress=silent
    )
    assert store["a"].image_size == (8, 9)
    with pytest.raises(ValueError, match=r"image_sizes\['a'\] must be"):
        import_irn(tmp_path, tmp_path / "b", NAMES, image_sizes={"a": (8,)}, progress=silent)


def test_files_that_are_not_there(tmp_path, store):
    with pytest.raises(FileNotFoundError, match=r"no .npy files in"):
        import_irn(tmp_path, tmp_path / "store", NAMES, progress=silent)
    for read in (import_irn, import_psa):
        with pytest.raises(FileNotFoundError, match=r"no class maps at .*x.npy"):
            read(tmp_path, tmp_path / read.__name__, NAMES, ids=["x"], progress=silent)
    with pytest.raises(ValueError, match="stride must be"):
        import_psa(tmp_path, tmp_path / "store", NAMES, stride=0)
    with pytest.raises(ValueError, match="stride must be"):
        export_irn(store, tmp_path, stride=0)
    with pytest.raises(ValueError, match="grid must be one of"):
        import_irn(tmp_path / "mine", tmp_path / "s", NAMES, ids=["a"], grid="low", progress=silent)
