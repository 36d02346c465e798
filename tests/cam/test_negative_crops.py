from collections import Counter

import pytest
import torch
from contract import assert_same, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import generator, random_mask, seeds

from wsss_blocks.cam import negative_crops


def problem(seed=0, batch=2, height=7, width=6, dtype=torch.float64):
    g = generator(seed)
    images = torch.rand(batch, 3, height, width, generator=g, dtype=dtype)
    return images, random_mask((batch, height, width), 3, g)


def cut(*args, seed=0, **options):
    return negative_crops(*args, generator=generator(seed), **options)


@covers("negative_crops", "oracle")
@given(seeds, st.integers(1, 7), st.integers(1, 6), st.integers(1, 3), st.sampled_from([0.2, 0.5]))
def test_oracle(seed, height, width, size, share):
    size = min(size, height, width)
    places = (height - size + 1) * (width - size + 1)
    images, mask = problem(seed, 2, height, width)
    box = torch.tensor([[0, 0, height, width], [0, width // 2, max(height - 1, 0), width]])
    number = min(places, 3)
    found = cut(images, mask, seed=seed, size=size, number=number, share=share, box=box)
    for b, ids in enumerate(mask.tolist()):
        inside = box[b].tolist()
        corners = [(i, j) for i in range(height - size + 1) for j in range(width - size + 1)]
        ranks = {c: oracle.crop_rank(ids, *c, size, inside) for c in corners}
        chosen = []
        for n, (top, left, bottom, right) in enumerate(found.box[b].tolist()):
            assert (bottom - top, right - left) == (size, size)
            assert torch.equal(found.images[b, n], images[b, :, top:bottom, left:right])
            kind = oracle.crop_kind(ids, (top, left, bottom, right), inside, share)
            assert bool(found.positive[b, n]) == kind
            chosen.append((top, left))
        assert len(set(chosen)) == number
        best = sorted(ranks.values(), reverse=True)[:number]
        assert [ranks[c] for c in chosen] == best  # the wanted places first


@covers("negative_crops", "properties")
def test_places_are_drawn_evenly_and_follow_the_generator():
    images, mask = torch.zeros(400, 3, 3, 3), torch.zeros(400, 3, 3, dtype=torch.uint8)
    mask[:, 1, 1] = 7  # no middle here
    found = cut(images, mask, size=1, number=2)
    seen = Counter(map(tuple, found.box[:, :, :2].flatten(0, 1).tolist()))
    assert set(seen) == {(i, j) for i in range(3) for j in range(3)} - {(1, 1)}
    assert all(60 < n < 140 for n in seen.values())  # 100 each, deviation 9
    images, mask = problem(1, 3, 12, 12)
    one, two = (cut(images, mask, size=4, number=5, seed=3) for _ in range(2))
    assert_same(one, two)
    assert not torch.equal(one.box, cut(images, mask, size=4, number=5, seed=4).box)
    torch.manual_seed(3)  # the global one
    assert_same(negative_crops(images, mask, size=4, number=5), one)


@covers("negative_crops", "properties")
def test_kinds_by_hand():
    images = torch.rand(1, 3, 10, 10)
    ids = torch.zeros(1, 10, 10, dtype=torch.int64)
    whole = {"size": 10, "number": 1}
    assert not cut(images, ids, **whole).positive.any()
    ids[0, :2] = 255  # a mean of exactly 0.2 is negative still
    assert not cut(images, ids, **whole).positive.any()
    assert cut(images, ids, **whole, share=0.19).positive.all()
    ids[0, 9, 9] = 255
    assert cut(images, ids, **whole).positive.all()
    assert not cut(images, ids, **whole, box=torch.tensor([[2, 0, 10, 10]])).positive.any()
    ids[:] = 0
    ids[0, 0] = -1  # of another ignore_index
    assert not cut(images, ids, **whole, ignore_index=-1).positive.any()
    assert cut(images, ids, **whole, share=0.1).positive.all()
    # the image of an object all over: its crops are positive, wherever they lie
    assert cut(images, torch.ones_like(ids), size=3, number=8).positive.all()


@covers("negative_crops", "compile")
def test_compile():
    images, mask = problem(2, 2, 12, 10, torch.float32)
    box = torch.tensor([[0, 0, 12, 10], [2, 1, 9, 10]])
    compiled = torch.compile(negative_crops, fullgraph=True, dynamic=True, backend="eager")
    results = []
    for fn in (compiled, negative_crops):
        torch.manual_seed(0)
        results.append(fn(images, mask, size=4, number=3, box=box))
    assert_same(*results)


@covers("negative_crops", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    images, mask = problem(3)
    expected = cut(images, mask, size=3, number=4)
    for ids in (torch.uint8, torch.int32, torch.int64):
        found = cut(images.to(dtype), mask.to(ids), size=3, number=4)
        assert (found.images.dtype, found.box.dtype) == (dtype, torch.int64)
        assert_same(found, (expected.images.to(dtype), *expected[1:]))
    images.requires_grad_()
    assert not cut(images, mask, size=3, number=4).images.requires_grad


@covers("negative_crops", "degenerate")
def test_degenerate():
    images, mask = problem(4)
    found = cut(images[:0], mask[:0], size=3, number=4)
    assert (found.images.shape, found.positive.shape) == ((0, 4, 3, 3, 3), (0, 4))
    assert (cut(images, mask, size=1, number=42).box[:, :, 0].sum(1) == 6 * 21).all()  # each once
    empty = cut(images, mask, size=2, number=2, box=torch.tensor([[3, 3, 3, 3], [0, 0, 0, 6]]))
    assert not empty.positive.any()  # all padding


@covers("negative_crops", "errors")
def test_errors():
    images, mask = problem()
    with pytest.raises(ValueError, match=r"mask must have shape .* W=6, got \(2, 3, 3\)"):
        negative_crops(images, mask[:, :3, :3])
    with pytest.raises(TypeError, match="mask must be an integer tensor"):
        negative_crops(images, mask.float())
    with pytest.raises(ValueError, match="mask must be on the device of images"):
        negative_crops(images, mask.to("meta"))
    for size, number in ((7, 1), (6, 3), (3, 21)):
        with pytest.raises(ValueError, match=rf"size .* {number} different places .* size={size}"):
            negative_crops(images, mask, size=size, number=number)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        negative_crops(images, mask, size=0)
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        negative_crops(images, mask, size=2, number=0)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2"):
        negative_crops(images, mask, size=2, share=2)
    with pytest.raises(ValueError, match="box must hold top <= bottom"):
        negative_crops(images, mask, size=2, box=torch.tensor([[0, 0, 9, 9]] * 2))
    with pytest.raises(ValueError, match="images must be RGB in"):
        negative_crops(255 * images, mask, size=2)


def test_with_a_generator_for_each_image_its_crops_do_not_depend_on_the_batch():
    images = torch.rand(3, 3, 20, 24, generator=generator(0))
    mask = random_mask((3, 20, 24), 4, generator(1))
    options = {"size": 6, "number": 5}
    whole = negative_crops(images, mask, generator=[generator(i) for i in range(3)], **options)
    for i in range(3):
        alone = negative_crops(
            images[i : i + 1], mask[i : i + 1], generator=generator(i), **options
        )
        assert_same(alone.images[0], whole.images[i])
        assert torch.equal(alone.box[0], whole.box[i])
        assert torch.equal(alone.positive[0], whole.positive[i])
    with pytest.raises(ValueError, match="one for each of 3 images, got 2"):
        negative_crops(images, mask, generator=[generator(0), generator(1)], **options)
