"""SimSeg trains under every preset, in one batch or in chunks, in one process or in two."""

import dataclasses
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hugging_face_files import bert, word_pieces, write
from PIL import Image
from safetensors.torch import load_file
from shard_writing import write_shards
from step_gradients import gradients_of_one_step
from torch.optim.optimizer import register_optimizer_step_pre_hook
from two_ranks import run_two_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_simseg  # noqa: E402
from train_simseg import PRESETS, Config, main  # noqa: E402

from wsss_blocks import cli, data, losses  # noqa: E402
from wsss_blocks.cli.main import main as wsss  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402
from wsss_blocks.segmenters import ZeroShotSegmenter, create_loda, load_loda  # noqa: E402

# Small images and encoders: what is tested is the wiring.
FAST = {
    "steps": 2, "batch_size": 4, "warmup": 1, "workers": 0, "eval_images": 2, "weights": None,
    "device": "cpu", "dim": 16, "log_every": 1,
}  # fmt: skip
NO_BATCH_NORM = {"encoder": "test_vit", "image_norm": False, "size": 32}
LOSS = losses.image_text_contrastive_loss
pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.fixture(scope="module")
def photos(voc):
    """A folder of images alone, and captions of it."""
    folder = voc / "VOC2012" / "JPEGImages"
    files = sorted(folder.iterdir())
    words = data.DIGIT_NAMES[: len(files)]
    said = {p.stem: [f"a photo of {w}", "some digits"] for p, w in zip(files, words, strict=True)}
    captions = voc / "captions.json"
    captions.write_text(json.dumps(said))
    return {"data": "pairs", "root": folder, "captions": captions, "held_out": 3}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two sets of shards and a text encoder of a few thousand weights that reads any caption."""
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "bert", bert(), word_pieces(folder))
    return {
        "shards": (str(write_shards(folder / "a", [9, 7])), str(write_shards(folder / "b", [8]))),
        "text_encoder": f"hf:{folder / 'bert'}", "max_length": 8,
    }  # fmt: skip


@pytest.fixture
def few_templates(monkeypatch):
    few = ("a photo of a {}.", "{}")
    monkeypatch.setattr("wsss_blocks.segmenters.name_bank.imagenet_templates", lambda: few)


def config(preset: str, output: Path, **changes) -> Config:
    changes = FAST | {"size": 48, "eval_size": PRESETS[preset].eval_size and 48} | changes
    if preset == "cc":
        small = {"size": 32, "eval_size": 32, "encoder": "test_vit", "mixed_precision": "no"}
        changes = {"accumulate": 2} | changes | small
    return dataclasses.replace(PRESETS[preset], output=output, **changes)


def losses_of(cfg: Config) -> list[float]:
    """Train and record the loss of each step."""
    seen = []

    def spy(*args, **options):
        seen.append(LOSS(*args, **options))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "image_text_contrastive_loss", spy)
        main(cfg)
    return [loss.item() for loss in seen]


def gradients_of(cfg: Config) -> list[torch.Tensor]:
    return gradients_of_one_step(lambda: main(dataclasses.replace(cfg, steps=1)))


def logged(output: Path) -> dict[str, list[float]]:
    """Return what a run wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (output / "log").rglob("events*")
    read = EventAccumulator(str(events)).Reload()
    return {tag: [event.value for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


MASKS = {"zero_shot_miou", "zero_shot_labels_miou", "class_ap"}
RETRIEVAL = {"mean_recall", "chance_image_to_text_r1", "chance_text_to_image_r1"} | {
    f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
}


def test_scenes_train_evaluate_and_draw(tmp_path):
    cfg = config("scenes", tmp_path, steps=3)
    results = main(cfg)
    assert set(results) == MASKS | RETRIEVAL
    assert all(0 <= value <= 1 for value in results.values())
    saved = read_metrics(tmp_path / "metrics.json")
    for name, value in results.items():
        assert saved.results[name] == pytest.approx(value, abs=1e-6)
    assert saved.protocol["zero_shot"].threshold_source == "masks of 2 training images"
    assert saved.protocol["zero_shot"].refiner == "none"
    assert saved.protocol["mean_recall"].num_images == 4
    assert saved.run["train_seconds"] > 0
    figures = {p.name for p in (tmp_path / "figures").iterdir()}
    assert figures == {"masks.png", "patches.png", "class_scores.png", "thresholds.png"}
    rows = logged(tmp_path)
    assert rows["loss"] == rows["contrast"]
    assert len(rows["loss"]) == 3
    assert rows["temperature"] == pytest.approx([0.07] * 3, rel=0.05)


def test_pairs_train_and_retrieve(tmp_path, photos):
    cfg = config("pairs", tmp_path, **photos)
    assert (cfg.encoder, cfg.cache) == ("mobilenetv1_100", True)
    results = main(cfg)
    assert set(results) == RETRIEVAL
    saved = read_metrics(tmp_path / "metrics.json")
    protocol = saved.protocol["mean_recall"]
    assert (protocol.dataset, protocol.split, protocol.num_images) == ("captions", "held out", 3)
    assert "48 square" in protocol.describe()
    # The three photographs that were not learnt from, with all captions.
    model = load_loda(tmp_path / "model.safetensors")
    pairs = data.ImageTextPairs(cfg.root, cfg.captions)
    kept = torch.utils.data.Subset(pairs, range(5, 8))
    again = cli.score_retrieval(model, kept, size=48)
    assert again == pytest.approx(results)
    known = {*data.DIGIT_NAMES[:5], "a", "photo", "of", "some", "digits"}
    assert set(model.recipe["words"]) == known


def test_pairs_can_be_scored_by_masks_too(tmp_path, photos, voc, few_templates):
    cfg = config("pairs", tmp_path, **photos, eval_data="voc", eval_root=voc, crf=True)
    results = main(cfg)
    assert set(results) == MASKS | RETRIEVAL
    protocol = read_metrics(tmp_path / "metrics.json").protocol
    assert protocol["zero_shot"].size_policy == "48 square"  # that of the run
    assert protocol["zero_shot"].refiner.startswith("binary DenseCRF")
    assert (protocol["zero_shot"].dataset, protocol["class_ap"].dataset) == ("voc", "voc")
    assert not (tmp_path / "figures" / "thresholds.png").exists()


def test_options_win_over_the_published_protocol(few_templates):
    model = create_loda("test_vit", words=["dog", "grass"], dim=8)
    voc = dataclasses.replace(Config(), eval_data="voc")

    def stated(names=data.VOC_NAMES, **given):
        built = train_simseg.segmenter_of(dataclasses.replace(voc, **given), model, names)
        return dataclasses.asdict(built.protocol)

    published = ZeroShotSegmenter.from_protocol("voc21", model, crf=False)
    plain = dataclasses.asdict(published.protocol)
    assert stated() == plain
    built = train_simseg.segmenter_of(voc, model, data.VOC_NAMES)
    for name in ("top", "sigma", "most", "size", "upsampling", "closing", "score_background"):
        assert getattr(built, name) == getattr(published, name), name
    context = dataclasses.replace(voc, eval_data="context")
    assert train_simseg.segmenter_of(context, model, data.class_table("context").names).top == 30
    text = plain["text"]
    assert stated(eval_size=320) == plain | {"size_policy": "320 square"}
    assert stated(top=4)["text"] == text.replace("10 best", "4 best") != text
    assert stated(similarity="dot")["text"] == f"{text}, dot products"
    assert stated(score_background=False)["text"] == f"{text}, background not scored"
    assert stated(templates=("a {}",))["text"] == text.replace("2 templates", "a {}") != text
    # Without a protocol the same options say all.
    own = stated(eval_data="folder")
    assert own["size_policy"] == "as they are"
    assert own["text"].startswith("LoDA: 3 templates; the 5 best names above mean + 1")
    assert own["text"].endswith("of the 10 best, background not scored")


def test_options_of_the_command_line():
    words = ["--eval-data", "voc", "--top", "7", "--score-background", "False", "--templates"]
    cfg = cli.parse_config(PRESETS, args=[*words, "{}", "a {}"])
    assert (cfg.top, cfg.score_background, cfg.templates) == (7, False, ("{}", "a {}"))
    assert (PRESETS["cc"].score_background, PRESETS["cc"].templates) == (True, ())


def test_the_recipe_of_the_paper(tmp_path, shards, folder, few_templates, capsys):
    cfg = config("cc", tmp_path, **shards, eval_data="folder", eval_root=folder)
    results = main(cfg)
    told = capsys.readouterr().out
    assert re.search(r"^image_k +5 +SimSeg, paper and supplement", told, re.M)
    assert re.search(r"^mask_padding +False/True +author, in an issue", told, re.M)
    assert re.search(r"^crf +(yes|True) +SimSeg, released code", told, re.M)
    assert re.search(r"^steps +2 +changed \(preset: 68600\)", told, re.M)
    assert "24 samples in 3 shards; an epoch (resampled) is 6 batches of 4" in told
    assert "skipped, in this process: {" in told
    assert set(results) == MASKS
    protocol = read_metrics(tmp_path / "metrics.json").protocol["zero_shot"]
    assert (protocol.dataset, protocol.size_policy) == ("folder", "32 square")
    assert protocol.text.startswith("LoDA: 2 templates")


def test_one_batch_is_overfitted(tmp_path, monkeypatch):
    monkeypatch.setattr(data.Scenes, "__len__", lambda self: 4)
    whole = {"square": True, "scale": (1.0, 1.0), "colour": "none", "evaluate": False}
    monkeypatch.setattr(data.RandomCaption, "__call__", lambda self, sample, generator: sample)
    seen = losses_of(config("scenes", tmp_path, steps=25, warmup=2, **whole))
    assert max(seen[-3:]) < 0.2 * seen[0]


def test_rates_rise_and_fall_whatever_is_evaluated_on_the_way(tmp_path):
    rates, weights = [], []

    def look(optimizer, args, kwargs):
        rates.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(look)
    for every in (0, 1):
        changes = {"warmup": 2, "lr": 0.01, "min_lr": 0.5, "eval_every": every}
        cfg = config("scenes", tmp_path / str(every), steps=4, **changes)
        main(dataclasses.replace(cfg, evaluate=every > 0))
        weights.append(load_file(cfg.output / "model.safetensors"))
    handle.remove()
    expected = [0.01 * 1e-3, 0.01 * 0.5005, 0.01, 0.0075]
    assert rates == [pytest.approx([rate, rate]) for rate in expected * 2]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert len(logged(tmp_path / "1")["zero_shot_miou"]) == 3


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("preset", "calls", "changes"),
    [
        ("scenes", 4, {"eval_size": 48}),
        ("scenes", 14, {"accumulate": 2, "word_rates": (0.3, 0.3, 0.3), "evaluate": False}),
        ("pairs", 4, {}),
        ("cc", 14, {"evaluate": False}),
    ],
)
def test_interrupted_run_resumes_to_the_bit(
    preset, calls, changes, tmp_path, photos, shards, monkeypatch
):
    changes = changes | {"scenes": {}, "pairs": photos, "cc": shards}[preset]
    whole = config(preset, tmp_path / "whole", steps=5, save_every=2, **changes)
    main(whole)
    parts = dataclasses.replace(whole, output=tmp_path / "parts", resume=True)
    forward, seen = train_simseg.SimSeg.forward, []

    def interrupted(self, *args, **inputs):
        seen.append(1)
        if len(seen) == calls:
            raise StopError
        return forward(self, *args, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(train_simseg.SimSeg, "forward", interrupted)
        with pytest.raises(StopError):
            main(parts)
    started = json.loads((parts.output / "checkpoint" / "latest.json").read_text())
    assert started["step"] == 2
    main(parts)
    a, b = (load_file(cfg.output / "model.safetensors") for cfg in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    if whole.evaluate:
        a, b = (read_metrics(cfg.output / "metrics.json") for cfg in (whole, parts))
        assert a.results == b.results
        assert a.protocol == b.protocol


def test_chunks_have_the_gradients_of_one_batch(tmp_path, monkeypatch):
    changes = {"evaluate": False, **NO_BATCH_NORM}
    whole = config("scenes", tmp_path / "whole", batch_size=8, **changes)
    parts = config("scenes", tmp_path / "parts", batch_size=4, accumulate=2, **changes)
    rows, forward = [], train_simseg.SimSeg.forward

    def counted(self, text_ids, text_mask, **pictures):
        rows.append(len(text_ids))
        return forward(self, text_ids, text_mask, **pictures)

    monkeypatch.setattr(train_simseg.SimSeg, "forward", counted)
    expected, found = gradients_of(whole), gradients_of(parts)
    assert rows == [8, 4, 4, 4, 4]
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    # Not those of the mean of two losses, each among four.
    half = gradients_of(dataclasses.replace(whole, batch_size=4))
    assert not torch.allclose(half[0], expected[0], rtol=1e-2, atol=1e-4)


RANKS = """
import os, sys
from pathlib import Path
rank, port, output, tests, examples = sys.argv[1], *sys.argv[2:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
               "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
sys.path[:0] = [tests, examples, str(Path(tests, "examples"))]
import torch
from wsss_blocks import data
from wsss_blocks.data import opening

class Few(data.Scenes):
    def __init__(self, split="train", **options):
        super().__init__(split, size=8 if split == "train" else 4, **options)

opening.Scenes = Few
import accelerate
import test_train_simseg as test

accelerate.Accelerator.end_training = lambda self: None  # the second run needs the group, too
expected = torch.load(f"{output}/gradients.pt")
for accumulate in (1, 2):
    cfg = test.config("scenes", Path(output) / f"ranks-{accumulate}", batch_size=4 // accumulate,
                      accumulate=accumulate, evaluate=False, **test.NO_BATCH_NORM)
    for a, b in zip(expected, test.gradients_of(cfg), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
print("equal")
"""


@pytest.mark.ddp
def test_two_processes_have_the_gradients_of_one(tmp_path):
    cfg = config("scenes", tmp_path / "one", batch_size=8, evaluate=False, **NO_BATCH_NORM)
    torch.save(gradients_of(cfg), tmp_path / "gradients.pt")
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    run_two_ranks(RANKS, port, tmp_path, Path(__file__).parents[1], EXAMPLES, timeout=180)
    for accumulate in (1, 2):
        assert (tmp_path / f"ranks-{accumulate}" / "model.safetensors").is_file()


def test_no_training_path_reads_a_mask_or_a_label(tmp_path, photos, voc, folder, monkeypatch):
    cfg = config("pairs", tmp_path / "a", **photos, evaluate=False)
    expected = losses_of(cfg)

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.weak_labels.WeakLabels.load", refuse)
    monkeypatch.setattr("wsss_blocks.data.voc.VOC2012", refuse)
    assert losses_of(dataclasses.replace(cfg, output=tmp_path / "b")) == expected
    # Nor need there be any.
    alone = tmp_path / "photos"
    shutil.copytree(photos["root"], alone)
    assert losses_of(dataclasses.replace(cfg, output=tmp_path / "c", root=alone)) == expected
    # The guard works: evaluation does read masks.
    scored = dataclasses.replace(
        cfg, output=tmp_path / "d", evaluate=True, eval_data="voc", eval_root=voc
    )
    with pytest.raises(AssertionError, match="training read the mask"):
        main(scored)


def test_image_labels_are_used_to_tell_equal_captions_alone(tmp_path, monkeypatch):
    changes = {"evaluate": False, "batch_size": 8}
    without = config("scenes", tmp_path / "a", same_meaning=False, **changes)
    using = config("scenes", tmp_path / "b", same_meaning=True, **changes)
    expected = losses_of(without), losses_of(using)
    assert expected[0] != expected[1]
    new_sample = data.scenes.new_sample
    few = data.opening.Scenes

    class Guarded(few):
        def __init__(self, *args, with_masks=False, **options):
            if with_masks:
                raise AssertionError("training read masks")
            super().__init__(*args, **options)

    def mislabelled(image, *, id, labels):
        return new_sample(image, id=id, labels=torch.ones_like(labels))

    monkeypatch.setattr("wsss_blocks.data.opening.Scenes", Guarded)
    assert losses_of(using) == expected[1]
    monkeypatch.setattr("wsss_blocks.data.scenes.new_sample", mislabelled)
    assert losses_of(without) == expected[0]
    # Where all images show all classes, all captions fit, and nothing is left to be learnt.
    assert losses_of(using) != expected[1]
    with pytest.raises(AssertionError, match="training read masks"):
        main(dataclasses.replace(using, evaluate=True))


def test_compiled_training_equals_eager(tmp_path, photos, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    for cfg in (
        config("scenes", tmp_path / "a", accumulate=2, evaluate=False, **NO_BATCH_NORM),
        config("pairs", tmp_path / "b", evaluate=False, **photos),  # of cached features
    ):
        eager = losses_of(cfg)
        assert losses_of(dataclasses.replace(cfg, compile=True)) == pytest.approx(eager, rel=1e-4)
        assert load_loda(cfg.output / "model.safetensors").dim == 16


def test_bfloat16_training_stays_near_float32(tmp_path, shards):
    cfg = config("cc", tmp_path / "a", evaluate=False, **shards)
    exact = losses_of(cfg)
    AcceleratorState._reset_state()  # one precision per process is all that Accelerate allows
    mixed = losses_of(dataclasses.replace(cfg, output=tmp_path / "b", mixed_precision="bf16"))
    AcceleratorState._reset_state()
    assert mixed == pytest.approx(exact, rel=0.05)
    weights = load_file(tmp_path / "b" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_file_segments_photographs_by_names(tmp_path, capsys):
    cfg = config("scenes", tmp_path, evaluate=False, eval_size=64)
    main(cfg)
    assert not (tmp_path / "metrics.json").exists()
    model = load_loda(tmp_path / "model.safetensors")
    assert (model.size, model.dim, model.training) == (64, 16, False)
    assert "seven" in model.recipe["words"]
    photo = tmp_path / "ein Bild é.png"
    Image.new("RGB", (71, 50), (200, 30, 60)).save(photo)
    words = ["--classes", "three,seven", "--model", str(tmp_path / "model.safetensors")]
    assert wsss(["segment", str(photo), *words, "--output", str(tmp_path / "masks")]) == 0
    assert "1 masks in" in capsys.readouterr().out
    assert data.read_mask(tmp_path / "masks" / photo.name).shape == (50, 71)
    stated = json.loads((tmp_path / "masks" / "protocol.json").read_text())
    assert (stated["size_policy"], stated["labels_used"]) == ("64 square", False)
    assert stated["text"].startswith("LoDA model.safetensors: 80 templates")


def test_command_lines_choose_their_presets():
    for words, preset, encoder in (
        ([], "scenes", "small-cnn"),
        (["--data", "pairs", "--root", "photos", "--captions", "a"], "pairs", "mobilenetv1_100"),
        (["--data", "shards", "--shards", "cc3m", "cc12m"], "cc", "vit_small_patch16_224"),
    ):
        found = cli.parse_config(PRESETS, args=words)
        assert (found.preset, found.encoder) == (preset, encoder)
    assert found.shards == ("cc3m", "cc12m")


def test_what_cannot_be_learnt_from_is_said(tmp_path, photos, shards):
    cases = [
        ("cc", {}, "--data shards needs --shards"),
        ("cc", shards | {"same_meaning": True}, "--same-meaning needs image labels"),
        ("cc", shards | {"cache": True}, "--data shards needs --no-cache"),
        ("pairs", {}, "--data pairs needs --root"),
        ("pairs", photos | {"held_out": 8}, "--held-out must be less than 8"),
    ]
    for preset, changes, message in cases:
        with pytest.raises(SystemExit, match=message):
            main(config(preset, tmp_path, **changes))
    with pytest.raises(ValueError, match="vocabulary must be given for 'bert-base', got none"):
        main(config("cc", tmp_path, shards=shards["shards"]))


def test_broken_photographs_are_left_out_or_end_the_run(tmp_path, photos, capsys):
    root = tmp_path / "photos"
    shutil.copytree(photos["root"], root)
    broken = sorted(root.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:50])
    cfg = config("pairs", tmp_path / "run", **photos | {"root": root, "evaluate": False})
    main(cfg)
    assert "pairs: 7 images; 1 skipped" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"all images must be usable, got 1 .*{broken.name}"):
        main(dataclasses.replace(cfg, strict=True))
