"""ToCo, WeCLIP and the second stage: one batch, micro-batches and two processes learn alike."""

import dataclasses
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import open_clip
import pytest
import tiny_open_clip
import torch
from step_gradients import gradients_of_one_step
from two_ranks import run_two_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import clip_es  # noqa: E402
import export_pseudo_labels  # noqa: E402
import train_segmenter  # noqa: E402
import train_toco  # noqa: E402
import train_weclip  # noqa: E402

from wsss_blocks import cli, data, losses  # noqa: E402
from wsss_blocks.data import opening  # noqa: E402

# No batch norm and no dropout; all losses from the first step on, none of them negligible.
SCRIPTS = {"toco": train_toco, "weclip": train_weclip, "segmenter": train_segmenter}
SMALL = {
    "toco": {
        "encoder": "test_vit", "size": 64, "crops": (2, 32), "contrast_start": 0, "seg_start": 0,
        "layer_until": 0, "decoder": (8, 1), "seg_weight": 1.0, "energy_weight": 5.0,
    },
    "weclip": {
        "size": 32, "hidden": 8, "heads": 2, "decoder_layers": 1, "iterations": 2, "dropout": 0.0,
        "learnt_start": 0, "logit_scale": 5.0, "affinity_weight": 1.0,
    },
    "segmenter": {"encoder": "test_vit", "size": 64, "skip": None, "hidden": 8},
}  # fmt: skip
COUNTS = {
    "toco": ("patch_token_contrast_counts", "balanced_segmentation_counts"),
    "weclip": ("affinity_matrix_counts", "balanced_segmentation_counts"),
    "segmenter": ("segmentation_counts",),
}


class Few(data.Scenes):
    def __init__(self, split="train", **options):
        super().__init__(split, size=8 if split == "train" else 4, **options)


@contextmanager
def small():
    """Few scenes, a small head of ToCo, a small CLIP."""
    head, clip = train_toco.heads.DINOHead, open_clip.factory._MODEL_CONFIGS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "Scenes", Few)
        patch.setattr(train_toco.heads, "DINOHead", lambda dim: head(dim, 16, hidden_dim=32))
        patch.setitem(clip, tiny_open_clip.NAME, tiny_open_clip.CONFIG)
        yield patch


def config(name: str, files: Path, output: Path, **changes):
    """Options of a run, on files that :func:`given` writes."""
    common = {"steps": 1, "warmup": 0, "workers": 0, "device": "cpu", "evaluate": False}
    clip = {"model": f"{tiny_open_clip.NAME}/{files / 'tiny.pt'}"}
    more = {"toco": {}, "weclip": clip, "segmenter": {"masks": str(files / "masks")}}[name]
    options = common | SMALL[name] | more | changes
    return dataclasses.replace(SCRIPTS[name].PRESETS["scenes"], output=output, **options)


def gradients_of(name: str, cfg) -> list[torch.Tensor]:
    return gradients_of_one_step(lambda: SCRIPTS[name].main(cfg))


def masks_of(files: Path, output: Path) -> dict[str, dict[str, float]]:
    """Run what makes masks and trains nothing; return its results."""
    common = {"device": "cpu", "eval_size": 32, "eval_images": 3}
    clip = {"model": f"{tiny_open_clip.NAME}/{files / 'tiny.pt'}", "logit_scale": 5.0}
    made = clip_es.main(clip_es.Config(output=output / "clip", refine="none", **clip, **common))
    source = str(files / "segmenter.safetensors")
    export_pseudo_labels.main(
        export_pseudo_labels.Config(output=output / "export", source=source, device="cpu")
    )
    return made


def read(output: Path) -> dict[str, torch.Tensor]:
    paths = [*(output / "clip" / "pseudo_labels").iterdir(), *(output / "export").glob("*.png")]
    return {str(path.relative_to(output)): data.read_mask(path) for path in paths}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Weights and masks to start from, and the gradients of a batch of four in one process."""
    files = tmp_path_factory.mktemp("given")
    torch.save(tiny_open_clip.tiny_clip().state_dict(), files / "tiny.pt")
    for i, sample in enumerate(data.Scenes(size=8, with_masks=True)):
        sample["mask"][: 10 * i] = 255  # not as many pixels are known of each
        data.write_mask(files / "masks" / f"{sample['id']}.png", sample["mask"])
    with small():
        for name in SCRIPTS:
            found = gradients_of(name, config(name, files, files / name, batch_size=4))
            torch.save(found, files / f"{name}.pt")
    return files


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_micro_batches_have_the_gradients_of_one_batch(name, given, tmp_path):
    expected, counted = torch.load(given / f"{name}.pt"), {}

    def spied(key, count):
        def spy(*args):
            counted.setdefault(key, []).append(count(*args))
            return counted[key][-1]

        return spy

    with small() as patch:
        for key in COUNTS[name]:
            patch.setattr(losses, key, spied(key, getattr(losses, key)))
        parts = config(name, given, tmp_path, batch_size=2, accumulate=2)
        found = gradients_of(name, parts)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    # The mean of the losses of both would be another: each divides by other counts.
    for key, (first, second) in counted.items():
        assert not torch.equal(first, second), key
        assert (first + second > 0).all(), key


RANKS = """
import os, sys
from pathlib import Path
rank, port, files, output, tests, examples = sys.argv[1:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
               "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
sys.path[:0] = [tests, examples, str(Path(tests, "examples"))]
import accelerate
import torch
import test_layouts as test
from wsss_blocks.distributed import gather_objects

accelerate.Accelerator.end_training = lambda self: None  # the next run needs the group, too
files, output, written = Path(files), Path(output), []
from wsss_blocks.cli import made_masks
write = made_masks.write_mask
with test.small() as patch:
    for name in test.SCRIPTS:
        cfg = test.config(name, files, output / name, batch_size=1, accumulate=2)
        found, expected = test.gradients_of(name, cfg), torch.load(files / f"{name}.pt")
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    patch.setattr(made_masks, "write_mask",
                  lambda path, mask: written.append(str(path)) or write(path, mask))
    scores = test.masks_of(files, output)
    both = gather_objects(written)
    assert len(both[0]) == len(both[1]) == 8, both  # half of eight, of each script
    assert not set(both[0]) & set(both[1]), both
    assert set(gather_objects(tuple(sorted(scores.items())))) == {tuple(sorted(scores.items()))}
    torch.save(scores, output / f"scores {rank}.pt")
torch.distributed.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
def test_two_processes_learn_and_write_like_one(given, tmp_path):
    torch.manual_seed(0)
    network = export_pseudo_labels.segmenters.SegmentationNetwork(num_classes=11, hidden_dim=8)
    saved = cli.run_segmenter(cli.RunConfig(), network, data.DIGIT_NAMES)
    saved.save(given / "segmenter.safetensors")
    with small():
        scores = masks_of(given, tmp_path / "one")
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    output, tests = tmp_path / "two", Path(__file__).parents[1]
    run_two_ranks(RANKS, port, given, output, tests, EXAMPLES, timeout=240)
    assert torch.load(output / "scores 0.pt") == pytest.approx(scores)
    one, two = read(tmp_path / "one"), read(output)
    assert len(one) == 16
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
