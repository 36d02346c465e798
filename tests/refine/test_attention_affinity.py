import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    covers,
)
from hypothesis import given
from hypothesis import strategies as st
from oracles.attention import affinity_refined
from strategies import generator, seeds, sizes, small

from wsss_blocks.backbones import Features, QueryKey
from wsss_blocks.refine import AttentionAffinityRefine, attention_affinity_refine


def problem(seed, batch=2, heads=2, channels=3, grid=(2, 3), prefix=2, dim=4, count=2):
    g = generator(seed)
    tokens = prefix + grid[0] * grid[1]
    attention = {
        i: QueryKey(
            *torch.randn(2, batch, heads, tokens, dim, generator=g, dtype=torch.float64).unbind(0),
            0.7,
        )
        for i in range(count)
    }
    return torch.randn(batch, channels, *grid, generator=g, dtype=torch.float64), attention


def explicit(maps, attention):
    patches = maps[0, 0].numel()
    full = sum((s * q @ k.mT).softmax(-1).mean(1) for q, k, s in attention.values())
    affinity = full[:, -patches:, -patches:]
    return (affinity @ maps.flatten(2).mT).mT.reshape(maps.shape)


@covers("attention_affinity_refine", "oracle")
@given(seeds, small, small, small, sizes(3), st.integers(0, 2), st.sampled_from(["sum", "mean"]))
def test_equals_the_loops(seed, batch, heads, channels, grid, prefix, reduce):
    dim, count = 1 + seed % 4, 1 + seed % 2
    maps, attention = problem(seed, batch, heads, channels, grid, prefix, dim, count)
    out = attention_affinity_refine(maps, attention, reduce=reduce)
    assert_close(out, affinity_refined(maps, list(attention.values()), reduce))


@covers("attention_affinity_refine", "oracle")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_explicit_matrix_in_values_and_gradients(dtype):
    maps, attention = problem(0, channels=21, grid=(6, 7), prefix=21, dim=16, count=3)
    maps = maps.to(dtype).requires_grad_()
    attention = {i: QueryKey(q.to(dtype), k.to(dtype), s) for i, (q, k, s) in attention.items()}
    leaves = [maps, *(x.requires_grad_() for q, k, _ in attention.values() for x in (q, k))]
    out, expected = attention_affinity_refine(maps, attention), explicit(maps, attention)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(out.shape, generator=generator(1), dtype=dtype)
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@covers("attention_affinity_refine", "properties")
def test_linear_in_maps_and_layers_and_equivariant():
    maps, attention = problem(1, channels=6)
    other = problem(2, channels=6)[0]

    def run(maps, attention=attention, **options):
        return attention_affinity_refine(maps, attention, **options)

    out = run(maps)
    assert_close(run(2 * maps - 3 * other), 2 * out - 3 * run(other))
    assert_close(run(maps, layers=(0,)) + run(maps, layers=(1,)), out)
    assert_close(run(maps, reduce="mean"), out / 2)
    assert_close(run(maps[:, [5, 0]]), out[:, [5, 0]])
    flipped = {i: QueryKey(q.flip(0, 1), k.flip(0, 1), s) for i, (q, k, s) in attention.items()}
    assert_close(run(maps.flip(0), flipped), out.flip(0))
    order = [0, 1, 7, 6, 5, 4, 3, 2]  # the patches backwards
    turned = {i: QueryKey(q[:, :, order], k[:, :, order], s) for i, (q, k, s) in attention.items()}
    assert_close(run(maps.flip(2, 3), turned), out.flip(2, 3))


@covers("attention_affinity_refine", "properties")
def test_what_class_tokens_take_is_lost():
    maps, attention = problem(3)
    ones = torch.ones_like(maps)
    assert (attention_affinity_refine(ones, attention, reduce="mean") < 1).all()
    alone = {i: QueryKey(q[:, :, 2:], k[:, :, 2:], s) for i, (q, k, s) in attention.items()}
    assert_close(attention_affinity_refine(ones, alone, reduce="mean"), ones)


@covers("attention_affinity_refine", "gradcheck")
def test_gradient():
    maps, attention = problem(4, batch=1, channels=3, grid=(2, 2), prefix=1, dim=2, count=1)
    (one,) = attention.values()

    def run(maps, q, k):
        return attention_affinity_refine(maps, {0: QueryKey(q, k, 0.5)})

    assert_gradcheck(run, *(x.requires_grad_() for x in (maps, one.q, one.k)))


