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
from oracles.affinity import (
    affinity_labels_oracle,
    edge_affinity_oracle,
    feature_affinity_oracle,
    half_disc_oracle,
    matrix_oracle,
    random_walk_oracle,
)
from oracles.refine import resize_oracle
from strategies import generator, random_mask, seeds, sizes, small
from torch.func import functional_call

from wsss_blocks.losses import affinity_loss
from wsss_blocks.refine import LearntWalk, _walk, random_walk

kinds = pytest.mark.parametrize("kind", ["psa", "irn"])


def block(kind="psa", dim=4, dtype=torch.float64, *, seed=0, **options):
    """A walk whose head is large enough for affinities to differ."""
    walk = LearntWalk(dim, kind=kind, **{"radius": 3, "steps": 5, "hidden": 3, **options})
    g = generator(seed)
    for p in walk.parameters():
        torch.nn.init.normal_(p, generator=g)
    return walk.to(dtype)


def problem(seed=0, batch=2, channels=2, size=(4, 3), dtype=torch.float64, dim=4):
    g = generator(seed)
    maps = torch.rand(batch, channels, *size, generator=g, dtype=torch.float64)
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    return maps.to(dtype), features.to(dtype)


def conv_oracle(head, features):
    """A 1x1 convolution, number by number."""
    weight, bias = head.weight[:, :, 0, 0].detach(), head.bias.detach()
    batch, dim, h, w = features.shape
    out = torch.zeros(batch, len(bias), h, w, dtype=torch.float64)
    for b in range(batch):
        for o in range(len(bias)):
            for y in range(h):
                for x in range(w):
                    total = float(bias[o])
                    for d in range(dim):
                        total += float(weight[o, d]) * float(features[b, d, y, x])
                    out[b, o, y, x] = total
    return out


def affinity_oracle(walk, features):
    """The affinities of the docstring, and what a cell gives of its scores."""
    found = conv_oracle(walk.head, features)
    if walk.kind == "psa":
        return feature_affinity_oracle(found.clamp_min(0), walk.radius), torch.ones_like(found[:1])
    edge = 1 / (1 + (-found).exp())
    return edge_affinity_oracle(edge, walk.radius), 1 - edge


def resized_oracle(maps, size):
    planes = [resize_oracle(x, size, align_corners=False) for x in maps.flatten(0, 1)]
    return torch.stack(planes).view(*maps.shape[:2], *size)


@covers("LearntWalk", "oracle")
@kinds
@settings(max_examples=5)
@given(seeds, small, sizes(4), st.sampled_from([1.0, 2.5, 8.0]), st.integers(0, 6))
def test_walk_is_the_loop(kind, seed, channels, size, beta, steps):
    walk = block(kind, seed=seed, beta=beta, steps=steps)
    _, features = problem(seed, size=size)
    maps = torch.rand(2, channels, 3, 5, generator=generator(seed), dtype=torch.float64)
    values, gives = affinity_oracle(walk, features)
    affinity = walk.affinity(features)
    assert list(affinity.offsets) == half_disc_oracle(3)
    assert_close(affinity.values, values)
    giving = resized_oracle(maps, size) * gives[:, :1]
    matrix = matrix_oracle(values, half_disc_oracle(3))
    assert_close(walk(maps, features), random_walk_oracle(giving, matrix, beta=beta, steps=steps))


@covers("LearntWalk", "oracle")
@pytest.mark.parametrize(("kind", "beta", "steps"), [("psa", 8, 64), ("irn", 10, 256)])
def test_walks_of_the_papers_are_powers_of_a_matrix(kind, beta, steps):
    walk = block(kind, radius=5, beta=None, steps=None)
    assert (walk.beta, walk.steps) == (beta, steps)
    maps, features = problem(1, size=(7, 6))
    values, gives = affinity_oracle(walk, features)
    transition = matrix_oracle(values, half_disc_oracle(5)) ** beta
    transition = transition / transition.sum(1, keepdim=True)
    power = torch.linalg.matrix_power(transition, steps)
    expected = (maps * gives[:, :1]).flatten(2) @ power
    assert_close(walk(maps, features).flatten(2), expected)


