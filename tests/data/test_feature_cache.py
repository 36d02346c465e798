import json
import os
import pickle

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import nn

from wsss_blocks import data
from wsss_blocks.backbones import BilateralFeatures, Features, SmallCNN, TimmViT, create_encoder
from wsss_blocks.data import FeatureCache, MapFiles, dense_features, read_cause_features
from wsss_blocks.data._feature_files import weight_of
from wsss_blocks.data.feature_cache import DiskEstimate


class Averages(nn.Module):
    """Mean colour of each 8 x 8 cell: features that can be computed by hand."""

    dim, stride, num_class_tokens, size_policy = 3, 8, 0, "resize"
    layer_dims = {0: 3, 1: 3}  # noqa: RUF012

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images, *, layers=()):
        height, width = (-(-side // 8) * 8 for side in images.shape[-2:])
        x = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        cells = F.avg_pool2d(x, 8) * self.gain
        found = {layer % 2: cells * (2 + layer % 2) for layer in layers}
        return Features(cells, cells.new_zeros(len(images), 0, 3), found, {}, {})


class Pictures:
    """Images whose first channels are the x and y of each pixel, as fractions of the image."""

    names = ("cat",)

    def __init__(self, sizes, ids=None):
        self.sizes, self.ids = sizes, ids or [f"image {i}" for i in range(len(sizes))]
        self.read = []

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        self.read.append(index)
        height, width = self.sizes[index]
        y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
        x = ((torch.arange(width) + 0.5) / width).expand(height, width)
        image = torch.stack([x, y, torch.full_like(x, 0.5)])
        return data.new_sample(image, id=self.ids[index])


def silent(line):
    del line


def small_vit():
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    return TimmViT(VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2))


# --- dense_features --------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, 1, -1])
@pytest.mark.parametrize("flip", [True, False])
def test_features_are_the_mean_over_scales_and_mirror_images(layer, flip):
    torch.manual_seed(0)
    images, scales = torch.rand(2, 3, 20, 31), (2.0, 1.0, 0.5)
    encoder = small_vit() if layer is None else SmallCNN().eval()
    found = dense_features(encoder, images, scales=scales, flip=flip, layer=layer)

    def run(x):
        if layer is None:
            return encoder(x).feature_map
        return next(iter(encoder(x, layers=(layer,)).intermediates.values()))

    views = []
    for scale in scales:
        size = [int(side * scale + 0.5) for side in images.shape[-2:]]
        x = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        views.append(run(x))
        if flip:
            views.append(run(x.flip(-1)).flip(-1))
    grid = views[0].shape[-2:]
    views = [F.interpolate(v, size=grid, mode="bilinear", align_corners=False) for v in views]
    torch.testing.assert_close(found, torch.stack(views).mean(0), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_features_have_the_published_grid():
    # specs: sides times 2, rounded up to the patch size; 375 x 500 at patch 14 gives 54 x 72.
    from timm.models import VisionTransformer

    vit = VisionTransformer(img_size=28, patch_size=14, embed_dim=8, depth=1, num_heads=1)
    found = dense_features(TimmViT(vit), torch.rand(1, 3, 375, 500), scales=(2.0, 0.5), flip=False)
    assert found.shape == (1, 8, 54, 72)


def test_encoder_runs_in_eval_mode_and_gets_its_modes_back():
    encoder = SmallCNN()
    encoder.stages[1].eval()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [part.training for part in encoder.modules()]
    images = torch.rand(2, 3, 16, 16)
    both = dense_features(encoder, images)
    alone = dense_features(encoder, images[:1])
    torch.testing.assert_close(both[:1], alone)  # batch statistics would differ
    assert [part.training for part in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_features_of_a_half_precision_encoder_are_float32_and_of_the_size_asked_for():
    found = dense_features(
        SmallCNN().to(torch.bfloat16), torch.rand(1, 3, 16, 24).bfloat16(), size=(5, 7)
    )
    assert (found.dtype, found.shape) == (torch.float32, (1, 128, 5, 7))
    assert found.isfinite().all()


def test_an_encoder_of_buffers_alone_is_frozen_too(tmp_path):
    encoder, dataset = BilateralFeatures(8, stride=4), Pictures([(9, 12), (8, 8)])
    images = dataset[0]["image"][None]
    found = dense_features(encoder, images, flip=False)
    torch.testing.assert_close(found, encoder(images).feature_map)
    cache = FeatureCache.build(dataset, encoder, tmp_path, flip=False, progress=silent)
    torch.testing.assert_close(cache["image 0"], found[0].half(), rtol=0, atol=1e-3)
    assert cache.info["dim"] == 8
    other = BilateralFeatures(8, stride=4, seed=1)
    with pytest.raises(ValueError, match=r"weights .* instead of"):
        FeatureCache.build(dataset, other, tmp_path, flip=False, progress=silent)
    # images go where the buffers are, in their dtype; counters are no floats
    assert weight_of(encoder.double()).dtype == torch.float64
    assert weight_of(encoder.to("meta")).device.type == "meta"
    assert weight_of(nn.BatchNorm2d(2, affine=False).bfloat16()).dtype == torch.bfloat16
    assert weight_of(nn.Identity()).device.type == "cpu"


def test_features_refuse_what_they_cannot_align():
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"size_policy='resize'.*got 'pad'"):
        dense_features(SmallCNN(size_policy="pad"), images)
    with pytest.raises(TypeError, match=r"encoder must be an nn.Module, got function"):
        dense_features(lambda x: x, images)
    with pytest.raises(ValueError, match="images must be RGB"):
        dense_features(SmallCNN(), images * 255)
    with pytest.raises(ValueError, match="scales must name at least one"):
        dense_features(SmallCNN(), images, scales=())
    with pytest.raises(ValueError, match=r"layers must lie in 1..3"):
        dense_features(SmallCNN(), images, layer=4)
    with pytest.raises(TypeError, match="layer must be an int"):
        dense_features(SmallCNN(), images, layer="last")
    with pytest.raises(ValueError, match="size must be"):
        dense_features(SmallCNN(), images, size=(0, 3))


# --- the cache -------------------------------------------------------------------------------

IDS = ["2007_000032", "train/ü/猫.a", "..", "x" * 300, "x" * 299 + "y", "a%2Fb", "a/b"]


@pytest.mark.parametrize("encoder", [small_vit, SmallCNN])
def test_cache_holds_the_features_of_each_image(tmp_path, encoder):
    pictures, network = Pictures([(20, 31), (16, 16)] * 4, [*IDS, "last"]), encoder()
    cache = FeatureCache.build(
        pictures, network, tmp_path, scales=(2.0, 1.0), layer=-1, progress=silent
    )
    assert len(cache) == 8
    for index, image in enumerate(pictures.ids):
        pixels = pictures[index]["image"][None]
        expected = dense_features(network, pixels, scales=(2.0, 1.0), layer=-1)[0].half()
        assert torch.equal(cache[image], expected)
        assert torch.equal(cache.maps(pictures.ids)[index], expected)
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path}
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert "other" not in cache
    with pytest.raises(FileNotFoundError, match="no features of 'other'"):
        cache["other"]
    with pytest.raises(FileNotFoundError, match=r"lacks the features of 1 of 2 images \('other'\)"):
        cache.maps(["..", "other"])


def test_a_file_says_what_image_it_is_of(tmp_path):
    cache = FeatureCache.build(Pictures([(20, 31)]), Averages(), tmp_path, progress=silent)
    with safetensors.safe_open(tmp_path / "image 0.safetensors", "pt") as file:
        about = file.metadata()
    made_with = cache.info["made_with"]
    assert about == {"id": "image 0", "made_with": made_with, "image_size": "[20, 31]"}


def test_images_get_the_dtype_of_the_encoder(tmp_path):
    pictures, encoder = Pictures([(16, 24)]), SmallCNN().to(torch.bfloat16)
    cache = FeatureCache.build(pictures, encoder, tmp_path, progress=silent)
    expected = dense_features(encoder, pictures[0]["image"][None].bfloat16())
    assert torch.equal(cache["image 0"], expected[0].half())


def test_cache_says_what_it_was_made_with(tmp_path):
    lines = []
    pictures, encoder = Pictures([(20, 31), (16, 16)]), Averages()
    cache = FeatureCache.build(
        pictures, encoder, tmp_path, scales=(2.0, 1.0), name="means", progress=lines.append
    )
    # 40 x 62 and 32 x 32 pixels in cells of 8: 5 x 8 and 4 x 4.
    estimate = DiskEstimate(2, 3, (4.5, 6.0), 3 * 2 * (5 * 8 + 4 * 4))
    assert lines == [str(estimate), "1 of 2 images cached", "2 of 2 images cached"]
    info = json.loads((tmp_path / "cache.json").read_text())
    assert info == cache.info
    weights, made_with = info.pop("weights"), info.pop("made_with")
    assert len(weights) == len(made_with) == 64
    assert info == {
        "encoder": "means",
        "scales": [2.0, 1.0],
        "flip": True,
        "layer": None,
        "size": None,
        "size_policy": "resize",
        "grid_rule": "whole image; side * 2 up to a multiple of 8, in cells of 8 x 8",
        "dim": 3,
        "estimate": {"images": 2, "dim": 3, "mean_grid": [4.5, 6.0], "bytes": estimate.bytes},
    }
    assert [tuple(cache[image].shape) for image in pictures.ids] == [(3, 5, 8), (3, 4, 4)]
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert estimate.bytes < sum(sizes) < estimate.bytes + 2 * 400  # a header each


@pytest.mark.parametrize(
    ("make", "layer"),
    [(small_vit, None), (SmallCNN, 1), (lambda: create_encoder("mobilenet"), 2)],
)
def test_estimate_knows_the_grid_of_each_encoder(tmp_path, make, layer):
    lines, pictures = [], Pictures([(33, 50)])
    cache = FeatureCache.build(
        pictures, make(), tmp_path, scales=(0.5, 1.5), layer=layer, progress=lines.append
    )
    dim, h, w = cache["image 0"].shape
    assert lines[0].startswith(f"1 images, {dim} channels, mean grid {h:.1f} x {w:.1f}, float16")


def test_estimate_is_told_before_anything_is_computed(tmp_path):
    class StopError(Exception):
        pass

    def stop(line):
        raise StopError(line)

    pictures = Pictures([(16, 16)] * 100)
    with pytest.raises(StopError, match=r"100 images, 3 channels, mean grid 2.0 x 2.0"):
        FeatureCache.build(pictures, Averages(), tmp_path / "new", progress=stop)
    assert not (tmp_path / "new").exists()
    assert len(pictures.read) == 32


def test_too_small_a_disk_is_noticed_first(tmp_path, monkeypatch):
    full = os.statvfs_result((1, 1, 1, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OSError, match="GB of room left"):
        FeatureCache.build(Pictures([(16, 16)]), Averages(), tmp_path, progress=silent)
    assert not list(tmp_path.iterdir())


def test_interrupted_cache_is_continued_and_broken_files_are_made_again(tmp_path):
    pictures = Pictures([(16, 16)] * 4)
    calls = []

    class Interrupted(Averages):
        def forward(self, images, *, layers=()):
            calls.append(1)
            if len(calls) == 4:  # one call to measure the grid, one per image
                raise KeyboardInterrupt
            return super().forward(images, layers=layers)

    Interrupted.__name__ = "Averages"
    with pytest.raises(KeyboardInterrupt):
        FeatureCache.build(pictures, Interrupted(), tmp_path, progress=silent)
    assert len(FeatureCache(tmp_path)) == 2
    first, second = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:-3])
    with pytest.raises(ValueError, match="must be a whole file of features"):
        FeatureCache(tmp_path)["image 1"]
    before = first.stat().st_mtime_ns
    pictures.read.clear()
    cache = FeatureCache.build(pictures, Averages(), tmp_path, progress=silent)
    assert pictures.read[4:] == [1, 2, 3]  # the first four: the estimate
    assert first.stat().st_mtime_ns == before
    assert all(torch.isfinite(cache[image]).all() for image in pictures.ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1.0, 2.0)}, r"got scales \[2.0, 1.0\] instead of \[1.0, 2.0\]:"),
        ({"flip": False}, "got flip True instead of False:"),
        ({"layer": 1}, "got layer None instead of 1:"),
        ({"size": (4, 4)}, r"got size None instead of \[4, 4\]; grid_rule"),
        ({"name": "others"}, "got encoder 'Averages' instead of 'others':"),
        ({"encoder": Averages(2.0)}, "got weights '"),
        ({"encoder": SmallCNN()}, "encoder 'Averages' instead of 'SmallCNN'; weights.*; dim 3"),
    ],
)
def test_cache_of_another_kind_is_refused_and_what_differs_named(tmp_path, change, message):
    pictures, settings = Pictures([(16, 16)]), {"scales": (2.0, 1.0), "progress": silent}
    FeatureCache.build(pictures, Averages(), tmp_path, **settings)
    same = FeatureCache.build(pictures, Averages(), tmp_path, **settings)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    encoder = change.pop("encoder", Averages())
    with pytest.raises(ValueError, match=message):
        FeatureCache.build(pictures, encoder, tmp_path, **{**settings, **change})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert len(same) == 1


