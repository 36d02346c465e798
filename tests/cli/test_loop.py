import dataclasses
import json

import pytest
import torch
from torch import nn

from wsss_blocks.backbones import TextBank
from wsss_blocks.cli import (
    Checkpoints,
    RunConfig,
    TrainingSteps,
    describe_recipe,
    open_splits,
    run_segmenter,
)
from wsss_blocks.data import (
    VOC_NAMES,
    AddView,
    Compose,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    Scenes,
    WithPseudoMasks,
    write_mask,
    write_voc_layout,
)
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter


class Accelerator:
    """What the steps ask of Accelerate."""

    def __init__(self, scaler=None):
        self.device, self.is_main_process, self.scaler = torch.device("cpu"), False, scaler
        self.logged, self.skipped = [], []

    def log(self, values, step):
        self.logged.append((step, values))

    def no_sync(self, model):
        self.skipped.append(model)
        return "no_sync"


def config(tmp_path, **changes):
    return RunConfig(output=tmp_path, size=32, steps=4, batch_size=2, **changes)


def steps(cfg, **options):
    return TrainingSteps(cfg, Scenes(size=5), Accelerator(), **options)


def test_micro_batches_cut_the_batches_of_the_same_steps(tmp_path):
    whole = list(steps(dataclasses.replace(config(tmp_path), batch_size=4)))
    parts = list(steps(config(tmp_path, accumulate=2)))
    assert [step for step, _ in whole] == [step for step, _ in parts] == [1, 2, 3, 4]
    for (_, (batch,)), (_, group) in zip(whole, parts, strict=True):
        assert len(group) == 2
        for key in ("image", "labels", "box"):
            assert torch.equal(batch[key], torch.cat([part[key] for part in group]))


def test_a_resumed_loop_goes_on_where_it_stopped(tmp_path):
    cfg = config(tmp_path, accumulate=2)
    whole, rest = list(steps(cfg)), list(steps(cfg, start=3))
    assert [step for step, _ in rest] == [4]
    for a, b in zip(whole[3][1], rest[0][1], strict=True):
        assert torch.equal(a["image"], b["image"])


def test_cached_maps_come_with_the_batches(tmp_path):
    cfg = dataclasses.replace(config(tmp_path), square=True, scale=(1.0, 1.0), colour="none")
    cache = {"red": lambda images: images[:, :1, ::8, ::8]}
    for _, (batch,) in steps(cfg, cache=cache):
        assert batch["red"].shape == (2, 1, 4, 4)
        expected = batch["image"][:, :1, ::8, ::8]
        torch.testing.assert_close(batch["red"], expected, atol=2e-3, rtol=0)  # kept as float16


