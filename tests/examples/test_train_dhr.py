"""The example trains under every preset, resumes to the bit, and never reads a mask to learn."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from two_ranks import run_example_on_two_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_dalnet  # noqa: E402
import train_dhr  # noqa: E402
from train_dhr import PRESETS, RUNGS, SOURCES, Config, main  # noqa: E402

from wsss_blocks import cli, data  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402
from wsss_blocks.segmenters import Segmenter  # noqa: E402

# Masks from the first step on, and small images: what is tested is the wiring.
FAST = {
    "steps": 2, "batch_size": 2, "mask_start": 0, "warmup": 0, "workers": 0, "eval_images": 2,
    "weights": None, "uss_weights": None, "device": "cpu",
}  # fmt: skip
# A network for what does not depend on its size: batch norm and dropout, as the paper's has.
RESNET = {"encoder": "resnet10t", "uss": "bilateral", "size": 32, "long_side": (24, 48)}
LAYOUTS = {  # kind: where images and masks of training and validation lie
    "context": ("VOC2010/JPEGImages", "VOC2010/SegmentationClassContext", "train", "val"),
    "ade20k": ("images/{}", "annotations/{}", "training", "validation"),
    "coco-stuff": ("{}", "stuffthingmaps/{}", "train2017", "val2017"),
}
BIG = [name for name, cfg in PRESETS.items() if cfg.decoder == "deeplabv3plus"]
pytestmark = pytest.mark.usefixtures("few_scenes")


def config(preset: str, output: Path, **changes) -> Config:
    cfg = PRESETS[preset]
    if cfg.size > 96:
        small = {"size": 48, "eval_scales": (1.0,), "uss_scales": (0.5,)}
        small |= {"eval_size": cfg.eval_size and 48, "long_side": cfg.long_side and (32, 64)}
        changes = small | changes
    return dataclasses.replace(cfg, output=output, **(FAST | changes))


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Scenes at 40 x 48 pixels in the layouts without official labels; a label file beside them."""
    root = tmp_path_factory.mktemp("layouts")
    for kind, (images, masks, *splits) in LAYOUTS.items():
        table, rows = data.class_table(kind), {}
        nothing = 255 if kind == "coco-stuff" else 0
        raw = np.array([nothing, *table.raw_ids[:10]], np.uint8)
        for split, count in zip(splits, (3, 1), strict=True):
            names = []
            for scene in map(data.Scenes(size=count, seed=len(split)).draw, range(count)):
                names.append(f"{split}_{len(names)}")
                rows[names[-1]] = [table.names[k] for k in scene.digits]
                for folder, pixels in ((images, scene.image), (masks, raw[scene.mask])):
                    path = root / kind / folder.format(split) / f"{names[-1]}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).resize((40, 48), Image.NEAREST).save(path)
            if kind == "context":
                lists = root / kind / "VOC2010" / "ImageSets" / "SegmentationContext"
                lists.mkdir(parents=True, exist_ok=True)
                (lists / f"{split}.txt").write_text("\n".join(names))
        data.WeakLabels(table.names, rows).save(root / kind / "labels.json")
    return root


