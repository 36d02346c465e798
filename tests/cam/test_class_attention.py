import pytest
import torch
from contract import TOLERANCE, assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.attention import class_attention
from strategies import generator, seeds, sizes, small

from wsss_blocks.backbones import QueryKey
from wsss_blocks.cam import class_to_patch_attention


def layers_of(seed, batch=2, heads=2, tokens=9, dim=4, count=2, dtype=torch.float64):
    g = generator(seed)
    return {
        3 * i + 1: QueryKey(
            *torch.randn(2, batch, heads, tokens, dim, generator=g, dtype=dtype).unbind(0), 0.7
        )
        for i in range(count)
    }


@covers("class_to_patch_attention", "oracle")
@given(seeds, small, small, small, sizes(3), st.integers(0, 2), st.sampled_from(["sum", "mean"]))
def test_equals_the_loops(seed, batch, heads, count, grid, registers, reduce):
    tokens = count + registers + grid[0] * grid[1]
    attention = layers_of(seed, batch, heads, tokens, count=1 + seed % 3)
    out = class_to_patch_attention(attention, num_class_tokens=count, grid=grid, reduce=reduce)
    assert_close(out, class_attention(list(attention.values()), count, grid, reduce))


@covers("class_to_patch_attention", "oracle")
def test_equals_the_explicit_matrix_in_values_and_gradients():
    attention = layers_of(0, tokens=15, dim=8)
    leaves = [x.requires_grad_() for q, k, _ in attention.values() for x in (q, k)]
    weight = torch.rand(2, 3, 3, 4, dtype=torch.float64)
    out = class_to_patch_attention(attention, num_class_tokens=3, grid=(3, 4))
    full = sum((s * q @ k.mT).softmax(-1).mean(1) for q, k, s in attention.values())
    expected = full[:, :3, 3:].reshape(2, 3, 3, 4)
    assert_close(out, expected)
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        assert_close(a, b)


@covers("class_to_patch_attention", "properties")
def test_rows_sum_to_less_than_the_number_of_layers():
    attention = layers_of(1, count=3)
    out = class_to_patch_attention(attention, num_class_tokens=3, grid=(2, 3))
    total = out.sum((2, 3))
    assert (out >= 0).all()
    assert (total < 3).all()
    assert_close(
        class_to_patch_attention(attention, num_class_tokens=3, grid=(2, 3), reduce="mean"), out / 3
    )


@covers("class_to_patch_attention", "properties")
def test_layers_add_and_classes_images_and_heads_permute():
    attention = layers_of(2)

    def run(attention, **options):
        return class_to_patch_attention(attention, num_class_tokens=3, grid=(2, 3), **options)

    out = run(attention)
    assert_close(run(attention, layers=(1,)) + run(attention, layers=(4,)), out)
    order = [1, 2, 0, *range(3, 9)]
    moved = {i: QueryKey(q[:, :, order], k[:, :, order], s) for i, (q, k, s) in attention.items()}
    assert_close(run(moved), out[:, [1, 2, 0]])
    flipped = {i: QueryKey(q.flip(0, 1), k.flip(0, 1), s) for i, (q, k, s) in attention.items()}
    assert_close(run(flipped), out.flip(0))


@covers("class_to_patch_attention", "gradcheck")
def test_gradient():
    def run(q, k):
        return class_to_patch_attention({0: QueryKey(q, k, 0.5)}, num_class_tokens=1, grid=(2, 2))

    (one,) = layers_of(3, batch=1, tokens=5, dim=2, count=1).values()
    assert_gradcheck(run, one.q.requires_grad_(), one.k.requires_grad_())


@covers("class_to_patch_attention", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    attention = {i: QueryKey(q.to(dtype), k.to(dtype), s) for i, (q, k, s) in layers_of(4).items()}
    out = class_to_patch_attention(attention, num_class_tokens=2, grid=(1, 7))
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = {i: QueryKey(q.double(), k.double(), s) for i, (q, k, s) in attention.items()}
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        again = class_to_patch_attention(attention, num_class_tokens=2, grid=(1, 7))
    assert torch.equal(again, out)
    expected = class_to_patch_attention(exact, num_class_tokens=2, grid=(1, 7))
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[torch.float32])


