import pytest
import torch
from contract import assert_compiles, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, seeds, sizes, small

from wsss_blocks.cam import confident_label


def random_maps(seed=0, batch=2, channels=3, size=(3, 4)):
    g = generator(seed)
    return (3 * torch.randn(batch, channels, *size, generator=g, dtype=torch.float64)).softmax(1)


def loops(maps, confidence, box, ignored):
    out = torch.empty(maps.shape[0], *maps.shape[2:], dtype=torch.int64)
    for b in range(maps.shape[0]):
        for y in range(maps.shape[2]):
            for x in range(maps.shape[3]):
                scores = maps[b, :, y, x].tolist()
                top, left, bottom, right = box[b]
                inside = top <= y < bottom and left <= x < right
                sure = inside and max(scores) >= confidence
                out[b, y, x] = scores.index(max(scores)) if sure else ignored
    return out


@covers("confident_label", "oracle")
@settings(max_examples=15)
@given(seeds, small, small, sizes(4), st.sampled_from([0.0, 0.5, 0.9]))
def test_equals_the_loops(seed, batch, channels, size, confidence):
    maps = random_maps(seed, batch, channels, size)
    box = torch.tensor([[0, 0, size[0], size[1]], [1, 0, size[0], 1], [0, 0, 0, 0]])[:batch]
    found = confident_label(maps, confidence=confidence, box=box)
    assert torch.equal(found, loops(maps, confidence, box.tolist(), 255))
    assert torch.equal(confident_label(maps, confidence=0.0), maps.argmax(1))


@covers("confident_label", "properties")
def test_more_confidence_decides_less_and_changes_nothing_else():
    maps = random_maps(1, size=(6, 6))
    previous = confident_label(maps, confidence=0.0)
    for confidence in (0.5, 0.8, 0.99, 1.0):
        found = confident_label(maps, confidence=confidence)
        assert ((found == previous) | (found == 255)).all()
        assert (found == 255).sum() >= (previous == 255).sum()
        previous = found
    assert (previous == 255).all()


@covers("confident_label", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    maps = torch.tensor([[0.75, 0.5, 0.25], [0.25, 0.5, 0.75]]).view(1, 2, 1, 3).to(dtype)
    found = confident_label(maps, confidence=0.75)
    assert found.dtype == torch.int64
    assert found.tolist() == [[[0, 255, 1]]]
    assert confident_label(maps, confidence=0.5)[0, 0, 1] == 0  # background wins ties


@covers("confident_label", "compile")
def test_compiles():
    box = torch.tensor([[0, 0, 3, 4], [1, 1, 2, 3]])
    assert_compiles(lambda m, b: confident_label(m, box=b, confidence=0.5), random_maps(), box)


@covers("confident_label", "errors")
def test_errors():
    maps = random_maps()
    for options, message in (
        ({"confidence": 1.5}, r"confidence must be in \[0, 1\], got 1.5"),
        ({"ignore_index": 2}, r"ignore_index must not be one of the channels 0\.\.2 of maps"),
        ({"box": torch.zeros(1, 4).long()}, r"box must have shape \(B, 4\) with B=2"),
        ({"box": torch.tensor([[0, 0, 9, 9]] * 2)}, "box must hold top <= bottom"),
    ):
        with pytest.raises(ValueError, match=message):
            confident_label(maps, **options)
    with pytest.raises(ValueError, match=r"maps must have shape \(B, C, H, W\)"):
        confident_label(maps[0])
    with pytest.raises(ValueError, match="maps must be finite"):
        confident_label(maps / 0)
    with pytest.raises(TypeError, match="maps must be a floating-point tensor"):
        confident_label(maps.long())


@covers("confident_label", "degenerate")
def test_background_alone_one_pixel_and_no_image():
    assert confident_label(torch.ones(1, 1, 2, 2)).tolist() == [[[0, 0], [0, 0]]]
    assert confident_label(torch.zeros(1, 2, 1, 1)).tolist() == [[[255]]]
    assert confident_label(torch.zeros(0, 2, 3, 3)).shape == (0, 3, 3)