@pytest.fixture
def opened(voc, coco, folder, layouts):
    """Where the data of a preset lie."""

    def where(preset: str) -> dict[str, Path]:
        kind = PRESETS[preset].data
        if kind in LAYOUTS:
            return {"root": layouts / kind, "labels": layouts / kind / "labels.json"}
        return {"root": {"voc": voc, "coco": coco, "folder": folder}.get(kind)}

    return where


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_trains_evaluates_and_draws(preset, tmp_path, opened, capsys, monkeypatch):
    big = {}
    if preset in BIG:  # the states that others resume from take most of a gigabyte each
        monkeypatch.setattr("wsss_blocks.cli.loop.save_run_state", lambda *args, **options: None)
        big = {"size": 32, "long_side": (20, 40), "eval_images": 1}
    if preset in ("voc", "coco", "folder"):  # of 96 pixels
        big["eval_size"] = 32
    if preset in BIG and preset != "voc":  # the code is the same for each name, DINOv2 is large
        big["uss"] = "vit_tiny_patch16_224"
    cfg = config(preset, tmp_path, **opened(preset), **big)
    results = main(cfg)
    told = capsys.readouterr().out
    if preset in SOURCES:
        assert re.search(r"^encoder +resnet101.tv_in1k +DHR, released code", told, re.M)
        assert re.search(r"^tau +0.8 +DHR, released code", told, re.M)
        assert re.search(rf"^steps +2 +changed \(preset: {PRESETS[preset].steps}\)", told, re.M)
    if preset == "voc":
        assert re.search(r"^uss +vit_base_patch14_dinov2.lvd142m +inferred: CAUSE", told, re.M)
        assert PRESETS[preset].steps == 66_100
    expected = {"cam_miou", "initial_miou", "rebalanced_miou", "seg_miou"}
    if any(sample["labels"].sum() > 1 for sample in cli.open_splits(cfg)[2]):
        expected |= {"initial_multi_miou", "rebalanced_multi_miou"}
    if cfg.refine == "crf":
        expected |= {"cam_crf_miou", "seg_crf_miou"}
    assert expected <= set(results)
    assert all(0 <= value <= 1 for value in results.values())
    for name in (
        "metrics.json", "config.json", "model.safetensors", "segmenter.safetensors",
        "figures/segmentation.png", "figures/rebalancing.png",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name
    shutil.rmtree(tmp_path)


def test_recipes_say_where_each_value_comes_from():
    for preset, sources in SOURCES.items():
        told = cli.describe_recipe(PRESETS[preset], PRESETS[preset], sources=sources)
        steps = re.search(r"^steps +\d+ +(.*)$", told, re.M)[1]
        assert steps == ("DHR, released code" if preset == "voc" else train_dhr.HOURS)


def test_the_ladder_is_scored_and_ends_where_the_run_does(tmp_path):
    results = main(config("scenes", tmp_path, ladder=True, refine="none"))
    assert {f"rung_{rung}_miou" for rung in RUNGS} <= set(results)
    for what in ("miou", "decided", "multi_miou"):
        assert results[f"rung_none_{what}"] == results[f"initial_{what}"]
        assert results[f"rung_full_{what}"] == results[f"rebalanced_{what}"]


def test_a_run_is_scored_behind_a_crf(tmp_path):
    results = main(config("scenes", tmp_path, refine="crf", flip=True))
    protocol = read_metrics(tmp_path / "metrics.json").protocol
    for name in ("cam_crf_miou", "seg_crf_miou"):
        assert 0 <= results[name] <= 1
        assert "bilateral=(67.0, 3.0, 4.0)" in protocol[name].refiner
    assert results["seg_raw_miou"] >= 0
    assert not [name for name in results if "_par" in name]


class Recorded(list):
    """What the losses of a run were, step by step, and what its functions were called with."""

    def __init__(self, cfg: Config, *, watched=()):
        super().__init__()
        forward = train_dhr.DHR.forward
        self.calls: dict[str, list] = {name: [] for _, name in watched}

        def losses(module, *args):
            terms = forward(module, *args)
            self.append({name: term.item() for name, term in terms.items()})
            return terms

        def watch(name, function):
            def call(*args, **options):
                found = function(*args, **options)
                self.calls[name].append((args, options, found))
                return found

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_dhr.DHR, "forward", losses)
            for owner, name in watched:
                patch.setattr(owner, name, watch(name, getattr(owner, name)))
            self.results = main(cfg)