def test_layer_from_the_end_is_the_same_layer(tmp_path):
    pictures = Pictures([(16, 16)])
    FeatureCache.build(pictures, Averages(), tmp_path, layer=1, progress=silent)
    FeatureCache.build(pictures, Averages(), tmp_path, layer=-1, progress=silent)


def test_file_of_another_image_or_cache_is_not_taken(tmp_path):
    pictures = Pictures([(16, 16)] * 2)
    cache = FeatureCache.build(pictures, Averages(), tmp_path / "a", progress=silent)
    other = FeatureCache.build(pictures, Averages(2.0), tmp_path / "b", progress=silent)
    name = "image 0.safetensors"
    (cache.folder / name).replace(cache.folder / "image 1.safetensors")
    with pytest.raises(
        ValueError, match=r"must hold features of 'image 1'.*got those of 'image 0'"
    ):
        cache["image 1"]
    (other.folder / name).replace(cache.folder / name)
    with pytest.raises(ValueError, match="another image or another encoder"):
        cache["image 0"]


def test_reading_maps_the_file_and_does_not_change_it(tmp_path):
    cache = FeatureCache.build(Pictures([(16, 16)]), Averages(), tmp_path, progress=silent)
    content = (tmp_path / "image 0.safetensors").read_bytes()
    features = cache["image 0"]
    features.zero_()
    assert (tmp_path / "image 0.safetensors").read_bytes() == content
    assert cache["image 0"].abs().sum() > 0
    restored = pickle.loads(pickle.dumps(cache.maps(["image 0"])))
    assert torch.equal(restored[0], cache["image 0"])


