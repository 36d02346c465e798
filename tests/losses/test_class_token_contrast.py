import math

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
from hypothesis import strategies as st
from oracles import cti as oracle
from strategies import generator, random_labels, seeds, small

from wsss_blocks.losses import (
    ClassTokenContrastLoss,
    class_token_contrast_counts,
    class_token_contrast_loss,
)


def problem(seed=0, batch=3, classes=3, dim=4, layers=None):
    g = generator(seed)
    shape = (batch, classes, dim) if layers is None else (layers, batch, classes, dim)
    return torch.randn(shape, generator=g, dtype=torch.float64), random_labels(batch, classes, g)


@covers("class_token_contrast_loss", "oracle")
@given(seeds, small, st.integers(1, 4), small, st.sampled_from([None, 1, 3]))
def test_oracle(seed, batch, classes, dim, layers):
    tokens, labels = problem(seed, batch, classes, dim, layers)
    each = tokens if layers else tokens[None]
    expected = oracle.class_token_contrast(each.tolist(), labels.tolist())
    assert_close(class_token_contrast_loss(tokens, labels), expected)


@covers("class_token_contrast_loss", "oracle")
def test_gradient_equals_that_of_the_loops():
    tokens, labels = problem(1, layers=2)
    labels[0, 0] = 1.0
    tokens.requires_grad_()
    loops = oracle.class_token_contrast(oracle.nested(tokens), labels.tolist())
    loss = class_token_contrast_loss(tokens, labels)
    assert_close(loss, loops)
    (a,), (b,) = torch.autograd.grad(loss, tokens), torch.autograd.grad(loops, tokens)
    assert_close(a, b)


@covers("class_token_contrast_loss", "oracle", "properties")
def test_known_values_and_bounds():
    labels = torch.ones(1, 3)
    same = torch.ones(1, 3, 4, dtype=torch.float64)
    assert_close(class_token_contrast_loss(same, labels), math.log(3))
    apart = torch.eye(3, dtype=torch.float64)[None]
    assert_close(class_token_contrast_loss(apart, labels), math.log(1 + 2 * math.exp(-1)))
    opposite = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    least = math.log(1 + math.exp(-2))
    assert_close(class_token_contrast_loss(opposite, torch.ones(1, 2)), least)
    tokens, labels = problem(2)
    labels[0, 0] = 1.0
    loss = class_token_contrast_loss(tokens, labels)
    assert math.log(1 + 2 * math.exp(-2)) <= loss <= math.log(3)


@covers("class_token_contrast_loss", "properties")
def test_symmetries():
    tokens, labels = problem(3, layers=2)
    labels[0, 0] = 1.0
    loss = class_token_contrast_loss(tokens, labels)
    for order in (torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])):
        assert_close(class_token_contrast_loss(tokens[:, :, order], labels[:, order]), loss)
        assert_close(class_token_contrast_loss(tokens[:, order], labels[order]), loss)
    assert_close(class_token_contrast_loss(5 * tokens.flip(3), labels), loss)
    single = [class_token_contrast_loss(layer, labels) for layer in tokens]
    assert_close(loss, torch.stack(single).mean())
    # absent classes are negatives only
    repeated = torch.cat([tokens, tokens], 2), torch.cat([labels, 0 * labels], 1)
    assert class_token_contrast_loss(*repeated) > loss
    more = torch.cat([tokens, tokens], 1), torch.cat([labels, 0 * labels], 0)
    assert_close(class_token_contrast_loss(*more), loss)


@covers("class_token_contrast_loss", "gradcheck")
@pytest.mark.parametrize("layers", [None, 2])
def test_gradient(layers):
    tokens, labels = problem(4, layers=layers)
    labels[0, 0] = 1.0
    assert_gradcheck(lambda x: class_token_contrast_loss(x, labels), tokens.requires_grad_())


@covers("class_token_contrast_loss", "module", "compile")
@pytest.mark.parametrize("layers", [None, 2])
def test_module_and_compile(layers):
    tokens, labels = problem(5, layers=layers)
    module = ClassTokenContrastLoss()
    assert "gather_distributed=False" in repr(module)
    for options in ({}, {"counts": torch.tensor(9)}):
        expected = class_token_contrast_loss(tokens, labels, **options)
        assert_module(module, expected, tokens, labels, **options)
    assert_compiles(class_token_contrast_loss, tokens, labels)


