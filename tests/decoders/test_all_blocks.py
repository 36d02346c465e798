import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.all_blocks import all_blocks
from strategies import generator, seeds, sizes, small

from wsss_blocks.decoders import AllBlocksDecoder

HEADS = 2
PARTS = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
KEYS = tuple(
    f"{name}.{kind}"
    for name in (
        *("perceptrons.0.0", "perceptrons.0.2", "perceptrons.1.0", "perceptrons.1.2", "fusion"),
        *(f"layers.0.{part}" for part in PARTS),
        "classifier",
    )
    for kind in ("weight", "bias")
)


def decoder(seed=0, dims=(3, 2), classes=3, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    options = {"hidden_dim": 4, "layers": 1, "heads": HEADS, "mlp_ratio": 2} | options
    module = AllBlocksDecoder(dims, classes, dtype=dtype, **options)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    return module.eval()


def random_maps(seed=0, batch=2, dims=(3, 2), size=(2, 3), dtype=torch.float64):
    g = generator(seed)
    return [
        torch.randn(batch, dim, *size, generator=g, dtype=torch.float64).to(dtype) for dim in dims
    ]


@covers("AllBlocksDecoder", "oracle")
@settings(max_examples=10)
@given(seeds, st.lists(small, min_size=1, max_size=3), small, st.integers(0, 2), sizes(2))
def test_equals_the_loops(seed, dims, classes, layers, size):
    module = decoder(seed, dims, classes, layers=layers)
    maps = random_maps(seed, 2, dims, size)
    fused, logits = all_blocks(maps, module.state_dict(), layers, HEADS)
    assert_close(module.fuse(maps), fused)
    assert_close(module(maps), logits)


@covers("AllBlocksDecoder", "properties")
def test_sizes_of_the_paper_and_what_depends_on_what():
    with torch.device("meta"):
        module = AllBlocksDecoder([768] * 12, 21)
        assert len(module.layers) == 3
        assert module.fusion.weight.shape == (256, 12 * 256, 1, 1)
        assert module([torch.randn(1, 768, 20, 20)] * 12).shape == (1, 21, 20, 20)
    module, maps = decoder(), random_maps()
    logits = module(maps)
    assert_close(module([x[1:] for x in maps]), logits[1:])
    # Without a position embedding, positions may be permuted.
    assert_close(module([x.flip(-1) for x in maps]), logits.flip(-1))
    changed = [x.clone() for x in maps]
    changed[1][0, :, 0, 0] += 1
    moved = (module(changed) - logits).abs().amax(1) > 1e-9
    assert moved[0].all()
    assert not moved[1].any()
    assert_close(decoder(layers=0)(maps), decoder(layers=0).classifier(module.fuse(maps)))


@covers("AllBlocksDecoder", "properties")
def test_dropout_is_of_channels_and_in_training_only():
    module, maps = decoder(dropout=0.5).train(), random_maps(batch=8)
    torch.manual_seed(0)
    kept = module.fuse(maps) != 0
    assert (kept.flatten(2).all(2) == kept.flatten(2).any(2)).all()
    assert 0.2 < kept.double().mean() < 0.8
    assert (module.eval().fuse(maps) != 0).all()


@covers("AllBlocksDecoder", "gradcheck")
def test_gradcheck():
    module = decoder()
    assert_gradcheck(lambda *maps: module(maps), *(x.requires_grad_() for x in random_maps()))


@covers("AllBlocksDecoder", "module")
def test_module():
    module, maps = decoder(), random_maps()
    assert_module(module, module(maps), maps, state_keys=KEYS)


@covers("AllBlocksDecoder", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    exact, maps = decoder(), random_maps()
    expected = exact(maps)
    module = decoder(dtype=dtype)
    module.load_state_dict(exact.state_dict())
    logits = module([x.to(dtype) for x in maps])
    assert logits.dtype == dtype
    scale = expected.abs().max()
    assert_close(logits / scale.to(dtype), expected / scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()([x.float() for x in maps]).isfinite().all()


@covers("AllBlocksDecoder", "compile")
def test_compiles():
    module = decoder(dtype=torch.float32)
    assert_compiles(lambda a, b: module([a, b]), *random_maps(dtype=torch.float32))


@covers("AllBlocksDecoder", "errors")
def test_errors():
    for dims, options, message in (
        ([], {}, "dims must hold the channels of at least one block, got none"),
        ([0], {}, "dims must be at least 1, got 0"),
        ([3], {"heads": 3}, "heads must divide hidden_dim=4, got 3"),
        ([3], {"layers": -1}, "layers must be at least 0"),
        ([3], {"dropout": 1.5}, r"dropout must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(dims=dims, **options)
    module, (a, b) = decoder(), random_maps()
    for maps, message in (
        ([a], r"maps must hold one map for each of \(3, 2\), got 1"),
        ([a, a], r"maps must have shape \(B, D, h, w\) with D=2, got \(2, 3, 2, 3\)"),
        ([a, b[..., :2]], r"w=3, got \(2, 2, 2, 2\)"),
        ([a * torch.inf, b], "maps must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            module(maps)
    with pytest.raises(TypeError, match="maps must have the dtype of the weights"):
        module([a.float(), b.float()])
    with pytest.raises(ValueError, match=r"fused must have shape .* with D=4"):
        module.decode(a)


@covers("AllBlocksDecoder", "degenerate")
def test_one_position_no_image_and_constant_maps():
    module = decoder()
    assert module(random_maps(size=(1, 1))).shape == (2, 3, 1, 1)
    assert module(random_maps(batch=0)).shape == (0, 3, 2, 3)
    flat = module([torch.zeros_like(x) for x in random_maps()])
    assert_close(flat, flat[:1, :, :1, :1].expand_as(flat))
