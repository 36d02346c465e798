import copy
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from wsss_blocks.training import (
    Stateful,
    load_run_state,
    polynomial_schedule,
    save_run_state,
)

DATA = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


class Run:
    """A tiny training run whose every random source matters."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self.model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.teacher = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = polynomial_schedule(self.optimizer, total_steps=8, warmup_steps=2)

    def stateful(self):
        return {
            "model": self.model,
            "teacher": self.teacher,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def train(self, steps):
        for _ in range(steps):
            shift = random.uniform(0.5, 1.5) + np.random.rand()  # noqa: NPY002
            batch = DATA[torch.randperm(32)[:8]] + shift
            self.optimizer.zero_grad()
            self.model(batch).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
            with torch.no_grad():
                for t, p in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                    t.lerp_(p, 0.1)

    def weights(self):
        return [*self.model.state_dict().values(), *self.teacher.state_dict().values()]


def test_resume_is_exact_to_the_bit(tmp_path):
    whole = Run(0)
    whole.train(6)
    first = Run(0)
    first.train(3)
    save_run_state(tmp_path, step=3, stateful=first.stateful())
    second = Run(1)
    assert load_run_state(tmp_path, stateful=second.stateful()) == 3
    second.train(3)
    for a, b in zip(second.weights(), whole.weights(), strict=True):
        assert torch.equal(a, b)
    assert second.schedule.get_last_lr() == whole.schedule.get_last_lr()
    other = Run(0)
    other.train(3)
    torch.manual_seed(9)  # the test would notice a forgotten random state
    other.train(3)
    assert not all(torch.equal(a, b) for a, b in zip(other.weights(), whole.weights(), strict=True))


def test_saving_draws_no_random_number(tmp_path):
    a, b = Run(0), Run(0)
    a.train(2)
    save_run_state(tmp_path, step=2, stateful=a.stateful())
    a.train(2)
    c = Run(0)
    c.train(4)
    assert all(torch.equal(x, y) for x, y in zip(a.weights(), c.weights(), strict=True))
    assert not torch.equal(a.weights()[0], b.weights()[0])


def test_layout_and_replacement(tmp_path):
    run = Run(0)
    for step in (0, 1, 1):
        save_run_state(tmp_path / "ckpt", step=step, stateful=run.stateful())
    pointer = json.loads((tmp_path / "ckpt" / "latest.json").read_text())
    assert pointer == {
        "version": 1,
        "step": 1,
        "folder": "step-00000001-1",
        "identity": {},
    }
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == [
        "latest.json",
        "step-00000001-1",
    ]
    assert sorted(p.name for p in (tmp_path / "ckpt" / "step-00000001-1").iterdir()) == [
        "model.safetensors",
        "state.pt",
        "teacher.safetensors",
    ]


@pytest.mark.parametrize("where", ["weights", "state", "pointer"])
def test_a_crash_leaves_the_last_state_whole(tmp_path, monkeypatch, where):
    run = Run(0)
    save_run_state(tmp_path, step=1, stateful=run.stateful())
    expected = [w.clone() for w in run.weights()]
    run.train(2)
    done = []

    def fail_at(kind, real):
        def call(*args, **kwargs):
            done.append(kind)
            is_pointer = kind == "replace" and str(args[1]).endswith("latest.json")
            if (where, kind) == ("state", "save") or (where == "pointer" and is_pointer):
                raise OSError("killed")
            if where == "weights" and kind == "replace" and done.count("replace") == 2:
                raise OSError("killed")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at("replace", os.replace))
        patch.setattr(torch, "save", fail_at_rng_safe(fail_at("save", torch.save), torch.save))
        with pytest.raises(OSError, match="killed"):
            save_run_state(tmp_path, step=3, stateful=run.stateful())
    again = Run(2)
    assert load_run_state(tmp_path, stateful=again.stateful()) == 1
    assert all(torch.equal(a, b) for a, b in zip(again.weights(), expected, strict=True))
    save_run_state(tmp_path, step=3, stateful=run.stateful())
    assert load_run_state(tmp_path, stateful=again.stateful()) == 3
    assert len(list(tmp_path.glob("step-*"))) == 1


def fail_at_rng_safe(failing, real):
    """Fail only where a file is written, not where the random state is packed."""
    return lambda item, target: (failing if hasattr(target, "suffix") else real)(item, target)


def test_refuses(tmp_path):
    run = Run(0)
    with pytest.raises(FileNotFoundError, match=r"latest\.json is missing"):
        load_run_state(tmp_path, stateful=run.stateful())
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        save_run_state(tmp_path, step=-1, stateful=run.stateful())
    for name in ("", "a/b", ".hidden", ".."):
        with pytest.raises(ValueError, match="plain file names as keys"):
            save_run_state(tmp_path, step=0, stateful={name: run.model})
    save_run_state(tmp_path, step=0, stateful=run.stateful())
    with pytest.raises(ValueError, match=r"stateful must be \['model', 'optimizer'"):
        load_run_state(tmp_path, stateful={"model": run.model})


def test_another_number_of_processes_warns(tmp_path, monkeypatch):
    save_run_state(tmp_path, step=2, stateful={})
    monkeypatch.setattr("wsss_blocks.training._random_state.world_size", lambda: 2)
    before = torch.get_rng_state()
    torch.rand(1)
    with pytest.warns(UserWarning, match="saved by 1 processes, resumed by 2"):
        assert load_run_state(tmp_path, stateful={}) == 2
    assert not torch.equal(torch.get_rng_state(), before)


def test_protocol():
    assert isinstance(nn.Linear(1, 1), Stateful)
    assert isinstance(torch.optim.SGD([torch.zeros(1)]), Stateful)
    assert not isinstance(3, Stateful)


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from torch import nn
from wsss_blocks.training import load_run_state, save_run_state
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(rank)
torch.rand(3)
model = nn.Linear(2, 1)
save_run_state(folder + "/ckpt", step=5, stateful={"model": model})
dist.barrier()
expected = torch.rand(4)
torch.manual_seed(99)
assert load_run_state(folder + "/ckpt", stateful={"model": model}) == 5
assert torch.equal(torch.rand(4), expected)
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_each_rank_gets_its_own_random_state_back(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path)], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()
