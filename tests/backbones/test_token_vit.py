import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from packed import Packed
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from wsss_blocks.backbones import Encoder, TimmViT, TokenViT
from wsss_blocks.cam import class_to_patch_attention
from wsss_blocks.memory import EMA
from wsss_blocks.refine import attention_affinity_refine

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
ATTENTION = (0, 2)
BARE = {"class_token": False, "no_embed_class": True, "global_pool": ""}


def vit(*, seed=0, **kwargs):
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    model = VisionTransformer(**options | kwargs).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("_token", "norm.weight", "norm.bias", "pos_embed")):
            nn.init.normal_(parameter)
    return model


def encoder(*, num_classes=3, background=True, generator=False, resample="compat", **kwargs):
    made = TokenViT(
        vit(**BARE | kwargs),
        num_classes,
        background=background,
        generator=generator,
        resample=resample,
        mean=MEAN,
        std=STD,
    ).eval()
    for parameter in made.class_tokens.parameters():
        nn.init.normal_(parameter)
    return made


def mix(tokens):
    return (tokens + tokens.flip(1).sin()) / 2


class Attending(nn.Module):
    """What can be made of attention, as a tuple."""

    def __init__(self, model, layers=ATTENTION):
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, images):
        f = self.model(images, attention_layers=self.layers)
        return f.feature_map, *(x for a in f.attention.values() for x in (a.q, a.k))


