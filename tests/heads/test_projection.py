import hypothesis.strategies as st
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
from hypothesis import given
from oracles import heads as oracle
from strategies import generator, seeds, small

from wsss_blocks.heads import ProjectionHead


def problem(seed, dim=5, out_dim=3, hidden_dim=None, dtype=torch.float64, **settings):
    g = generator(seed)
    head = ProjectionHead(dim, out_dim, hidden_dim=hidden_dim, dtype=dtype, **settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return head, torch.randn(2, 6, dim, generator=g, dtype=dtype)


def layers(head):
    linear = [m for m in (head.hidden, head.out) if m is not None]
    return [(m.weight.tolist(), None if m.bias is None else m.bias.tolist()) for m in linear]


@covers("ProjectionHead", "oracle")
@given(
    seeds,
    st.integers(1, 5),
    small,
    st.none() | st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_oracle(seed, dim, out_dim, hidden_dim, bias, normalize):
    head, tokens = problem(seed, dim, out_dim, hidden_dim, bias=bias, normalize=normalize)
    expected = [
        [oracle.project(vector, layers(head), normalize) for vector in rows]
        for rows in tokens.tolist()
    ]
    assert_close(head(tokens), torch.tensor(expected, dtype=torch.float64))


@covers("ProjectionHead", "properties")
@pytest.mark.parametrize("hidden_dim", [None, 4])
def test_tokens_and_maps_agree(hidden_dim):
    head, tokens = problem(0, hidden_dim=hidden_dim, normalize=True)
    projected = head(tokens)
    assert_close(head(tokens[:, 0]), projected[:, 0])
    maps = tokens.transpose(1, 2).reshape(2, 5, 2, 3)
    assert_close(head(maps), projected.transpose(1, 2).reshape(2, 3, 2, 3))
    assert_close(projected.norm(dim=2), torch.ones(2, 6, dtype=torch.float64))
    order = torch.randperm(6, generator=generator(1))
    assert_close(head(tokens[:, order]), projected[:, order])
    # A square map whose sides equal D is still read as (B, D, h, w).
    square = torch.randn(2, 5, 5, 5, dtype=torch.float64, generator=generator(2))
    assert_close(head(square)[:, :, 1, 3], head(square[:, :, 1, 3]))


@covers("ProjectionHead", "properties")
def test_the_linear_head_is_linear():
    head, tokens = problem(3)
    assert_close(head(2 * tokens[:1] + tokens[1:]), 2 * head(tokens)[:1] + head(tokens)[1:])


@covers("ProjectionHead", "gradcheck")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("hidden_dim", [None, 4])
def test_gradcheck(hidden_dim, normalize):
    head, tokens = problem(4, hidden_dim=hidden_dim, bias=True, normalize=normalize)
    names, values = zip(*head.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert_gradcheck(run, tokens.requires_grad_(), *values)
    maps = tokens.detach().transpose(1, 2).reshape(2, 5, 2, 3).requires_grad_()
    assert_gradcheck(head, maps)


@covers("ProjectionHead", "module")
@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, ("out.weight",)),
        ({"bias": True}, ("out.weight", "out.bias")),
        ({"hidden_dim": 4, "normalize": True}, ("hidden.weight", "out.weight")),
        (
            {"hidden_dim": 4, "bias": True},
            ("hidden.weight", "hidden.bias", "out.weight", "out.bias"),
        ),
    ],
)
def test_module(settings, keys):
    head, tokens = problem(5, **settings)
    assert_module(head, head(tokens), tokens, state_keys=keys)
    torch.manual_seed(0)
    fresh = ProjectionHead(5, 3, dtype=torch.float64, **settings)
    torch.manual_seed(0)
    head.reset_parameters()
    assert_same(head(tokens), fresh(tokens))


@covers("ProjectionHead", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    head, tokens = problem(6, hidden_dim=4, normalize=True)
    expected = head(tokens)
    actual = head.to(dtype)(tokens.to(dtype))
    assert actual.dtype == dtype
    assert_close(actual, expected)


@covers("ProjectionHead", "dtypes")
def test_autocast():
    head, tokens = problem(7, normalize=True, dtype=torch.float32)
    expected = head(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        actual = head(tokens)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected)


@covers("ProjectionHead", "dtypes")
def test_half_norms_do_not_overflow():
    head = ProjectionHead(1, 4, normalize=True, dtype=torch.float16)
    torch.nn.init.ones_(head.out.weight)
    assert_close(head(torch.full((1, 1), 6e4, dtype=torch.float16)), torch.full((1, 4), 0.5))


@covers("ProjectionHead", "compile")
def test_compile():
    head, tokens = problem(8, hidden_dim=4, normalize=True, dtype=torch.float32)
    assert_compiles(head, tokens)
    assert_compiles(head, tokens.transpose(1, 2).reshape(2, 5, 2, 3))


@covers("ProjectionHead", "errors")
def test_errors():
    head, tokens = problem(9)
    with pytest.raises(ValueError, match=r"x must have shape \(B, N, D\) with D=5, got \(2, 6, 4"):
        head(tokens[..., :4])
    with pytest.raises(ValueError, match=r"x must have shape \(B, D\) with D=5, got \(2, 6\)"):
        head(tokens[..., 0])
    with pytest.raises(ValueError, match=r"x must have shape \(B, D, h, w\) with D=5, got"):
        head(tokens[None])
    with pytest.raises(ValueError, match=r"x must have shape \(B, N, D\) with D=5, got \(5,\)"):
        head(tokens[0, 0])
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        head(tokens.long())
    with pytest.raises(ValueError, match="x must be on the device of the weights"):
        head(tokens.to("meta"))
    named = {"dim": (0, 3, None), "out_dim": (5, 0, None), "hidden_dim": (5, 3, 0)}
    for name, sizes in named.items():
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            ProjectionHead(sizes[0], sizes[1], hidden_dim=sizes[2])


@covers("ProjectionHead", "degenerate")
def test_degenerate():
    head, _ = problem(10, normalize=True)
    zero = torch.zeros(2, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    out = head(zero)
    assert_same(out, torch.zeros(2, 3, 1, 1, dtype=torch.float64))
    out.sum().backward()
    assert bool(zero.grad.isfinite().all())
    one = ProjectionHead(1, 1, normalize=True)
    assert one(torch.ones(1, 1)).abs().item() == pytest.approx(1)
    assert head(torch.zeros(0, 4, 5, dtype=torch.float64)).shape == (0, 4, 3)
