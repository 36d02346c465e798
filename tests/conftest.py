import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread per worker: under xdist more threads only fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

# Kernels in Triton's interpreter have processes of their own, started by ops/test_triton.py.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["ops/interpreted*.py"]

_common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("dev", max_examples=20, **_common)
settings.register_profile("ci", max_examples=25, derandomize=True, **_common)
settings.register_profile("full", max_examples=200, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def shared_data_root() -> Path:
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(os.environ.get("WSSS_SHARED_DATA", default)).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images; tests that need it skip where it does not exist."""
    root = shared_data_root()
    if not root.is_dir():
        pytest.skip(f"no real data at {root} (set WSSS_SHARED_DATA)")
    return root


@pytest.fixture
def spend(monkeypatch):
    """Process time that stands still, but for the milliseconds that this is called with.

    Tests of what measures times are exact so, however busy the machine.
    """
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def spend(milliseconds: float) -> None:
        now[0] += milliseconds / 1e3

    return spend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a GPU")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)
