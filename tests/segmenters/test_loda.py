import copy
import math
import pickle

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import CLIPTextCfg, CLIPVisionCfg, build_zero_shot_classifier, tokenize
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from oracles import image_text as oracle
from strategies import generator, seeds
from torch import nn

from wsss_blocks.backbones import (
    Features,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    SmallCNN,
    TextBank,
    TextFeatures,
)
from wsss_blocks.losses import image_text_contrastive_loss
from wsss_blocks.segmenters import LoDAModel
from wsss_blocks.training import cached_gradient_backward, param_groups

WORDS = 12


class Pixels(nn.Module):
    """Cells of 2 x 2 pixels, mixed; the class token is another mix of the mean."""

    def __init__(self, dim=4):
        super().__init__()
        self.mix = nn.Conv2d(3, dim, 2, 2)
        self.dim, self.stride, self.num_class_tokens = dim, 2, 1
        self.layer_dims = {}

    def project(self, tokens):
        return 2 * tokens

    def forward(self, images, *, layers=(), attention_layers=()):
        x = self.mix(images)
        return Features(x, -x.mean((2, 3))[:, None], {}, {}, {})


class Words(nn.Module):
    """A row per id and place; id 0 is padding, 1 and 2 are special."""

    def __init__(self, dim=4, length=6):
        super().__init__()
        self.rows = nn.Embedding(WORDS, dim)
        self.places = nn.Parameter(torch.randn(length, dim))
        self.dim = dim

    def tokenize(self, texts):
        ids = torch.tensor([[1, *map(int, t.split()), 2] + [0] * 6 for t in texts])[:, :6]
        return ids, ids > 0

    def forward(self, ids, mask):
        tokens = self.rows(ids) + self.places[: ids.shape[1]]
        return TextFeatures(tokens, mask, (ids == 1) | (ids == 2), -tokens[:, 0])


def tiny(seed=0, dim=5, **options):
    torch.manual_seed(seed)
    return LoDAModel(Pixels(), Words(), dim=dim, **options).double()


def batch(seed=0, size=3, dtype=torch.float64):
    g = generator(seed)
    images = torch.rand(size, 3, 4, 6, generator=g, dtype=dtype)
    lengths = torch.randint(1, 7, (size,), generator=g)
    ids = torch.randint(3, WORDS, (size, 6), generator=g)
    ids[:, 0] = 1
    mask = torch.arange(6) < lengths[:, None]
    return images, ids * mask, mask


def clip(seed=0, image_size=16):
    torch.manual_seed(seed)
    vision = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=8, image_size=image_size)
    return CLIP(8, vision, CLIPTextCfg(width=16, heads=2, layers=1)).eval()


@settings(max_examples=20)
@given(seeds, st.integers(1, 7), st.integers(1, 7), st.booleans(), st.booleans(), st.booleans())
def test_oracle(seed, image_k, text_k, training, masked, exclude):
    model = tiny(
        seed % 7, image_k=image_k, text_k=text_k, eval_text_k=2, mask_padding=(masked, not masked),
        exclude_special=exclude, temperature=0.2,
    ).train(training)  # fmt: skip
    images, ids, mask = batch(seed)
    found = model(images, ids, mask)
    k, masked = (text_k, masked) if training else (2, not masked)
    patches = model.image.encoder(images).patch_tokens.tolist()
    words = model.text.encoder(ids, mask).tokens.tolist()
    pooled_images, pooled_texts = [], []
    for b in range(3):
        rows = oracle.project(patches[b], model.image.projection.weight.tolist())
        pooled_images.append(oracle.unit(oracle.mean_rows(oracle.strongest(rows, image_k))))
        kept = [n for n in range(6) if mask[b, n] or not masked]
        if exclude:
            no_word = all(ids[b, n] in (0, 1, 2) for n in range(6))
            words_only = [n for n in kept if ids[b, n] not in (1, 2)]
            kept = [n for n in range(6) if mask[b, n]] if no_word else words_only
        rows = oracle.project([words[b][n] for n in kept], model.text.projection.weight.tolist())
        pooled_texts.append(oracle.unit(oracle.mean_rows(oracle.strongest(rows, k))))
    assert_close(found["image_features"], pooled_images)
    assert_close(found["text_features"], pooled_texts)
    assert_close(found["logit_scale"], 5.0, dtype=torch.float32)
    assert tuple(found) == ("image_features", "text_features", "logit_scale")


def test_product_of_pooled_features_is_the_average_over_all_pairs():
    model = tiny(image_k=3, text_k=2)
    images, ids, mask = batch(1)
    u, v = (
        model.encode_image(images, normalize=False),
        model.encode_text(ids, mask, normalize=False),
    )
    maps = model.encode_patches(images)
    assert maps.shape == (3, 5, 2, 3)
    for i in range(3):
        ours = oracle.strongest(maps[i].flatten(1).T.tolist(), 3)
        for j in range(3):
            theirs = oracle.strongest(model.text(ids, mask).tokens[j].tolist(), 2)
            assert_close(u[i] @ v[j], oracle.pair_average(ours, theirs))


