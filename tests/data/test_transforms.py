import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, seeds

from wsss_blocks.data import (
    AddView,
    CenterCrop,
    ChannelPermutation,
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResize,
    RandomResizedCrop,
    RandomScale,
    Resize,
    collate,
    new_sample,
    replay,
    training_transform,
)

TOCO = Compose(
    RandomScale(0.5, 2.0),
    RandomHorizontalFlip(),
    RandomCrop(32),
    ColorJitter(),
    RandomGrayscale(),
    GaussianBlur(),
)
ALL = [
    Resize((7, 9)),
    RandomScale(),
    RandomResize(10, 30),
    RandomHorizontalFlip(1.0),
    RandomCrop((13, 17)),
    CenterCrop((13, 17)),
    RandomResizedCrop((11, 12)),
    AddView("second", RandomCrop(8)),
    ColorJitter(p=1.0),
    RandomGrayscale(1.0),
    GaussianBlur(),
    ChannelPermutation(1.0),
    TOCO,
]


def sample_of(height=16, width=20, *, masks=False, seed=0):
    sample = new_sample(
        torch.rand(3, height, width, generator=generator(seed)),
        id="a",
        labels=torch.tensor([1.0, 0]),
    )
    if masks:
        sample["mask"] = torch.randint(0, 3, (height, width), generator=generator(seed))
        sample["pseudo_mask"] = sample["mask"].clone()
    return sample


def snapshot(sample):
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_everything_random_comes_from_the_generator(transform):
    sample = sample_of(masks=True)
    before = snapshot(sample)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = transform(sample, generator(5))
    torch.manual_seed(99)
    again = transform(sample, generator(5))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["box"], again["box"])
    assert torch.equal(first["mask"], again["mask"])
    torch.manual_seed(0)
    transform(sample, generator(6))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in before.items():  # the input is as it was
        assert torch.equal(sample[key], value) if isinstance(value, torch.Tensor) else True
    assert sample.keys() == before.keys()


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_outputs_are_valid_samples(transform):
    for seed in range(8):
        new = transform(sample_of(masks=True), generator(seed))
        height, width = new["image"].shape[-2:]
        assert new["image"].dtype == torch.float32
        assert 0 <= new["image"].min() <= new["image"].max() <= 1 + 1e-6
        assert new["mask"].shape == new["pseudo_mask"].shape == (height, width)
        assert torch.equal(new["mask"], new["pseudo_mask"])
        assert new["mask"].dtype == torch.int64
        assert set(new["mask"].unique().tolist()) <= {0, 1, 2, 255}
        assert new["geometry"].size.tolist() == [height, width]
        assert new["geometry"].source_size.tolist() == [16, 20]
        assert new["box"].dtype == torch.int64
        top, left, bottom, right = new["box"].tolist()
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert new["labels"].tolist() == [1, 0]
        assert new["id"] == "a"


@given(st.integers(5, 40), st.integers(5, 40), seeds)
def test_box_and_image_agree_under_flips_and_crops(height, width, seed):
    # A white image padded with black: the box is the white part, whichever order flips come in.
    sample = new_sample(torch.ones(3, height, width), id="a")
    sample["mask"] = torch.ones(height, width, dtype=torch.int64)
    transform = Compose(
        RandomHorizontalFlip(),
        RandomScale(0.5, 1.5),
        RandomCrop((20, 26)),
        RandomHorizontalFlip(),
        CenterCrop((24, 22)),
        RandomHorizontalFlip(),
    )
    new = transform(sample, generator(seed))
    top, left, bottom, right = new["box"].tolist()
    expected = torch.zeros(24, 22)
    expected[top:bottom, left:right] = 1
    assert torch.allclose(new["image"], expected.expand(3, -1, -1))
    assert torch.equal(new["mask"], torch.where(expected.bool(), 1, 255))


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 20), st.integers(1, 20))
def test_resized_padding_stays_outside_the_box(height, width, h, w):
    padded = CenterCrop((30, 34))(new_sample(torch.ones(3, height, width), id="a"), generator(0))
    new = Resize((h, w))(padded, generator(0))
    top, left, bottom, right = new["box"].tolist()
    assert 0 <= top <= bottom <= h
    assert 0 <= left <= right <= w
    # Every pixel of the box lies wholly on the image.
    old = padded["box"].tolist()
    if bottom > top:
        assert old[0] * h <= top * 30 < bottom * 30 <= old[2] * h
    if right > left:
        assert old[1] * w <= left * 34 < right * 34 <= old[3] * w


