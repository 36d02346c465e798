import json
from pathlib import Path

import pytest
import torch
from contract import assert_same
from hugging_face_files import PIECES, bert, vocabulary_file, word_pieces, write
from safetensors import safe_open
from safetensors.torch import save_file
from strategies import generator
from torch import nn

from wsss_blocks import backbones
from wsss_blocks.backbones import _hugging_face
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import (
    LoDAModel,
    SegmentationNetwork,
    Segmenter,
    create_loda,
    load_loda,
    save_loda,
)

KEY = "wsss_blocks.segmenter"
IMAGES = torch.rand(2, 3, 40, 56, generator=generator(0))
# Each option differs from its default, so that one that the file forgot would show.
OPTIONS = {
    "max_length": 7, "dim": 12, "pool": "average", "image_norm": True, "image_k": 3, "text_k": 4,
    "eval_text_k": 2, "mask_padding": (True, False), "exclude_special": True, "temperature": 0.2,
    "max_scale": 50.0,
}  # fmt: skip


def made(*, seed=0, **options):
    torch.manual_seed(seed)
    options = {"words": ["cat", "dog"]} | OPTIONS | options
    model = create_loda(options.pop("encoder", "small-cnn"), **options)
    for module in model.modules():  # statistics that training would have left
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def answers(model):
    ids, mask = model.tokenize(["a cat", "two dogs and a cat", ""])
    with torch.no_grad():
        found = model.eval()(IMAGES[[0, 1, 1]], ids, mask)
        return [*found.values(), model.encode_patches(IMAGES), ids]


def assert_equal(model, other):
    for a, b in zip(answers(model), answers(other), strict=True):
        assert_same(a, b)


def header(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def rewrite(path, *, drop=(), **changes):
    about = {k: v for k, v in (header(path) | changes).items() if v is not ...}
    with safe_open(path, framework="pt") as file:
        state = {k: file.get_tensor(k).clone() for k in file.keys() if k not in drop}  # noqa: SIM118
    save_file(state, path, metadata={KEY: json.dumps(about)})


@pytest.fixture
def saved(tmp_path):
    save_loda(tmp_path / "toy.safetensors", made(), size=96)
    return tmp_path / "toy.safetensors"


@pytest.mark.parametrize("encoder", ["small-cnn", "small-vit", "mobilenet", "test_vit"])
def test_loaded_equals_saved_to_the_bit(tmp_path, encoder):
    model = made(encoder=encoder).train()
    save_loda(tmp_path / "new" / "ä b.safetensors", model, size=96)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ä b.safetensors"]
    loaded = load_loda(str(tmp_path / "new" / "ä b.safetensors"))
    assert not any(module.training for module in loaded.modules())
    assert (loaded.size, loaded.source) == (96, "LoDA ä b.safetensors")
    assert_equal(model, loaded)
    again, text = loaded.train(), loaded.text
    assert (again.image.pool, again.image.k, text.k, text.eval_k) == ("average", 3, 4, 2)
    assert (text.mask_padding, text.exclude_special) == ((True, False), True)
    assert (again.max_scale, again.logit_scale.item()) == (50.0, pytest.approx(5.0))
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert loaded.recipe == model.recipe
    save_loda(tmp_path / "again.safetensors", loaded)
    assert load_loda(tmp_path / "again.safetensors").size is None
    assert_equal(load_loda(tmp_path / "again.safetensors"), model)


def test_every_option_is_written(saved):
    recipe = header(saved)["network"]
    for name, value in OPTIONS.items():
        assert recipe[name] == (list(value) if isinstance(value, tuple) else value), name
    plain = create_loda(words=["cat"]).recipe
    assert {name for name in OPTIONS if plain[name] == recipe[name]} == set()
    assert set(recipe) == {"kind", "encoder", "text_encoder", "words", "vocabulary", *OPTIONS}


def test_weights_come_from_the_file_alone(tmp_path):
    """What the encoders began with is of no account: the recipe does not name it."""
    encoder = backbones.create_encoder("test_vit").model
    torch.save(encoder.state_dict(), tmp_path / "vit.pth")
    model = made(encoder="test_vit", weights=tmp_path / "vit.pth")
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.image.encoder.model.state_dict()[name], value), name
    save_loda(tmp_path / "toy.safetensors", model)
    (tmp_path / "vit.pth").unlink()
    assert_equal(load_loda(tmp_path / "toy.safetensors"), model)


def test_an_encoder_of_hugging_face(tmp_path):
    trained = write(tmp_path / "bert", bert(), word_pieces(tmp_path))
    name = f"hf:{tmp_path / 'bert'}"
    model = made(text_encoder=name, words=(), text_weights="pretrained")
    kept = model.text.encoder.state_dict()
    assert any(torch.equal(value, trained.embeddings.word_embeddings.weight)
               for value in kept.values())  # fmt: skip
    save_loda(tmp_path / "toy.safetensors", model)
    assert_equal(load_loda(tmp_path / "toy.safetensors"), model)
    (tmp_path / "bert").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="bert"):
        load_loda(tmp_path / "toy.safetensors")


