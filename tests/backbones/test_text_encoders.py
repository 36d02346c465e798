import open_clip
import pytest
import torch
import transformers
from contract import assert_close, covers
from hugging_face_files import bert, distilbert, vocabulary_file, word_pieces, write
from tiny_open_clip import tiny_answers, tiny_clip

from wsss_blocks.backbones import (
    HuggingFaceTextEncoder,
    OpenCLIPTextEncoder,
    SmallTextEncoder,
    create_text_encoder,
)

TEXTS = ["A cat!", "red dog"]


@pytest.fixture
def asked(monkeypatch):
    return tiny_answers(monkeypatch)


@covers("create_text_encoder", "oracle")
def test_small_text():
    torch.manual_seed(0)
    model = create_text_encoder("small-text", words=["cat", "red"], max_length=5)
    assert isinstance(model, SmallTextEncoder)
    torch.manual_seed(0)
    expected = SmallTextEncoder(["cat", "red"], max_length=5)
    assert_close(model(*model.tokenize(TEXTS)).tokens, expected(*model.tokenize(TEXTS)).tokens)
    assert create_text_encoder("small-text", words=["cat"]).max_length == 16


@covers("create_text_encoder", "oracle")
@pytest.mark.parametrize(
    ("weights", "request_made"),
    [
        (None, ("ViT-B-16", None, False)),
        ("openai", ("ViT-B-16", "timm/vit_base_patch16_clip_224.openai/", True)),
    ],
)
def test_open_clip(asked, weights, request_made):
    model = create_text_encoder("open_clip:ViT-B-16", weights=weights, max_length=9)
    assert asked == [request_made]
    assert isinstance(model, OpenCLIPTextEncoder)
    ids, mask = model.tokenize(TEXTS)
    assert ids.shape == (2, 9)
    assert_close(model(ids, mask).global_token, tiny_clip().encode_text(open_clip.tokenize(TEXTS)))
    assert create_text_encoder("open_clip:ViT-B-16").tokenize(TEXTS)[0].shape == (2, 77)
    assert len(model.vocabulary.ends) == 49408


@covers("create_text_encoder", "oracle", "dtypes")
def test_bert_base_is_bert_base_without_its_pooler(tmp_path):
    path = vocabulary_file(tmp_path)
    with torch.device("meta"):
        model = create_text_encoder("bert-base", vocabulary=path)
    # 109,482,240 parameters are published with 30,522 word pieces and the pooler.
    expected = 109_482_240 - (30_522 - 16) * 768 - 768 * 769
    assert sum(p.numel() for p in model.parameters()) == expected
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.dim, model.max_length) == (768, 25)
    ids, mask = model.tokenize(["embeddings"])
    assert ids[0, :8].tolist() == [2, 8, 9, 10, 11, 3, 0, 0]
    assert mask.sum() == 6


@covers("create_text_encoder", "oracle")
def test_a_folder_with_its_weights_or_without(tmp_path):
    tokenizer = word_pieces(tmp_path)
    written = write(tmp_path, bert(), tokenizer)
    name = f"hf:{tmp_path}"
    model = create_text_encoder(name, weights="pretrained", max_length=6).eval()
    assert isinstance(model, HuggingFaceTextEncoder)
    ids, mask = model.tokenize(TEXTS)
    assert ids.shape == (2, 6)
    expected = written(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert_close(model(ids, mask).tokens, expected)
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(3)
    scratch = create_text_encoder(name, max_length=6).eval()
    torch.manual_seed(3)
    again = HuggingFaceTextEncoder(bert(), tokenizer=tokenizer, max_length=6).eval()
    assert_close(scratch(ids, mask).tokens, again(ids, mask).tokens)
    with pytest.raises(OSError, match="is a folder that lacks a file"):
        create_text_encoder(name, weights="pretrained")


@covers("create_text_encoder", "properties")
def test_a_file_of_clip_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.touch()
    seen = []

    def create_model(arch, *, pretrained, force_quick_gelu):
        seen.append((arch, pretrained))
        return tiny_clip()

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for weights in (path, str(path)):
        create_text_encoder("open_clip:ViT-B-16-quickgelu", weights=weights)
    assert seen == [("ViT-B-16-quickgelu", str(path))] * 2


@covers("create_text_encoder", "errors")
def test_refuses_names_and_arguments(asked, tmp_path):
    for name in ("bert", "small-text:x", "bert-base:x", "hf:", "hf", "open_clip", "", "clip:a"):
        with pytest.raises(ValueError, match=r"name must be 'small-text', .*, got ") as caught:
            create_text_encoder(name)
        assert repr(name) in str(caught.value)
    with pytest.raises(ValueError, match="words must be given for 'small-text', got none"):
        create_text_encoder("small-text")
    with pytest.raises(ValueError, match="words must be left out for 'hf:x', got some"):
        create_text_encoder("hf:x", words=["cat"])
    with pytest.raises(ValueError, match="vocabulary must be given for 'bert-base', got none"):
        create_text_encoder("bert-base")
    with pytest.raises(ValueError, match="vocabulary must be left out for 'small-text', got some"):
        create_text_encoder("small-text", words=["cat"], vocabulary="vocab.txt")
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt of bert-base-uncased, got 'none.txt'"):
        create_text_encoder("bert-base", vocabulary="none.txt")
    with pytest.raises(ValueError, match="weights must be None for 'small-text', got 'x'"):
        create_text_encoder("small-text", words=["cat"], weights="x")
    with pytest.raises(ValueError, match="weights must be None or 'pretrained' for 'hf:x', got"):
        create_text_encoder("hf:x", weights="openai")
    with pytest.raises(ValueError, match="name must have an ARCH of open_clip, got 'open_clip:V'"):
        create_text_encoder("open_clip:V")
    with pytest.raises(ValueError, match="weights must name weights for ViT-B-16, a file or one"):
        create_text_encoder("open_clip:ViT-B-16", weights="opened")
    assert asked == []
    with pytest.raises(ValueError, match="max_length must be at most 77, the context, got 78"):
        create_text_encoder("open_clip:ViT-B-16", max_length=78)
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        create_text_encoder("open_clip:ViT-B-16", max_length=2)
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        create_text_encoder("small-text", words=["cat"], max_length=0)


@covers("create_text_encoder", "errors")
def test_without_a_network_it_says_what_else_to_give(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    message = "could not be had: no route to host. Give a local file .*'open_clip:ViT-B-16-quickg"
    with pytest.raises(OSError, match=message):
        create_text_encoder("open_clip:ViT-B-16", weights="openai")
    for reader in (transformers.AutoConfig, transformers.AutoModel):
        monkeypatch.setattr(reader, "from_pretrained", offline)
    for weights in (None, "pretrained"):
        with pytest.raises(OSError, match=r"model='bert-x' .*no route .*give that folder"):
            create_text_encoder("hf:bert-x", weights=weights)


@covers("create_text_encoder", "degenerate")
def test_one_word_and_a_folder_without_a_tokenizer(tmp_path):
    model = create_text_encoder("small-text", words=["cat"], max_length=1)
    assert model(*model.tokenize(["", "cat"])).tokens.shape == (2, 1, 64)
    write(tmp_path, distilbert())
    for weights in (None, "pretrained"):
        with pytest.raises(ValueError, match=r"with a tokenizer's files, got "):
            create_text_encoder(f"hf:{tmp_path}", weights=weights)
