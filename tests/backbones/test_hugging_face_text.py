import copy
import sys

import pytest
import torch
import transformers
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hugging_face_files import PIECES, bert, distilbert, roberta, word_pieces, write
from torch import nn

from wsss_blocks.backbones import HuggingFaceTextEncoder, TextEncoder

IDS = torch.tensor([[2, 5, 6, 14, 3, 0, 0, 0], [2, 8, 9, 10, 11, 1, 4, 3]])
MASK = IDS > 0
SPECIAL = (IDS == 2) | (IDS == 3)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return word_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def build(pieces):
    def built(config=None, *, max_length=8):
        torch.manual_seed(0)
        config = bert() if config is None else config
        return HuggingFaceTextEncoder(config, tokenizer=pieces, max_length=max_length).eval()

    return built


class PackedText(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids, mask):
        return tuple(self.encoder(ids, mask))


@covers("HuggingFaceTextEncoder", "oracle")
@pytest.mark.parametrize("config", [bert(), distilbert(), roberta()])
def test_equals_the_model_itself(build, config):
    model = build(config)
    assert model.dim == 16
    out = model(IDS, MASK)
    expected = model.model(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    assert_close(out.tokens, expected)
    assert_close(out.global_token, expected[:, 0])
    assert torch.equal(out.mask, MASK)
    assert torch.equal(out.special, SPECIAL)  # neither the unknown word nor the mask


@covers("HuggingFaceTextEncoder", "oracle")
def test_tokenize_pads_to_the_length_and_cuts(build):
    model = build()
    texts = ["A cat!", "embeddings zebra [MASK]", "", "a " * 40]
    ids, mask = model.tokenize(texts)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        [2, 5, 6, 14, 3, 0, 0, 0],
        [2, 8, 9, 10, 11, 1, 4, 3],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 5, 5, 5, 5, 5, 5, 3],
    ]
    assert torch.equal(mask, ids != 0)
    assert [x.shape for x in model.tokenize([])] == [(0, 8), (0, 8)]
    assert isinstance(model, TextEncoder)
    vocabulary = model.vocabulary
    names = [PIECES[i] for i in vocabulary.ordinary.nonzero()[:, 0]]
    assert names == ["cat", "dog", "em", "photo", "of", "red"]
    assert (vocabulary.mask_id, vocabulary.pad_id) == (4, 0)
    assert vocabulary.special.nonzero()[:, 0].tolist() == [2, 3]
    assert vocabulary.starts(ids, mask)[1].int().tolist() == [0, 1, 0, 0, 0, 1, 1, 0]


@covers("HuggingFaceTextEncoder", "properties")
@pytest.mark.parametrize("config", [bert(), distilbert()])
def test_padding_reads_the_words_and_changes_none(build, config):
    model = build(config)
    out = model(IDS, MASK)
    other = IDS.clone()
    other[0, 5:] = 7
    again = model(other, MASK)
    assert_close(again.tokens[0, :5], out.tokens[0, :5])
    assert_close(again.global_token, out.global_token)
    assert_close(model(IDS[:1, :5], MASK[:1, :5]).tokens, out.tokens[:1, :5])
    changed = IDS.clone()
    changed[0, 2] = 7
    assert not torch.allclose(model(changed, MASK).tokens[0, 5:], out.tokens[0, 5:])
    order = torch.tensor([1, 0])
    assert_close(model(IDS[order], MASK[order]).tokens, out.tokens[order])


@covers("HuggingFaceTextEncoder", "properties")
@pytest.mark.parametrize("config", [bert(), distilbert(), roberta()])
def test_every_parameter_gets_a_gradient(build, config):
    model = build(config).train()
    model(IDS, MASK).tokens.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@covers("HuggingFaceTextEncoder", "properties")
