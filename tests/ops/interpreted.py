"""Triton's kernels in its interpreter, on a CPU: test_triton.py runs this in a process of its own.

The interpreter takes the place of the compiler when a kernel is defined, so TRITON_INTERPRET=1 has
to be set before the kernels are imported.
"""

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton.py"

from test_running_max import MODES, arguments, problem

from wsss_blocks.cam import cam_to_label
from wsss_blocks.ops import reference, running_max, triton


@pytest.fixture(autouse=True)
def _poison():
    """Fill what is allocated with NaN, or the largest integer: each value has to be written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def assert_equal_labels(given):
    out = triton.cam_to_label(*given)
    assert torch.equal(out, reference.cam_to_label(*given))
    assert torch.equal(out, running_max.cam_to_label(*given))


# image of one pixel or row, sizes that no tile divides, up by odd and even factors, down, as it is
SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (9, 130)),
    ((7, 5), (49, 67)),
    ((8, 8), (64, 128)),
    ((6, 9), (18, 45)),
    ((7, 9), (5, 6)),
    ((5, 6), (5, 6)),
    ((4, 2), (1, 63)),
]


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_sizes(source, size, mode):
    cam, labels = problem(1, (2, 3, *source), dtype=torch.float32)
    box = torch.tensor([[0, 0, *size], [size[0] // 3, size[1] // 4, size[0], size[1] // 2]])
    assert_equal_labels(arguments(cam, labels, size, mode, box=box))


@pytest.mark.parametrize("classes", [1, 2, 20, 81, 171])
def test_numbers_of_classes(classes):
    cam, labels = problem(2, (2, classes, 4, 5), present=3 / classes, dtype=torch.float32)
    labels[1, -1] = 1
    assert_equal_labels(arguments(cam, labels, (19, 23), "pair"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("minmax", [False, True])
def test_options(mode, relu, minmax):
    cam, labels = problem(3, (2, 4, 5, 4), dtype=torch.float32)
    assert_equal_labels(arguments(cam, labels, (21, 30), mode, relu=relu, minmax=minmax))


@pytest.mark.parametrize("mode", MODES)
def test_no_label_constant_maps_and_ties(mode):
    cam, labels = problem(4, (4, 5, 4, 4), present=1.0, dtype=torch.float32)
    labels[0] = 0  # nothing
    cam[1] = 0.7  # constant maps
    cam[2] = cam[2, :1]  # equal maps: the lowest present class
    labels[2, :2] = 0
    cam[3, 2] = cam[3, 3] = -1.0
    assert_equal_labels(arguments(cam, labels, (17, 18), mode))
    assert_equal_labels(arguments(cam, labels, (17, 18), mode, minmax=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_scores(dtype):
    cam, labels = problem(5, (2, 3, 5, 5), dtype=dtype)
    for mode in MODES:
        assert_equal_labels(arguments(cam, labels, (13, 40), mode))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_dtypes_of_labels(dtype):
    cam, labels = problem(6, (2, 3, 5, 5), dtype=torch.float32)
    given = (*arguments(cam, labels, (13, 40), "pair")[:-1], dtype)
    assert triton.cam_to_label(*given).dtype == dtype
    assert_equal_labels(given)
    for kind in (torch.bool, torch.int64, torch.float64):
        assert_equal_labels((given[0], labels.to(kind), *given[2:]))
    if dtype == torch.int64:
        assert_equal_labels((*given[:-2], 2**40, dtype))


def test_maps_whose_samples_are_all_equal():
    """One sample, or columns of one cell: scores are exactly 0, where the eager chain rounds."""
    for source, size in (((4, 1), (1, 63)), ((5, 7), (1, 1))):
        cam = 1000 * torch.rand(2, 3, *source)
        for mode in MODES:
            given = arguments(cam, torch.ones(2, 3), size, mode)
            assert not triton.cam_to_label(*given).any()
            assert not running_max.cam_to_label(*given).any()


def test_layouts_and_no_image():
    cam, labels = problem(7, (5, 2, 6, 3), dtype=torch.float32)
    given = arguments(cam.transpose(0, 1), labels.T, (20, 21), "single")
    assert_equal_labels(given)
    assert triton.cam_to_label(cam[:0], labels[:0], *given[2:]).shape == (0, 20, 21)


def test_the_public_function_and_a_larger_image():
    cam, labels = problem(10, (1, 20, 14, 14), present=0.1, dtype=torch.float32)
    options = {"size": (224, 224), "threshold": (0.35, 0.55), "dtype": torch.uint8}
    out = cam_to_label(cam, labels, backend="triton", **options)
    assert (out != cam_to_label(cam, labels, backend="torch", **options)).double().mean() <= 1e-5
    assert set(out.unique().tolist()) >= {0, 255}