def test_random_crop_places_small_images_anywhere_and_large_ones_too():
    small = {tuple(RandomCrop(4)(sample_of(2, 3), generator(s))["box"].tolist()) for s in range(60)}
    assert small == {(t, left, t + 2, left + 3) for t in range(3) for left in range(2)}
    big = sample_of(6, 5)
    corners = set()
    for seed in range(60):
        crop = RandomCrop(4)(big, generator(seed))
        assert crop["box"].tolist() == [0, 0, 4, 4]
        top, left = int(crop["geometry"].matrix[1, 2]), int(crop["geometry"].matrix[0, 2])
        assert torch.equal(crop["image"], big["image"][:, top : top + 4, left : left + 4])
        corners.add((top, left))
    assert corners == {(t, left) for t in range(3) for left in range(2)}


def test_a_crop_of_the_whole_image_changes_nothing():
    sample = sample_of(6, 9, masks=True)
    for transform in (RandomCrop((6, 9)), CenterCrop((6, 9))):
        assert transform(sample, generator(0)) is sample
    drawn, advanced = generator(0), generator(0)
    RandomCrop((6, 9))(sample, drawn)  # what follows draws the same numbers
    RandomCrop((5, 5))(sample, advanced)
    assert torch.equal(torch.rand(3, generator=drawn), torch.rand(3, generator=advanced))


def test_crop_fill():
    crop = CenterCrop(6, fill=0.25)(sample_of(2, 2), generator(0))
    assert crop["image"][:, 0].eq(0.25).all()
    assert RandomCrop(6, fill=0.5)(sample_of(2, 2), generator(0))["image"].eq(0.5).sum() == 3 * 32


def test_sizes_of_resizing():
    def size(transform, seed=0):
        return tuple(transform(sample_of(16, 20), generator(seed))["image"].shape[-2:])

    assert size(Resize((5, 6))) == (5, 6)
    assert size(Resize(short=8)) == (8, 10)
    assert size(Resize(long=10)) == (8, 10)
    assert size(Resize(long=1)) == (1, 1)
    longs = {max(size(RandomResize(10, 13), s)) for s in range(40)}
    assert longs == {10, 11, 12, 13}
    factors = [size(RandomScale(0.5, 2.0), s)[1] / 20 for s in range(60)]
    assert 0.5 <= min(factors) < 0.7
    assert 1.8 < max(factors) <= 2.0