@covers("LearntWalk", "oracle")
@settings(max_examples=10)
@given(seeds, small, sizes(4))
def test_pairs_are_those_of_the_small_mask(seed, factor, size):
    """A mask whose side is a whole multiple of the grid's gives the pixel at the middle."""
    mask = random_mask((2, size[0] * factor, size[1] * factor), 3, generator(seed))
    small = mask[:, factor // 2 :: factor, factor // 2 :: factor]
    found = block().pairs(mask, size=size)
    assert list(found.offsets) == half_disc_oracle(3)
    assert_same(found[:3], affinity_labels_oracle(small, 3))
    as_bytes = block().pairs(mask.to(torch.uint8), size=size)
    assert_same(as_bytes[:3], found[:3])
    other = block().pairs(mask.where(mask != 255, 7), size=size, ignore_index=7)
    assert_same(other[:3], found[:3])


@covers("LearntWalk", "properties")
def test_constant_maps_stay_with_psa():
    maps, features = problem(2)
    walk = block(steps=70)
    constant = torch.full_like(maps, 0.3)
    assert_close(walk(constant, features), constant)
    out = walk(maps, features)
    assert (out >= maps.amin((2, 3), keepdim=True) - 1e-9).all()
    assert (out <= maps.amax((2, 3), keepdim=True) + 1e-9).all()


@covers("LearntWalk", "properties")
def test_what_lies_on_an_edge_gives_nothing():
    walk = block("irn")
    torch.nn.init.constant_(walk.head.bias, 60)
    maps, features = problem(2)
    assert walk(maps, features).max() < 1e-12
    torch.nn.init.zeros_(walk.head.weight)
    torch.nn.init.zeros_(walk.head.bias)
    constant = torch.ones_like(maps)
    assert_close(walk(constant, features), constant / 2)


@covers("LearntWalk", "properties")
@kinds
def test_classes_and_images_walk_alone(kind):
    walk, (maps, features) = block(kind), problem(3, 2, 3)
    out = walk(maps, features)
    assert_close(walk(maps.flip(1), features), out.flip(1))
    assert_close(walk(3 * maps, features), 3 * out)
    assert_close(walk(maps[1:], features[1:]), out[1:])
    assert_close(walk(maps.flip(-1), features.flip(-1)), out.flip(-1))
    assert (out >= 0).all()


@covers("LearntWalk", "properties")
@kinds
def test_scores_are_never_below_zero(monkeypatch, kind):
    """A series cut off early falls below zero, however little a proper one may."""
    monkeypatch.setattr(_walk, "_FEW_CELLS", 0)
    monkeypatch.setattr(_walk, "_series", lambda steps, accuracy: [3 / 7, 0, 4 / 7])
    walk = LearntWalk(2, kind=kind)
    torch.nn.init.constant_(walk.head.bias, -40)
    seed, features = torch.zeros(1, 1, 12, 12), torch.zeros(1, 2, 12, 12)
    seed[..., 6, 6] = 1
    assert random_walk(seed, walk.affinity(features)).min() < -0.1
    assert walk(seed, features).min() == 0


@covers("LearntWalk", "properties")
@kinds
def test_the_head_learns_and_what_is_below_does_not(kind):
    walk, (maps, features) = block(kind), problem(4)
    features.requires_grad_()
    maps.requires_grad_()
    mask = random_mask((2, 4, 3), 3, generator(4))
    affinity_loss(walk.affinity(features), walk.pairs(mask, size=(4, 3))).backward()
    assert all((p.grad != 0).any() for p in walk.parameters())
    walk(maps, features).square().sum().backward()
    assert features.grad is None
    assert (maps.grad != 0).any()


@covers("LearntWalk", "properties")
@kinds
def test_training_cuts_between_two_regions(kind):
    torch.manual_seed(0)
    features = torch.randn(2, 1, 1).expand(2, 6, 9).clone()
    features[:, :, 5:] = torch.randn(2, 1, 1)
    if kind == "irn":  # edges can only lie on a line that looks different
        features[:, :, 4] = torch.randn(2, 1)
    features = features[None]
    mask = torch.zeros(1, 6, 9, dtype=torch.long)
    mask[..., 5:] = 1
    mask[..., 4] = 255
    walk = LearntWalk(2, kind=kind, radius=3)
    pairs = walk.pairs(mask, size=(6, 9))
    optimizer = torch.optim.Adam(walk.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = affinity_loss(walk.affinity(features), pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    values = walk.affinity(features).values
    assert values[pairs.different].max() < values[pairs.background | pairs.foreground].min()
    seed = torch.zeros(1, 1, 6, 9)
    seed[..., 2, 1] = 1
    out = walk(seed, features)
    assert out[..., :4].mean() > 10 * out[..., 5:].mean()


@covers("LearntWalk", "gradcheck")
@kinds
def test_gradients(kind):
    walk = block(kind, dim=2, steps=3, beta=2.0, hidden=2)
    maps, features = problem(5, 1, 2, (3, 3), dim=2)
    names = [name for name, _ in walk.named_parameters()]

    def out(m, *weights):
        return functional_call(walk, dict(zip(names, weights, strict=True)), (m, features))

    assert_gradcheck(out, maps.requires_grad_(), *walk.parameters())


@covers("LearntWalk", "module")
@kinds
def test_module(kind):
    walk, (maps, features) = block(kind), problem(6)
    state_keys = ("head.weight", "head.bias")
    assert_module(walk, walk(maps, features), maps, features, state_keys=state_keys)
    assert repr(walk).startswith(f"LearntWalk(\n  4, kind='{kind}', radius=3, beta=")
    assert walk.head.out_channels == (3 if kind == "psa" else 1)
    other = block(kind, seed=1)
    other.load_state_dict(walk.state_dict())
    assert_same(other(maps, features), walk(maps, features))


@covers("LearntWalk", "dtypes")
@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(kind, dtype):
    walk = block(kind, beta=2.0).to(dtype)
    maps, features = problem(7, dtype=dtype)
    expected = walk.double()(maps.double(), features.double())
    walk = walk.to(dtype)
    out = walk(maps, features)
    assert out.dtype == dtype
    assert_close(out, expected)
    mixed = walk(maps.float(), features)
    assert mixed.dtype == torch.float32
    assert_close(mixed, expected, dtype=torch.bfloat16 if dtype == torch.bfloat16 else mixed.dtype)


@covers("LearntWalk", "dtypes")
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(kind, dtype):
    walk = block(kind, dtype=torch.float32, beta=2.0)
    maps, features = problem(8, dtype=torch.float32)
    expected = walk(maps, features)
    with torch.autocast("cpu", torch.bfloat16):
        out = walk(maps.to(dtype), features.to(dtype))
        values = walk.affinity(features.to(dtype)).values
    assert out.dtype == dtype
    assert values.dtype == torch.float32
    assert_close(out, expected, dtype=torch.bfloat16)


@covers("LearntWalk", "compile")
@kinds
def test_compiles(kind):
    walk, (maps, features) = block(kind, radius=2, steps=2), problem(9)
    assert_compiles(walk, maps, features)


@covers("LearntWalk", "compile")
def test_pairs_compile():
    walk, mask = block(radius=2), random_mask((2, 8, 6), 3, generator(9))
    assert_compiles(lambda m: walk.pairs(m, size=(4, 3))[:3], mask)


@covers("LearntWalk", "degenerate")
@kinds
def test_one_patch_keeps_its_score(kind):
    walk, (maps, features) = block(kind), problem(10, 1, 1, (1, 1))
    gives = affinity_oracle(walk, features)[1]
    assert_close(walk(maps, features), maps * gives[:, :1])
    wide = torch.rand(1, 1, 5, 7, dtype=torch.float64)
    assert_close(walk(wide, features), resized_oracle(wide, (1, 1)) * gives[:, :1])
    assert walk(maps[:0], features[:0]).shape == (0, 1, 1, 1)


@covers("LearntWalk", "degenerate")
@kinds
@pytest.mark.parametrize("mask_of", [255, 0, 3])
def test_masks_of_one_id(kind, mask_of):
    """Undecided everywhere: nothing to learn from; one class: nothing to tell apart."""
    walk, (_, features) = block(kind), problem(11)
    pairs = walk.pairs(torch.full((2, 8, 6), mask_of), size=(4, 3))
    assert not pairs.different.any()
    assert pairs.background.any() == (mask_of == 0)
    assert pairs.foreground.any() == (mask_of == 3)
    loss = affinity_loss(walk.affinity(features), pairs)
    loss.backward()
    assert (loss == 0) == (mask_of == 255)
    for p in walk.parameters():
        assert torch.isfinite(p.grad).all()
        assert (p.grad == 0).all() == (mask_of == 255)


@covers("LearntWalk", "degenerate")
@kinds
def test_constant_features_spread_scores_evenly(kind):
    walk, (maps, features) = block(kind, steps=300, radius=5), problem(12, 2, 1, (3, 3))
    features = features[..., :1, :1].expand(-1, -1, 3, 3)
    values = walk.affinity(features).values
    on_grid = values[values > 0].view(2, -1)
    assert_close(on_grid, on_grid[:, :1].expand_as(on_grid))
    gives = affinity_oracle(walk, features)[1][:, :1]
    mean = (maps * gives).mean((2, 3), keepdim=True)
    if kind == "psa":
        assert_close(walk(maps, features), mean.expand_as(maps))
    same = walk(torch.ones_like(maps), features)
    assert_close(same, gives.expand_as(same))
    assert (walk(torch.zeros_like(maps), features) == 0).all()


MAPS, FEATURES = torch.rand(2, 2, 4, 3), torch.randn(2, 4, 4, 3)
MASK = torch.zeros(2, 4, 3, dtype=torch.long)


def psa():
    return LearntWalk(4)


def irn():
    return LearntWalk(4, kind="irn")


@covers("LearntWalk", "errors")
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LearntWalk(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: LearntWalk(4.0), TypeError, "dim must be an int"),
        (lambda: LearntWalk(4, kind="afa"), ValueError, "kind must be one of 'psa', 'irn'"),
        (lambda: LearntWalk(4, radius=1), ValueError, "radius must be at least 2, got 1"),
        (lambda: LearntWalk(4, hidden=0), ValueError, "hidden must be at least 1, got 0"),
        (lambda: LearntWalk(4, beta=0.5), ValueError, "beta must be finite and at least 1"),
        (lambda: LearntWalk(4, beta="8"), TypeError, "beta must be a number"),
        (lambda: LearntWalk(4, steps=-1), ValueError, "steps must be at least 0, got -1"),
        (lambda: LearntWalk(4, steps=2.5), TypeError, "steps must be an int"),
        (lambda: psa()(MAPS[0], FEATURES), ValueError, r"maps .* \(B, C, h, w\) with B=2"),
        (lambda: psa()(MAPS[:1], FEATURES), ValueError, r"maps .* with B=2, got \(1, 2"),
        (lambda: psa()(MAPS.int(), FEATURES), TypeError, "maps must be a floating-point"),
        (lambda: psa()(MAPS - 2, FEATURES), ValueError, "maps must be >= 0, got a minimum of -"),
        (lambda: psa()(MAPS / 0, FEATURES), ValueError, "maps must be finite"),
        (lambda: irn()(MAPS.to("meta"), FEATURES), ValueError, "maps must be on the device of f"),
        (lambda: psa()(MAPS, None), TypeError, "features must be a torch.Tensor, got NoneType"),
        (lambda: psa()(MAPS, FEATURES[:, :3]), ValueError, r"features .* D=4, got \(2, 3, 4, 3\)"),
        (lambda: psa().affinity(FEATURES.int()), TypeError, "features must be a floating-point"),
        (lambda: psa().affinity(FEATURES.double()), TypeError, "features .* dtype of the weights"),
        (lambda: irn().affinity(FEATURES / 0), ValueError, "features must be finite"),
        (lambda: psa().pairs(MASK[0], size=(4, 3)), ValueError, r"mask .* \(B, H, W\)"),
        (lambda: psa().pairs(MASK.float(), size=(4, 3)), TypeError, "mask must be an integer"),
        (lambda: psa().pairs(MASK, size=(0, 3)), ValueError, "size must be two positive sides"),
        (lambda: psa().pairs(MASK, size=4), ValueError, "size must be two positive sides"),
        (lambda: psa().pairs(MASK, size=(4, 3), ignore_index=0.5), TypeError, "ignore_index must"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