@covers("class_token_contrast_loss", "properties")
def test_counts_divide():
    tokens, labels = problem(6, layers=2)
    labels[0] = 1.0
    counts = class_token_contrast_counts(labels)
    parts = [(tokens[:, :1], labels[:1]), (tokens[:, 1:], labels[1:])]
    for dtype in (torch.int64, torch.int32, torch.float32):
        shares = [class_token_contrast_loss(*part, counts=counts.to(dtype)) for part in parts]
        assert shares[0].dtype == torch.float64
        assert_close(sum(shares), class_token_contrast_loss(tokens, labels))


@covers("class_token_contrast_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens, labels = problem(7)
    tokens = tokens.to(dtype)
    expected = class_token_contrast_loss(tokens.double(), labels)
    tokens.requires_grad_()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = class_token_contrast_loss(tokens, labels.bool())
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, expected, dtype=torch.float32)  # also under autocast
        assert torch.autograd.grad(loss, tokens)[0].isfinite().all()


@covers("class_token_contrast_loss", "degenerate")
def test_degenerate():
    tokens, labels = problem(8)
    tokens.requires_grad_()
    loss = class_token_contrast_loss(tokens, 0 * labels)
    assert loss == 0
    assert_same(torch.autograd.grad(loss, tokens)[0], torch.zeros_like(tokens))
    one = class_token_contrast_loss(tokens[:, :1], torch.ones(3, 1))  # no other token
    assert one == 0
    assert torch.autograd.grad(one, tokens)[0].abs().max() == 0
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    loss = class_token_contrast_loss(zero, torch.ones(2, 3))
    assert_close(loss, math.log(3))
    assert torch.autograd.grad(loss, zero)[0].isfinite().all()
    for empty in (tokens[:0], tokens[None, :0]):
        assert class_token_contrast_loss(empty, labels[:0]) == 0
    assert class_token_contrast_loss(torch.ones(1, 1, 1), torch.ones(1, 1)) == 0


@covers("class_token_contrast_loss", "errors")
def test_errors():
    tokens, labels = problem()
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, K, D\), got \(3, 3\)"):
        class_token_contrast_loss(tokens[..., 0], labels)
    with pytest.raises(
        ValueError, match=r"tokens must have shape \(L, B, K, D\), got \(0, 3, 3, 4"
    ):
        class_token_contrast_loss(tokens[None][:0], labels)
    with pytest.raises(TypeError, match="tokens must be a floating-point tensor"):
        class_token_contrast_loss(tokens.long(), labels)
    with pytest.raises(ValueError, match="tokens must be finite"):
        class_token_contrast_loss(tokens / 0, labels)
    with pytest.raises(ValueError, match="background column too many"):
        class_token_contrast_loss(tokens[:, 1:], labels)
    with pytest.raises(ValueError, match="labels must be on cpu, got meta"):
        class_token_contrast_loss(tokens, labels.to("meta"))
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        class_token_contrast_loss(tokens, labels - 1)
    with pytest.raises(ValueError, match="counts must be on the device of tokens"):
        class_token_contrast_loss(tokens, labels, counts=torch.tensor(1, device="meta"))


@covers("class_token_contrast_counts", "oracle", "properties", "dtypes", "degenerate")
@given(seeds, small, small)
def test_classes_are_counted(seed, batch, classes):
    labels = random_labels(batch, classes, generator(seed))
    expected = sum(y > 0 for row in labels.tolist() for y in row)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8):
        counted = class_token_contrast_counts(labels.to(dtype))
        assert (counted.dtype, counted.shape, counted) == (torch.int64, (), expected)
    assert class_token_contrast_counts(0.1 * labels) == expected
    assert class_token_contrast_counts(labels.flip(0, 1).repeat(3, 1)) == 3 * expected
    assert class_token_contrast_counts(0 * labels) == 0
    assert class_token_contrast_counts(labels[:0]) == 0


@covers("class_token_contrast_counts", "compile", "errors")
def test_counts_compile_and_errors():
    labels = problem()[1]
    assert_compiles(class_token_contrast_counts, labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\), got \(3,\)"):
        class_token_contrast_counts(labels[:, 0])
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        class_token_contrast_counts(labels + 1)
