import copy

import open_clip
import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from open_clip.transformer import TextTransformer
from torch import nn

from wsss_blocks.backbones import OpenCLIPTextEncoder, TextEncoder

START, END = 48, 49
IDS = torch.tensor([[48, 5, 0, 7, 49, 0, 0, 0], [48, 3, 49, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]).bool()


def tower(**kwargs):
    torch.manual_seed(0)
    options = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 2}
    model = TextTransformer(**options | {"output_dim": 6} | kwargs).eval()
    nn.init.normal_(model.ln_final.weight)
    return model


def clip(**kwargs):
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=8, patch_size=8)
    text = open_clip.CLIPTextCfg(
        **{"context_length": 8, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1} | kwargs
    )
    return open_clip.CLIP(6, vision, text).eval()


class PackedText(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids, mask):
        return tuple(self.encoder(ids, mask))


@covers("OpenCLIPTextEncoder", "oracle")
@pytest.mark.parametrize("proj_bias", [False, True])
def test_equals_encode_text(proj_bias):
    model = clip(proj_bias=proj_bias)
    out = OpenCLIPTextEncoder(model)(IDS, MASK)
    assert_close(out.global_token, model.encode_text(IDS))


@covers("OpenCLIPTextEncoder", "oracle")
@pytest.mark.parametrize("kwargs", [{}, {"proj_type": "none"}, {"pool_type": "eos", "eos_id": END}])
def test_tower_of_its_own_with_all_tokens(kwargs):
    model = tower(**kwargs)
    out = OpenCLIPTextEncoder(model)(IDS, MASK)
    assert_close(out.global_token, model(IDS))
    last = model.forward_intermediates(
        IDS, indices=1, normalize_intermediates=True, output_fmt="NLC"
    )["text_intermediates"][-1]
    projected = last if model.text_projection is None else last @ model.text_projection
    assert_close(out.tokens, projected)
    assert torch.equal(out.mask, MASK)
    expected = torch.zeros(2, 8, dtype=torch.bool)
    for b, end in enumerate((4, 2)):
        expected[b, 0] = expected[b, end] = True
    assert torch.equal(out.special, expected)


@covers("OpenCLIPTextEncoder", "oracle")
def test_tokenize_is_clips_encoding_with_the_mask_up_to_the_end():
    model = OpenCLIPTextEncoder(tower(vocab_size=49408, context_length=12))
    # A "!" inside a word of punctuation has id 0, which is also padding.
    texts = ["wow !-) a cat", "", "a " * 40]
    ids, mask = model.tokenize(texts)
    assert torch.equal(ids, open_clip.tokenize(texts, context_length=12))
    assert ids.shape == mask.shape == (3, 12)
    for row, valid in zip(ids.tolist(), mask.tolist(), strict=True):
        end = row.index(49407)
        assert valid == [i <= end for i in range(12)]
    assert mask.sum(1).tolist() == [7, 2, 12]
    assert (ids[0][mask[0]] == 0).any()
    assert isinstance(model, TextEncoder)


@covers("OpenCLIPTextEncoder", "properties")
def test_padding_and_its_length_change_no_word():
    model = OpenCLIPTextEncoder(tower())
    out = model(IDS, MASK)
    other = IDS.clone()
    other[1, 4:] = 7
    again = model(other, MASK)
    assert_close(again.tokens[1, :3], out.tokens[1, :3])
    assert_close(again.global_token, out.global_token)
    short = model(IDS[:, :5], MASK[:, :5])
    assert_close(short.tokens, out.tokens[:, :5])
    assert_close(short.global_token, out.global_token)


