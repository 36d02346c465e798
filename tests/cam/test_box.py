import pytest
import torch
from contract import assert_compiles, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.cam import box_to_valid, scale_box


def random_boxes(batch, image_size, g):
    """Boxes inside the image, empty ones included, height and width drawn apart."""
    rows = torch.randint(0, image_size[0] + 1, (batch, 2), generator=g).sort(1).values
    columns = torch.randint(0, image_size[1] + 1, (batch, 2), generator=g).sort(1).values
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], dim=1)


@st.composite
def problems(draw):
    image_size, size = draw(sizes(13)), draw(sizes(13))
    return random_boxes(draw(small), image_size, generator(draw(seeds))), image_size, size


@covers("box_to_valid", "oracle")
@covers("scale_box", "oracle")
@given(problems())
def test_oracle(problem):
    box, image_size, size = problem
    valid = box_to_valid(box, image_size=image_size, size=size)
    assert valid.dtype == torch.bool
    assert torch.equal(valid, oracle.box_to_valid(box, image_size, size))
    scaled = scale_box(box, image_size=image_size, size=size)
    assert torch.equal(scaled, oracle.scale_box(box, image_size, size))


@covers("box_to_valid", "properties")
@covers("scale_box", "properties")
@given(problems())
def test_the_same_cells_through_either_function(problem):
    box, image_size, size = problem
    scaled = scale_box(box, image_size=image_size, size=size)
    assert torch.equal(
        box_to_valid(scaled, image_size=size, size=size),
        box_to_valid(box, image_size=image_size, size=size),
    )
    assert torch.equal(scale_box(box, image_size=image_size, size=image_size), box)
    finer = (image_size[0] * 3, image_size[1] * 2)
    there = scale_box(box, image_size=image_size, size=finer)
    assert torch.equal(there, box * torch.tensor([3, 2, 3, 2]))
    whole = torch.tensor([[0, 0, *image_size]])
    assert scale_box(whole, image_size=image_size, size=size).tolist() == [[0, 0, *size]]


@covers("box_to_valid", "properties")
def test_a_box_wider_than_high():
    valid = box_to_valid(torch.tensor([[1, 2, 3, 8]]), image_size=(4, 8), size=(4, 8))
    assert valid.sum() == 2 * 6
    assert valid[0, 1:3, 2:].all()
    valid = box_to_valid(torch.tensor([[0, 4, 4, 8]]), image_size=(4, 8), size=(2, 4))
    assert valid.int().tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]


@covers("box_to_valid", "dtypes")
@covers("scale_box", "dtypes")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_dtypes_do_not_overflow(dtype):
    box = torch.tensor([[10, 20, 200, 250]])
    scaled = scale_box(box.to(dtype), image_size=(256, 256), size=(1024, 2048))
    assert scaled.dtype == torch.int64
    assert scaled.tolist() == [[40, 160, 800, 2000]]
    valid = box_to_valid(box.to(dtype), image_size=(256, 256), size=(16, 8))
    assert torch.equal(valid, oracle.box_to_valid(box, (256, 256), (16, 8)))


@covers("box_to_valid", "compile")
@covers("scale_box", "compile")
def test_compile():
    box = torch.tensor([[0, 3, 5, 9], [2, 2, 2, 2]])
    grids = {"image_size": (6, 9), "size": (3, 5)}
    assert_compiles(lambda b: (scale_box(b, **grids), box_to_valid(b, **grids)), box)


@covers("box_to_valid", "errors")
@covers("scale_box", "errors")
@pytest.mark.parametrize("function", [scale_box, box_to_valid])
def test_errors(function):
    box = torch.tensor([[0, 0, 4, 8]])
    with pytest.raises(ValueError, match=r"box must have shape \(B, 4\), got \(4,\)"):
        function(box[0], image_size=(4, 8), size=(2, 2))
    with pytest.raises(TypeError, match=r"box must be an integer tensor, got torch\.float32"):
        function(box.float(), image_size=(4, 8), size=(2, 2))
    with pytest.raises(ValueError, match=r"size must be two positive sides .* got \(0, 2\)"):
        function(box, image_size=(4, 8), size=(0, 2))
    with pytest.raises(ValueError, match=r"image_size must be two positive sides"):
        function(box, image_size=(4, 0), size=(2, 2))
    with pytest.raises(ValueError, match=r"inside image_size=\(8, 4\), got \[0, 0, 4, 8\]"):
        function(box, image_size=(8, 4), size=(2, 2))
    rows_then_columns = torch.tensor([[0, 448, 100, 300]])  # the order of ToCo's code
    with pytest.raises(ValueError, match="left <= right"):
        function(rows_then_columns, image_size=(448, 448), size=(28, 28))


@covers("box_to_valid", "degenerate")
@covers("scale_box", "degenerate")
def test_degenerate():
    empty = torch.tensor([[3, 2, 3, 7]])
    assert not box_to_valid(empty, image_size=(8, 8), size=(4, 4)).any()
    narrow = torch.tensor([[0, 3, 8, 4]])  # between two centres of the coarse grid
    assert not box_to_valid(narrow, image_size=(8, 8), size=(2, 2)).any()
    one = torch.tensor([[0, 0, 1, 1]])
    assert box_to_valid(one, image_size=(1, 1), size=(1, 1)).all()
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert box_to_valid(none, image_size=(4, 4), size=(2, 3)).shape == (0, 2, 3)
    assert scale_box(none, image_size=(4, 4), size=(2, 3)).shape == (0, 4)
