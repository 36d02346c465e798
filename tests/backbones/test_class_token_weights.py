import copy

import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, covers
from timm.models import VisionTransformer

from wsss_blocks.backbones import TokenViT, load_class_token_weights

DIM, CLASSES, DEPTH = 8, 3, 2


def vit(**kwargs):
    options = {"patch_size": 8, "embed_dim": DIM, "depth": DEPTH, "num_heads": 2}
    return VisionTransformer(**{"img_size": 32, "num_classes": 5} | options | kwargs)


def encoder(**kwargs):
    options = {key: kwargs.pop(key) for key in ("background", "generator") if key in kwargs}
    torch.manual_seed(9)
    return TokenViT(vit(**kwargs), CLASSES, **options).eval()


def released(kind, *, cells=16):
    """A state with the names and shapes that the released code writes, all values random."""
    torch.manual_seed(1)
    count = 1 if kind.startswith(("deit", "cti")) else CLASSES
    state = {k: torch.randn_like(v) for k, v in vit().state_dict().items()}
    del state["head.weight"], state["head.bias"]
    state["cls_token"] = torch.randn(1, count, DIM)
    own = {
        "deit": {"head.weight": (1000, DIM)},
        "deit distilled": {"dist_token": (1, 1, DIM), "head_dist.weight": (1000, DIM)},
        "v1": {},
        "v2": {"head.weight": (CLASSES, DIM, 3, 3)},
        "plus": {"head.weight": (CLASSES, DIM, 3, 3), "pos_embed_cls": (1, CLASSES, DIM)},
        "cti": {
            "head.weight": (CLASSES + 1, DIM, 3, 3),
            "bg_token": (1, 1, DIM),
            "pos_embed_cls": (1, CLASSES + 1, DIM),
            "tokenizer.0.weight": (5 * DIM, DIM),
            "tokenizer.0.bias": (5 * DIM,),
            "tokenizer.2.weight": ((CLASSES + 1) * DIM, 5 * DIM),
            "tokenizer.2.bias": ((CLASSES + 1) * DIM,),
        },
    }[kind]
    if kind in ("plus", "cti"):
        own["pos_embed_pat"] = (1, cells, DIM)
        own["pos_embed"] = (1, cells + 1, DIM)  # of the class they inherit from, not used
    else:
        own["pos_embed"] = (1, cells + count + (kind == "deit distilled"), DIM)
    return state | {key: torch.randn(shape) for key, shape in own.items()}


def written(tmp_path, state):
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w")
    return tmp_path / "w"


