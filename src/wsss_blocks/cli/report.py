"""What every example leaves behind: scores with their protocols, and figures."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks.cam import normalize_cam
from wsss_blocks.cli._spread import spread
from wsss_blocks.cli.page import Picture
from wsss_blocks.cli.refined import Refine, score_behind_crf
from wsss_blocks.cli.split_report import write_split_report
from wsss_blocks.cli.train_masks import score_train_masks
from wsss_blocks.cli.whole import whole_mask
from wsss_blocks.data import WeakDataset, voc_palette
from wsss_blocks.distributed import gather_objects, rank, world_size
from wsss_blocks.metrics import (
    EvaluationProtocol,
    ScoredMaps,
    SplitScores,
    evaluate_masks,
    mean_average_precision,
    read_metrics,
    score_maps,
    write_metrics,
)
from wsss_blocks.refine import DenseCRF, Refiner, add_background
from wsss_blocks.viz import curve_figure, segmentation_figure

__all__ = ["evaluate_system"]


def evaluate_system(
    output: Path,
    *,
    class_maps: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None,
    pseudo_label: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    logits: Callable[[Tensor], Tensor] | None,
    class_scores: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
    val: WeakDataset,
    train: WeakDataset | None,
    protocol: EvaluationProtocol,
    maps_protocol: EvaluationProtocol | None = None,
    refiner: Refiner | None,
    refine: Refine = "par",
    crf: DenseCRF | None = None,
    masks: Mapping[str, Callable[[Mapping[str, Any]], Tensor]] = MappingProxyType({}),
    size: int | None = None,
    figure_images: int = 8,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Score class maps, pseudo-labels and decoder of a weakly supervised system; draw them.

    Results, as mIoU: each class map ``NAME_miou`` and after refinement ``NAME_par_miou``, with
    image labels and the threshold that is best on training images; ``pseudo_label_miou`` and what
    else :func:`score_train_masks` says of the pseudo-labels of those training images, and of
    ``masks``; ``seg_miou`` of the decoder, without image labels; for ``class_scores`` the mean
    average precision ``NAME_ap``. With ``refine="crf"``, instead of
    ``NAME_par_miou``: ``NAME_crf_miou`` behind a dense CRF at the size of the image, with that
    threshold as the background's score; ``seg_raw_miou`` of one view, where ``logits`` takes more;
    ``seg_crf_miou`` of all views and a CRF. Its constants stand in the protocol.

    ``metrics.json`` gets the results in per cent, with the protocol of each, and ``figures/`` a
    grid of validation images and the threshold curves. ``report.html`` shows the scores of the
    decoder class by class and its worst and best images, as ``wsss evaluate`` does. Without masks
    nothing can be scored: the grid is drawn, and no result is returned.

    Args:
        output: folder.
        class_maps: images ``(1, 3, H, W)``, labels ``(1, K)`` -> raw maps ``(1, K, h, w)`` by
            name; the first is drawn; None where there are none, as in a second stage.
        pseudo_label: images, labels ``(1, K)``, box ``(1, 4)`` -> ids ``(1, H, W)``; None where
            pseudo-labels need more than that: see ``masks``.
        logits: images -> ``(1, K+1, h, w)``, as a :class:`~wsss_blocks.segmenters.Segmenter`;
            None where there is no decoder yet.
        class_scores: images ``(1, 3, H, W)`` -> ``(1, K)`` scores by name.
        val: scored, with masks if there are any.
        train: its masks choose thresholds; None, or a set without masks, takes the threshold of
            the protocol.
        protocol: of the decoder; its threshold is the one used without ``train``.
        maps_protocol: of class maps and pseudo-labels, if their views differ.
        refiner: that of the pseudo-labels; with ``refine="par"`` class maps are scored behind it.
            None where ``masks`` come from elsewhere, and the record says that it is not stated.
        refine: ``"none"``, ``"par"`` or ``"crf"``.
        crf: for ``refine="crf"``; None takes DeepLab's constants, as ToCo does.
        masks: name -> sample of a training image -> ids ``(H, W)``.
        size: side of the square that ``class_maps`` and ``pseudo_label`` see; None gives them the
            image as it is, which ``logits`` always gets.
        figure_images: how many validation images are drawn.
        device: where the functions want their arguments.
        seed: of the run, for the record.
        extra: more for the record, as times.

    Returns:
        The results as fractions.

    Raises:
        ValueError: there is no refiner where one is needed.
    """
    refined = class_maps is not None and refine == "par"
    if refiner is None and (refined or pseudo_label is not None):
        raise ValueError("refiner must be given for pseudo_label and for refined maps, got None.")
    started = time.perf_counter()
    classes, names = len(val.names) + 1, ("background", *val.names)
    chosen_on = train if train is not None and "mask" in train[0] else None
    maps_protocol = replace(maps_protocol or protocol, labels_used=True)

    def fit(images: Tensor) -> Tensor:
        if size is None:
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)

    def raw_maps(images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        return {} if class_maps is None else class_maps(fit(images), labels)

    def refined_maps(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = dict(raw_maps(images, labels))
        for name, cam in list(found.items()) if refine == "par" else ():
            maps = add_background(normalize_cam(cam), value=0.0)
            assert refiner is not None
            found[f"{name}_par"] = refiner(fit(images), maps, labels=labels)[:, 1:]
        return found

    def decided(sample: Mapping[str, Any]) -> Tensor:
        assert pseudo_label is not None
        return whole_mask(pseudo_label, sample, size=size, device=device)

    def segmented(sample: Mapping[str, Any]) -> Tensor:
        assert logits is not None
        images = sample["image"][None].to(device)
        return first_argmax(_upsampled(logits(images), _size(images)), 1)[0]

    def first_maps(sample: Mapping[str, Any]) -> Tensor:
        images, labels = (sample[key][None].to(device) for key in ("image", "labels"))
        return next(iter(raw_maps(images, labels).values()))[0]

    def draw() -> None:
        _draw(
            output / "figures" / "segmentation.png", val, names, figure_images,
            maps=first_maps if class_maps else None,
            pseudo=decided if pseudo_label else None, prediction=segmented if logits else None,
        )  # fmt: skip

    if "mask" not in val[0]:
        if rank() == 0:
            print("no masks: nothing is scored, see the pictures", flush=True)
            draw()
        return {}
    scored = ScoredMaps({}, {}, {})
    if class_maps is not None:
        scored = score_maps(
            refined_maps, val, protocol=maps_protocol, num_classes=classes, chosen_on=chosen_on,
            device=device,
        )  # fmt: skip
    results: dict[str, float] = {f"{name}_miou": miou for name, miou in scored.miou.items()}
    protocols = {
        f"{name}_miou": replace(p, refiner=str(refiner) if name.endswith("_par") else "none")
        for name, p in scored.protocol.items()
    }
    plain = replace(protocol, threshold=None, threshold_source=None, refiner="none")
    details: dict[str, SplitScores] = {}
    if chosen_on is not None:
        if pseudo_label is not None:
            masks = {"pseudo_label": decided, **masks}
        known = "not stated" if refiner is None else str(refiner)
        by_refiner = replace(maps_protocol, refiner=known)
        found = score_train_masks(masks, chosen_on, protocol=by_refiner)
        results, protocols = results | found[0], protocols | found[1]
    if class_scores is not None:
        found_ap = _average_precision(lambda x: class_scores(fit(x)), val, device)
        results |= found_ap
        protocols |= dict.fromkeys(found_ap, replace(plain, labels_used=False))
    if logits is not None:
        scores = evaluate_masks(segmented, val, num_classes=classes, names=names).compute()
        results["seg_miou"], details["seg"] = scores.miou, scores
        protocols["seg_miou"] = protocols["seg"] = replace(plain, labels_used=False)
    if refine == "crf":
        behind = score_behind_crf(
            raw_maps, logits, val, maps_protocols=scored.protocol,
            protocol=replace(plain, labels_used=False), crf=crf, device=device,
        )  # fmt: skip
        results |= {name: scores.miou for name, (scores, _) in behind.items()}
        protocols |= {name: found for name, (_, found) in behind.items()}
    if rank() == 0:
        record = {"supervision": "image labels", **(extra or {})} | {
            "evaluation_seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time(), 1),  # of the whole process
            "peak_memory_mib": _peak_memory(),
        }
        write_metrics(
            output / "metrics.json", {**results, **details}, protocols, seed=seed, extra=record
        )
        if scored.curves:
            curve_figure(
                scored.curves, path=output / "figures" / "thresholds.png", mark_best=True,
                x_label="background threshold", y_label="mIoU",
            )  # fmt: skip
        draw()
        if "seg" in details:
            write_split_report(
                output, details["seg"], protocols["seg"], palette=voc_palette(),
                picture=partial(_picture, val, segmented), title="decoder",
                run=read_metrics(output / "metrics.json").run,
            )  # fmt: skip
    return results


def _average_precision(
    class_scores: Callable[[Tensor], Mapping[str, Tensor]],
    val: WeakDataset,
    device: torch.device | str,
) -> dict[str, float]:
    labels: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {}
    for index in range(rank(), len(val), world_size()):
        sample = val[index]
        labels.append(sample["labels"])
        for name, row in class_scores(sample["image"][None].to(device)).items():
            rows.setdefault(name, []).append(row[0].detach().float().cpu())
    everywhere = gather_objects((labels, rows))
    truth = torch.stack([row for labels, _ in everywhere for row in labels])
    return {
        f"{name}_ap": mean_average_precision(
            torch.stack([row for _, rows in everywhere for row in rows.get(name, [])]), truth
        )
        for name in rows
    }


def _peak_memory() -> int:
    """Largest memory of this process so far, in MiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def _picture(
    val: WeakDataset, segmented: Callable[[Mapping[str, Any]], Tensor], name: str, caption: str
) -> Picture:
    sample = val[val.ids.index(name)]
    image = (sample["image"].permute(1, 2, 0) * 255).round().byte()
    return Picture(name, caption, image, segmented(sample).cpu(), sample["mask"])


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def _draw(
    path: Path,
    val: WeakDataset,
    names: tuple[str, ...],
    count: int,
    *,
    maps: Callable[[Mapping[str, Any]], Tensor] | None,
    pseudo: Callable[[Mapping[str, Any]], Tensor] | None,
    prediction: Callable[[Mapping[str, Any]], Tensor] | None,
) -> None:
    with torch.no_grad():
        samples = [val[i] for i in spread(len(val), count)]
        segmentation_figure(
            [s["image"] for s in samples],
            torch.stack([s["labels"] for s in samples]),
            path=path,
            names=names,
            cam=None if maps is None else [maps(s).cpu() for s in samples],
            pseudo_label=None if pseudo is None else [pseudo(s).cpu() for s in samples],
            prediction=None if prediction is None else [prediction(s).cpu() for s in samples],
            truth=[s["mask"] for s in samples] if "mask" in samples[0] else None,
        )