@covers("attention_affinity_refine", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    maps, attention = problem(5)
    maps = maps.to(dtype)
    cast = {i: QueryKey(q.to(dtype), k.to(dtype), s) for i, (q, k, s) in attention.items()}
    exact = {i: QueryKey(q.double(), k.double(), s) for i, (q, k, s) in cast.items()}
    out = attention_affinity_refine(maps, cast)
    assert out.dtype == dtype
    assert_close(out, attention_affinity_refine(maps.double(), exact))
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        assert torch.equal(attention_affinity_refine(maps, cast), out)
    mixed = attention_affinity_refine(maps, attention)
    assert mixed.dtype == dtype


@covers("attention_affinity_refine", "compile")
def test_compiles():
    def run(maps, q, k):
        return attention_affinity_refine(maps, {5: QueryKey(q, k, 0.5)})

    assert_compiles(run, torch.rand(2, 6, 2, 3), *torch.randn(2, 2, 2, 8, 4).unbind(0))


@covers("attention_affinity_refine", "module")
def test_module_resizes_refines_and_resizes():
    maps, attention = problem(6)
    cells = torch.rand(2, 5, 2, 3)
    features = Features(cells, cells[:, :, 0], {}, {}, {}, attention)
    images, maps = torch.rand(2, 3, 2, 3).double(), maps.abs()
    module = AttentionAffinityRefine(layers=(1,), reduce="mean")
    expected = attention_affinity_refine(maps, attention, layers=(1,), reduce="mean")
    assert_module(module, expected, images, maps, features=features)
    assert repr(module) == "AttentionAffinityRefine(layers=(1,), reduce='mean')"
    large = torch.rand(2, 3, 8, 12).double()
    up = torch.nn.functional.interpolate(expected, size=(8, 12), mode="bilinear")
    assert_close(module(large, maps, features=features), up)


def test_module_leaves_out_what_is_beyond_the_box():
    maps, attention = problem(7)
    cells = torch.rand(2, 5, 2, 3)
    features = Features(cells, cells[:, :, 0], {}, {}, {}, attention)
    images, maps = torch.rand(2, 3, 2, 3), maps.abs().float()
    box = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 3]])
    cut = maps.clone()
    cut[0, :, :, 2] = 0
    refiner = AttentionAffinityRefine()
    out = refiner(images, maps, box=box, features=features)
    assert_close(out, refiner(images, cut, features=features))


@covers("attention_affinity_refine", "errors")
def test_refuses():
    maps, attention = problem(8)
    one = attention[0]
    with pytest.raises(ValueError, match=r"maps must have shape \(B, C, h, w\), got \(3, 2, 3\)"):
        attention_affinity_refine(maps[0], attention)
    with pytest.raises(TypeError, match="maps must be a floating-point tensor"):
        attention_affinity_refine(maps.long(), attention)
    with pytest.raises(ValueError, match="maps must be finite"):
        attention_affinity_refine(maps / 0, attention)
    with pytest.raises(ValueError, match=r"attention must have the batch and device of maps \(1,"):
        attention_affinity_refine(maps[:1], attention)
    with pytest.raises(ValueError, match=r"attention must cover the 12 cells .*got 8 tokens"):
        attention_affinity_refine(maps.repeat(1, 1, 2, 1), attention)
    with pytest.raises(ValueError, match=r"layers must be among those asked for \[0, 1\], got 7"):
        attention_affinity_refine(maps, attention, layers=(7,))
    with pytest.raises(ValueError, match="must hold at least one layer"):
        attention_affinity_refine(maps, {})
    with pytest.raises(TypeError, match="QueryKey, got tuple"):
        attention_affinity_refine(maps, {0: (one.q, one.k)})
    with pytest.raises(ValueError, match="reduce must be one of"):
        attention_affinity_refine(maps, attention, reduce="max")
    with pytest.raises(ValueError, match="reduce must be one of"):
        AttentionAffinityRefine(reduce="max")
    with pytest.raises(TypeError, match="layers must be a sequence, got 1"):
        AttentionAffinityRefine(layers=1)
    with pytest.raises(ValueError, match=r"features must be given.*got NoneType"):
        AttentionAffinityRefine()(torch.rand(2, 3, 4, 4), maps.abs().float())


@covers("attention_affinity_refine", "degenerate")
def test_one_patch_many_maps_and_no_images():
    maps, attention = problem(9, channels=1, grid=(1, 1), prefix=0, count=1)
    assert_close(attention_affinity_refine(maps, attention), maps)
    maps, attention = problem(9, channels=9, dim=4)  # more maps than a head is wide
    assert_close(attention_affinity_refine(maps, attention), explicit(maps, attention))
    zero = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    assert torch.equal(attention_affinity_refine(zero, attention), zero)
    none = {i: QueryKey(q[:0], k[:0], s) for i, (q, k, s) in attention.items()}
    assert attention_affinity_refine(maps[:0], none).shape == (0, 9, 2, 3)
