import os

import pytest
import torch
from torch import nn

from wsss_blocks.training import LoadReport, load_weights, save_weights


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(a, b):
    b = b.state_dict()
    return list(a.state_dict()) == list(b) and all(
        torch.equal(v, b[k]) for k, v in a.state_dict().items()
    )


def test_round_trip(tmp_path):
    a, b, path = model(0), model(1), tmp_path / "w.safetensors"
    assert not same(a, b)
    save_weights(path, a)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert load_weights(path, b) == LoadReport([], [])
    assert same(a, b)


def test_tied_and_strided_weights(tmp_path):
    a, b = model(0), model(1)
    a[2].weight = nn.Parameter(torch.randn(4, 2).t())
    a.add_module("tied", a[0])
    b.add_module("tied", b[0])
    save_weights(tmp_path / "w.safetensors", a)
    load_weights(tmp_path / "w.safetensors", b)
    assert same(a, b)
    assert b[0].weight is b.tied.weight


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    a, b, path = model(0), model(1), tmp_path / "w.safetensors"
    save_weights(path, a)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, b)
    load_weights(path, b)
    assert same(a, b)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_others_checkpoints(tmp_path, wrap):
    a, b, path = model(0), model(1), tmp_path / "w.pth"
    state = {f"module.{k}": v for k, v in a.state_dict().items()}
    torch.save(wrap(state), path)
    load_weights(path, b, prefix_map={"module.": ""})
    assert same(a, b)


def test_longest_prefix_wins_and_other_keys_stay(tmp_path):
    a, b, path = model(0), model(1), tmp_path / "w.pth"
    names = {"0.": "net.first.", "1.": "net.", "2.": "2."}
    state = {names[k[:2]] + k[2:]: v for k, v in a.state_dict().items()}
    torch.save(state, path)
    load_weights(path, b, prefix_map={"net.": "1.", "net.first.": "0."})
    assert same(a, b)


def test_not_strict_reports(tmp_path):
    a, b, path = model(0), model(1), tmp_path / "w.pth"
    state = {k: v for k, v in a.state_dict().items() if not k.startswith("2.")}
    torch.save(state | {"extra": torch.zeros(1)}, path)
    before = b[2].weight.clone()
    report = load_weights(path, b, strict=False)
    assert report == LoadReport(["2.weight", "2.bias"], ["extra"])
    assert torch.equal(b[0].weight, a[0].weight)
    assert torch.equal(b[2].weight, before)


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


class Extra(nn.Module):
    def get_extra_state(self):
        return {"a": 1}


def test_refuses(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"0.weight": torch.zeros(4, 3)}, path)
    with pytest.raises(ValueError, match="must hold exactly the module's keys"):
        load_weights(path, model())
    torch.save({"0.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(ValueError, match=r"0.weight must have shape \(4, 3\), got \(3, 4\)"):
        load_weights(path, model(), strict=False)
    with pytest.raises(ValueError, match=r"none has \['module.'\]"):
        load_weights(path, model(), prefix_map={"module.": ""})
    torch.save({"a.w": torch.zeros(1), "b.w": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"two become 'c\.w'"):
        load_weights(path, model(), prefix_map={"a.": "c.", "b.": "c."})
    torch.save({"epoch": 3, "lr": 0.1}, path)
    with pytest.raises(ValueError, match="dictionary of tensors"):
        load_weights(path, model())
    torch.save({"w": Evil()}, path)
    with pytest.raises(ValueError, match="must hold weights only"):
        load_weights(path, model())
    with pytest.raises(TypeError, match="tensors as state, got _extra_state: dict"):
        save_weights(tmp_path / "x.safetensors", Extra())
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.safetensors", model())


def test_a_module_without_state(tmp_path):
    save_weights(tmp_path / "w.safetensors", nn.ReLU())
    assert load_weights(tmp_path / "w.safetensors", nn.ReLU()) == LoadReport([], [])
