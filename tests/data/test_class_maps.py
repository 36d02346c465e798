import io
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsss_blocks.data import ClassMaps, read_class_maps, write_class_maps

CAM = torch.arange(24.0).view(4, 2, 3)
LABELS = torch.tensor([0.0, 1.0, 0.0, 1.0])


@given(
    k=st.integers(1, 5),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_present_classes_come_back(tmp_path_factory, k, size, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    cam, labels = torch.randn(k, *size, generator=g), (torch.rand(k, generator=g) < 0.5).float()
    path = tmp_path_factory.mktemp("maps") / "a.npz"
    write_class_maps(path, cam, labels, dtype=dtype)
    found = read_class_maps(path)
    expected = cam.to(getattr(torch, dtype)).float() * labels[:, None, None]
    assert found.classes.tolist() == [i for i in range(k) if labels[i]]
    assert found.maps.dtype == torch.float32
    assert torch.equal(found.to_dense(k), expected[None])
    assert torch.equal(found.to_labels(k), labels[None])
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["classes", "maps"]
        assert file["maps"].dtype == dtype
    assert os.listdir(path.parent) == ["a.npz"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_maps_of_any_precision_and_with_gradients(tmp_path, dtype):
    write_class_maps(tmp_path / "new" / "a.npz", CAM.to(dtype).requires_grad_(), LABELS)
    assert torch.equal(read_class_maps(tmp_path / "new" / "a.npz").maps, CAM[[1, 3]])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_class_maps(tmp_path / "a.npz", CAM, LABELS)
    monkeypatch.setattr(np, "savez", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_class_maps(tmp_path / "a.npz", CAM + 1, LABELS)
    assert torch.equal(read_class_maps(tmp_path / "a.npz").maps, CAM[[1, 3]])
    assert os.listdir(tmp_path) == ["a.npz"]


MAPS = np.random.default_rng(0).random((2, 5, 7))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dictionaries_of_irn(tmp_path, dtype, order):
    maps = np.asarray(MAPS.astype(dtype), order=order)
    both = {"keys": np.array([7, 2]), "cam": maps[:, ::2, ::2], "high_res": maps}
    np.save(tmp_path / "high.npy", both)
    np.save(tmp_path / "low.npy", {"keys": [7, 2], "cam": both["cam"]})
    for name, expected in (("high.npy", maps), ("low.npy", both["cam"])):
        found = read_class_maps(tmp_path / name)
        assert found.classes.tolist() == [2, 7]
        assert np.array_equal(found.maps.numpy(), expected[::-1].astype("f4"))
        found.maps.mul_(0)  # its memory is its own


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_dictionaries_of_psa(tmp_path, kind):
    np.save(tmp_path / "a.npy", {kind(19): MAPS[0], kind(0): MAPS[1]})
    found = read_class_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [0, 19]
    assert np.array_equal(found.maps.numpy(), MAPS[::-1].astype("f4"))
    np.save(tmp_path / "b.npy", {})
    assert read_class_maps(tmp_path / "b.npy").to_dense(3).shape == (1, 3, 1, 1)


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", ["keys", "cam", "other"])
def test_nothing_in_a_pickle_is_executed(tmp_path, key):
    content = {"keys": [1], "cam": MAPS[:1], key: Hostile(tmp_path / "executed")}
    np.save(tmp_path / "a.npy", content)
    np.savez(tmp_path / "a.npz", classes=np.array([1]), maps=np.array(content, dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=rf"{name} must hold class maps"):
            read_class_maps(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_torch_tensors_of_irn(tmp_path, dtype):
    path, maps = tmp_path / "a.npy", torch.from_numpy(MAPS).to(dtype)
    keys = torch.tensor([[0, 9], [1, 9], [7, 9], [2, 9]])[2:, 0]  # a view with steps
    np.save(path, {"keys": keys, "cam": maps[:, :2].transpose(1, 2)})
    found = read_class_maps(path)
    assert found.classes.tolist() == [2, 7]
    assert torch.equal(found.maps, maps[:, :2].transpose(1, 2).flip(0).float())
    np.save(path, {"keys": keys, "cam": maps[:, :2], "high_res": MAPS})
    assert np.array_equal(read_class_maps(path).maps.numpy(), MAPS[::-1].astype("f4"))
    np.save(path, {"keys": keys[:0], "cam": maps[:0]})
    assert read_class_maps(path).maps.shape == (0, 5, 7)


class OfTorch:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def storage(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return OfTorch(torch.storage._load_from_bytes, (buffer.getvalue(),))


@pytest.mark.parametrize(
    ("numbers", "offset", "size", "stride", "message"),
    [
        (torch.ones(2), 0, (2**50,), (0,), "tensor .* of 2 numbers"),
        (torch.ones(2), 1, (2,), (1,), "out of bounds"),
        (torch.ones(2), 0, (2,), (-1,), "[Nn]egative stride"),
        (None, 0, (1,), (1,), "tensor of something else than numbers"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, numbers, offset, size, stride, message):
    content = numbers.untyped_storage() if numbers is not None else Hostile(tmp_path / "executed")
    if numbers is not None:
        content = torch.storage.TypedStorage(
            wrap_storage=content, dtype=torch.float32, _internal=True
        )
    tensor = OfTorch(
        torch._utils._rebuild_tensor_v2, (storage(content), offset, size, stride, False, {})
    )
    np.save(tmp_path / "a.npy", {"keys": [1], "cam": tensor})
    with pytest.raises(ValueError, match=rf"a.npy must hold class maps: .*{message}"):
        read_class_maps(tmp_path / "a.npy")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": [1], "maps": MAPS[:1]}, "expected 'cam' or 'high_res' beside 'keys'"),
        ({"2007_000032": MAPS[0]}, "expected 'keys' and 'cam', or whole numbers"),
        ({1.5: MAPS[0]}, "float"),
        ({1: MAPS[0], 2: MAPS[1, :3]}, "same shape"),
        ({-1: MAPS[0]}, r"different and not negative, got \[-1\]"),
        ({"keys": [1, 1], "cam": MAPS}, r"different and not negative, got \[1, 1\]"),
        ({"keys": [1], "cam": MAPS}, r"maps must have shape \(1, h, w\), got \(2, 5, 7\)"),
        ({"keys": [0.5, 1], "cam": MAPS}, "classes must be whole numbers"),
        ({"keys": [[0, 1]], "cam": MAPS}, r"classes must be whole numbers \(P,\)"),
        ({"keys": [0, 1], "cam": MAPS + np.inf}, "finite"),
        ({"keys": [0, 1], "cam": MAPS * 1e300}, "finite"),
        ({"keys": [0, 1], "cam": MAPS[:, :0]}, r"maps must have shape"),
        ({"keys": [0, 1], "cam": ["a", "b"]}, "expected numbers"),
    ],
)
def test_wrong_content(tmp_path, content, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(ValueError, match=rf"a.npy must hold class maps: .*{message}"):
        read_class_maps(tmp_path / "a.npy")


def test_broken_files(tmp_path):
    good = tmp_path / "a.npz"
    write_class_maps(good, CAM, LABELS)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.save(tmp_path / "dense.npy", MAPS)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps({1: MAPS[0]}))
    (tmp_path / "empty.npy").write_bytes(b"")
    whole = good.read_bytes()
    for size in (0, 10, 200, len(whole) - 30):
        (tmp_path / f"cut{size}.npz").write_bytes(whole[:size])
    spoilt = bytearray(whole)
    spoilt[-300:-200] = bytes(100)
    (tmp_path / "spoilt.npz").write_bytes(spoilt)
    broken = [p for p in sorted(tmp_path.iterdir()) if p != good]
    assert len(broken) == 9
    for path in broken:
        with pytest.raises(ValueError, match=rf"{path.name} must hold class maps"):
            read_class_maps(path)
    with pytest.raises(FileNotFoundError, match=r"no class maps at .*gone.npz"):
        read_class_maps(tmp_path / "gone.npz")
    with pytest.raises(ValueError, match=r"path must end in .npz or .npy"):
        read_class_maps(tmp_path / "a.pt")


def test_classes_beyond_the_names():
    found = ClassMaps(torch.tensor([2, 20]), torch.rand(2, 3, 3))
    assert found.to_dense(21).shape == (1, 21, 3, 3)
    for method in (found.to_dense, found.to_labels):
        with pytest.raises(ValueError, match=r"less than num_classes=20, got \[2, 20\]: are they"):
            method(20)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "a.npy"}, ValueError, "path must end in .npz"),
        ({"cam": CAM[0]}, ValueError, r"cam must have shape \(K, h, w\)"),
        ({"cam": CAM.long()}, TypeError, "cam must be a floating-point"),
        ({"cam": CAM / 0}, ValueError, "cam must be finite"),
        ({"cam": CAM * 1e5}, ValueError, r"cam must fit into float16, got 2.3e\+06"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(K,\) with K=4"),
        ({"labels": LABELS * 2}, ValueError, "labels must be multi-hot"),
        ({"dtype": "int8"}, ValueError, "dtype must be"),
    ],
)
def test_wrong_arguments(tmp_path, change, error, message):
    arguments = {"path": "a.npz", "cam": CAM, "labels": LABELS, "dtype": "float16", **change}
    path = tmp_path / arguments.pop("path")
    with pytest.raises(error, match=message):
        write_class_maps(path, arguments.pop("cam"), arguments.pop("labels"), **arguments)
    assert not list(tmp_path.iterdir())
