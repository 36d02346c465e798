"""A clock that only work moves, so that measured times are exact on a busy machine, too."""

import time

import pytest
import torch


@pytest.fixture
def spend(monkeypatch):
    """Let process time stand still, but for calls of what this returns: milliseconds pass."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def spend(milliseconds):
        now[0] += milliseconds / 1e3

    return spend


@pytest.fixture
def spin(spend):
    """Return a call without arguments that takes some milliseconds."""

    def spin(milliseconds):
        def work():
            spend(milliseconds)
            return torch.ones(2)

        return work

    return spin