def test_resize_is_bilinear_for_images_and_nearest_for_masks():
    sample = sample_of(1, 2)
    sample["image"] = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
    sample["mask"] = torch.tensor([[1, 2]])
    new = Resize((1, 4))(sample, generator(0))
    assert new["image"][0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert new["mask"].tolist() == [[1, 1, 2, 2]]
    # Pixel centres: reducing 6 cells to 2 takes the cells in the middle of each third.
    sample = sample_of(1, 6)
    sample["mask"] = torch.arange(6)[None]
    assert Resize((1, 2))(sample, generator(0))["mask"].tolist() == [[1, 4]]


def test_flip_probability():
    flips = sum(
        RandomHorizontalFlip(0.25)(sample_of(), generator(s))["geometry"].matrix[0, 0].item() < 0
        for s in range(400)
    )
    assert 60 < flips < 140
    sample = sample_of()
    assert RandomHorizontalFlip(0.0)(sample, generator(0)) is sample
    mirrored = RandomHorizontalFlip(1.0)(sample, generator(0))
    assert torch.equal(mirrored["image"], sample["image"].flip(-1))


def test_resized_crop_draws_the_area_and_falls_back():
    for seed in range(30):
        new = RandomResizedCrop(10, scale=(0.25, 0.5), ratio=(0.5, 2.0))(
            sample_of(100, 100), generator(seed)
        )
        matrix = new["geometry"].matrix
        w, h = matrix[0, 0].item() * 10, matrix[1, 1].item() * 10
        assert 0.23 < w * h / 1e4 < 0.52
        assert 0.47 < w / h < 2.1
        assert new["box"].tolist() == [0, 0, 10, 10]
    # A strip cannot hold a window of ratio 1: the central square is taken.
    strip = RandomResizedCrop(5, scale=(1.0, 1.0), ratio=(1.0, 1.0))(
        sample_of(10, 30), generator(0)
    )
    assert strip["geometry"].matrix[:, :2].tolist() == [[2, 0], [0, 2]]
    assert strip["geometry"].matrix[0, 2] == 10.5


def test_views_have_their_own_box_and_geometry():
    transform = Compose(
        AddView("second", Compose(RandomHorizontalFlip(1.0), RandomCrop(24))), CenterCrop(10)
    )
    new = transform(sample_of(), generator(1))
    view = new["views"]["second"]
    assert set(view) == {"image", "box", "geometry"}
    assert view["image"].shape == (3, 24, 24)
    assert view["geometry"].matrix[0, 0] == -1
    assert new["geometry"].matrix[0, 0] == 1
    assert new["image"].shape == (3, 10, 10)


def test_jitter_ranges_and_probability():
    grey = new_sample(torch.full((3, 4, 4), 0.5), id="a")
    factors = [
        ColorJitter(0.4, 0, 0, 0, p=1)(grey, generator(s))["image"].mean().item() / 0.5
        for s in range(100)
    ]
    assert 0.6 <= min(factors) < 0.65
    assert 1.35 < max(factors) <= 1.4
    applied = sum(
        not torch.equal(ColorJitter()(sample_of(), generator(s))["image"], sample_of()["image"])
        for s in range(200)
    )
    assert 135 < applied < 185
    same = ColorJitter(0, 0, 0, 0, p=1)(grey, generator(0))["image"]
    assert torch.equal(same, grey["image"])
    hue = ColorJitter(0, 0, 0, 0.5, p=1)(sample_of(), generator(0))["image"]
    assert torch.allclose(hue.amax(0), sample_of()["image"].amax(0), atol=1e-5)


def test_jitter_order_is_drawn():
    # Brightness and contrast do not commute: with factors fixed, only the order is left to vary.
    class Fixed(ColorJitter):
        def __init__(self):
            super().__init__(0.0, 0.0, 0.0, 0.0, p=1.0)
            self.brightness, self.contrast = 0.9, 0.9

    results = {
        round(Fixed()(sample_of(4, 4), generator(s))["image"].sum().item(), 3) for s in range(9)
    }
    assert len(results) > 5


def test_greyscale_blur_and_permutation():
    sample = sample_of()
    grey = RandomGrayscale(1.0)(sample, generator(0))["image"]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose(grey[0], (sample["image"] * weights).sum(0), atol=1e-3)
    assert RandomGrayscale(0.0)(sample, generator(0)) is sample
    constant = new_sample(torch.full((3, 9, 9), 0.3), id="a")
    assert torch.allclose(GaussianBlur(2, 2)(constant, generator(0))["image"], constant["image"])
    point = new_sample(torch.zeros(3, 21, 21), id="a")
    point["image"][:, 10, 10] = 1
    blurred = GaussianBlur(1.5, 1.5)(point, generator(0))["image"][0]
    offsets = (torch.arange(21) - 10.0) ** 2
    assert (blurred.sum(0) * offsets).sum().sqrt().item() == pytest.approx(1.5, rel=0.03)
    assert GaussianBlur(p=0.0)(sample, generator(0)) is sample
    tiny = new_sample(torch.rand(3, 1, 2), id="a")
    assert GaussianBlur(2, 2)(tiny, generator(0))["image"].shape == (3, 1, 2)
    orders = {
        tuple(ChannelPermutation(1.0)(sample, generator(s))["image"][:, 0, 0].tolist())
        for s in range(40)
    }
    assert len(orders) == 6


# --- images of one pixel or one row -----------------------------------------------------------

thin = st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 37), (53, 1), (2, 3)])