def test_pooled_vectors_of_the_other_poolings():
    images, ids, mask = batch(2)
    model = tiny(pool="average", exclude_special=False)
    text, image = model.text(ids, mask), model.encode_image(images, normalize=False)
    assert_close(image, model.encode_patches(images).mean((2, 3)))
    for training in (True, False):  # of real tokens, whatever the maximum response does
        pooled = model.train(training).encode_text(ids, mask, normalize=False)
        for b in range(3):
            assert_close(pooled[b], text.tokens[b, mask[b]].mean(0))
    model = tiny(pool="class_token")
    token = model.image.encoder(images).global_token
    assert_close(model.encode_image(images, normalize=False), model.image.projection(token))
    token = model.text.encoder(ids, mask).global_token
    assert_close(model.encode_text(ids, mask, normalize=False), model.text.projection(token))
    for pool in ("max_response", "average", "class_token"):
        model = tiny(pool=pool)
        pooled, patches = model.encode_dense(images)
        assert_same(pooled, model.encode_image(images))
        assert_same(patches, model.encode_patches(images))


def test_training_and_evaluation_differ_as_told():
    images, ids, mask = batch(3)
    mask[0] = torch.arange(6) < 3
    ids = ids * mask
    model = tiny(text_k=3, eval_text_k=2)
    tokens = model.text(ids, mask).tokens
    assert_same(
        model.encode_text(ids, mask, normalize=False), tokens.topk(3, 1).values.mean(1)
    )  # with padding
    masked = tokens.masked_fill(~mask[..., None], -torch.inf)
    assert_close(
        model.eval().encode_text(ids, mask, normalize=False)[0],
        masked[0].topk(2, 0).values.mean(0),
    )
    assert_same(model.train().encode_image(images), model.eval().encode_image(images))


@pytest.mark.parametrize("exclude_special", [False, True])
def test_a_short_caption_changes_no_other(exclude_special):
    """k follows each caption, unlike in the released code."""
    model = tiny(text_k=5, mask_padding=(True, True), exclude_special=exclude_special)
    _, ids, mask = batch(4)
    ids[1], mask[1] = torch.tensor([1, 2, 0, 0, 0, 0]), torch.arange(6) < 2  # no word
    ids[2], mask[2] = torch.tensor([5, 0, 0, 0, 0, 0]), torch.arange(6) < 1  # one token
    together = model.encode_text(ids, mask)
    for b in range(3):
        assert_same(model.encode_text(ids[b : b + 1], mask[b : b + 1])[0], together[b])
    assert_close(together[2], nn.functional.normalize(model.text(ids, mask).tokens[2, 0], dim=0))
    assert_close(together.norm(dim=1), [1.0, 1.0, 1.0])
    (grad,) = torch.autograd.grad(together[1, 0], model.text.encoder.rows.weight)
    assert grad[1:3].abs().max() > 0, "a caption without a word learns from its special tokens"


def test_both_sides_and_the_scale_learn():
    model = tiny()
    assert_close(model.logit_scale, 1 / 0.07, dtype=torch.float32)
    loss = image_text_contrastive_loss(*model(*batch(5)).values())
    unit = model(*batch(5))
    assert_close(loss, ClipLoss()(**unit))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert_gradcheck(
        lambda x: model(x, *batch(6)[1:])["image_features"], batch(6)[0].requires_grad_()
    )


@pytest.mark.parametrize("training", [False, True])
def test_chunks_have_the_gradients_of_the_batch(training):
    model, pairs = tiny().train(training), batch(10, size=7)
    image_text_contrastive_loss(*model(*pairs).values()).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for encoders, inputs, loss in (
        ([model], [pairs], image_text_contrastive_loss),
        (
            [model.encode_image, model.encode_text],
            [pairs[0], pairs[1:]],
            lambda *x: image_text_contrastive_loss(*x, model.logit_scale),
        ),
    ):
        model.zero_grad()
        cached_gradient_backward(encoders, inputs, loss, chunk_size=3)
        for name, parameter in model.named_parameters():
            assert (parameter.grad - expected[name]).abs().max() < 1e-10, name


def test_scale_stops_at_its_limit_and_comes_back():
    model = tiny(max_scale=20.0)
    with torch.no_grad():
        model.log_scale.fill_(4.0)
    assert_close(model.eval().logit_scale, 20.0)
    assert model.log_scale == 4.0  # evaluation changes nothing
    first, second = model.train().logit_scale, model.logit_scale
    assert_close(first, 20.0)
    (first + second).backward()
    assert_close(model.log_scale.grad, 40.0)
    (group,) = [g for g in param_groups(model, lr=1.0, weight_decay=0.1) if g["name"] == "no decay"]
    assert any(p is model.log_scale for p in group["params"])
    assert group["weight_decay"] == 0