@pytest.mark.parametrize("ablate", RUNGS)
def test_each_ablation_trains_on_its_masks(ablate, tmp_path, monkeypatch):
    calls, forward = [], train_dhr.refine.ClassRebalancer.forward

    def spy(self, images, maps, mask, labels, uss, wss, **options):
        calls.append((self.refine_seed, uss is not None, len(wss)))
        return forward(self, images, maps, mask, labels, uss, wss, **options)

    monkeypatch.setattr(train_dhr.refine.ClassRebalancer, "forward", spy)
    watched = ((train_dhr.losses, "segmentation_loss"), (train_dhr.refine, "refine_to_label"))
    kept = {"evaluate": False, "refiner": "none", "refine_seed": True}
    cfg = config("scenes", tmp_path, ablate=ablate, **kept)
    seen = Recorded(cfg, watched=watched)
    assert [set(terms) for terms in seen] == [{"cls", "seg"}] * 2
    wss = 1 + len(cfg.layers)
    parts = {
        "none": None, "ot": (False, False, 0), "ot+refine": (True, False, 0),
        "ot+refine+wss": (True, False, wss), "ot+refine+uss": (True, True, 0),
        "full": (True, True, wss),
    }  # fmt: skip
    assert calls == ([] if ablate == "none" else [parts[ablate]] * 2)
    targets = [args[1] for args, *_ in seen.calls["segmentation_loss"]]
    initial = [found for *_, found in seen.calls["refine_to_label"]]
    same = [torch.equal(a, b) for a, b in zip(targets, initial, strict=True)]
    if ablate in ("none", "ot+refine+wss", "ot+refine+uss", "full"):
        assert same == [ablate == "none"] * 2


def test_no_training_path_reads_a_mask(tmp_path, voc, monkeypatch):
    cfg = config("voc-small", tmp_path / "a", root=voc, evaluate=False)
    expected = Recorded(cfg)
    assert "seg" in expected[0]

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    assert Recorded(dataclasses.replace(cfg, output=tmp_path / "b")) == expected
    # The guard works: evaluation does read masks.
    with pytest.raises(AssertionError, match="training read the mask"):
        main(dataclasses.replace(cfg, output=tmp_path / "c", evaluate=True))


def test_masks_may_be_absent(tmp_path, voc):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (root / "VOC2012").mkdir(exist_ok=True)
        (root / "VOC2012" / name).symlink_to(voc / "VOC2012" / name)
    cfg = config("voc-small", tmp_path / "run", root=root, evaluate=False)
    assert Recorded(cfg) == Recorded(dataclasses.replace(cfg, root=voc, output=tmp_path / "ref"))


def images_of(batch, dataset):
    """Say which image of a data set each of a batch is, and whether it is mirrored."""
    images = batch["image"]
    for image in images:
        size = tuple(image.shape[-2:])
        near = []
        for i in range(len(dataset)):
            pixels = dataset[i]["image"]
            pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
            near += [
                ((image - p).abs().mean(), i, f) for f, p in enumerate((pixels, pixels.flip(-1)))
            ]
        yield min(near)[1:]


def test_masks_from_a_folder_reach_the_rebalancer(tmp_path):
    scenes = data.Scenes(size=8, with_masks=True)
    for sample in scenes:
        mask = sample["mask"].clone()
        mask[:7], mask[-9:, :5] = 0, 255  # as no ground truth of scenes is
        data.write_mask(tmp_path / "made" / f"{sample['id']}.png", mask)
    cfg = config(
        "scenes", tmp_path / "run", masks=str(tmp_path / "made"), mask_start=1000, refiner="none",
        scale=(1.0, 1.0), flip=True, colour="none", label_stride=1,
    )  # fmt: skip
    watched = ((train_dhr.refine.ClassRebalancer, "forward"), (train_dhr.DHR, "masks"))
    seen = Recorded(dataclasses.replace(cfg, evaluate=False), watched=watched)
    assert ["seg" in terms for terms in seen] == [True, True]  # masks teach from the first step on
    mirrored = set()
    for (_, batch, _), _, _ in seen.calls["masks"]:
        given = seen.calls["forward"].pop(0)[0][3]
        for mask, (i, flipped) in zip(given, images_of(batch, scenes), strict=True):
            path = tmp_path / "made" / f"{scenes.ids[i]}.png"
            expected = data.read_mask(path)
            assert torch.equal(mask, expected.flip(-1) if flipped else expected)
            mirrored.add(flipped)
    assert mirrored == {0, 1}
    results = main(dataclasses.replace(cfg, resume=True))
    assert 0.5 < results["initial_miou"] < 1