@covers("class_to_patch_attention", "compile")
def test_compiles():
    def run(q, k):
        return class_to_patch_attention({5: QueryKey(q, k, 0.5)}, num_class_tokens=2, grid=(2, 3))

    assert_compiles(run, torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4))


@covers("class_to_patch_attention", "errors")
def test_refuses():
    good = layers_of(5)
    one = good[1]

    def run(attention=good, num_class_tokens=2, grid=(1, 7), **options):
        return class_to_patch_attention(
            attention, num_class_tokens=num_class_tokens, grid=grid, **options
        )

    with pytest.raises(TypeError, match="attention must map layers to QueryKey, got list"):
        run(list(good.values()))
    with pytest.raises(TypeError, match="attention must map layers to QueryKey, got Tensor"):
        run({0: one.q})
    with pytest.raises(ValueError, match=r"must hold at least one layer .*got none"):
        run({})
    with pytest.raises(ValueError, match=r"must hold at least one layer .*got none"):
        run(layers=())
    with pytest.raises(ValueError, match=r"layers must be among those asked for \[1, 4\], got 2"):
        run(layers=(2,))
    with pytest.raises(ValueError, match=r"attention\[0\]\.q must have shape \(B, heads, n, d\)"):
        run({0: QueryKey(one.q[0], one.k, 1.0)})
    with pytest.raises(ValueError, match=r"attention\[0\]\.k must have shape .*n=9"):
        run({0: QueryKey(one.q, one.k[:, :, 1:], 1.0)})
    with pytest.raises(ValueError, match=r"attention must cover the 10 cells .*got 9 tokens"):
        run(num_class_tokens=3)
    with pytest.raises(ValueError, match="one batch and number of tokens in all layers"):
        run({0: one, 1: QueryKey(one.q[:1], one.k[:1], 1.0)})
    with pytest.raises(ValueError, match=r"attention\[0\]\.k must be finite"):
        run({0: QueryKey(one.q, one.k * torch.nan, 1.0)})
    with pytest.raises(ValueError, match=r"attention\[0\]\.scale must be finite, got nan"):
        run({0: one._replace(scale=float("nan"))})
    with pytest.raises(TypeError, match=r"attention\[0\]\.q must be a floating-point"):
        run({0: QueryKey(one.q.long(), one.k, 1.0)})
    with pytest.raises(ValueError, match="num_class_tokens must be at least 1"):
        run(num_class_tokens=0)
    with pytest.raises(ValueError, match="grid must be two positive sides"):
        run(grid=(0, 7))
    with pytest.raises(ValueError, match="reduce must be one of 'sum', 'mean'"):
        run(reduce="max")


@covers("class_to_patch_attention", "degenerate")
def test_one_patch_equal_keys_and_no_images():
    zero = torch.zeros(1, 1, 2, 4, requires_grad=True)
    out = class_to_patch_attention({0: QueryKey(zero, zero, 1.0)}, num_class_tokens=1, grid=(1, 1))
    assert_close(out, torch.full((1, 1, 1, 1), 0.5))
    out.sum().backward()
    assert torch.isfinite(zero.grad).all()
    far = torch.tensor([200.0, -200.0, 0.0]).view(1, 1, 3, 1)
    out = class_to_patch_attention({0: QueryKey(far, far, 1.0)}, num_class_tokens=1, grid=(1, 2))
    assert torch.isfinite(out).all()
    none = torch.zeros(0, 2, 5, 4)
    out = class_to_patch_attention({0: QueryKey(none, none, 1.0)}, num_class_tokens=1, grid=(2, 2))
    assert out.shape == (0, 1, 2, 2)