@covers("OpenCLIPTextEncoder", "properties")
def test_dim_and_vocabulary():
    assert OpenCLIPTextEncoder(clip()).dim == OpenCLIPTextEncoder(clip(proj_bias=True)).dim == 6
    assert OpenCLIPTextEncoder(tower(proj_type="none")).dim == 8
    model = OpenCLIPTextEncoder(tower(vocab_size=49408, context_length=12))
    vocabulary = model.vocabulary
    assert len(vocabulary.ordinary) == 49408
    assert vocabulary.special.nonzero()[:, 0].tolist() == [49406, 49407]
    assert (vocabulary.mask_id, vocabulary.pad_id) == (None, 0)
    ids, mask = model.tokenize(["cat embeddings!"])  # cat</w> embed dings</w> !</w>
    assert vocabulary.starts(ids, mask)[0].int().tolist() == [0, 1, 1, 0, 1] + [0] * 7
    assert vocabulary.ordinary[ids[0, :6]].int().tolist() == [0, 1, 0, 1, 0, 0]
    named = OpenCLIPTextEncoder(tower(), tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    assert torch.equal(named.vocabulary.ends, vocabulary.ends)
    with pytest.raises(ValueError, match="SimpleTokenizer for a vocabulary, got function"):
        _ = OpenCLIPTextEncoder(tower(), tokenizer=lambda texts: IDS).vocabulary


@covers("OpenCLIPTextEncoder", "properties")
def test_texts_do_not_meet_each_other():
    model, order = OpenCLIPTextEncoder(tower()), torch.tensor([1, 0])
    assert_close(model(IDS[order], MASK[order]).tokens, model(IDS, MASK).tokens[order])


@covers("OpenCLIPTextEncoder", "gradcheck")
def test_gradient_to_the_embedding():
    model = OpenCLIPTextEncoder(tower(layers=1)).double()
    weight = model.token_embedding.weight.detach().clone().requires_grad_()

    def global_token(weight):
        state = {"token_embedding.weight": weight}
        return torch.func.functional_call(model, state, (IDS, MASK)).global_token

    assert_gradcheck(global_token, weight)


@covers("OpenCLIPTextEncoder", "module")
def test_state_and_copies():
    model = PackedText(OpenCLIPTextEncoder(tower(layers=1)))
    block = "transformer.resblocks.0"
    keys = ["positional_embedding", "text_projection", "token_embedding.weight"]
    keys += [f"{block}.ln_1.{p}" for p in ("weight", "bias")]
    keys += [f"{block}.attn.{p}" for p in ("in_proj_weight", "in_proj_bias")]
    keys += [f"{block}.attn.out_proj.{p}" for p in ("weight", "bias")]
    keys += [f"{block}.ln_2.{p}" for p in ("weight", "bias")]
    keys += [f"{block}.mlp.{m}.{p}" for m in ("c_fc", "c_proj") for p in ("weight", "bias")]
    keys += ["ln_final.weight", "ln_final.bias"]
    assert_module(
        model, model(IDS, MASK), IDS, MASK, state_keys=tuple(f"encoder.{k}" for k in keys)
    )


@covers("OpenCLIPTextEncoder", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = OpenCLIPTextEncoder(tower())
    out = copy.deepcopy(model).to(dtype)(IDS, MASK)
    assert out.tokens.dtype == out.global_token.dtype == dtype
    torch.testing.assert_close(out.tokens.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)
    assert torch.equal(model(IDS.int(), MASK).tokens, model(IDS, MASK).tokens)


@covers("OpenCLIPTextEncoder", "dtypes")
def test_autocast():
    model = OpenCLIPTextEncoder(tower())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(IDS, MASK).tokens
    torch.testing.assert_close(out.float(), model(IDS, MASK).tokens, rtol=0.1, atol=0.1)


@covers("OpenCLIPTextEncoder", "compile")
def test_compiles():
    assert_compiles(PackedText(OpenCLIPTextEncoder(tower(layers=1))), IDS, MASK)


@covers("OpenCLIPTextEncoder", "errors")
def test_refuses():
    with pytest.raises(TypeError, match="text transformer of open_clip, got Linear"):
        OpenCLIPTextEncoder(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="pretrained must be None"):
        OpenCLIPTextEncoder(tower(), pretrained="openai")
    with pytest.raises(ValueError, match="got bidirectional with pool 'argmax'"):
        OpenCLIPTextEncoder(tower(no_causal_mask=True))
    with pytest.raises(ValueError, match="got causal with pool 'last'"):
        OpenCLIPTextEncoder(tower(pool_type="last"))
    with pytest.raises(ValueError, match="class embedding"):
        OpenCLIPTextEncoder(tower(embed_cls=True))
    late = tower()
    late.transformer.batch_first = False
    with pytest.raises(ValueError, match="batch_first=True"):
        OpenCLIPTextEncoder(late)
    model = OpenCLIPTextEncoder(tower())
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\), got \(8,\)"):
        model(IDS[0], MASK[0])
    with pytest.raises(TypeError, match="ids must be an integer tensor"):
        model(IDS.float(), MASK)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\) with B=2, T=8"):
        model(IDS, MASK[:, :5])
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        model(IDS, MASK.long())
    with pytest.raises(ValueError, match=r"at most T=8 tokens, got 9"):
        model(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))


@covers("OpenCLIPTextEncoder", "degenerate")
def test_no_word_and_no_text():
    model = OpenCLIPTextEncoder(tower())
    empty = torch.tensor([[START, END]])
    out = model(empty, torch.ones(1, 2, dtype=torch.bool))
    assert torch.isfinite(out.tokens).all()
    assert out.special.all()
    assert model(IDS[:0], MASK[:0]).global_token.shape == (0, 6)


@pytest.mark.parametrize(
    ("pretrained", "quick"), [("openai", True), ("laion2b_s34b_b88k", False), (None, False)]
)
def test_the_activation_is_the_one_the_weights_were_trained_with(monkeypatch, pretrained, quick):
    seen = {}

    def build(name, **options):
        seen.update(options, name=name)
        return clip()

    monkeypatch.setattr(open_clip, "create_model", build)
    OpenCLIPTextEncoder("ViT-B-16", pretrained=pretrained)
    assert seen == {"name": "ViT-B-16", "pretrained": pretrained, "force_quick_gelu": quick}