@given(
    thin,
    seeds,
    st.sampled_from(["photometric", "permute", "none"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.01, 0.02)]),
)
def test_training_transform_survives_tiny_images(size, seed, colour, square, flip, scale):
    transform = training_transform(16, scale=scale, flip=flip, colour=colour, square=square)
    first, second = (
        transform(sample_of(*shape, masks=True, seed=seed), generator(seed))
        for shape in (size, (20, 30))
    )
    batch = collate([first, second])
    assert batch["image"].shape == (2, 3, 16, 16)
    assert torch.isfinite(batch["image"]).all()
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1 + 1e-6
    assert batch["mask"].shape == (2, 16, 16)
    top, left, bottom, right = first["box"].tolist()
    assert 0 <= top < bottom <= 16
    assert 0 <= left < right <= 16
    assert torch.isfinite(batch["geometry"].matrix).all()
    moved, valid = replay(torch.rand(2, 1, 1), first["geometry"], size=(4, 4))
    assert torch.isfinite(moved).all()
    assert valid.shape == (4, 4)


@given(thin, seeds)
@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_every_transform_survives_tiny_images(transform, size, seed):
    new = transform(sample_of(*size, masks=True), generator(seed))
    height, width = new["image"].shape[-2:]
    assert min(height, width) >= 1
    assert new["mask"].shape == (height, width)
    assert torch.isfinite(new["image"]).all()
    assert new["geometry"].size.tolist() == [height, width]
    assert new["geometry"].source_size.tolist() == list(size)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_resize_of_tiny_images(size):
    def shape(transform):
        new = transform(sample_of(*size), generator(0))
        assert torch.isfinite(new["image"]).all()
        assert new["box"].tolist() == [0, 0, *new["image"].shape[-2:]]
        return tuple(new["image"].shape[-2:])

    assert shape(Resize((32, 24))) == (32, 24)
    assert shape(Resize(short=4)) == (size[0] * 4, size[1] * 4)
    assert shape(Resize(long=3)) == tuple(max(1, round(side * 3 / max(size))) for side in size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(), "give one of size, short and long"),
        (lambda: Resize((3, 3), short=2), "give one of size, short and long"),
        (lambda: Resize((0, 3)), "size must be positive and finite, got 0"),
        (lambda: Resize(short=-1), "size must be positive and finite, got -1"),
        (lambda: RandomScale(0.0, 1.0), "0 < low <= high, got 0.0 and 1.0"),
        (lambda: RandomResize(5, 4), "0 < low <= high, got 5 and 4"),
        (lambda: RandomHorizontalFlip(1.5), r"p must be in \[0, 1\], got 1.5"),
        (lambda: RandomCrop(0), "size must be positive"),
        (lambda: CenterCrop((4, -4)), "size must be positive"),
        (lambda: RandomResizedCrop(4, scale=(0.5, 0.1)), "0 < low <= high"),
        (lambda: RandomResizedCrop(4, ratio=(0.0, 1)), "0 < low <= high"),
        (lambda: RandomResizedCrop(0), "size must be positive"),
        (lambda: ColorJitter(p=-0.1), r"p must be in \[0, 1\]"),
        (lambda: ColorJitter(hue=0.6), r"hue in \[0, 0.5\]"),
        (lambda: ColorJitter(contrast=-1), "must be >= 0"),
        (lambda: RandomGrayscale(2), r"p must be in \[0, 1\]"),
        (lambda: GaussianBlur(0.0, 1.0), "0 < low <= high"),
        (lambda: GaussianBlur(p=2), r"p must be in \[0, 1\]"),
        (lambda: ChannelPermutation(-1), r"p must be in \[0, 1\]"),
    ],
)
def test_constructor_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