def test_given_maps_follow_their_image_and_say_where_it_is(tmp_path):
    scenes = Scenes(size=5)
    maps = [scenes[i]["image"][:1] for i in range(5)]  # its red channel
    maps[1] = maps[1].repeat_interleave(3, 1)  # a map on a grid of its own
    transform = Compose(RandomHorizontalFlip(0.5), RandomCrop((100, 120)))
    loop = steps(
        config(tmp_path), maps={"red": maps}, map_sizes={"red": (100, 120)}, transform=transform
    )
    flipped = set()
    for _, (batch,) in loop:
        assert (batch["red"].shape, batch["red_valid"].dtype) == ((2, 1, 100, 120), torch.bool)
        for i, (top, left, bottom, right) in enumerate(batch["box"].tolist()):
            inside = torch.zeros(100, 120, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert torch.equal(batch["red_valid"][i], inside)
            difference = (batch["red"][i, 0] - batch["image"][i, 0])[inside]
            assert difference.abs().max() < 1e-4
            shown = batch["image"][i, :, top:bottom, left:right]
            flipped.add(any(torch.equal(shown, scenes[j]["image"]) for j in range(5)))
    assert flipped == {True, False}


def test_given_and_cached_maps_come_together(tmp_path):
    whole = Resize((32, 32))
    options = {
        "cache": {"red": lambda images: images[:, :1]},
        "maps": {"one": [torch.ones(1, 4, 4)] * 5},
    }
    for _, (batch,) in steps(config(tmp_path), transform=whole, **options):
        assert batch.keys() == {"image", "labels", "box", "red", "red_valid", "one", "one_valid"}
        assert batch["red_valid"].all()
        assert torch.equal(batch["one"], torch.ones(2, 1, 4, 4))
        torch.testing.assert_close(batch["red"], batch["image"][:, :1], atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match=r"maps must not have names of cache, got \['red'\]"):
        steps(config(tmp_path), cache=options["cache"], maps={"red": options["maps"]["one"]})
    with pytest.raises(ValueError, match="maps must hold one 'one' map for each of 5 images, got"):
        steps(config(tmp_path), maps={"one": [torch.ones(1, 4, 4)] * 4})
    with pytest.raises(ValueError, match=r"sizes must be one of .*, got 'tow'"):
        steps(config(tmp_path), maps=options["maps"], map_sizes={"tow": (4, 4)})


@pytest.mark.parametrize("workers", [0, 1])
def test_views_come_with_the_batches(tmp_path, workers):
    view = AddView("second", Compose(RandomHorizontalFlip(1.0), RandomCrop((100, 120))))
    features = [scene["image"] for scene in map(Scenes(size=5).__getitem__, range(5))]
    options = {"maps": {"features": features}, "map_sizes": {"features": (100, 120)}}
    keys = {"image", "box", "features", "features_valid"}
    cfg = config(tmp_path, workers=workers)
    for _, (batch,) in steps(cfg, transform=Compose(view, RandomCrop((100, 120))), **options):
        assert batch.keys() == keys | {f"second_{key}" for key in keys} | {"labels"}
        for key in keys:
            assert batch[f"second_{key}"].shape == batch[key].shape
            assert batch[f"second_{key}"].dtype == batch[key].dtype
        for name in ("", "second_"):
            shown, image = batch[f"{name}features"], batch[f"{name}image"]
            torch.testing.assert_close(shown, image, atol=1e-4, rtol=0)
        for i in range(2):
            first = batch["image"][i][:, batch["features_valid"][i]].view(3, 96, 96)
            second = batch["second_image"][i][:, batch["second_features_valid"][i]]
            assert torch.equal(second.view(3, 96, 96), first.flip(-1))


def test_pseudo_masks_come_with_the_batches(tmp_path):
    scenes = Scenes(size=5)
    for i, name in enumerate(scenes.ids):
        write_mask(tmp_path / "made" / f"{name}.png", torch.full((96, 96), i, dtype=torch.uint8))
    dataset = WithPseudoMasks(scenes, tmp_path / "made")
    cfg = dataclasses.replace(config(tmp_path), scale=(0.2, 0.2))  # most of the crop is padding
    for _, (batch,) in TrainingSteps(cfg, dataset, Accelerator()):
        assert batch.keys() == {"image", "labels", "box", "pseudo_mask"}
        assert batch["pseudo_mask"].shape == (2, 32, 32)
        boxes = batch["box"].tolist()
        for mask, (top, left, bottom, right) in zip(batch["pseudo_mask"], boxes, strict=True):
            assert len(mask[top:bottom, left:right].unique()) == 1
            mask[top:bottom, left:right] = 255
            assert (mask == 255).all()


def test_a_given_augmentation_takes_the_place_of_the_configured_one(tmp_path):
    for _, (batch,) in steps(config(tmp_path), transform=Resize((20, 24))):
        assert batch.keys() == {"image", "labels", "box"}
        assert batch["image"].shape == (2, 3, 20, 24)
        assert batch["box"].tolist() == [[0, 0, 20, 24]] * 2


def test_a_given_loader_takes_the_place_of_the_data(tmp_path):
    cfg = config(tmp_path, accumulate=2)
    dataset = Scenes(size=5)

    def ready(start):
        """The batches of captions in token ids that some stream would have made."""
        loader = TrainingSteps(cfg, dataset, Accelerator(), start=start).loader
        for number, batch in enumerate(loader, 2 * start):
            yield batch | {"text_ids": torch.full((2, 3), number), "text_mask": torch.ones(2, 3)}

    def refuse(sample, generator):
        raise AssertionError("nothing is made of the data")

    options = {"transform": refuse, "cache": {"red": refuse}}
    for start in (0, 3):
        given = TrainingSteps(cfg, None, Accelerator(), start=start, loader=ready(start), **options)
        own = TrainingSteps(cfg, dataset, Accelerator(), start=start)
        taken = list(given)
        for (step, group), (other, expected) in zip(taken, own, strict=True):
            assert step == other
            for micro, (batch, same) in enumerate(zip(group, expected, strict=True)):
                assert batch.keys() == same.keys() | {"text_ids", "text_mask"}
                assert torch.equal(batch["image"], same["image"])
                assert int(batch["text_ids"][0, 0]) == 2 * (step - 1) + micro
        assert len(taken) == 4 - start
    with pytest.raises(ValueError, match="dataset must be given where there is no loader"):
        TrainingSteps(cfg, None, Accelerator())


def test_gradients_are_exchanged_in_the_last_micro_batch_only(tmp_path):
    loop, model = steps(config(tmp_path, accumulate=3)), nn.Linear(1, 1)
    assert [loop.synchronised(model, i) == "no_sync" for i in range(3)] == [True, True, False]
    assert loop.accelerator.skipped == [model, model]


def test_shares_are_summed_and_logged_every_so_many_steps(tmp_path):
    loop = steps(config(tmp_path, log_every=2))
    for step, _ in loop:
        shares = [{"cls": torch.tensor(float(step)), "seg": torch.tensor(0.5)} for _ in range(2)]
        loop.log(shares)
    assert loop.accelerator.logged == [
        (2, {"loss": 5.0, "cls": 4.0, "seg": 1.0}),
        (4, {"loss": 9.0, "cls": 8.0, "seg": 1.0}),
    ]
    loop.log([{"cls": torch.tensor(2.0)}], beside={"scale": torch.tensor(14.0, requires_grad=True)})
    assert loop.accelerator.logged[-1] == (4, {"loss": 2.0, "cls": 2.0, "scale": 14.0})


def checkpoints(cfg, names=("cat", "dog"), seed=0, scaler=None):
    torch.manual_seed(seed)
    return Checkpoints(cfg, Accelerator(scaler), {"model": nn.Linear(2, 2)}, names=names)


def test_checkpoints_are_written_when_due_and_found_again(tmp_path):
    cfg = dataclasses.replace(config(tmp_path), steps=5, save_every=2, resume=True)
    first = checkpoints(cfg)
    assert first.resume() == 0
    assert [first.save(step) for step in range(1, 6)] == [False, True, False, True, True]
    second = checkpoints(cfg, seed=1)
    assert not torch.equal(first.stateful["model"].weight, second.stateful["model"].weight)
    assert second.resume() == 5
    assert torch.equal(first.stateful["model"].weight, second.stateful["model"].weight)
    assert checkpoints(dataclasses.replace(cfg, resume=False)).resume() == 0


def test_a_segmenter_is_written_before_the_state_it_belongs_to(tmp_path, monkeypatch):
    cfg = dataclasses.replace(config(tmp_path), steps=4, save_every=2)
    network = SegmentationNetwork(num_classes=3, hidden_dim=4)
    bank = TextBank.stand_in(("cat", "dog"), dim=8, seed=0)
    both = Checkpoints(
        cfg, Accelerator(), {"model": network}, names=bank.names,
        segmenter=run_segmenter(cfg, network, bank.names, text=bank.source),
    )  # fmt: skip
    file = tmp_path / "segmenter.safetensors"
    assert not both.save(1)
    assert not file.exists()
    both.save(2)
    first = file.read_bytes()
    with torch.no_grad():
        network.decoder.classifier.weight.add_(1)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsss_blocks.cli.loop.save_run_state", die)
    with pytest.raises(KeyboardInterrupt):
        both.save(4)
    assert file.read_bytes() != first, "a state would have been followed by an old segmenter"
    loaded = Segmenter.load(file)
    assert torch.equal(loaded.network.decoder.classifier.weight, network.decoder.classifier.weight)


def test_another_preset_or_other_classes_are_refused_by_name(tmp_path):
    cfg = dataclasses.replace(config(tmp_path), resume=True)
    checkpoints(cfg).save(4)
    with pytest.raises(ValueError, match=r"preset 'scenes' as in .*latest.json, got 'voc'"):
        checkpoints(dataclasses.replace(cfg, preset="voc")).resume()
    with pytest.raises(ValueError, match=r"names \['cat', 'dog'\] as in .*, got \['dog', 'cat'\]"):
        checkpoints(cfg, names=("dog", "cat")).resume()
    many = tuple(f"class {i}" for i in range(80))
    with pytest.raises(ValueError, match=r"got \['class 0', .*, \.\.\.\] \(80 entries\)"):
        checkpoints(cfg, names=many).resume()


def test_the_state_of_loss_scaling_is_kept(tmp_path):
    cfg = dataclasses.replace(config(tmp_path), resume=True)
    checkpoints(cfg, scaler=torch.amp.GradScaler("cpu", init_scale=8.0)).save(4)
    fresh = torch.amp.GradScaler("cpu", init_scale=2.0)
    checkpoints(cfg, scaler=fresh).resume()
    assert fresh.get_scale() == 8.0


def test_a_damaged_checkpoint_is_named(tmp_path):
    cfg = dataclasses.replace(config(tmp_path), resume=True)
    checkpoints(cfg).save(4)
    folder = tmp_path / "checkpoint"
    state = next(folder.glob("step-*")) / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        checkpoints(cfg).resume()
    state.write_bytes(whole)
    weights = next(folder.glob("step-*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors"):
        checkpoints(cfg).resume()
    (folder / "latest.json").write_text("{")
    with pytest.raises(ValueError, match=r"latest\.json is damaged"):
        checkpoints(cfg).resume()
    state.unlink()
    pointer = {"version": 1, "folder": state.parent.name, "identity": {}}
    (folder / "latest.json").write_text(json.dumps(pointer | {"identity": {}}))
    with pytest.raises(ValueError, match="identity must have names None as in"):
        checkpoints(cfg).resume()


def test_recipe_says_where_values_come_from():
    told = describe_recipe(
        RunConfig(lr=0.5, eval_scales=(1.0, 1.5)), RunConfig(),
        sources={"warmup": "a paper, Tab. 1", "": "inferred"},
    )  # fmt: skip
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in told.splitlines()}
    assert told.startswith("warmup")
    assert lines["warmup"] == ["50", "a paper, Tab. 1"]
    assert lines["steps"] == ["1000", "inferred"]
    assert lines["lr"] == ["0.5", "changed (preset: 0.001)"]
    assert lines["eval_scales"] == ["1/1.5", "changed (preset: 1)"]
    assert not {"root", "output", "seed", "resume"} & set(lines)
    with pytest.raises(ValueError, match=r"sources must name options, got \['speed'\]"):
        describe_recipe(RunConfig(), RunConfig(), sources={"speed": "x"})


def test_splits_are_opened_as_they_are_needed(monkeypatch):
    class Few(Scenes):
        def __init__(self, split="train", **options):
            super().__init__(split, size=6, **options)

    monkeypatch.setattr("wsss_blocks.data.opening.Scenes", Few)
    train, val, masked = open_splits(RunConfig(eval_images=2))
    assert [len(train), len(val), len(masked)] == [6, 6, 2]
    assert "mask" not in train[0]
    assert "mask" in val[0]
    assert torch.equal(masked[1]["image"], train[1]["image"])
    assert "mask" in masked[0]
    assert len(open_splits(RunConfig(evaluate=False))) == 1


def test_no_progress_bar_but_in_the_first_process(tmp_path, capsys):
    list(steps(config(tmp_path)))
    assert capsys.readouterr().err == ""


def test_masks_of_voc_are_those_of_its_own_training_list(tmp_path):
    write_voc_layout(tmp_path, train=3, val=1, names=VOC_NAMES[:10])
    lists = tmp_path / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("train_00002\nval_00000\n")
    for mask in (tmp_path / "VOC2012" / "SegmentationClass").glob("train_00002*"):
        mask.unlink()  # as of images that only SBD annotates
    cfg = RunConfig(data="voc", root=tmp_path, split="train_aug", eval_images=2)
    train, _, masked = open_splits(cfg)
    assert train.ids == ["train_00002", "val_00000"]
    assert masked.ids == ["train_00000", "train_00001"]
    assert all("mask" in masked[i] for i in range(2))