class Continuing(nn.Module):
    """A pass and, from its first block on, another one with mixed class tokens."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        first = self.model.encode_patches(self.model.embed(images), layers=(0,))
        again = self.model.continue_from(first, 0, infuse=mix, attention_layers=(-1,))
        q, k, _ = again.attention[1]
        return first.feature_map, again.feature_map, again.class_tokens, q, k


def explicit_attention(model, images):
    """Each block's mean matrix over heads and its output, from timm's unfused attention."""
    shape = (3, 1, 1)
    x = (images - images.new_tensor(MEAN).view(shape)) / images.new_tensor(STD).view(shape)
    body = model.model
    grid = x.shape[2] // 8, x.shape[3] // 8
    position = body.pos_embed.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    position = F.interpolate(position, size=grid, mode="bicubic", align_corners=False)
    x = body.patch_embed(x) + position.flatten(2).mT
    x = torch.cat([model.class_tokens().expand(len(x), -1, -1), x], 1)
    matrices, outputs = [], []
    for block in body.blocks:
        a, y = block.attn, block.norm1(x)
        qkv = a.qkv(y).reshape(len(x), x.shape[1], 3, a.num_heads, -1).permute(2, 0, 3, 1, 4)
        matrix = (qkv[0] @ qkv[1].mT * a.scale).softmax(-1)
        x = x + a.proj((matrix @ qkv[2]).transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
        matrices.append(matrix.mean(1))
        outputs.append(x)
    return matrices, outputs


@covers("TokenViT", "oracle")
@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_equals_the_explicit_transformer(generator, size):
    model, images = encoder(generator=generator), torch.rand(2, 3, *size)
    grid = size[0] // 8, size[1] // 8
    matrices, outputs = explicit_attention(model, images)
    out = model(images, layers=(0, 2), attention_layers=(0, 1, 2))
    assert_close(out.class_tokens, outputs[-1][:, :4])
    assert_close(out.patch_tokens, outputs[-1][:, 4:])
    assert_close(out.class_tokens_at[0], outputs[0][:, :4])
    rows = sum(matrices)[:, :4, 4:].reshape(2, 4, *grid)
    att = class_to_patch_attention(out.attention, num_class_tokens=4, grid=grid)
    assert_close(att, rows)
    maps = torch.rand(2, 4, *grid)
    expected = (sum(matrices)[:, 4:, 4:] @ maps.flatten(2).mT).mT.reshape(maps.shape)
    assert_close(attention_affinity_refine(maps, out.attention), expected)


@covers("TokenViT", "oracle")
def test_gradients_through_attention_equal_the_explicit_ones():
    model, images = encoder(), torch.rand(2, 3, 32, 32)
    weight = torch.rand(2, 4, 4, 4)

    def loss(rows, affinity):
        fused = rows.reshape(2, 4, 4, 4) * weight
        return (affinity(fused) * weight).sum()

    matrices, _ = explicit_attention(model, images)
    names = [n for n, _ in model.named_parameters()]
    expected = torch.autograd.grad(
        loss(
            sum(matrices)[:, :4, 4:],
            lambda m: (sum(matrices)[:, 4:, 4:] @ m.flatten(2).mT).mT.reshape(m.shape),
        ),
        model.parameters(),
        allow_unused=True,
    )
    a = model(images, attention_layers=(0, 1, 2)).attention
    found = torch.autograd.grad(
        loss(
            class_to_patch_attention(a, num_class_tokens=4, grid=(4, 4)),
            lambda m: attention_affinity_refine(m, a),
        ),
        model.parameters(),
        allow_unused=True,
    )
    for name, x, y in zip(names, found, expected, strict=True):
        if x is None or y is None:
            assert (x is None) == (y is None), name
        else:
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=name)


@covers("TokenViT", "oracle")
@pytest.mark.parametrize("options", [{"class_token": True}, {"class_token": True, "reg_tokens": 2}])
def test_starts_from_the_class_token_of_the_model(options):
    model, images = vit(**options), torch.rand(1, 3, 32, 32)
    token, position = model.cls_token.clone(), model.pos_embed.clone()
    made = TokenViT(copy.deepcopy(model), 2, mean=MEAN, std=STD).eval()
    assert_close(made.class_tokens(), (token[0] + position[0, :1]).expand(2, -1))
    assert_close(made.model.pos_embed, position[:, model.num_prefix_tokens :])
    assert "cls_token" not in made.model.state_dict()
    if "reg_tokens" not in options:  # one class: the model itself but for its last norm
        one = TokenViT(copy.deepcopy(model), 1, mean=MEAN, std=STD).eval()
        out = TimmViT(model, mean=MEAN, std=STD)(images, layers=(2,))
        assert_close(one(images).patch_tokens, out.taps[2][:, 1:])
        assert_close(one(images).global_token, out.taps[2][:, 0])


@covers("TokenViT", "oracle")
def test_timms_resampling():
    model, images = encoder(resample="timm"), torch.rand(1, 3, 16, 56)
    there = copy.deepcopy(model)
    position = resample_abs_pos_embed(model.model.pos_embed, (2, 7), (4, 4), num_prefix_tokens=0)
    there.model.pos_embed = nn.Parameter(position)
    there.model.patch_embed.grid_size = (2, 7)
    assert_close(model(images).feature_map, there(images).feature_map)
    compat = encoder()(images).feature_map
    assert not torch.allclose(model(images).feature_map, compat, atol=1e-3)


@covers("TokenViT", "properties")
def test_contract_of_an_encoder():
    model = encoder()
    assert isinstance(model, Encoder)
    assert (model.dim, model.stride, model.num_class_tokens) == (16, 8, 4)
    assert model.layer_dims == {0: 16, 1: 16, 2: 16}
    out = model(torch.rand(2, 3, 32, 32), layers=(-3, 1), attention_layers=(-1,))
    assert list(out.taps) == [0, 1]
    assert list(out.attention) == [2]
    assert out.attention[2].q.shape == out.attention[2].k.shape == (2, 2, 20, 8)
    assert out.attention[2].scale == 8**-0.5
    for layer in (0, 1):
        (grad,) = torch.autograd.grad(out.class_tokens.sum(), out.taps[layer], retain_graph=True)
        assert grad.abs().sum() > 0
    assert model(torch.rand(1, 3, 32, 32)).attention == {}
    tokens = out.patch_tokens
    assert model.project(tokens) is tokens
    assert encoder(background=False).num_class_tokens == 3


@covers("TokenViT", "properties")
def test_asking_for_attention_changes_nothing_and_leaves_nothing():
    model, images = encoder(), torch.rand(2, 3, 32, 32)
    assert torch.equal(
        model(images).feature_map, model(images, attention_layers=(0, 1, 2)).feature_map
    )
    assert all(block.attn.fused_attn for block in model.model.blocks)
    assert all(keep.kept is None for tape in model._tapes for keep in (tape.q, tape.k))


@covers("TokenViT", "properties")
def test_every_parameter_gets_a_gradient():
    for generator in (False, True):
        model = encoder(generator=generator)
        out = model(torch.rand(1, 3, 32, 32))
        (out.feature_map.square().sum() + out.class_tokens.square().sum()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


@covers("TokenViT", "properties")
def test_infusion_is_what_the_next_block_reads():
    model, images = encoder(), torch.rand(2, 3, 32, 32)
    plain = model(images, layers=(0, 1))
    source = torch.randn(2, 4, 16)
    out = model(images, layers=(0, 1), infuse={0: lambda tokens: (tokens + source) / 2})
    assert torch.equal(out.taps[0], plain.taps[0])
    mixed = torch.cat([(plain.taps[0][:, :4] + source) / 2, plain.taps[0][:, 4:]], 1)
    assert_close(out.taps[1], model.model.blocks[1](mixed))
    same = model(images, infuse={-3: lambda tokens: tokens})
    assert torch.equal(same.feature_map, plain.feature_map)


@covers("TokenViT", "oracle")
@pytest.mark.parametrize("layer", [0, 1, -2])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_going_on_equals_a_full_pass_with_infusion(layer, checkpointed):
    model, images = encoder().double(), torch.rand(2, 3, 24, 40).double()
    model.model.set_grad_checkpointing(checkpointed)
    later = {"layers": (2,), "attention_layers": (2,)}
    number = layer % 3

    def values_and_gradients(first, out):
        assert (list(out.taps), list(out.attention)) == ([2], [2])
        values = [out.feature_map, out.class_tokens, out.intermediates[2], out.class_tokens_at[2]]
        values += [out.attention[2].q, out.attention[2].k]
        # The loss compares both passes, so that gradients reach the shared blocks twice.
        loss = (out.feature_map - first.feature_map).square().sum()
        loss = loss + sum(x.square().sum() for x in values)
        return values, torch.autograd.grad(loss, model.parameters())

    full = model(images), model(images, infuse={layer: mix}, **later)
    first = model(images, layers=(layer,))
    kept = [x.clone() for x in (first.feature_map, first.class_tokens, first.taps[number])]
    found = values_and_gradients(first, model.continue_from(first, layer, infuse=mix, **later))
    for mine, its in zip(found, values_and_gradients(*full), strict=True):
        for a, b in zip(mine, its, strict=True):
            assert_close(a, b)
    for a, b in zip((first.feature_map, first.class_tokens, first.taps[number]), kept, strict=True):
        assert torch.equal(a, b)


@covers("TokenViT", "properties")
def test_going_on_without_infusion_gives_the_same_pass_again():
    model, images = encoder(), torch.rand(2, 3, 32, 32)
    first = model(images, layers=(0, 1), attention_layers=(1, 2))
    for layer in (0, 1):
        again = model.continue_from(first, layer, attention_layers=(2,))
        assert torch.equal(again.feature_map, first.feature_map)
        assert torch.equal(again.class_tokens, first.class_tokens)
        assert torch.equal(again.attention[2].q, first.attention[2].q)
        assert again.taps == {}


@covers("TokenViT", "properties")
@pytest.mark.parametrize("policy", ["resize", "pad", "floor"])
def test_embedded_patches_give_the_same_pass(policy):
    model, images = encoder(), torch.rand(2, 3, 23, 41)
    model.size_policy = policy
    patches = model.embed(images)
    out = model(images, layers=(1,), attention_layers=(2,), infuse={0: mix})
    again = model.encode_patches(patches, layers=(1,), attention_layers=(2,), infuse={0: mix})
    assert patches.shape == out.feature_map.shape
    assert torch.equal(again.feature_map, out.feature_map)
    assert torch.equal(again.class_tokens, out.class_tokens)
    assert torch.equal(again.taps[1], out.taps[1])
    assert torch.equal(again.attention[2].k, out.attention[2].k)


@covers("TokenViT", "oracle")
def test_embedding_is_the_convolution_of_normalised_images():
    model, images = encoder(), torch.rand(2, 3, 16, 40)
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    conv = model.model.patch_embed.proj
    expected = F.conv2d((images - mean) / std, conv.weight, conv.bias, stride=8)
    assert_close(model.embed(images), expected)


@covers("TokenViT", "properties")
@pytest.mark.parametrize("kind", [TokenViT, TimmViT])
def test_checkpointing_changes_no_gradient(kind):
    model = encoder() if kind is TokenViT else TimmViT(vit(), mean=MEAN, std=STD)
    images = torch.rand(1, 3, 32, 32)

    def gradients():
        out = Attending(model)(images)
        loss = sum(x.square().sum() * 0.1 for x in out)
        return torch.autograd.grad(loss, model.parameters(), allow_unused=True)

    plain = gradients()
    model.model.set_grad_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert all(keep.kept is None for tape in model._tapes for keep in (tape.q, tape.k))


@covers("TokenViT", "properties")
@pytest.mark.parametrize("kind", [TokenViT, TimmViT])
def test_copies_have_their_own_attention(kind):
    model = encoder() if kind is TokenViT else TimmViT(vit(), mean=MEAN, std=STD)
    images = torch.rand(1, 3, 32, 32)
    restored = pickle.load(io.BytesIO(pickle.dumps(model)))
    average = EMA(model, decay=0.5)
    expected = Attending(model)(images)
    others = (copy.deepcopy(model), restored, average.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in others:
        for a, b in zip(Attending(other)(images), expected, strict=True):
            assert torch.equal(a, b)


@covers("TokenViT", "properties")
@pytest.mark.parametrize(
    ("policy", "height", "width"), [("resize", 3, 5), ("pad", 3, 5), ("floor", 2, 4)]
)
def test_size_policies(policy, height, width):
    model = TokenViT(vit(), 2, size_policy=policy)
    assert model(torch.rand(1, 3, 23, 33)).feature_map.shape == (1, 16, height, width)


@covers("TokenViT", "gradcheck")
def test_gradient():
    model = encoder(depth=1).double()
    images = torch.rand(1, 3, 8, 20, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: Attending(model, (0,))(x), images)


@covers("TokenViT", "module")
def test_state_and_copies():
    model = Packed(encoder(depth=1), layers=(0,)).eval()
    images = torch.rand(1, 3, 32, 32)
    own = [k for k in vit(**BARE, depth=1).state_dict() if not k.startswith(("head.", "norm."))]
    keys = [f"encoder.{k}" for k in ("mean", "std", "class_tokens.position", "class_tokens.tokens")]
    keys += [f"encoder.model.{k}" for k in own]
    assert_module(model, model(images), images, state_keys=tuple(keys))


@covers("TokenViT", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, images = encoder(), torch.rand(1, 3, 24, 40)
    out = copy.deepcopy(model).to(dtype)(images.to(dtype), attention_layers=(0,))
    assert out.feature_map.dtype == out.class_tokens.dtype == out.attention[0].q.dtype == dtype
    torch.testing.assert_close(
        out.feature_map.float(), model(images).feature_map, rtol=0.1, atol=0.1
    )


@covers("TokenViT", "dtypes")
def test_autocast():
    model, images = encoder(generator=True), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, attention_layers=(0,)).feature_map
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("TokenViT", "compile")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiles(checkpointed):
    model = encoder(depth=1)
    model.model.set_grad_checkpointing(checkpointed)
    assert_compiles(Attending(model, (0,)), torch.rand(2, 3, 24, 40))


@covers("TokenViT", "compile")
def test_going_on_compiles():
    assert_compiles(Continuing(encoder(depth=2)), torch.rand(2, 3, 24, 40))


@covers("TokenViT", "compile")
@pytest.mark.parametrize("kind", [TokenViT, TimmViT])
def test_exports(kind):
    model = encoder(depth=1) if kind is TokenViT else TimmViT(vit(depth=1), mean=MEAN, std=STD)
    model, images = Attending(model, (0,)).eval(), torch.rand(1, 3, 32, 32)
    program = torch.export.export(model, (images,))
    for a, b in zip(program.module()(images), model(images), strict=True):
        assert_close(a, b)


@covers("TokenViT", "errors")
def test_refuses():
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(TypeError, match="VisionTransformer or the name of one, got Linear"):
        TokenViT(nn.Linear(1, 1), 2)
    with pytest.raises(ValueError, match="square patches, got 4 x 8"):
        TokenViT(vit(patch_size=(4, 8)), 2)
    with pytest.raises(ValueError, match="patch_drop_rate > 0"):
        TokenViT(vit(patch_drop_rate=0.5), 2)
    with pytest.raises(ValueError, match="must have a position embedding, got"):
        TokenViT(vit(pos_embed="none"), 2)
    with pytest.raises(ValueError, match="pretrained must be False"):
        TokenViT(vit(), 2, pretrained=True)
    with pytest.raises(ValueError, match="size_policy must be one of"):
        TokenViT(vit(), 2, size_policy="crop")
    with pytest.raises(ValueError, match="resample must be one of 'compat', 'timm'"):
        TokenViT(vit(), 2, resample="nearest")
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        TokenViT(vit(), 0)
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2 .*got 3"):
        encoder()(images, layers=(3,))
    with pytest.raises(ValueError, match=r"attention_layers must lie in 0\.\.2 .*got 3"):
        encoder()(images, attention_layers=(3,))
    with pytest.raises(ValueError, match=r"infuse must lie in 0\.\.2 .*got 3"):
        encoder()(images, infuse={3: lambda x: x})
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\]"):
        encoder()(torch.randn(1, 3, 32, 32) * 3)
    changed = encoder()
    changed.model.blocks[0].attn.q_norm = nn.Identity()
    with pytest.raises(RuntimeError, match="changed after the encoder was built"):
        changed(images, attention_layers=(0,))


@covers("TokenViT", "errors")
def test_refuses_to_go_on_from_what_is_not_there():
    model = encoder()
    first = model(torch.rand(1, 3, 32, 32), layers=(0, 2))
    with pytest.raises(ValueError, match=r"features must .* with layers=\(1,\), got \[0, 2\]"):
        model.continue_from(first, -2)
    with pytest.raises(ValueError, match=r"layer must lie in 0\.\.2 .*got 3"):
        model.continue_from(first, 3)
    with pytest.raises(ValueError, match=r"attention_layers must be at least 1, .*got \[0\]"):
        model.continue_from(first, 0, attention_layers=(2, 0))
    with pytest.raises(ValueError, match=r"^layers must be at least 1, .*got \[0\]"):
        model.continue_from(first, 0, layers=(-3,))
    with pytest.raises(ValueError, match=r"attention_layers must be at least 3, .*got \[2\]"):
        model.continue_from(first, 2, attention_layers=(-1,))
    for shape in ((1, 15, 4, 4), (1, 16, 16), (1, 16, 0, 4)):
        with pytest.raises(ValueError, match=r"patches must have shape \(B, D, h, w\) with D=16"):
            model.encode_patches(torch.rand(shape))


@covers("TokenViT", "degenerate")
def test_behind_the_last_block_nothing_is_run():
    model, images = encoder(), torch.rand(1, 3, 32, 32)
    first = model(images, layers=(-1,))
    again, full = model.continue_from(first, -1, infuse=mix), model(images, infuse={2: mix})
    assert torch.equal(again.class_tokens, mix(first.class_tokens))
    assert torch.equal(again.class_tokens, full.class_tokens)
    assert torch.equal(again.feature_map, full.feature_map)


@covers("TokenViT", "errors")
def test_blocks_without_plain_attention_are_refused_when_asked():
    from timm.models.vision_transformer import ParallelThingsBlock

    model = TokenViT(vit(block_fn=ParallelThingsBlock), 2)
    assert model(torch.rand(1, 3, 32, 32)).feature_map.shape == (1, 16, 4, 4)
    with pytest.raises(ValueError, match="timm's Attention, got 0: ParallelThingsBlock"):
        model(torch.rand(1, 3, 32, 32), attention_layers=(0,))


@covers("TokenViT", "degenerate")
def test_one_patch_a_constant_and_no_images():
    model = encoder()
    assert model(torch.rand(1, 3, 1, 1), attention_layers=(0,)).attention[0].q.shape[2] == 5
    none = model(torch.rand(0, 3, 32, 32), layers=(1,))
    assert none.class_tokens.shape == (0, 4, 16)
    assert model.continue_from(none, 1, infuse=mix).feature_map.shape == (0, 16, 4, 4)
    flat = model(torch.full((1, 3, 32, 32), 0.1)).feature_map
    flat.sum().backward()
    assert torch.isfinite(flat).all()
    assert torch.isfinite(model.model.patch_embed.proj.weight.grad).all()
