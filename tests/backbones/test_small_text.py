import copy

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from oracles import captions as oracle
from strategies import generator, seeds
from torch import nn

from wsss_blocks.backbones import SmallTextEncoder, TextEncoder

WORDS = ("a", "cat", "dog", "on", "red", "the")
IDS = torch.tensor([[3, 7, 4, 0, 0], [5, 1, 2, 8, 6]])
MASK = IDS > 0


def encoder(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SmallTextEncoder(WORDS, **{"dim": 4, "depth": 2, "heads": 2, "max_length": 5} | kwargs)


class PackedText(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids, mask):
        return tuple(self.encoder(ids, mask))


@covers("SmallTextEncoder", "oracle")
@given(seeds)
def test_oracle(seed):
    g = generator(seed)
    model = encoder(seed, dim=4, heads=2).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    ids = torch.randint(0, 9, (2, 5), generator=g)
    mask = torch.rand(2, 5, generator=g) < 0.6
    mask[:, 0] = True
    state = {key: value.tolist() for key, value in model.state_dict().items()}
    for training in (True, False):
        out = model.train(training)(ids, mask)
        for b in range(2):
            tokens, mean = oracle.small_text(
                ids[b].tolist(), mask[b].tolist(), state, depth=2, heads=2
            )
            assert_close(out.tokens[b], torch.tensor(tokens, dtype=torch.float64))
            assert_close(out.global_token[b], torch.tensor(mean, dtype=torch.float64))
    assert torch.equal(out.mask, mask)
    assert not out.special.any()


@covers("SmallTextEncoder", "oracle", "degenerate")
def test_tokenize():
    model = encoder()
    ids, mask = model.tokenize(["A red cat!", "the ZEBRA's on_cat9dog", "", "?! 12", "a " * 40])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        [3, 7, 4, 0, 0],
        [8, 1, 1, 6, 4],  # zebra, s, on, cat; dog is cut
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [3, 3, 3, 3, 3],
    ]
    assert torch.equal(mask, ids > 0)
    assert model.tokenize([])[0].shape == model.tokenize([])[1].shape == (0, 5)
    assert isinstance(model, TextEncoder)


@covers("SmallTextEncoder", "properties")
def test_words_come_from_captions():
    model = SmallTextEncoder.from_captions(
        ["The red cat", "a dog, a Cat; 7"], dim=8, heads=2, depth=2, max_length=9
    )
    assert model.words == ("a", "cat", "dog", "red", "the")
    assert (model.dim, len(model.layers), model.max_length) == (8, 2, 9)
    again = SmallTextEncoder(model.words, dim=8, heads=2, depth=2, max_length=9)
    again.load_state_dict(model.state_dict())
    ids, mask = again.tokenize(["the dog"])
    assert torch.equal(again(ids, mask).tokens, model(*model.tokenize(["The dog."])).tokens)
    vocabulary = model.vocabulary
    assert vocabulary.ordinary.tolist() == [False] * 3 + [True] * 5
    assert vocabulary.begins.all()
    assert not vocabulary.special.any()
    assert (vocabulary.mask_id, vocabulary.pad_id) == (2, 0)


@covers("SmallTextEncoder", "properties")
def test_padding_reads_the_words_and_changes_none():
    model = encoder()
    out = model(IDS, MASK)
    other = IDS.clone()
    other[0, 3:] = 8
    again = model(other, MASK)
    assert_close(again.tokens[0, :3], out.tokens[0, :3])
    assert_close(again.global_token, out.global_token)
    assert not torch.allclose(again.tokens[0, 3:], out.tokens[0, 3:])
    assert_close(model(IDS[:1, :3], MASK[:1, :3]).tokens, out.tokens[:1, :3])
    other[0, 0] = 4
    assert not torch.allclose(model(other, MASK).tokens[0, 3:], again.tokens[0, 3:])
    order = torch.tensor([1, 0])
    assert_close(model(IDS[order], MASK[order]).tokens, out.tokens[order])
    model(IDS, MASK).tokens.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@covers("SmallTextEncoder", "gradcheck")