def test_masks_of_another_run_reach_the_rebalancer(tmp_path):
    first = dataclasses.replace(
        train_dalnet.PRESETS["scenes"], output=tmp_path / "dalnet", steps=2, batch_size=2,
        lea_start=0, seg_start=0, warmup=0, evaluate=False, device="cpu",
    )  # fmt: skip
    train_dalnet.main(first)
    made = tmp_path / "dalnet" / "segmenter.safetensors"
    cfg = config("scenes", tmp_path / "dhr", masks=str(made), evaluate=False, refiner="none")
    watched = ((train_dhr.refine.ClassRebalancer, "forward"), (train_dhr.DHR, "masks"))
    seen = Recorded(cfg, watched=watched)
    assert {p.stem for p in (tmp_path / "dhr" / "initial_masks").iterdir()} == set(
        data.Scenes(size=8).ids
    )
    for (_, batch, _), _, _ in seen.calls["masks"]:
        given = seen.calls["forward"].pop(0)[0][3]
        size = tuple(given.shape[-2:])
        expected = F.interpolate(batch["pseudo_mask"][:, None].float(), size, mode="nearest-exact")
        assert torch.equal(given, expected[:, 0].long())


def test_an_encoder_that_is_trained_is_not_cached(tmp_path, voc):
    cfg = config("voc", tmp_path, root=voc, evaluate=False, cache=True, **RESNET)
    with pytest.raises(ValueError, match="cache must be off with deeplabv3plus"):
        main(cfg)


def test_masks_must_not_be_the_ground_truth(tmp_path, voc):
    truth = str(voc / "VOC2012" / "SegmentationClass")
    cfg = config("voc-small", tmp_path, root=voc, masks=truth, evaluate=False)
    with pytest.raises(ValueError, match=r"folder must not be the ground truth of the data set"):
        main(cfg)


class StopError(Exception):
    pass


