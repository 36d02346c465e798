import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, seeds

from wsss_blocks.data import (
    CenterCrop,
    Compose,
    Geometry,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomScale,
    Resize,
    new_sample,
    replay,
)

lengths = st.integers(1, 12)
NEAR = 0.1  # pixels; torchvision's triangle filter bends a ramp by up to 0.08


def positions(height: int, width: int) -> torch.Tensor:
    """Map (2, h, w) of the pixel centres x, y themselves."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).double()


def steps(height: int, width: int, seed: int) -> tuple[Geometry, list[tuple]]:
    """Draw a chain of steps; return its geometry and the list of them."""
    g, geometry, done = generator(seed), Geometry.identity((height, width)), []
    for _ in range(int(torch.randint(0, 5, (), generator=g))):
        kind = int(torch.randint(0, 3, (), generator=g))
        h, w, a, b = torch.randint(1, 13, (4,), generator=g).tolist()
        if kind == 0:
            geometry, step = geometry.resize((h, w)), ("resize", h, w)
        elif kind == 1:
            geometry, step = geometry.flip(), ("flip",)
        else:
            geometry, step = geometry.crop(a - 6, b - 6, (h, w)), ("crop", a - 6, b - 6, h, w)
        done.append(step)
    return geometry, done


@given(lengths, lengths, seeds)
def test_matrix_equals_steps_undone_one_by_one(height, width, seed):
    geometry, done = steps(height, width, seed)
    sizes = [(height, width)]
    for step in done:
        sizes.append(sizes[-1] if step[0] == "flip" else step[-2:])
    assert tuple(geometry.size.tolist()) == sizes[-1]
    assert tuple(geometry.source_size.tolist()) == (height, width)
    for x, y in [(0.0, 0.0), (3.0, 1.0), (-2.5, 7.25)]:
        u, v = x, y
        for step, (h, w) in zip(reversed(done), reversed(sizes[:-1]), strict=True):
            if step[0] == "resize":
                u, v = (u + 0.5) * w / step[2] - 0.5, (v + 0.5) * h / step[1] - 0.5
            elif step[0] == "flip":
                u = w - 1 - u
            else:
                u, v = u + step[2], v + step[1]
        found = geometry.matrix @ torch.tensor([x, y, 1.0])
        assert found.tolist() == pytest.approx([u, v], rel=1e-5, abs=1e-3)


@given(lengths, lengths, seeds, seeds)
def test_compose_is_one_after_the_other(height, width, seed, other):
    first, _ = steps(height, width, seed)
    later, _ = steps(*first.size.tolist(), other)
    both = first.compose(later)
    assert torch.allclose(
        torch.cat([both.matrix, torch.tensor([[0.0, 0, 1]])]),
        torch.cat([first.matrix, torch.tensor([[0.0, 0, 1]])])
        @ torch.cat([later.matrix, torch.tensor([[0.0, 0, 1]])]),
        atol=1e-3,
    )
    assert both.size.tolist() == later.size.tolist()
    assert both.source_size.tolist() == [height, width]


def test_compose_checks_that_sizes_meet():
    with pytest.raises(ValueError, match=r"later must have source_size \(3, 4\).*got \(4, 3\)"):
        Geometry.identity((3, 4)).compose(Geometry.identity((4, 3)))


@given(lengths, lengths, st.sampled_from(["bilinear", "nearest"]))
def test_identity_and_flip_are_exact(height, width, mode):
    source = torch.rand(3, height, width, generator=generator(height * width))
    identity = Geometry.identity((height, width))
    same, valid = replay(source, identity, mode=mode)
    assert valid.all()
    assert torch.equal(same, source)
    mirrored, valid = replay(source, identity.flip(), mode=mode)
    assert valid.all()
    assert torch.equal(mirrored, source.flip(-1))
    back, _ = replay(source, identity.flip().flip(), mode=mode)
    assert torch.equal(back, source)


@given(lengths, lengths, st.integers(-5, 5), st.integers(-5, 5), lengths, lengths)
def test_crop_is_exact_and_padding_invalid(height, width, top, left, h, w):
    source = torch.rand(2, height, width, generator=generator(top + 7 * left + 50))
    geometry = Geometry.identity((height, width)).crop(top, left, (h, w))
    for mode in ("bilinear", "nearest"):
        cut, valid = replay(source, geometry, mode=mode, fill=-3.0)
        for i in range(h):
            for j in range(w):
                inside = 0 <= i + top < height and 0 <= j + left < width
                assert bool(valid[i, j]) == inside
                expected = source[:, i + top, j + left] if inside else torch.tensor([-3.0, -3.0])
                assert torch.allclose(cut[:, i, j], expected, rtol=0, atol=1e-6)


@given(st.integers(6, 40), st.integers(6, 40), seeds)
def test_box_and_replay_agree_on_what_is_image(height, width, seed):
    transform = Compose(RandomScale(0.5, 2.0), RandomHorizontalFlip(), RandomCrop((24, 31)))
    sample = transform(new_sample(torch.zeros(3, height, width), id="a"), generator(seed))
    _, valid = replay(torch.zeros(1, 5, 5), sample["geometry"])
    top, left, bottom, right = sample["box"].tolist()
    expected = torch.zeros(24, 31, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    assert torch.equal(valid, expected)


@given(st.integers(20, 60), st.integers(20, 60), st.integers(4, 20), st.integers(4, 20), seeds)
def test_image_aligned_map_follows_the_image_to_half_a_cell(height, width, h, w, seed):
    # The image holds its own pixel centres; so does the map, at the centres of its cells.
    image = torch.cat([positions(height, width), torch.zeros(1, height, width)]).float()
    cell = torch.tensor([width / w, height / h])[:, None, None]
    cells = ((positions(h, w) + 0.5) * cell - 0.5).float()
    transform = Compose(RandomScale(0.5, 2.0), RandomHorizontalFlip(), RandomCrop((28, 33)))
    sample = transform(new_sample(image, id="a"), generator(seed))
    replayed, valid = replay(cells, sample["geometry"])
    assert valid.any()
    error = (replayed - sample["image"][:2]).abs()
    # Within half a cell everywhere (0.6 px is the image's own antialiasing at its borders), and
    # much nearer where neither the map nor the resized image had to be continued.
    assert (error <= 0.5 * cell + 0.6)[:, valid].all()
    limit = torch.tensor([width, height])[:, None, None]
    shown, margin = sample["image"][:2], cell.clamp_min(3)
    inner = valid & ((shown > margin) & (shown < limit - 1 - margin)).all(0)
    assert (error[:, inner] < NEAR).all()


@pytest.mark.parametrize(
    "transform",
    [
        Resize((30, 50)),
        Resize(short=33),
        RandomResizedCrop(24, scale=(0.3, 1.0)),
        Compose(CenterCrop(64), Resize(long=40), RandomHorizontalFlip(1.0)),
    ],
)
def test_geometry_predicts_where_pixels_came_from(transform):
    image = torch.cat([positions(48, 40), torch.zeros(1, 48, 40)]).float()
    sample = transform(new_sample(image, id="a"), generator(3))
    height, width = sample["image"].shape[-2:]
    grid = positions(height, width).float()
    ones = torch.ones(1, height, width)
    predicted = torch.einsum("ij,jhw->ihw", sample["geometry"].matrix, torch.cat([grid, ones]))
    top, left, bottom, right = sample["box"].tolist()
    inside = (slice(None), slice(top + 3, bottom - 3), slice(left + 3, right - 3))
    assert predicted[inside].numel() > 100
    assert (predicted - sample["image"][:2])[inside].abs().max() < NEAR


def test_replay_onto_another_grid_covers_the_same_image():
    # Cell centres of a 2 x 2 grid over an 8 x 8 image lie between pixels 1, 2 and 5, 6.
    source = positions(8, 8)
    coarse, valid = replay(source, Geometry.identity((8, 8)), size=(2, 2))
    assert valid.all()
    assert coarse[0].tolist() == [[1.5, 5.5], [1.5, 5.5]]
    assert coarse[1].tolist() == [[1.5, 1.5], [5.5, 5.5]]
    fine, valid = replay(coarse, Geometry.identity((8, 8)), mode="nearest", size=(4, 8))
    assert fine[0, 0].tolist() == [1.5] * 4 + [5.5] * 4


def test_replay_keeps_dtype_and_masks():
    mask = torch.tensor([[[0, 3], [255, 7]]])
    geometry = Geometry.identity((2, 2)).crop(0, -1, (2, 3))
    moved, valid = replay(mask, geometry, mode="nearest", fill=255)
    assert moved.dtype == torch.int64
    assert moved.tolist() == [[[255, 0, 3], [255, 255, 7]]]
    assert valid[:, 0].any().item() is False
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert replay(torch.rand(1, 2, 2).to(dtype), geometry)[0].dtype == dtype


def test_degenerate_replays():
    one, valid = replay(torch.full((1, 1, 1), 2.0), Geometry.identity((5, 3)))
    assert valid.all()
    assert torch.equal(one, torch.full((1, 5, 3), 2.0))
    outside, valid = replay(torch.ones(1, 4, 4), Geometry.identity((4, 4)).crop(9, 9, (2, 2)))
    assert not valid.any()
    assert not outside.any()


def test_replay_errors():
    geometry = Geometry.identity((4, 4))
    with pytest.raises(ValueError, match=r"map must have shape \(C, h, w\), got \(4, 4\)"):
        replay(torch.zeros(4, 4), geometry)
    batched = Geometry(*(field[None] for field in geometry))
    with pytest.raises(
        ValueError, match=r"geometry.matrix must have shape \(2, 3\), got \(1, 2, 3"
    ):
        replay(torch.zeros(1, 4, 4), batched)
    with pytest.raises(
        ValueError, match="mode must be one of 'bilinear', 'nearest', got 'bicubic'"
    ):
        replay(torch.zeros(1, 4, 4), geometry, mode="bicubic")
    with pytest.raises(
        TypeError, match=r"map must be floating-point for mode='bilinear', got torch.int"
    ):
        replay(torch.zeros(1, 4, 4, dtype=torch.int64), geometry)