def test_norm_of_the_image_side_and_state():
    keys = {"log_scale", "image.projection.weight", "text.projection.weight"}

    def own(model):
        return {k for k in model.state_dict() if ".encoder." not in k}

    assert own(tiny()) == keys
    model = tiny(image_norm=True)
    assert own(model) == keys | {"image.norm.weight", "image.norm.bias"}
    images, ids, mask = batch(7)
    tokens = model.image.encoder(images).patch_tokens
    expected = model.image.projection(nn.functional.layer_norm(tokens, (4,)))
    assert_close(model.encode_patches(images).flatten(2).mT, expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(
            tuple(other(images, ids, mask).values()), tuple(model(images, ids, mask).values())
        )
    other = tiny(seed=1, image_norm=True)
    other.load_state_dict(model.state_dict())
    assert_same(other.encode_text(ids, mask), model.encode_text(ids, mask))
    assert tiny(dim=None).dim == 4
    assert "projection" not in "".join(tiny(dim=None).state_dict())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"exclude_special": True}, {"pool": "average"}])
def test_compiles(options, training):
    model = tiny(**options).train(training)
    assert_compiles(lambda *x: tuple(model(*x).values()), *batch(8))


def test_half_precision():
    model, (images, ids, mask) = tiny().float(), batch(9)
    expected = model(images.float(), ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images.float(), ids, mask)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert_close(value, expected[name], dtype=torch.bfloat16)
    half = model.bfloat16()(images.bfloat16(), ids, mask)
    assert half["image_features"].dtype == torch.float32
    assert_close(half["image_features"], expected["image_features"], dtype=torch.bfloat16)


def test_joint_space_of_open_clip():
    tower = clip()
    encoders = OpenCLIPImageEncoder(tower), OpenCLIPTextEncoder(tower)
    model = LoDAModel(*encoders, dim=None, pool="class_token").eval()
    images, ids = torch.rand(2, 3, 16, 16, generator=generator(0)), tokenize(["a cat!", "dogs"])
    normalized = (images - encoders[0].mean.view(3, 1, 1)) / encoders[0].std.view(3, 1, 1)
    assert model.dim == 8
    assert_close(model.encode_image(images), tower.encode_image(normalized, normalize=True))
    assert_close(model.encode_text(ids), tower.encode_text(ids, normalize=True))
    pooled = LoDAModel(*encoders, dim=None).eval()
    assert pooled.encode_patches(images).shape == (2, 8, 2, 2)
    assert not torch.allclose(pooled.encode_image(images), model.encode_image(images))
    short, mask = pooled.tokenize(["a cat!", "dogs"])
    assert_same(pooled.encode_text(short), pooled.encode_text(short, mask))
    assert_close(pooled.encode_text(short[:, :7], mask[:, :7]), pooled.encode_text(short, mask))


def test_serves_a_zero_shot_classifier_and_a_text_bank():
    tower = clip()
    model = LoDAModel(
        SmallCNN(widths=(8, 8), blocks=(0, 0)), OpenCLIPTextEncoder(tower), dim=6, image_norm=True
    )
    names, templates = ["cat", "dog", "bus"], ["a photo of a {}.", "{}"]
    weights = build_zero_shot_classifier(model.eval(), tokenize, names, templates)
    bank = TextBank.from_encoder(model.train().text, names, templates=templates)
    assert model.text.training
    assert weights.shape == (6, 3)
    assert_close(bank.classes, weights.T)  # the bank is encoded in evaluation mode
    assert bank.background.shape == (1, 6)
    learning = build_zero_shot_classifier(model, tokenize, names, templates)
    assert not torch.allclose(learning, weights)


def test_errors():
    with pytest.raises(ValueError, match="pool must be one of"):
        tiny(pool="max")
    for name in ("image_k", "text_k", "eval_text_k"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            tiny(**{name: 0})
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        tiny(dim=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        tiny(temperature=0.0)
    with pytest.raises(ValueError, match=r"max_scale must be at least 1 / temperature \(14\.28"):
        tiny(max_scale=10.0)
    with pytest.raises(ValueError, match="image_norm must be False with dim=None"):
        tiny(dim=None, image_norm=True)
    with pytest.raises(ValueError, match=r"mask_padding must be two bools .* got \(True,\)"):
        tiny(mask_padding=(True,))
    with pytest.raises(TypeError, match="mask_padding must be a sequence, got True"):
        tiny(mask_padding=True)
    with pytest.raises(TypeError, match=r"text_encoder must be an nn\.Module, got str"):
        LoDAModel(Pixels(), "bert")
    with pytest.raises(TypeError, match=r"image_encoder must be an nn\.Module, got function"):
        LoDAModel(tiny, Words())
    images, ids, mask = batch()
    with pytest.raises(ValueError, match=r"dim must be given .* 3 channels of images and 4"):
        LoDAModel(Pixels(3), Words(), dim=None).double()(images, ids, mask)
    with pytest.raises(
        ValueError, match=r"mask must be given where ids do not .* a Words, got None"
    ):
        tiny().encode_text(ids)
    with pytest.raises(ValueError, match="mask must have a real token in each caption"):
        tiny().encode_text(ids, mask & (torch.arange(3) > 0)[:, None])


def test_no_caption_and_no_image():
    model = tiny()
    images, ids, mask = batch()
    found = model(images[:0], ids[:0], mask[:0])
    assert found["image_features"].shape == found["text_features"].shape == (0, 5)
    assert math.isclose(float(found["logit_scale"].detach()), 1 / 0.07, rel_tol=1e-6)
