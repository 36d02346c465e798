"""The same training in one process, in two, and in micro-batches."""

import processes
import pytest


@pytest.mark.ddp
@pytest.mark.parametrize(
    "layouts",
    [
        ["2 ranks x 2 micro-batches x 4"],
        pytest.param(["4 micro-batches x 4", "2 ranks x 8"], marks=pytest.mark.slow),
    ],
    ids=", ".join,
)
def test_layouts_of_processes_and_micro_batches_train_alike(tmp_path, layouts):
    for layout, found in processes.compare(tmp_path, layouts).items():
        assert found["losses"] < 1e-4, (layout, found)
        assert found["weights"] < 1e-4, (layout, found)