def by_hand(kind, state, images):
    """The released networks' last tokens, from the state by its own names."""
    model = vit(class_token=False, no_embed_class=True, global_pool="").eval()
    body = {k: v for k, v in state.items() if k.startswith(("blocks.", "patch_embed."))}
    model.load_state_dict(body, strict=False)
    token = state["cls_token"][0]
    if kind == "cti":
        hidden = (state["tokenizer.0.weight"] @ token[0] + state["tokenizer.0.bias"]).relu()
        made = (state["tokenizer.2.weight"] @ hidden + state["tokenizer.2.bias"]).view(-1, DIM)
        token = made + torch.cat([state["bg_token"][0], token.expand(CLASSES, -1)])
    if "pos_embed_cls" in state:
        tokens, position = token + state["pos_embed_cls"][0], state["pos_embed_pat"]
    else:
        prefix = state["cls_token"].shape[1] + ("dist_token" in state)
        tokens = token + state["pos_embed"][0, : len(token)]
        position = state["pos_embed"][:, prefix:]
    if kind.startswith("deit"):
        tokens = tokens.expand(CLASSES, -1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = model.patch_embed((images - mean) / std) + position
    x = torch.cat([tokens.expand(len(x), -1, -1), x], 1)
    return model.blocks(x)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("deit", "deit distilled", "v1", "v2", "plus", "cti")


@covers("load_class_token_weights", "oracle")
@pytest.mark.parametrize("kind", KINDS)
def test_gives_the_tokens_of_the_released_network(kind, tmp_path):
    state, images = released(kind), torch.rand(2, 3, 32, 32)
    cti = kind == "cti"
    model = encoder(background=cti, generator=cti)
    rest = load_class_token_weights(written(tmp_path, state), model)
    expected = by_hand(kind, state, images)
    out = model(images)
    assert_close(out.class_tokens, expected[:, : model.num_class_tokens])
    assert_close(out.patch_tokens, expected[:, model.num_class_tokens :])
    heads = {k for k in state if k.startswith("head")}
    assert set(rest) == heads | {"norm.weight", "norm.bias"}
    assert all(torch.equal(rest[k], state[k]) for k in rest)


@covers("load_class_token_weights", "properties")
def test_a_generator_starts_from_deit(tmp_path):
    state, model = released("deit"), encoder(background=True, generator=True)
    before = copy.deepcopy(model.class_tokens.generator.state_dict())
    load_class_token_weights(written(tmp_path, state), model)
    own = model.class_tokens
    assert torch.equal(own.token, state["cls_token"][0, 0])
    assert torch.equal(own.position, state["pos_embed"][0, :1].expand(4, -1))
    assert (own.background_token == 0).all()
    for key, value in own.generator.state_dict().items():
        assert torch.equal(value, before[key])


@covers("load_class_token_weights", "properties")
@pytest.mark.parametrize("kind", ["v2", "plus"])
def test_positions_of_another_grid_are_resampled(kind, tmp_path):
    state, model = released(kind, cells=36), encoder()
    load_class_token_weights(written(tmp_path, state), model)
    position = state["pos_embed"][:, CLASSES:] if kind == "v2" else state["pos_embed_pat"]
    grid = position.reshape(1, 6, 6, DIM).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    assert_close(model.model.pos_embed, grid.flatten(2).mT)


@covers("load_class_token_weights", "dtypes")
def test_weights_take_the_dtype_of_the_encoder(tmp_path):
    model = encoder().double()
    load_class_token_weights(written(tmp_path, released("v2")), model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@covers("load_class_token_weights", "errors")
def test_refuses(tmp_path):
    def load(state, model=None):
        load_class_token_weights(written(tmp_path, state), model or encoder())

    with pytest.raises(ValueError, match=r"both have a generator, got .* of CTI"):
        load(released("cti"))
    with pytest.raises(ValueError, match=r"both have cls_token \(1, n, D\), got none"):
        load({"weight": torch.zeros(1)})
    state = released("cti")
    del state["bg_token"]
    with pytest.raises(ValueError, match=r"lacks \['class_tokens.background_token'\]"):
        load(state, encoder(background=True, generator=True))
    with pytest.raises(ValueError, match=r"lacks .*token"):
        load(released("v2"), encoder(generator=True))
    with pytest.raises(ValueError, match=r"position must have shape \(4, 8\), got \(3, 8\)"):
        load(released("v2"), encoder(background=True))
    with pytest.raises(ValueError, match=r"got .*blocks.1.norm1.weight"):
        load(released("v2"), encoder(depth=1))
    with pytest.raises(ValueError, match=r"lacks .*blocks.2.norm1.weight"):
        load(released("v2"), encoder(depth=3))
    with pytest.raises(ValueError, match=r"must have shape .* in "):
        load(released("v2") | {"patch_embed.proj.bias": torch.zeros(9)})
    state = released("v2")
    del state["pos_embed"]
    with pytest.raises(ValueError, match="got neither"):
        load(state)
    (tmp_path / "broken").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="must be a whole file of tensors"):
        load_class_token_weights(tmp_path / "broken", encoder())


@covers("load_class_token_weights", "degenerate")
def test_one_class_and_a_refused_file_changes_nothing(tmp_path):
    one = TokenViT(vit(), 1).eval()
    state = released("deit")
    load_class_token_weights(written(tmp_path, state), one)
    assert torch.equal(one.class_tokens.tokens, state["cls_token"][0])
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match="must have shape"):
        load_class_token_weights(written(tmp_path, released("v2")), one)
    for key, value in one.state_dict().items():
        assert torch.equal(value, before[key])
