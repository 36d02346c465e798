import os

import pytest
import torch
import torch.nn.functional as F
from contract import assert_close
from strategies import generator
from timm.models import VisionTransformer

from wsss_blocks.backbones import TimmViT, create_encoder
from wsss_blocks.decoders import LargeFOV
from wsss_blocks.heads import ClassHead
from wsss_blocks.training import read_toco_checkpoint

D, K, HIDDEN = 16, 5, 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def shapes(*, dim=D, depth=2, classes=K, hidden=HIDDEN, patch=8, tokens=17, teacher="weight_g"):
    """Key -> shape, as a network of ToCo lists them."""
    found = {
        "encoder.cls_token": (1, 1, dim),
        "encoder.pos_embed": (1, tokens, dim),
        "encoder.patch_embed.proj.weight": (dim, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (dim,),
    }
    linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
    linear |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                found[f"encoder.blocks.{i}.{norm}.{kind}"] = (dim,)
        for layer, shape in linear.items():
            found[f"encoder.blocks.{i}.{layer}.weight"] = shape
            found[f"encoder.blocks.{i}.{layer}.bias"] = shape[:1]
    for layer in ("norm", "head"):
        found[f"encoder.{layer}.weight"] = (dim,) if layer == "norm" else (7, dim)
        found[f"encoder.{layer}.bias"] = (dim,) if layer == "norm" else (7,)
    for head in ("proj_head", "proj_head_t"):
        for i in (0, 2, 4):
            found[f"{head}.mlp.{i}.weight"] = (dim, dim)
            found[f"{head}.mlp.{i}.bias"] = (dim,)
        found[f"{head}.last_layer.{teacher}"] = (9, 1)
        found[f"{head}.last_layer.weight_v"] = (9, dim)
    found["decoder.conv6.weight"] = (hidden, dim, 3, 3)
    found["decoder.conv7.weight"] = (hidden, hidden, 3, 3)
    found["decoder.conv8.weight"] = (classes + 1, hidden, 1, 1)
    found["classifier.weight"] = found["aux_classifier.weight"] = (classes, dim, 1, 1)
    return found


def checkpoint(seed=0, **options):
    g = generator(seed)
    return {k: torch.randn(s, generator=g) * 0.2 for k, s in shapes(**options).items()}


def encoder(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": D, "depth": 2, "num_heads": 2}
    return TimmViT(VisionTransformer(**sizes | options), mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def forward(state, images):
    """The network as its key names say, in plain functions: logits, aux logits, CAM, segments."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    weight, bias = (state[f"encoder.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = F.conv2d((images - mean) / std, weight, bias, stride=8)
    h, w = patches.shape[2:]
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["encoder.cls_token"].expand(len(x), 1, D), x], 1)
    x = x + state["encoder.pos_embed"]

    def layer(name, y):
        weight, bias = state[f"encoder.{name}.weight"], state[f"encoder.{name}.bias"]
        if "norm" in name:
            return F.layer_norm(y, (D,), weight, bias, eps=1e-6)
        return F.linear(y, weight, bias)

    middle = []
    for i in range(2):
        block = f"blocks.{i}."
        q, k, v = layer(block + "attn.qkv", layer(block + "norm1", x)).split(D, dim=2)
        heads = []
        for a in range(2):
            part = slice(a * D // 2, (a + 1) * D // 2)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (D // 2) ** 0.5
            heads.append(scores.softmax(2) @ v[..., part])
        x = x + layer(block + "attn.proj", torch.cat(heads, 2))
        hidden = F.gelu(layer(block + "mlp.fc1", layer(block + "norm2", x)))
        x = x + layer(block + "mlp.fc2", hidden)
        middle.append(x)
    final, aux = (
        y[:, 1:].transpose(1, 2).reshape(len(y), D, h, w) for y in (layer("norm", x), middle[0])
    )

    def classify(name, y):
        return F.conv2d(F.adaptive_max_pool2d(y, 1), state[f"{name}.weight"])[:, :, 0, 0]

    y = final
    for conv in ("conv6", "conv7"):
        y = F.relu(F.conv2d(y, state[f"decoder.{conv}.weight"], padding=5, dilation=5))
    segments = F.conv2d(y, state["decoder.conv8.weight"])
    cam = F.conv2d(final, state["classifier.weight"])
    return classify("classifier", final), classify("aux_classifier", aux), cam, segments


@pytest.mark.parametrize("front", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_the_blocks_compute_what_the_keys_say(tmp_path, front, wrap):
    state, path = checkpoint(), tmp_path / "toco.pth"
    torch.save(wrap({front + k: v for k, v in state.items()}), path)
    parts = read_toco_checkpoint(path)
    vit, decoder = encoder(), LargeFOV(D, K + 1, hidden_dim=HIDDEN)
    head, aux_head = ClassHead(D, K), ClassHead(D, K)
    for block, part in (
        (vit, parts.encoder),
        (head, parts.head),
        (aux_head, parts.aux_head),
        (decoder, parts.decoder),
    ):
        block.load_state_dict(part, strict=True)
    images = torch.rand(2, 3, 32, 32, generator=generator(1))
    features = vit(images, layers=(0,))
    logits, cam = head(features.feature_map)
    expected = forward(state, images)
    assert_close(logits, expected[0])
    assert_close(aux_head(features.intermediates[0]).logits, expected[1])
    assert_close(cam, expected[2])
    assert_close(decoder(features.feature_map), expected[3])


def test_every_key_goes_somewhere_once(tmp_path):
    state, path = checkpoint(teacher="parametrizations.weight.original0"), tmp_path / "toco.pth"
    torch.save(state, path)
    parts = read_toco_checkpoint(path)
    assert len(state) + 2 == sum(len(part) for part in parts)
    assert set(parts.encoder) == set(encoder().state_dict())
    assert list(parts.head) == list(parts.aux_head) == ["weight"]
    assert torch.equal(parts.head["weight"], state["classifier.weight"])
    assert torch.equal(parts.aux_head["weight"], state["aux_classifier.weight"])
    assert {k.split(".")[0] for k in parts.rest} == {"encoder", "proj_head", "proj_head_t"}
    assert all(torch.equal(value, state[key]) for key, value in parts.rest.items())
    assert "encoder.head.weight" in parts.rest
    assert_close(parts.encoder["mean"], MEAN)
    assert_close(parts.encoder["std"], STD)


def test_the_full_size_fits_the_named_encoder(tmp_path):
    # Meta tensors cannot be saved, so a vit_tiny stands in for the width; depth and names are real.
    state = checkpoint(dim=192, depth=12, patch=16, tokens=197, classes=20, hidden=512)
    path = tmp_path / "toco.pth"
    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    parts = read_toco_checkpoint(path)
    vit = create_encoder("vit_tiny_patch16_224")
    vit.load_state_dict(parts.encoder, strict=True)
    assert_close(vit.mean, MEAN)  # the name alone would have said 0.5
    LargeFOV(192, 21).load_state_dict(parts.decoder, strict=True)
    ClassHead(192, 20).load_state_dict(parts.head, strict=True)


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_refuses(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.pth must be a checkpoint of ToCo: 23 of 23 keys"):
        read_toco_checkpoint(path)
    with pytest.raises(ValueError, match=r"\(encoder\.cls_token, .*it holds conv1\.weight\."):
        read_toco_checkpoint(path)
    state = checkpoint()
    for key in ("decoder.conv7.weight", "encoder.blocks.0.attn.qkv.bias", "aux_classifier.weight"):
        torch.save({k: v for k, v in state.items() if k != key}, path)
        with pytest.raises(ValueError, match=f"other.pth .* 1 of 35 keys are missing .{key}"):
            read_toco_checkpoint(path)
    torch.save(state | {"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"other\.pth must hold a dictionary of tensors"):
        read_toco_checkpoint(path)
    torch.save({"w": Evil()}, path)
    with pytest.raises(ValueError, match=r"other\.pth must hold weights only"):
        read_toco_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_toco_checkpoint(tmp_path / "none.pth")
