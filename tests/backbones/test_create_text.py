import weakref

import open_clip
import pytest
import torch
from contract import assert_close, covers
from oracles.backbones import unit
from tiny_open_clip import CONFIG, tiny_answers, tiny_clip

from wsss_blocks import data
from wsss_blocks.backbones import TextBank, create_text_bank

NAMES = ["dog", "tvmonitor", "diningtable"]
PROMPTS = ["a photo of dog", "a photo of tv monitor", "a photo of dining table"]
BACKGROUND = "a photo of background"


@pytest.fixture
def asked(monkeypatch):
    return tiny_answers(monkeypatch)


def embed(prompt):
    with torch.no_grad():
        return unit(tiny_clip().encode_text(open_clip.tokenize([prompt]))[0].tolist())


@covers("create_text_bank", "oracle")
@pytest.mark.parametrize(
    ("text", "arch", "tag", "quick", "where"),
    [
        ("clip", "ViT-B-16", "openai", True, "timm/vit_base_patch16_clip_224.openai/"),
        ("ViT-B-16/openai", "ViT-B-16", "openai", True, "timm/vit_base_patch16_clip_224.openai/"),
        (
            "ViT-L-14/laion2b_s32b_b82k",
            "ViT-L-14",
            "laion2b_s32b_b82k",
            False,
            "laion/CLIP-ViT-L-14-laion2B-s32B-b82K/",
        ),
    ],
)
def test_a_tower_encodes_the_prompts(asked, text, arch, tag, quick, where):
    bank = create_text_bank(text, NAMES)
    assert asked == [(arch, where, quick)]
    assert_close(bank.classes, [embed(prompt) for prompt in PROMPTS])
    assert_close(bank.background, [embed(BACKGROUND)])
    assert bank.names == tuple(NAMES)
    assert bank.source == f"open_clip {arch} {tag}: a photo of {{}}"


@covers("create_text_bank", "oracle")
def test_stand_in_is_the_banks_own():
    bank = create_text_bank("stand-in", NAMES, dim=9, seed=4)
    expected = TextBank.stand_in(NAMES, dim=9, seed=4)
    assert torch.equal(bank.classes, expected.classes)
    assert torch.equal(bank.background, expected.background)
    assert bank.source == expected.source == "stand-in"
    assert create_text_bank("stand-in", NAMES).classes.shape == (3, 64)


@covers("create_text_bank", "properties")
def test_every_voc_name_is_spoken_as_the_data_package_says(asked):
    bank = create_text_bank("clip", data.VOC_NAMES)
    assert bank.names == data.VOC_NAMES
    spoken = create_text_bank("clip", data.VOC_SPOKEN_NAMES)
    assert torch.equal(bank.classes, spoken.classes)


@covers("create_text_bank", "properties")
def test_own_prompts_and_one_more_name(asked):
    own = {"dog": "an origami dog.", "background": "the ground"}
    bank = create_text_bank("clip", [*NAMES, "zebra"], prompts=own)
    expected = [own["dog"], *PROMPTS[1:], "a photo of zebra"]
    assert_close(bank.classes, [embed(prompt) for prompt in expected])
    assert_close(bank.background, [embed("the ground")])
    assert bank.source.endswith("a photo of {}; dog: an origami dog.; background: the ground")


