import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    assert_same,
    covers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.closing import closing_oracle
from scipy import ndimage
from strategies import generator, seeds, sizes, small

from wsss_blocks.refine import MorphologicalClosing, morphological_closing

windows = st.sampled_from([1, 3, 5, 7])


def scores(seed=0, shape=(2, 3, 9, 8), dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@covers("morphological_closing", "oracle")
@settings(max_examples=20)
@given(seeds, small, small, sizes(9), windows)
def test_closing_is_the_loop(seed, batch, channels, grid, size):
    maps = scores(seed, (batch, channels, *grid))
    found = morphological_closing(maps, size=size)
    for image, closed in zip(maps, found, strict=True):
        for plane, result in zip(image, closed, strict=True):
            expected = closing_oracle(plane.tolist(), size)
            assert_same(result, torch.tensor(expected, dtype=torch.float64))


@covers("morphological_closing", "oracle")
@pytest.mark.parametrize("size", [3, 7])
def test_closing_is_that_of_scipy(size):
    """Grey closing with mirrored borders, which show a window no pixel that it lacks."""
    maps = scores(1, (1, 1, 20, 23))
    expected = ndimage.grey_closing(maps[0, 0].numpy(), size=(size, size))
    assert_same(morphological_closing(maps, size=size)[0, 0], torch.from_numpy(expected))
    # The binary one erodes from the border inwards: compared away from it.
    mask = torch.zeros(1, 1, 40, 41, dtype=torch.bool)
    mask[..., 10:30, 10:30] = torch.rand(20, 20, generator=generator(2)) < 0.15
    square = torch.ones(size, size).numpy()
    expected = ndimage.binary_closing(mask[0, 0].numpy(), structure=square)
    assert expected.sum() > mask.sum()
    assert_same(morphological_closing(mask, size=size)[0, 0], torch.from_numpy(expected))


@covers("morphological_closing", "properties")
@settings(max_examples=15)
@given(seeds, sizes(12), windows)
def test_closing_grows_is_idempotent_and_ordered(seed, grid, size):
    maps = scores(seed, (2, 2, *grid))
    closed = morphological_closing(maps, size=size)
    assert (closed >= maps).all()
    assert_same(morphological_closing(closed, size=size), closed)
    higher = maps + torch.rand(maps.shape, generator=generator(seed), dtype=torch.float64)
    assert (morphological_closing(higher, size=size) >= closed).all()
    assert_same(morphological_closing(maps.flip(-1).mT, size=size), closed.flip(-1).mT)
    assert_same(morphological_closing(maps.exp(), size=size), closed.exp())  # only order counts
    if size > 1:
        smaller = morphological_closing(maps, size=size - 2)
        assert (smaller <= closed).all()


@covers("morphological_closing", "gradcheck")
def test_closing_gradients():
    maps = scores(3, (1, 2, 5, 6)).requires_grad_()
    assert_gradcheck(lambda x: morphological_closing(x, size=3), maps)


@covers("morphological_closing", "module")
def test_closing_module():
    maps = scores(4)
    module = MorphologicalClosing(size=5)
    assert_module(module, morphological_closing(maps, size=5), maps)
    assert "size=5" in repr(module)
    assert_same(MorphologicalClosing()(maps), morphological_closing(maps))


@covers("morphological_closing", "dtypes")
def test_closing_keeps_the_dtype():
    maps = scores(5)
    expected = morphological_closing(maps)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = morphological_closing(maps.to(dtype))
        assert found.dtype == dtype
        assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(morphological_closing(maps.float()), expected)
    mask = maps > 1
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64):
        found = morphological_closing(mask.to(dtype), size=3)
        assert found.dtype == dtype
        assert_same(found.double(), morphological_closing(mask.double(), size=3))
    large = torch.tensor([[[[2**53 - 1, 0, 2**53 - 2]]]])
    assert_same(morphological_closing(large, size=3).flatten()[1], large[0, 0, 0, 2])


@covers("morphological_closing", "compile")
def test_closing_compiles():
    assert_compiles(lambda x: morphological_closing(x, size=3), scores(6))
    assert_compiles(lambda x: morphological_closing(x), scores(6) > 0)


@covers("morphological_closing", "errors")
def test_closing_errors():
    maps = scores()
    with pytest.raises(ValueError, match=r"maps must have shape \(B, C, H, W\), got \(3, 9, 8\)"):
        morphological_closing(maps[0])
    with pytest.raises(ValueError, match="maps must be finite"):
        morphological_closing(maps.masked_fill(maps > 1, torch.nan))
    with pytest.raises(TypeError, match="maps must be real, got torch"):
        morphological_closing(maps.to(torch.complex64))
    for make in (lambda size: morphological_closing(maps, size=size), _module):
        with pytest.raises(ValueError, match="size must be odd, got 4"):
            make(4)
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            make(0)
        with pytest.raises(TypeError, match=r"size must be an int, got 3\.0"):
            make(3.0)


def _module(size):
    return MorphologicalClosing(size=size)


@covers("morphological_closing", "degenerate")
def test_closing_of_little():
    point = torch.tensor([[[[0.3]]]])
    assert_same(morphological_closing(point), point)
    constant = torch.full((2, 1, 3, 4), -2.0)
    assert_same(morphological_closing(constant), constant)
    assert_same(morphological_closing(scores(), size=1), scores())
    assert morphological_closing(torch.zeros(0, 2, 3, 3)).shape == (0, 2, 3, 3)
    # A window that holds the whole image leaves nothing but its largest score.
    maps = scores(7, (1, 2, 4, 3))
    assert_same(
        morphological_closing(maps, size=9), maps.amax((2, 3), keepdim=True).expand_as(maps)
    )
