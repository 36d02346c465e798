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

from wsss_blocks.heads import DINOHead
from wsss_blocks.memory import EMA

KEYS = ("prototypes", *(f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")))


def problem(seed=0, dim=5, out_dim=4, hidden_dim=3, bottleneck_dim=2, dtype=torch.float64):
    g = generator(seed)
    sizes = {"hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim}
    head = DINOHead(dim, out_dim, **sizes, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return head, torch.randn(2, 6, dim, generator=g, dtype=dtype)


@covers("DINOHead", "oracle")
@given(seeds, small, small, small, small)
def test_oracle(seed, dim, out_dim, hidden_dim, bottleneck_dim):
    head, tokens = problem(seed, dim, out_dim, hidden_dim, bottleneck_dim)
    layers = [(layer.weight.tolist(), layer.bias.tolist()) for layer in head.layers]
    expected = [
        [oracle.dino(vector, layers, head.prototypes.tolist()) for vector in rows]
        for rows in tokens.tolist()
    ]
    torch.testing.assert_close(
        head(tokens), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )  # near a zero bottleneck the clamp of the norm shows


@covers("DINOHead", "properties")
def test_properties():
    head, tokens = problem(1)
    found = head(tokens)
    assert found.abs().max() <= 1 + 1e-9
    assert_close(head(tokens[:, 2]), found[:, 2])
    with torch.no_grad():
        head.prototypes.mul_(7)  # only directions count
        head.layers[2].weight.mul_(3)
        head.layers[2].bias.mul_(3)
    assert_close(head(tokens), found)
    teacher = EMA(head, decay=0.5)
    with torch.no_grad():
        head.layers[0].weight.add_(1)
    teacher.update(head)
    assert_close(teacher.model.layers[0].weight, head.layers[0].weight - 0.5)


@covers("DINOHead", "gradcheck")
def test_gradcheck():
    head, tokens = problem(2)
    names, values = zip(*head.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert_gradcheck(run, tokens.requires_grad_(), *values)


@covers("DINOHead", "module")
def test_module():
    head, tokens = problem(3)
    assert_module(head, head(tokens), tokens, state_keys=KEYS)
    fresh = DINOHead(5, 4, hidden_dim=3, bottleneck_dim=2, dtype=torch.float64)
    for one in (head, fresh):
        torch.manual_seed(0)
        one.reset_parameters()
    assert_same(head(tokens), fresh(tokens))
    assert_same(head.layers[1].bias.detach(), torch.zeros(3, dtype=torch.float64))
    shapes = [tuple(layer.weight.shape) for layer in DINOHead(768, device="meta").layers]
    assert shapes == [(2048, 768), (2048, 2048), (256, 2048)]
    assert DINOHead(768, device="meta").prototypes.shape == (1024, 256)


@covers("DINOHead", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    head, tokens = problem(4)
    expected = head(tokens)
    actual = head.to(dtype)(tokens.to(dtype))
    assert actual.dtype == dtype
    assert_close(actual, expected)
    if dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            actual = head(tokens.float())
        assert_close(actual, expected, dtype=torch.bfloat16)


@covers("DINOHead", "compile")
def test_compile():
    head, tokens = problem(5, dtype=torch.float32)
    assert_compiles(head, tokens)


@covers("DINOHead", "errors")
def test_errors():
    head, tokens = problem(6)
    with pytest.raises(ValueError, match=r"x must have shape \(B, N, D\) with D=5, got \(2, 6, 4"):
        head(tokens[..., :4])
    with pytest.raises(ValueError, match=r"x must have shape \(B, D\) with D=5, got \(2, 6\)"):
        head(tokens[..., 0])
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        head(tokens.long())
    with pytest.raises(TypeError, match="x must have the dtype of the weights"):
        head(tokens.float())
    with pytest.raises(ValueError, match="x must be finite"):
        head(tokens / 0)
    for name in ("dim", "out_dim", "hidden_dim", "bottleneck_dim"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            DINOHead(**{"dim": 2, name: 0})


@covers("DINOHead", "degenerate")
def test_degenerate():
    head, _ = problem(7)
    with torch.no_grad():
        for layer in head.layers:
            layer.bias.zero_()
    zero = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    out = head(zero)
    assert_same(out, torch.zeros(2, 4, dtype=torch.float64))
    assert torch.autograd.grad(out.sum(), zero)[0].isfinite().all()
    assert head(torch.zeros(0, 3, 5, dtype=torch.float64)).shape == (0, 3, 4)
    assert DINOHead(1, 1, hidden_dim=1, bottleneck_dim=1)(torch.ones(1, 1)).shape == (1, 1)