@covers("create_text_bank", "properties")
def test_a_saved_bank_is_read_by_name(asked, tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    made = TextBank.stand_in(["cat", *NAMES], dim=8, seed=0)
    made.save(path)
    bank = create_text_bank(str(path), NAMES)
    assert bank.names == tuple(NAMES)
    assert_close(bank.classes, made.classes[1:])
    # A file wins over a tower of the same spelling, but not over the two short names.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-16").mkdir()
    made.save("ViT-B-16/openai")
    assert create_text_bank("ViT-B-16/openai", ["cat"]).classes.shape == (1, 8)
    made.save("stand-in")
    assert create_text_bank("stand-in", ["cat"], dim=5).classes.shape == (1, 5)
    made.save("clip")
    assert create_text_bank("clip", ["cat"]).classes.shape == (1, 6)


@covers("create_text_bank", "properties")
def test_a_local_file_of_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save(tiny_clip().state_dict(), path)
    real = open_clip.create_model

    def create_model(arch, *, pretrained, force_quick_gelu):
        assert (arch, force_quick_gelu) == ("ViT-B-16", False)
        model = real("tiny", pretrained=pretrained)  # open_clip reads the file itself
        assert torch.equal(model.ln_final.weight, tiny_clip().ln_final.weight)
        return model

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", CONFIG)
    monkeypatch.setattr(open_clip, "create_model", create_model)
    bank = create_text_bank(f"ViT-B-16/{path}", NAMES)
    assert bank.source == "open_clip ViT-B-16 weights.pt: a photo of {}"
    assert_close(bank.classes, [embed(prompt) for prompt in PROMPTS])
    whole = path.read_bytes()
    for part in (b"", whole[:2000]):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"weights that fit ViT-B-16, got \S*weights\.pt: "):
            create_text_bank(f"ViT-B-16/{path}", NAMES)
    torch.save({"visual.proj": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"got \S*weights\.pt: RuntimeError: [^M]*Missing key"):
        create_text_bank(f"ViT-B-16/{path}", NAMES)


@covers("create_text_bank", "properties", "dtypes")
def test_the_real_tower_has_512_numbers_and_sheds_its_image_half(monkeypatch):
    real, encode, parts = open_clip.create_model, TextBank.from_encoder, {}

    def create_model(arch, **options):
        model = real(arch, **options)
        parts.update(image=weakref.ref(model.visual), text=weakref.ref(model.transformer))
        # QuickGELU, as OpenAI's weights want it.
        assert {type(block.mlp.gelu).__name__ for block in model.transformer.resblocks} == {
            "QuickGELU"
        }
        return model

    def from_encoder(encoder, names, **options):
        assert parts["image"]() is None  # before any prompt is encoded
        assert parts["text"]() is not None
        assert sum(p.numel() for p in encoder.parameters()) == 63_428_096
        return encode(encoder, names, **options)

    monkeypatch.setattr(open_clip, "create_model", create_model)
    # No file: open_clip leaves the weights as they were drawn.
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "")
    monkeypatch.setattr(TextBank, "from_encoder", from_encoder)
    bank = create_text_bank("clip", NAMES[:2])
    assert parts["text"]() is None
    assert bank.classes.shape == (2, 512)
    assert bank.background.shape == (1, 512)
    assert bank.classes.dtype == torch.float32
    assert torch.isfinite(bank.classes).all()
    assert bank.source == "open_clip ViT-B-16 openai: a photo of {}"


@covers("create_text_bank", "dtypes")
def test_a_half_precision_tower_gives_float32_rows(asked, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: tiny_clip().bfloat16())
    bank = create_text_bank("clip", NAMES)
    assert_close(bank.classes, [embed(prompt) for prompt in PROMPTS], dtype=torch.bfloat16)


@covers("create_text_bank", "errors")
def test_refuses(asked, tmp_path):
    for text in ("clop", "runs/bank.safetensors", "", "stand-in/openai", "ViT-B/32"):
        with pytest.raises(ValueError, match=r"text must be 'stand-in', 'clip', .*got ") as caught:
            create_text_bank(text, NAMES)
        assert repr(text) in str(caught.value)
    for text in ("ViT-B-16", "ViT-B-16/", "ViT-B-16/opened", "ViT-B-16//none/weights.pt"):
        with pytest.raises(ValueError, match=r"weights for ViT-B-16, a file or one of openai, "):
            create_text_bank(text, NAMES)
    path = str(tmp_path / "bank.safetensors")
    TextBank.stand_in(NAMES, dim=8, seed=0).save(path)
    with pytest.raises(ValueError, match=r"bank\.safetensors: 1 of 2 are missing \('cow'\)"):
        create_text_bank(path, ["dog", "cow"])
    for text in ("stand-in", path):
        with pytest.raises(ValueError, match="prompts must be None for text="):
            create_text_bank(text, NAMES, prompts={"dog": "a dog"})
    with pytest.raises(ValueError, match=r"prompts must be for names or 'background', got \['do"):
        create_text_bank("clip", NAMES, prompts={"dogg": "a dog"})
    with pytest.raises(ValueError, match=r"dim must be at least K \+ 1 = 4"):
        create_text_bank("stand-in", NAMES, dim=3)
    assert asked == []


@covers("create_text_bank", "errors")
def test_without_a_network_it_says_which_file_and_what_else_to_give(monkeypatch):
    def offline(config):
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    for text, words in (
        ("clip", "timm/vit_base_patch16_clip_224.openai/: no route .*'ViT-B-16-quickgelu//path"),
        ("ViT-L-14/laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-.*: no .*'ViT-L-14//path"),
    ):
        with pytest.raises(OSError, match=f"could not be had from {words}.*") as caught:
            create_text_bank(text, NAMES)
        assert "saved bank" in str(caught.value)


@covers("create_text_bank", "degenerate")
def test_one_class_and_none(asked):
    assert create_text_bank("clip", ["dog"]).classes.shape == (1, 6)
    for text in ("clip", "stand-in"):
        with pytest.raises(ValueError, match=r"names must .* got \[\]"):
            create_text_bank(text, [])
    with pytest.raises(ValueError, match="distinct names"):
        create_text_bank("clip", ["dog", "dog"])
