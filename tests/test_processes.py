"""The same training in one process, in two, and in micro-batches."""

import processes
import pytest


@pytest.mark.ddp
def test_layouts_of_processes_and_micro_batches_train_alike(tmp_path):
    layouts = [name for name in processes.LAYOUTS if name != "1 x 16"]
    for layout, found in processes.compare(tmp_path, layouts).items():
        assert found["losses"] < 1e-4, (layout, found)
        assert found["weights"] < 1e-4, (layout, found)