@pytest.mark.parametrize("config", [bert(), distilbert()])
@pytest.mark.parametrize("pooler", [False, True])
def test_a_folder_gives_its_weights_and_tokenizer(tmp_path, pieces, config, pooler):
    options = {"add_pooling_layer": pooler} if config.model_type == "bert" else {}
    written = write(tmp_path, config, pieces, **options)
    for folder in (tmp_path, str(tmp_path)):
        model = HuggingFaceTextEncoder(folder, max_length=8)
        assert model.training
        assert model.model.training
        assert not any("pooler" in name for name, _ in model.named_parameters())
        out = model.eval()(*model.tokenize(["A cat!", "embeddings zebra [MASK]"]))
        expected = written(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
        assert_close(out.tokens, expected)


@covers("HuggingFaceTextEncoder", "properties")
def test_a_built_model_is_shared_and_keeps_its_mode(pieces):
    inner = transformers.AutoModel.from_config(distilbert()).eval()
    inner.layer = nn.Identity()
    model = HuggingFaceTextEncoder(inner, tokenizer=pieces, max_length=8)
    assert model.model is inner
    assert not model.training
    assert not inner.training
    assert HuggingFaceTextEncoder(inner.train(), tokenizer=pieces, max_length=8).training


@covers("HuggingFaceTextEncoder", "gradcheck")
def test_gradient_to_the_positions(build):
    model = build(bert(num_hidden_layers=1)).double()
    name = "model.embeddings.position_embeddings.weight"
    weight = model.get_parameter(name).detach().clone().requires_grad_()

    def tokens(weight):
        return torch.func.functional_call(model, {name: weight}, (IDS, MASK)).tokens

    assert_gradcheck(tokens, weight)


@covers("HuggingFaceTextEncoder", "module")
def test_state_and_copies(build):
    model = build(bert(num_hidden_layers=1))
    inner = tuple(f"encoder.model.{key}" for key in model.model.state_dict())
    packed = PackedText(model)
    assert_module(packed, packed(IDS, MASK), IDS, MASK, state_keys=inner)
    assert "max_length=8" in repr(model)


@covers("HuggingFaceTextEncoder", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(build, dtype):
    model = build()
    out = copy.deepcopy(model).to(dtype)(IDS, MASK)
    assert out.tokens.dtype == out.global_token.dtype == dtype
    torch.testing.assert_close(out.tokens.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)
    assert torch.equal(model(IDS.int(), MASK).tokens, model(IDS, MASK).tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(IDS, MASK).tokens
    torch.testing.assert_close(half.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)


@covers("HuggingFaceTextEncoder", "dtypes")
def test_weights_are_read_in_float32(tmp_path, pieces):
    torch.manual_seed(0)
    transformers.AutoModel.from_config(distilbert()).half().save_pretrained(tmp_path)
    model = HuggingFaceTextEncoder(tmp_path, tokenizer=pieces, max_length=8)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@covers("HuggingFaceTextEncoder", "compile")
def test_compiles(build):
    assert_compiles(PackedText(build(bert(num_hidden_layers=1))), IDS, MASK)


@covers("HuggingFaceTextEncoder", "errors")
def test_refuses_parts_that_do_not_fit(pieces):
    def make(model, **kwargs):
        return HuggingFaceTextEncoder(model, **{"tokenizer": pieces, "max_length": 8} | kwargs)

    with pytest.raises(ValueError, match="tokenizer must be given for a model that is not read"):
        make(bert(), tokenizer=None)
    with pytest.raises(TypeError, match=r"model must be an encoder of Hugging Face, .* got Linear"):
        make(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"model must be an encoder of Hugging Face, .* got int"):
        make(3)
    with pytest.raises(ValueError, match="add_pooling_layer=False, got a pooler"):
        make(transformers.BertModel(bert()))
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        make(bert(), max_length=2)
    with pytest.raises(ValueError, match="at most the model's 12 positions, got 13"):
        make(bert(), max_length=13)
    with pytest.raises(ValueError, match=r"tokenizer must have ids below 15, .* got 15"):
        make(bert(vocab_size=15))
    left = copy.deepcopy(pieces)
    left.padding_side = "left"
    with pytest.raises(ValueError, match=r"tokenizer must pad on the right, .*'left'"):
        make(bert(), tokenizer=left)
    headed = make(transformers.DistilBertForMaskedLM(distilbert()))
    with pytest.raises(TypeError, match=r"must return last_hidden_state .* got DistilBertForMask"):
        headed(IDS, MASK)


@covers("HuggingFaceTextEncoder", "errors")
def test_refuses_ids_that_do_not_fit(build):
    model = build()
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\), got \(8,\)"):
        model(IDS[0], MASK[0])
    with pytest.raises(TypeError, match="ids must be an integer tensor"):
        model(IDS.float(), MASK)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\) with B=2, T=8"):
        model(IDS, MASK[:, :5])
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        model(IDS, MASK.long())
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 16\), got 0 to 16"):
        model(IDS.where(IDS != 1, 16), MASK)
    with pytest.raises(ValueError, match="at most T=8 tokens, got 9"):
        model(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))


@covers("HuggingFaceTextEncoder", "errors")
def test_a_folder_that_does_not_do(tmp_path, pieces):
    for name in (tmp_path / "none", "./none"):
        with pytest.raises(OSError, match=r"none' is no folder here .*save_pretrained") as caught:
            HuggingFaceTextEncoder(name)
        assert f"model={str(name)!r}" in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises((OSError, ValueError), match=r"empty'"):
        HuggingFaceTextEncoder(empty)
    folder = tmp_path / "model"
    write(folder, distilbert())
    # Its tokenizer would know the special tokens alone, and call every word unknown.
    with pytest.raises(ValueError, match=r"with a tokenizer's files, got .*model' without them"):
        HuggingFaceTextEncoder(folder)
    HuggingFaceTextEncoder(folder, tokenizer=pieces, max_length=8)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"transformers reads, got .*model': Safetensor"):
        HuggingFaceTextEncoder(folder, tokenizer=pieces)
    weights.unlink()
    with pytest.raises(OSError, match="model' is a folder that lacks a file"):
        HuggingFaceTextEncoder(folder, tokenizer=pieces)
    more = distilbert()
    more.n_layers = 3
    weights.write_bytes(whole)
    more.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model' lacks 16: transformer\.layer\.2\."):
        HuggingFaceTextEncoder(folder, tokenizer=pieces)


@covers("HuggingFaceTextEncoder", "errors")
def test_without_transformers_it_names_the_extra(monkeypatch):
    config = bert()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'wsss-blocks\[text\]'"):
        HuggingFaceTextEncoder(config, tokenizer=len)


@covers("HuggingFaceTextEncoder", "degenerate")
@pytest.mark.parametrize("config", [bert(), distilbert()])
def test_no_real_token_and_no_text(build, config):
    model = build(config)
    out = model(IDS, torch.zeros_like(MASK))
    assert torch.isfinite(out.tokens).all()
    assert not out.special.any()
    assert_close(out.tokens, model(IDS, torch.ones_like(MASK)).tokens)  # all are read
    mixed = MASK.clone()
    mixed[0] = False
    assert_close(model(IDS, mixed).tokens[1], model(IDS, MASK).tokens[1])
    none = model(IDS[:0], MASK[:0])
    assert none.tokens.shape == (0, 8, 16)
    assert none.global_token.shape == (0, 16)