@pytest.mark.parametrize("text", ["{", "[]", '{"dim": 3}', '{"dim": 3, "made_with": 1}', "\xff"])
def test_damaged_description_is_named(tmp_path, text):
    with pytest.raises(FileNotFoundError, match=r"there is no cache.json"):
        FeatureCache(tmp_path)
    (tmp_path / "cache.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"cache.json must be what FeatureCache.build wrote"):
        FeatureCache(tmp_path)


def test_build_refuses_what_cannot_be_cached(tmp_path):
    def build(pictures, encoder, **settings):
        FeatureCache.build(pictures, encoder, tmp_path, progress=silent, **settings)

    one = Pictures([(16, 16)])
    with pytest.raises(ValueError, match="must fit into float16, got values up to"):
        build(one, Averages(1e6))
    with pytest.raises(ValueError, match="name each image once, got 'a' again"):
        build(Pictures([(8, 8)] * 2, ["a", "a"]), Averages())
    with pytest.raises(ValueError, match="dataset and scales must not be empty, got 0 images"):
        build(Pictures([]), Averages())
    with pytest.raises(ValueError, match="must not be empty, got 1 images and 0 scales"):
        build(one, Averages(), scales=())
    with pytest.raises(ValueError, match="scales must be positive"):
        build(one, Averages(), scales=(0.0,))
    with pytest.raises(ValueError, match="size must be"):
        build(one, Averages(), size=(3,))
    with pytest.raises(TypeError, match=r"encoder must be an nn.Module"):
        build(one, abs)


# --- under the training augmentation ---------------------------------------------------------


def test_features_follow_the_crop_to_half_a_cell(tmp_path):
    pictures = Pictures([(70, 93), (64, 50), (41, 120)])
    cache = FeatureCache.build(pictures, Averages(), tmp_path, scales=(2.0, 1.0), progress=silent)
    transform = data.Compose(
        data.RandomScale(0.5, 2.0), data.RandomHorizontalFlip(0.5), data.RandomCrop(64)
    )
    grid, side = 16, 4
    maps = {"uss": cache.maps(pictures.ids)}
    samples = data.WithMaps(data.Augmented(pictures, transform), maps, sizes={"uss": (grid, grid)})
    mirrored, padded, compared = set(), set(), 0
    for seed in range(60):
        index = seed % 3
        sample = samples[index, seed]
        features, valid = sample["maps"]["uss"], sample["valid"]["uss"]
        assert features.shape == (3, grid, grid)
        assert features.dtype == torch.float32
        # The image went through the transforms themselves: its colours are the truth. A pixel is
        # image where the constant channel is 0.5; the crop pads with zeros.
        cells = F.avg_pool2d(sample["image"][None], side)[0]
        inside = (sample["image"][2] > 0.49).float()
        whole = F.avg_pool2d(inside[None], side)[0] == 1
        none = F.avg_pool2d(inside[None], side)[0] == 0
        assert valid[whole].all()
        assert not valid[none].any()
        assert not features[:, ~valid].any()
        height, width = pictures.sizes[index]
        # Half a cell of the cache, whose cells are 4 source pixels at scale 2.
        limit = torch.tensor([2 / width, 2 / height])[:, None]
        error = (features - cells)[:2, whole].abs()
        # The outermost half cell of the source is continued, not extrapolated: half a cell, too.
        assert (error <= limit + 1e-3).all(), (seed, (error / limit).max())
        # Further inside nothing is continued, and coordinates are interpolated without an error:
        # what is left is float16, a twentieth of a pixel.
        pixels = torch.tensor([width, height])[:, None]
        place = cells[:2, whole] * pixels
        inner = ((place > 8) & (place < pixels - 8)).all(0)
        assert ((error * pixels)[:, inner] < 0.2).all(), seed
        compared += int(inner.sum())
        mirrored.add(bool(sample["geometry"].matrix[0, 0] < 0))
        padded.add(bool(none.any()))
    assert mirrored == padded == {True, False}
    assert compared > 2000


def test_loader_gives_features_of_one_size_from_maps_of_many(tmp_path):
    pictures = Pictures([(70, 93), (64, 50), (41, 120)])
    cache = FeatureCache.build(pictures, Averages(), tmp_path, progress=silent)
    for workers in (0, 1):
        loader = data.step_loader(
            pictures,
            data.RandomCrop(32),
            batch_size=3,
            steps=1,
            workers=workers,
            maps={"uss": cache.maps(pictures.ids)},
            map_sizes={"uss": (8, 9)},
        )
        (batch,) = loader
        assert batch["maps"]["uss"].shape == (3, 3, 8, 9)
        assert batch["valid"]["uss"].shape == (3, 8, 9)


def test_sizes_must_name_maps():
    samples = data.Augmented(Pictures([(8, 8)]), lambda sample, generator: sample)
    maps = {"uss": [torch.zeros(1, 2, 2)]}
    with pytest.raises(ValueError, match="sizes must be one of 'uss', got 'wss'"):
        data.WithMaps(samples, maps, sizes={"wss": (2, 2)})
    with pytest.raises(ValueError, match=r"sizes\['uss'\] must be two positive sides"):
        data.WithMaps(samples, maps, sizes={"uss": (0, 2)})


@pytest.mark.parametrize(
    ("map", "error", "match"),
    [
        (torch.zeros(2), ValueError, r"map must have shape \(C, h, w\), got \(2,\)"),
        (torch.zeros(1, 2, 2).int(), TypeError, "map must be a floating-point tensor"),
        (torch.full((1, 2, 2), torch.nan), ValueError, "map must be finite, got 4 NaN"),
    ],
)
def test_maps_of_another_kind_are_refused_when_read(map, error, match):
    samples = data.Augmented(Pictures([(8, 8)]), lambda sample, generator: sample)
    with pytest.raises(error, match=match):
        data.WithMaps(samples, {"uss": [map]})[0, 0]


def test_a_map_without_a_size_keeps_its_own():
    samples = data.Augmented(Pictures([(8, 12)]), lambda sample, generator: sample)
    maps = {"own": [torch.rand(1, 3, 5)], "given": [torch.rand(1, 3, 5)]}
    sample = data.WithMaps(samples, maps, sizes={"given": (2, 4)})[0, 0]
    torch.testing.assert_close(sample["maps"]["own"], maps["own"][0])
    assert sample["maps"]["given"].shape == (1, 2, 4)
    assert sample["valid"]["given"].shape == (2, 4)


def test_map_files_read_when_asked():
    asked = []

    def read(image):
        asked.append(image)
        return torch.zeros(1, 1, 1)

    maps = MapFiles(read, ["a", "b", "c"])
    rest = maps[1:]
    assert (len(maps), len(rest), asked) == (3, 2, [])
    assert rest[-1].shape == (1, 1, 1)
    assert asked == ["c"]
    with pytest.raises(IndexError):
        maps[3]
    with pytest.raises(TypeError, match="ids must be a sequence"):
        MapFiles(read, "abc")


# --- features of others ----------------------------------------------------------------------

CAUSE = np.random.default_rng(0).normal(size=(90, 5, 7)).astype(np.float16)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "dict"])
@pytest.mark.parametrize("batch", [True, False])
def test_features_of_cause_are_read(tmp_path, kind, batch):
    array = CAUSE[None] if batch else CAUSE
    path = tmp_path / f"a.{'pt' if kind == 'dict' else kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, array)
    elif kind == "pt":
        torch.save(torch.from_numpy(array), path)
    else:
        torch.save({"feat": torch.from_numpy(array)}, path)
    found = read_cause_features(path)
    assert torch.equal(found, torch.from_numpy(CAUSE))
    assert found.dtype == torch.float16


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_files_of_another_kind_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("object.npy", np.array({"a": 1}, dtype=object))
    np.save("evil.npy", np.array([Evil()], dtype=object))
    torch.save(Evil(), "evil.pt")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("object.npy", "evil.npy", "evil.pt", "broken.npy", "broken.pt", "broken.npz"):
        with pytest.raises(ValueError, match=f"{name} must hold plain arrays, whole"):
            read_cause_features(name)
    with pytest.raises(ValueError, match=r"empty.npy must hold plain arrays, whole"):
        read_cause_features("empty.npy")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match=r"no features at none.npy"):
        read_cause_features("none.npy")
    with pytest.raises(ValueError, match=r"path must end in .npy, .npz or .pt, got a.pkl"):
        read_cause_features("a.pkl")


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (CAUSE[0], ValueError, r"\(D, h, w\) or \(1, D, h, w\), got \(5, 7\)"),
        (np.stack([CAUSE, CAUSE]), ValueError, r"got \(2, 90, 5, 7\)"),
        (CAUSE[:, :0], ValueError, r"got \(90, 0, 7\)"),
        (CAUSE.astype(np.int16), TypeError, "floating-point features, got torch.int16"),
        (np.full((2, 1, 1), np.nan), ValueError, "must be finite, got 2 NaN"),
        (np.array([["a"]]), ValueError, "must hold plain arrays, whole"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array, error, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        read_cause_features(tmp_path / "a.npy")


def test_one_of_several_arrays_is_not_guessed(tmp_path):
    np.savez(tmp_path / "a.npz", first=CAUSE, second=CAUSE)
    with pytest.raises(ValueError, match=r"must hold one array, got \['first', 'second'\]"):
        read_cause_features(tmp_path / "a.npz")
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="must hold an array, got list"):
        read_cause_features(tmp_path / "a.pt")