def states(output: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run left: of the network, its average, and what was saved of them."""
    found = {}
    for path in sorted(output.rglob("*.safetensors")):
        tensors = load_file(path)
        found |= {f"{path.relative_to(output)}: {key}": value for key, value in tensors.items()}
    return found


@pytest.mark.parametrize(("preset", "stops"), [("scenes", (4, 6)), ("voc", (6,))])
def test_interrupted_run_resumes_to_the_same_weights(preset, stops, tmp_path, voc, monkeypatch):
    changes = {"steps": 6, "mask_start": 3, "save_every": 2, "warmup": 1, "evaluate": False}
    changes |= {"refiner": "none", "root": voc, **RESNET} if preset == "voc" else {"size": 48}
    whole = config(preset, tmp_path / "whole", **changes)
    assert ["seg" in terms for terms in Recorded(whole)] == [False] * 3 + [True] * 3
    expected, forward = states(whole.output), train_dhr.DHR.forward
    assert any("average" in key for key in expected)
    for stop in stops:  # with a state from before masks teach, and from after
        parts = dataclasses.replace(whole, output=tmp_path / str(stop), resume=True)
        calls = []

        def interrupted(self, *args, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise StopError
            return forward(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(train_dhr.DHR, "forward", interrupted)
            with pytest.raises(StopError):
                main(parts)
        assert len(Recorded(parts)) == 6 - (stop - 2)
        found = states(parts.output)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    with pytest.raises(ValueError, match=rf"preset '{preset}' as in .* got 'scenes-hard'"):
        main(dataclasses.replace(parts, preset="scenes-hard"))


def test_averaged_weights_are_what_is_kept(tmp_path, voc, monkeypatch):
    seen, forward = [], train_dhr.DHR.forward

    def spy(self, *args):
        seen.append({name: value.clone() for name, value in self.state_dict().items()})
        return forward(self, *args)

    monkeypatch.setattr(train_dhr.DHR, "forward", spy)
    cfg = config("voc", tmp_path, root=voc, evaluate=False, steps=3, ema=0.7, **RESNET)
    main(cfg)
    seen.append(load_file(tmp_path / "checkpoint" / "step-00000003" / "model.safetensors"))
    average = {name: value.double() for name, value in seen[0].items()}
    for state in seen[1:]:
        for name, value in state.items():
            kept = 0.7 if value.is_floating_point() else 0.0
            average[name] = kept * average[name] + (1 - kept) * value.double()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == average.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    moved = [k for k in found if not torch.allclose(found[k].double(), seen[-1][k].double())]
    assert any("running_var" in name for name in moved)
    segmenter = Segmenter.load(tmp_path / "segmenter.safetensors")
    for name, value in segmenter.network.state_dict().items():
        assert torch.equal(value, found[f"net.{name}"]), name


def test_micro_batches_add_up_to_one_batch(tmp_path):
    options = {  # a frozen network: nothing depends on the other images of a forward pass
        "encoder": "mobilenet", "layers": (4,), "neck": 32, "skip": None, "size": 64,
        "refiner": "none", "scale": (0.5, 0.7), "evaluate": False,
    }  # fmt: skip
    whole = Recorded(config("scenes", tmp_path / "a", batch_size=4, **options))
    watched = ((train_dhr.losses, "segmentation_counts"),)
    cfg = config("scenes", tmp_path / "b", batch_size=2, accumulate=2, **options)
    parts = Recorded(cfg, watched=watched)
    counts = [int(found) for *_, found in parts.calls["segmentation_counts"]]
    assert len(set(counts[:2])) == 2  # of unequal weight
    for step, terms in enumerate(whole):
        shares = parts[2 * step : 2 * step + 2]
        for name, value in terms.items():
            assert sum(share[name] for share in shares) == pytest.approx(value, rel=1e-4)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.ddp
def test_two_processes_train_together(tmp_path, voc):
    told = run_example_on_two_ranks(
        "train_dhr.py", "--preset", "voc-small", "--data", "voc", "--root", voc, "--output",
        tmp_path, "--steps", "2", "--batch-size", "2", "--mask-start", "0", "--size", "64",
        "--eval-size", "64", "--uss-scales", "1.0", "--eval-images", "2", "--refiner", "none",
        "--refine", "none",
    )  # fmt: skip
    assert (tmp_path / "model.safetensors").is_file()
    assert told.count("3 of 3 images cached") == 1  # the other half by the other process
    # Each process scored half of the images; the counts of both make the result.
    protocol = read_metrics(tmp_path / "metrics.json").protocol
    assert protocol["seg_miou"].num_images == protocol["rebalanced_miou"].num_images == 2


def test_one_batch_is_overfitted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        data.Scenes, "__len__", lambda self: 2 if self.split == "train" else self.size
    )
    seen = Recorded(config("scenes", tmp_path, steps=25, mask_start=1000, evaluate=False))
    assert seen[-1]["cls"] < 0.5 * seen[0]["cls"]


def test_compiled_training_equals_eager(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    # Tracing the rebalancing takes 20 times as long as the steps; its own test compiles it.
    eager = config("scenes", tmp_path / "eager", size=48, ablate="none", evaluate=False)
    main(eager)
    main(dataclasses.replace(eager, output=tmp_path / "compiled", compile=True))
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("eager", "compiled"))
    for key in a:  # in the mean: where a gradient is all rounding, Adam steps either way
        torch.testing.assert_close(
            (a[key] - b[key]).float().abs().mean().item(), 0.0, rtol=0, atol=1e-2 * eager.lr,
            msg=lambda m, k=key: f"{k}: {m}",
        )  # fmt: skip


def test_bfloat16_training_stays_near_float32(tmp_path):
    exact = Recorded(config("scenes", tmp_path / "a", evaluate=False))
    AcceleratorState._reset_state()  # one precision per process is all that Accelerate allows
    mixed = Recorded(config("scenes", tmp_path / "b", evaluate=False, mixed_precision="bf16"))
    for a, b in zip(exact, mixed, strict=True):
        assert a.keys() == b.keys()
        assert all(b[name] == pytest.approx(a[name], rel=0.2, abs=0.05) for name in a)
    AcceleratorState._reset_state()


def test_predict_writes_masks_of_any_size(tmp_path):
    cfg = config("scenes", tmp_path, evaluate=False)
    main(cfg)
    photo = tmp_path / "ein Bild é.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 71, 3), np.uint8)).save(photo)
    main(dataclasses.replace(cfg, predict=(photo,)))
    mask = Image.open(tmp_path / "predictions" / "ein Bild é.png")
    assert mask.size == (71, 50)
    assert mask.mode == "P"
    assert np.asarray(mask).max() <= 10


def test_frozen_features_are_cached_once_and_follow_the_crop(tmp_path, voc, capsys, monkeypatch):
    cfg = config("voc-small", tmp_path, root=voc, evaluate=False, colour="none", steps=3)
    dense, told = data.dense_features, []

    def spy(*args, **options):
        told.append(capsys.readouterr().out)
        return dense(*args, **options)

    monkeypatch.setattr("wsss_blocks.data.feature_cache.dense_features", spy)
    seen = Recorded(cfg, watched=((train_dhr.DHR, "masks"),))
    assert len(told) == 6  # images
    assert re.search(r"6 images, \d+ channels, mean grid .*: about .* GB", told[0])
    cache = data.FeatureCache(tmp_path / "uss")
    assert len(cache) == 6
    dataset, mirrored = cli.open_data(cfg, "train"), set()
    for (_, batch, _), _, _ in seen.calls["masks"]:
        for uss, (i, flipped) in zip(batch["uss"], images_of(batch, dataset), strict=True):
            expected = F.interpolate(cache[dataset.ids[i]][None].float(), (6, 6), mode="bilinear")
            expected = expected.flip(-1) if flipped else expected
            torch.testing.assert_close(uss[None], expected, rtol=1e-3, atol=1e-3)
            mirrored.add(flipped)
    assert mirrored == {0, 1}
    monkeypatch.setattr(
        "wsss_blocks.data.feature_cache.dense_features", lambda *a, **k: pytest.fail("computed")
    )
    assert Recorded(cfg) == seen


def test_features_of_others_are_used_and_must_be_complete(tmp_path):
    random = np.random.default_rng(0)
    for i, name in enumerate(data.Scenes(size=8).ids):
        features = random.standard_normal((5, 6 + i, 7)).astype(np.float16)
        (tmp_path / "cause").mkdir(exist_ok=True)
        np.save(tmp_path / "cause" / f"{name}.npy", features)
    cfg = config("scenes", tmp_path / "run", uss="saved", uss_folder=tmp_path / "cause")
    seen = Recorded(cfg, watched=((train_dhr.DHR, "masks"),))
    side = cfg.size // cfg.grid_stride
    assert seen.calls["masks"][0][0][1]["uss"].shape == (2, 5, side, side)
    assert 0 <= seen.results["rebalanced_miou"] <= 1
    (tmp_path / "cause" / f"{name}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no features {name}"):
        main(cfg)


@pytest.mark.parametrize("ablate", ["none", "full"])
@pytest.mark.parametrize("preset", ["ade", "context"])
def test_data_without_background_teach_none(preset, ablate, tmp_path, opened):
    cfg = config(preset, tmp_path, evaluate=False, ablate=ablate, **opened(preset), **RESNET)
    seen = Recorded(cfg, watched=((train_dhr.losses, "segmentation_loss"),))
    targets = torch.stack([args[1] for args, *_ in seen.calls["segmentation_loss"]])
    assert (targets == 0).any() == (preset == "context")
    assert ((targets > 0) & (targets < 255)).any()
