import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.attention import class_tokens
from strategies import seeds, small

from wsss_blocks.backbones import ClassTokens

KINDS = [(False, False), (True, False), (False, True), (True, True)]


def tokens_of(dim=4, classes=3, background=True, generator=True, seed=0, **factory):
    torch.manual_seed(seed)
    made = ClassTokens(dim, classes, background=background, generator=generator, **factory)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@covers("ClassTokens", "oracle")
@given(seeds, small, small, st.sampled_from(KINDS))
def test_equals_the_loops(seed, dim, classes, kind):
    made = tokens_of(dim, classes, *kind, seed=seed).double()
    if not kind[1]:
        assert_close(made(), made.tokens + made.position)
        return
    state = made.state_dict()
    layers = [(state[f"generator.{i}.weight"], state[f"generator.{i}.bias"]) for i in (0, 2)]
    own = state.get("background_token")
    assert_close(made(), class_tokens(state["token"], kind[0], own, state["position"], layers))


@covers("ClassTokens", "properties")
@pytest.mark.parametrize("kind", KINDS)
def test_folding_keeps_the_values(kind):
    made = tokens_of(background=kind[0], generator=kind[1]).eval()
    folded = made.fold()
    assert sorted(folded.state_dict()) == ["position", "tokens"]
    assert torch.equal(folded(), made())
    assert (folded.num_tokens, folded.background) == (made.num_tokens, kind[0])
    assert not folded.training
    assert folded.tokens.requires_grad


@covers("ClassTokens", "properties")
@pytest.mark.parametrize("kind", KINDS)
def test_start_from_a_trained_token(kind):
    made = tokens_of(background=kind[0], generator=kind[1])
    before = made()
    token, position = torch.randn(4), torch.randn(4)
    assert made.start_from(token, position) is made
    assert torch.equal(made.position, position.expand(3 + kind[0], 4))
    if kind[1]:
        assert torch.equal(made.token, token)
        assert not torch.equal(made(), before)
    else:
        assert torch.equal(made(), (token + position).expand_as(before))
    assert (made.start_from(token).position == 0).all()


@covers("ClassTokens", "properties")
def test_start_and_size():
    made = ClassTokens(384, 20, background=True, generator=True)
    assert (made.background_token == 0).all()
    assert 0.015 < made.token.std() < 0.025
    count = sum(p.numel() for p in made.generator.parameters())
    assert round(count / 1e6, 1) == 16.2
    assert [n for n, p in made.named_parameters() if not p.requires_grad] == []
    made().square().sum().backward()
    assert [n for n, p in made.named_parameters() if p.grad is None] == []


@covers("ClassTokens", "gradcheck")
@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind):
    made = tokens_of(2, 2, *kind).double()
    names = [n for n, _ in made.named_parameters()]

    def run(*values):
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), ())

    assert_gradcheck(run, *made.parameters())


@covers("ClassTokens", "module")
def test_state_and_copies():
    assert_module(tokens := tokens_of(generator=False), tokens(), state_keys=("position", "tokens"))
    keys = ("position", "token", "background_token")
    keys += tuple(f"generator.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))
    assert_module(tokens := tokens_of(), tokens(), state_keys=keys)
    assert "4, 3, background=True" in repr(tokens)


@covers("ClassTokens", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    made = tokens_of(dtype=dtype)
    assert made().dtype == dtype
    assert_close(made(), tokens_of(dtype=dtype).double()(), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(made()).all()


@covers("ClassTokens", "compile")
@pytest.mark.parametrize("kind", KINDS)
def test_compiles(kind):
    assert_compiles(tokens_of(background=kind[0], generator=kind[1]))


@covers("ClassTokens", "errors")
def test_refuses():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        ClassTokens(0, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ClassTokens(4, 0)
    with pytest.raises(TypeError, match="num_classes must be an int"):
        ClassTokens(4, 2.5)
    with pytest.raises(ValueError, match=r"token must have shape \(D,\) with D=4, got \(3,\)"):
        tokens_of().start_from(torch.zeros(3))
    with pytest.raises(ValueError, match="position must be finite"):
        tokens_of().start_from(torch.zeros(4), torch.full((4,), torch.nan))


@covers("ClassTokens", "degenerate")
@pytest.mark.parametrize("kind", KINDS)
def test_one_class_of_one_channel(kind):
    out = tokens_of(1, 1, *kind)()
    assert out.shape == (1 + kind[0], 1)
    assert torch.isfinite(out).all()