# --- real photographs ------------------------------------------------------------------------


@pytest.mark.real_data
def test_mobilenet_features_of_voc_photographs(shared_data, tmp_path):
    voc = data.VOC2012(shared_data / "VOCdevkit" / "VOC2012", "train")
    photographs = torch.utils.data.Subset(voc, range(8))
    photographs.ids, photographs.names = voc.ids[:8], voc.names
    weights = shared_data / "weights" / "mobilenetv1_075_imagenet.safetensors"
    encoder = create_encoder("mobilenet", weights=weights)
    lines = []
    cache = FeatureCache.build(photographs, encoder, tmp_path, progress=lines.append)
    assert len(cache) == 8
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    images, dim = 8, encoder.dim
    assert lines[0].startswith(f"{images} images, {dim} channels")
    assert 0 <= size - cache.info["estimate"]["bytes"] < 8 * 400
    for index, image in enumerate(photographs.ids):
        height, width = voc[index]["image"].shape[-2:]
        assert cache[image].shape == (dim, -(-height // 16), -(-width // 16))
    # Trained features tell photographs apart; those of neighbouring cells are alike.
    grids = [F.normalize(cache[image].float(), dim=0) for image in photographs.ids]
    neighbours = torch.stack([(g[:, :, 1:] * g[:, :, :-1]).sum(0).mean() for g in grids])
    means = F.normalize(torch.stack([g.mean((1, 2)) for g in grids]), dim=1)
    assert neighbours.min() > 0.6
    assert (means @ means.T).fill_diagonal_(0).max() < 0.98