def test_word_pieces_may_lie_elsewhere(tmp_path, monkeypatch):
    parts = _hugging_face.bert_parts

    def small_parts(vocabulary):
        config, tokenizer = parts(vocabulary)
        return bert(vocab_size=config.vocab_size), tokenizer

    monkeypatch.setattr(_hugging_face, "bert_parts", small_parts)
    old, new = vocabulary_file(tmp_path), tmp_path / "other" / "pieces.txt"
    model = made(text_encoder="bert-base", words=(), vocabulary=old)
    path = tmp_path / "toy.safetensors"
    save_loda(path, model)
    assert_equal(load_loda(path), model)
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(FileNotFoundError, match=r"vocabulary must be a file .*vocab\.txt'"):
        load_loda(path)
    loaded = load_loda(path, vocabulary=new)
    assert_equal(loaded, model)
    assert loaded.recipe["vocabulary"] == str(new)
    new.write_text("\n".join(PIECES[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"toy\.safetensors must hold the weights .*word_embed"):
        load_loda(path, vocabulary=new)


def test_loading_draws_no_random_numbers_and_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_loda(saved)
    assert torch.equal(torch.rand(2), expected)
    before = saved.read_bytes()

    def broken(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_loda(saved, made(seed=1))
    assert saved.read_bytes() == before


def test_only_what_create_loda_built_is_saved(tmp_path):
    model = made()
    by_hand = LoDAModel(backbones.SmallCNN(), backbones.SmallTextEncoder(["cat"]), dim=8)
    for other, got in (
        (by_hand, "something else"),
        (torch.compile(model, backend="eager"), "a OptimizedModule"),
        (nn.Linear(2, 2), "a Linear"),
    ):
        with pytest.raises(TypeError, match=f"model must be one of create_loda, .*got {got}"):
            save_loda(tmp_path / "a.safetensors", other)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        save_loda(tmp_path / "a.safetensors", model, size=0)
    with pytest.raises(TypeError, match="size must be an int"):
        save_loda(tmp_path / "a.safetensors", model, size=96.0)
    assert not list(tmp_path.iterdir())


def test_names_and_options_that_do_not_fit():
    for options, message in (
        ({"encoder": "no-such"}, "name must be .*no-such"),
        ({"text_encoder": "no-such"}, "name must be 'small-text', .*got 'no-such'"),
        ({"words": ()}, "words must be given for 'small-text', got none"),
        ({"text_encoder": "bert-base", "words": ()}, "vocabulary must be given for 'bert-base'"),
        ({"pool": "sum"}, "pool must be one of"),
        ({"image_k": 0}, "image_k must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**options)


@pytest.mark.parametrize("part", [0.0, 0.05, 0.99])
def test_truncated_files(saved, part):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"toy\.safetensors is truncated or no safetensors file"):
        load_loda(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2, "library": "9.9"}, r"format 2, written by wsss-blocks 9\.9; .* reads form"),
        ({"network": ...}, "network of kind None, .* knows loda here"),
        ({"network": {"kind": "loda", "depth": 3}}, "cannot be built, TypeError: .*depth"),
        ({"network": {"kind": "loda"}}, "cannot be built, ValueError: words must be given"),
        ({"network": {"kind": "loda", "encoder": "no-such"}}, "built, ValueError: .*no-such"),
        ({"network": {"kind": "loda", "words": ["cat"], "dim": 9}}, "but .* of them are missing"),
        ({"size": 0}, "cannot be built, ValueError: size must be at least 1, got 0"),
        ({"size": "large"}, "cannot be built, TypeError: size must be an int"),
        ({"drop": ("log_scale",)}, "must hold the weights .* but 1 of them .*: log_scale"),
    ],
)
def test_descriptions_and_weights_that_do_not_fit(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=r"toy\.safetensors .*" + message):
        load_loda(saved)


def test_files_of_another_kind_name_what_reads_them(saved, tmp_path):
    protocol = EvaluationProtocol(
        dataset="toy", split="val", num_images=1, scales=(1.0,), flip=False, refiner="none",
        labels_used=False,
    )  # fmt: skip
    network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=8)
    Segmenter(network, names=("cat", "dog"), protocol=protocol).save(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=r"s\.safetensors holds .* 'large-fov', .*Segmenter\.load"):
        load_loda(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=r"toy\.safetensors holds .* 'loda', .*; load_loda reads"):
        Segmenter.load(saved)
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds weights but no .*save_loda"):
        load_loda(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_loda(tmp_path / "gone.safetensors")
