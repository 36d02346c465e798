import hypothesis.strategies as st
import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given
from oracles import cti as oracle
from strategies import generator, random_labels, seeds, small

from wsss_blocks.heads import infuse_class_tokens


def problem(seed=0, batch=2, classes=3, dim=4, background=True, given_background=True):
    g = generator(seed)
    tokens = torch.randn(batch, classes + background, dim, generator=g, dtype=torch.float64)
    number = classes + (background and given_background)
    source = torch.randn(batch, number, dim, generator=g, dtype=torch.float64)
    return tokens, source, random_labels(batch, classes, g)


@covers("infuse_class_tokens", "oracle")
@given(
    seeds,
    small,
    small,
    small,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_oracle(seed, batch, classes, dim, background, given_too, masked, rescale, weight):
    tokens, source, labels = problem(seed, batch, classes, dim, background, given_too)
    labels = labels if masked else None
    expected = oracle.infuse(
        tokens.tolist(),
        source.tolist(),
        None if labels is None else labels.tolist(),
        weight,
        rescale,
    )
    actual = infuse_class_tokens(tokens, source, labels=labels, weight=weight, rescale=rescale)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@covers("infuse_class_tokens", "properties")
def test_limits_and_symmetries():
    tokens, source, labels = problem(1)
    before = tokens.clone()
    mixed = infuse_class_tokens(tokens, source)
    assert_same(tokens, before)
    assert_close(mixed, (tokens + source) / 2)
    assert_same(infuse_class_tokens(tokens, source, weight=0), tokens)
    assert_same(infuse_class_tokens(tokens, source, weight=1), source)
    assert_close(infuse_class_tokens(tokens, tokens), tokens)
    assert_close(infuse_class_tokens(tokens, 7 * tokens, rescale=True), tokens)
    norms = infuse_class_tokens(tokens, source, weight=1, rescale=True).norm(dim=2)
    assert_close(norms, tokens.norm(dim=2))
    masked = infuse_class_tokens(tokens, source, labels=labels)
    absent = labels == 0
    assert_same(masked[:, 1:][absent], tokens[:, 1:][absent])
    assert_same(masked[:, 1:][~absent], mixed[:, 1:][~absent])
    assert_same(masked[:, 0], mixed[:, 0])
    # without a background token in the source it stays as it is
    kept = infuse_class_tokens(tokens, source[:, 1:])
    assert_same(kept[:, 0], tokens[:, 0])
    assert_same(kept[:, 1:], mixed[:, 1:])
    # labels of all tokens, of which the first is a class then
    every = torch.tensor([[0, 1, 1, 1]] * 2)
    assert_same(infuse_class_tokens(tokens, source, labels=every), kept)
    # one set of tokens for all images
    shared = infuse_class_tokens(tokens, source[0], labels=labels)
    assert_same(shared, infuse_class_tokens(tokens, source[:1].expand(2, -1, -1), labels=labels))


@covers("infuse_class_tokens", "properties")
def test_absent_classes_keep_their_whole_gradient():
    tokens, source, _ = problem(2, given_background=False)
    labels = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    tokens.requires_grad_()
    infuse_class_tokens(tokens, source, labels=labels).sum().backward()
    assert_same(tokens.grad[:, :, 0], torch.tensor([[1.0, 0.5, 1.0, 1.0]] * 2).double())


@covers("infuse_class_tokens", "gradcheck")
@pytest.mark.parametrize("rescale", [False, True])
def test_gradient(rescale):
    tokens, source, labels = problem(3)
    assert_gradcheck(
        lambda x, s: infuse_class_tokens(x, s, labels=labels, weight=0.3, rescale=rescale),
        tokens.requires_grad_(),
        source.requires_grad_(),
    )


@covers("infuse_class_tokens", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens, source, labels = problem(4)
    tokens = tokens.to(dtype)
    for given_as in (torch.float32, torch.float64, torch.bfloat16):
        s = source.to(given_as)
        expected = infuse_class_tokens(tokens.double(), s.double(), labels=labels, rescale=True)
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                mixed = infuse_class_tokens(tokens, s, labels=labels, rescale=True)
            assert mixed.dtype == dtype
            worst = dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32
            assert_close(mixed, expected, dtype=worst)


@covers("infuse_class_tokens", "compile")
def test_compile():
    for settings in ({}, {"given_background": False}, {"background": False}):
        tokens, source, labels = problem(**settings)
        assert_compiles(lambda t, s, y: infuse_class_tokens(t, s, labels=y), tokens, source, labels)
    assert_compiles(infuse_class_tokens, tokens, source[0])


@covers("infuse_class_tokens", "errors")
def test_errors():
    tokens, source, labels = problem()
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, n, D\), got \(4, 4\)"):
        infuse_class_tokens(tokens[0], source)
    with pytest.raises(ValueError, match=r"source must have shape .* B=2, n=4, D=4, got \(2, 2, 4"):
        infuse_class_tokens(tokens, source[:, 2:])
    with pytest.raises(ValueError, match=r"source must have shape \(n, D\) .* got \(3, 3\)"):
        infuse_class_tokens(tokens, source[0, 1:, 1:])
    with pytest.raises(ValueError, match=r"source must have shape .* B=2.* got \(1, 4, 4\)"):
        infuse_class_tokens(tokens, source[:1])
    with pytest.raises(ValueError, match="source must be on the device of tokens"):
        infuse_class_tokens(tokens, source.to("meta"))
    for name, x, s in (("tokens", tokens.long(), source), ("source", tokens, source.long())):
        with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor"):
            infuse_class_tokens(x, s)
    for name, x, s in (("tokens", tokens / 0, source), ("source", tokens, source / 0)):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            infuse_class_tokens(x, s)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]"):
            infuse_class_tokens(tokens, source, weight=weight)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\).*got \(2, 2\)"):
        infuse_class_tokens(tokens, source, labels=labels[:, 1:])
    with pytest.raises(ValueError, match=r"labels must have shape.* background column too many"):
        infuse_class_tokens(tokens, source[:, 1:], labels=torch.ones(2, 4))
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        infuse_class_tokens(tokens, source, labels=labels + 1)
    with pytest.raises(TypeError, match=r"labels must be a torch.Tensor, got list"):
        infuse_class_tokens(tokens, source, labels=labels.tolist())


@covers("infuse_class_tokens", "degenerate")
def test_degenerate():
    tokens, source, _ = problem(given_background=False)
    none = torch.zeros(2, 3)
    assert_same(infuse_class_tokens(tokens, source, labels=none), tokens)
    one = infuse_class_tokens(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), labels=torch.ones(1, 1))
    assert_same(one, torch.full((1, 1, 1), 0.5))
    empty = infuse_class_tokens(tokens[:0], source[:0], labels=none[:0])
    assert empty.shape == (0, 4, 4)
    # zero tokens on either side stay finite, their gradients too
    for x, s in ((torch.zeros(1, 2, 3), torch.ones(1, 2, 3)), (torch.ones(1, 2, 3), None)):
        x = x.requires_grad_()
        s = (torch.zeros(1, 2, 3) if s is None else s).requires_grad_()
        mixed = infuse_class_tokens(x, s, rescale=True)
        assert mixed.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(mixed.sum(), (x, s)))
