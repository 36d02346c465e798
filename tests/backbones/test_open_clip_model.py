import copy
import pickle

import open_clip
import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from tiny_open_clip import NAME, tiny_clip, tiny_weights

from wsss_blocks.backbones import OpenCLIPModel, imagenet_templates


def images(size=(32, 32), dtype=torch.float32):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def normalized(x):
    mean, std = (
        x.new_tensor(v)[:, None, None]
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (x - mean) / std


@covers("OpenCLIPModel", "oracle")
def test_images_and_texts_are_open_clips():
    clip, x = tiny_clip(), images()
    model = OpenCLIPModel(clip)
    ids, mask = model.tokenize(["a photo of a cat!", "a dog"])
    for normalize in (True, False):
        wanted = clip.encode_image(normalized(x), normalize=normalize)
        assert_close(model.encode_image(x, normalize=normalize), wanted)
        wanted = clip.encode_text(open_clip.tokenize(["a photo of a cat!", "a dog"]), normalize)
        assert_close(model.encode_text(ids, mask, normalize=normalize), wanted)
        assert_close(model.encode_text(ids, normalize=normalize), wanted)


@covers("OpenCLIPModel", "oracle")
def test_patches_are_the_projected_tokens():
    clip, x = tiny_clip(), images()
    out = clip.visual.forward_intermediates(
        normalized(x), indices=1, normalize_intermediates=True, output_fmt="NLC"
    )["image_intermediates"][-1]
    wanted = (out @ clip.visual.proj).mT.reshape(2, 6, 4, 4)
    model = OpenCLIPModel(clip)
    assert_close(model.encode_patches(x), wanted)
    pooled, patches = model.encode_dense(x)
    assert_same(patches, model.encode_patches(x))
    assert_close(pooled, model.encode_image(x))


@covers("OpenCLIPModel", "oracle")
def test_values_are_maskclips():
    clip, x = tiny_clip(), images()
    with torch.no_grad():
        for part in (clip.visual.ln_post, clip.visual.transformer.resblocks[-1].ln_1):
            part.weight.normal_()
            part.bias.normal_()
        attention = clip.visual.transformer.resblocks[-1].attn
        attention.in_proj_bias.normal_()
        attention.out_proj.bias.normal_()
    caught = []
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(args[0]), with_kwargs=True
    )
    clip.encode_image(normalized(x))
    hook.remove()
    (inside,) = caught  # after ln_1: what the last block attends over
    wanted = torch.zeros(2, 6, 4, 4)
    for b in range(2):
        for i in range(16):
            value = attention.in_proj_weight[128:] @ inside[b, 1 + i] + attention.in_proj_bias[128:]
            token = attention.out_proj.weight @ value + attention.out_proj.bias
            token = F.layer_norm(token, (64,), clip.visual.ln_post.weight, clip.visual.ln_post.bias)
            wanted[b, :, i // 4, i % 4] = token @ clip.visual.proj
    model = OpenCLIPModel(clip, patches="value")
    assert_close(model.encode_patches(x), wanted)
    assert_close(model.encode_image(x), clip.encode_image(normalized(x), normalize=True))
    assert not torch.allclose(OpenCLIPModel(clip).encode_patches(x), wanted, atol=0.1)


@covers("OpenCLIPModel", "properties", "module")
def test_properties():
    clip, x = tiny_clip(), images((32, 44))
    for patches in ("token", "value"):
        model = OpenCLIPModel(clip, patches=patches)
        pooled, found = model.encode_dense(x)
        assert found.shape == (2, 6, 4, 6)
        assert_close(pooled.norm(dim=1), [1.0, 1.0])
        assert_close(model.encode_dense(x[1:])[1], found[1:])
        assert_same(copy.deepcopy(model).encode_patches(x), found)
        assert_same(pickle.loads(pickle.dumps(model)).encode_patches(x), found)
        assert repr(model).startswith("OpenCLIPModel(\n  source='open_clip CLIP', patches=")
    # Shared, not copied; both halves under names of their own.
    assert model.image.model is clip.visual
    assert model.text.token_embedding is clip.token_embedding
    assert {key.split(".")[0] for key in model.state_dict()} == {"image", "text"}


@covers("OpenCLIPModel", "gradcheck")
def test_gradients_reach_the_image():
    x = images(dtype=torch.float64)[:1].requires_grad_()
    for patches in ("token", "value"):
        model = OpenCLIPModel(tiny_clip().double(), patches=patches).double()
        assert_gradcheck(lambda x, model=model: model.encode_dense(x), x)


@covers("OpenCLIPModel", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, x = OpenCLIPModel(tiny_clip(), patches="value"), images()
    ids, mask = model.tokenize(["a dog"])
    wanted = (*model.encode_dense(x), model.encode_text(ids, mask))
    model.to(dtype)
    found = (*model.encode_dense(x.to(dtype)), model.encode_text(ids, mask))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        if dtype == torch.float64:
            assert_close(a, b, dtype=torch.float32)
        else:
            cosine = F.cosine_similarity(a.float().flatten(), b.flatten(), dim=0)
            assert cosine > 0.99


@covers("OpenCLIPModel", "compile")
def test_compile():
    model = OpenCLIPModel(tiny_clip(), patches="value")
    assert_compiles(model.encode_dense, images())


@covers("OpenCLIPModel", "degenerate")
def test_degenerate():
    model = OpenCLIPModel(tiny_clip(), patches="value")
    for x in (torch.zeros(1, 3, 32, 32), torch.rand(1, 3, 1, 1), torch.rand(0, 3, 32, 32)):
        pooled, patches = model.encode_dense(x)
        assert len(pooled) == len(patches) == len(x)
        assert torch.isfinite(pooled).all()
        assert torch.isfinite(patches).all()
    assert torch.isfinite(model.encode_text(*model.tokenize([""]))).all()


@covers("OpenCLIPModel", "properties")
def test_models_by_name(monkeypatch, tmp_path):
    text = tiny_weights(monkeypatch, tmp_path)
    wanted = OpenCLIPModel(tiny_clip()).encode_patches(images())
    model = OpenCLIPModel.from_name(text)
    assert model.source == f"open_clip {NAME} tiny.pt"
    assert_close(model.encode_patches(images()), wanted)
    assert OpenCLIPModel.from_name(text, patches="value").patches == "value"
    path = text.partition("/")[2]
    model = OpenCLIPModel(NAME, pretrained=path)
    assert_close(model.encode_patches(images()), wanted)
    assert model.source == f"open_clip {NAME} {path}"
    assert OpenCLIPModel(NAME).source == f"open_clip {NAME} (random weights)"


@covers("OpenCLIPModel", "errors")
def test_errors(monkeypatch, tmp_path):
    clip = tiny_clip()
    with pytest.raises(ValueError, match="patches must be one of 'token', 'value', got 'key'"):
        OpenCLIPModel(clip, patches="key")
    with pytest.raises(ValueError, match="pretrained must be None for a model that is already"):
        OpenCLIPModel(clip, pretrained="openai")
    with pytest.raises(TypeError, match="model must have open_clip's VisionTransformer"):
        OpenCLIPModel(torch.nn.Linear(1, 1))
    text = open_clip.CLIPTextCfg(vocab_size=50, width=8, heads=1, layers=1)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=8)
    shallow = open_clip.CLIP(6, vision, text)
    with pytest.raises(ValueError, match='patches="value" must have two blocks or more with plain'):
        OpenCLIPModel(shallow, patches="value")
    with pytest.raises(ValueError, match="images must be RGB in"):
        OpenCLIPModel(clip).encode_dense(9 * images())
    tiny_weights(monkeypatch, tmp_path)
    for name in ("clop", "stand-in", "/", "gone.safetensors"):
        with pytest.raises(ValueError, match=r"model must be 'ARCH/TAG' or 'ARCH/PATH' of open_c"):
            OpenCLIPModel.from_name(name)
    with pytest.raises(ValueError, match="model must name weights for ViT-B-16, a file or one of"):
        OpenCLIPModel.from_name("ViT-B-16/opened")
    (tmp_path / "broken.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model must name weights that fit tiny-clip, got .*ken"):
        OpenCLIPModel.from_name(f"{NAME}/{tmp_path / 'broken.pt'}")

    def offline(config):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(OSError, match=r"model=ViT-B-16/openai needs .* Give a local file") as found:
        OpenCLIPModel.from_name("ViT-B-16/openai")
    assert "as 'ViT-B-16-quickgelu//path/to/weights.safetensors'" in str(found.value)


@covers("imagenet_templates", "oracle", "properties", "dtypes", "errors", "degenerate")
def test_templates():
    """A constant: its contract is what it says."""
    found = imagenet_templates()
    assert found == tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert len(found) == len(set(found)) == 80
    assert all(text.count("{}") == 1 for text in found)
    assert found[0].format("dog") == "a bad photo of a dog."
