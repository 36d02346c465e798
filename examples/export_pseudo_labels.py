"""Make the masks of training images that a second stage learns from.

    python examples/export_pseudo_labels.py --source runs/dalnet/segmenter.safetensors
    python examples/export_pseudo_labels.py --source cams --thresholds 0.3 0.3 --refiner crf
    accelerate launch examples/export_pseudo_labels.py --data voc --root VOCdevkit --source cams
    python examples/train_segmenter.py --masks runs/pseudo_labels

The source is the segmenter.safetensors of any run, or a store of class maps (data.CamStore). The
image labels are used: no pixel gets a class that its image does not show. One indexed file ID.png
per image, 255 where nothing is decided. The images are shared among processes; files that are there
already are kept, so an interrupted run goes on where it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from wsss_blocks import cam, cli, data, refine, segmenters
from wsss_blocks.distributed import gather_objects, rank

REFINERS = {
    "none": refine.NoRefiner,
    "par": partial(refine.PixelAdaptiveRefine, dilations=(1, 2, 4, 8, 12)),
    "crf": partial(refine.DenseCRF.preset, "deeplab"),
}
DECIDING = ("source", "refiner", "thresholds", "data")  # options that say what the masks are


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What to export; of the options of every example those of data, output and device count."""

    output: Path = Path("runs/pseudo_labels")
    source: str = ""  # a segmenter.safetensors, or the folder of a store of class maps
    refiner: Literal["none", "par", "crf"] = "none"
    thresholds: tuple[float, float] = (0.25, 0.7)  # of class maps; what lies between is 255


PRESETS = {
    name: Config(data=name, preset=name, split="train_aug" if name == "voc" else "train")
    for name in ("scenes", "scenes-hard", "voc", "coco", "folder")  # all have a background
}


def of_segmenter(path: Path, cfg: Config, names: tuple[str, ...], device) -> Callable:
    """Return ``sample -> mask`` of a trained network, among the classes of the labels."""
    segmenter = segmenters.Segmenter.load(path, device=device)
    if segmenter.names != names:
        raise ValueError(f"{path} must know the classes {names[:3]}..., got {segmenter.names[:3]}.")
    refiner = REFINERS[cfg.refiner]()

    def mask(sample: Mapping[str, Any]) -> Tensor:
        images, labels = (sample[key][None].to(device) for key in ("image", "labels"))
        shown = F.pad(labels > 0, (1, 0), value=True)[..., None, None]
        scores = segmenter(images).masked_fill(~shown, -torch.inf).softmax(1)
        return refiner(images, scores, labels=labels).argmax(1)[0]

    return segmenter if cfg.refiner == "none" else mask


def of_store(path: Path, cfg: Config, names: tuple[str, ...], ids: list[str], device) -> Callable:
    """Return ``sample -> mask`` of stored class maps, refined at the size of the image."""
    store, refiner = data.CamStore(path), REFINERS[cfg.refiner]()
    if store.names != names:
        raise ValueError(f"{path} must know the classes {names[:3]}..., got {store.names[:3]}.")
    store.maps(ids)  # says what is missing before the first mask is made

    def pseudo_label(name: str, images: Tensor, labels: Tensor, box: Tensor) -> Tensor:
        maps = cam.normalize_cam(store.dense(name)[None].to(device))
        shown = maps * labels[:, :, None, None]
        return refine.refine_to_label(shown, images, labels, refiner, thresholds=cfg.thresholds)

    def mask(sample: Mapping[str, Any]) -> Tensor:
        return cli.whole_mask(partial(pseudo_label, sample["id"]), sample, device=device)

    return mask


def check_resume(cfg: Config) -> None:
    """Refuse a folder of masks that other options made."""
    if (cfg.output / "export.json").is_file():
        old, _ = cli.load_config(cfg.output / "export.json", like=cfg)
        odd = [name for name in DECIDING if getattr(old, name) != getattr(cfg, name)]
        if odd:
            raise ValueError(f"{cfg.output} has masks made with other options: {', '.join(odd)}.")


@torch.no_grad()
def main(cfg: Config) -> Path:
    """Write the masks and return their folder."""
    if not cfg.source:
        raise SystemExit("--source must be a segmenter.safetensors or a store of class maps.")
    device = Accelerator(cpu=cfg.device == "cpu").device  # starts the processes' group
    check_resume(cfg)
    images, source = cli.open_data(cfg, "train"), Path(cfg.source)
    if source.suffix == ".safetensors":
        found = of_segmenter(source, cfg, images.names, device)
    else:
        found = of_store(source, cfg, images.names, images.ids, device)
    gather_objects(rank())  # all have looked at what is there
    if rank() == 0:
        cli.save_config(cfg.output / "export.json", cfg, names=images.names)
    folder = cli.write_train_masks(found, images, cfg.output, device=device)
    gather_objects(rank())  # all are written
    if rank() == 0:
        print(f"{len(images)} masks in {folder}", flush=True)
    return folder


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