def test_gradient_to_the_embedding():
    model = encoder(depth=1).double()
    weight = model.embedding.weight.detach().clone().requires_grad_()

    def tokens(weight):
        out = torch.func.functional_call(model, {"embedding.weight": weight}, (IDS, MASK))
        return out.tokens, out.global_token

    assert_gradcheck(tokens, weight)


@covers("SmallTextEncoder", "module")
def test_state_and_copies():
    model = PackedText(encoder(depth=1)).eval()
    keys = ["position", "embedding.weight"]
    for part in ("norm1", "norm2", "qkv", "out", "mlp.0", "mlp.2"):
        keys += [f"layers.0.{part}.{p}" for p in ("weight", "bias")]
    keys += ["norm.weight", "norm.bias"]
    with torch.no_grad():
        expected = model(IDS, MASK)
        assert_module(
            model, expected, IDS, MASK, state_keys=tuple(f"encoder.{key}" for key in keys)
        )


@covers("SmallTextEncoder", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = encoder()
    out = copy.deepcopy(model).to(dtype)(IDS, MASK)
    assert out.tokens.dtype == out.global_token.dtype == dtype
    torch.testing.assert_close(out.tokens.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)
    assert torch.equal(model(IDS.int(), MASK).tokens, model(IDS, MASK).tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(IDS, MASK).tokens
    torch.testing.assert_close(half.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)


@covers("SmallTextEncoder", "compile")
def test_compiles():
    assert_compiles(PackedText(encoder()), IDS, MASK)


@covers("SmallTextEncoder", "errors")
def test_refuses():
    for words, match in (
        ([], "words must be distinct and one at least"),
        (["a", "cat", "a"], r"distinct and one at least, got \['a', 'cat', 'a'\]"),
        (["Cat"], "words must be of small letters alone, got 'Cat'"),
        (["a cat"], "small letters alone, got 'a cat'"),
        ([""], "small letters alone, got ''"),
    ):
        with pytest.raises(ValueError, match=match):
            SmallTextEncoder(words)
    with pytest.raises(TypeError, match="words must be a sequence, got 'cat'"):
        SmallTextEncoder("cat")
    with pytest.raises(TypeError, match="words must be texts, got 3"):
        SmallTextEncoder(["a", 3])
    with pytest.raises(ValueError, match="dim must be a multiple of heads=3, got 4"):
        encoder(heads=3)
    for name in ("dim", "depth", "heads", "max_length"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            encoder(**{name: 0})
    model = encoder()
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\), got \(5,\)"):
        model(IDS[0], MASK[0])
    with pytest.raises(TypeError, match="ids must be an integer tensor"):
        model(IDS.float(), MASK)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\) with B=2, T=5"):
        model(IDS, MASK[:, :3])
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        model(IDS, MASK.long())
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 9\), got 0 to 9"):
        model(IDS.where(IDS != 8, 9), MASK)
    with pytest.raises(ValueError, match="at most T=5 tokens, got 6"):
        model(torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="ids must be on the device of the weights"):
        model(IDS.to("meta"), MASK)


@covers("SmallTextEncoder", "degenerate")
def test_no_real_token_and_no_text():
    model = encoder()
    out = model(IDS, torch.zeros_like(MASK))
    assert torch.isfinite(out.tokens).all()
    assert not out.global_token.any()
    assert_close(out.tokens, model(IDS, torch.ones_like(MASK)).tokens)  # all are read
    out.tokens.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    mixed = MASK.clone()
    mixed[0] = False
    assert_close(model(IDS, mixed).tokens[1], model(IDS, MASK).tokens[1])
    assert model(IDS[:0], MASK[:0]).global_token.shape == (0, 4)
    one = SmallTextEncoder(["cat"], dim=1, heads=1, max_length=1)
    assert one(*one.tokenize(["cat"])).tokens.shape == (1, 1, 1)
