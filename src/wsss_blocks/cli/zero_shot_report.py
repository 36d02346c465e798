"""What zero-shot segmentation leaves behind: scores with their protocols, and figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cli._spread import spread
from wsss_blocks.data import WeakDataset
from wsss_blocks.distributed import gather_objects, rank, world_size
from wsss_blocks.metrics import (
    EvaluationProtocol,
    RetrievalScores,
    SegmentationEvaluator,
    evaluate_masks,
    mean_average_precision,
    retrieval_chance,
    retrieval_scores,
    write_metrics,
)
from wsss_blocks.segmenters import ImageTextModel, ZeroShotSegmenter, class_threshold
from wsss_blocks.segmenters._inference import squeezed
from wsss_blocks.viz import (
    class_score_figure,
    curve_figure,
    figure_grid,
    overlay_mask,
    patch_similarity_figure,
)

__all__ = ["evaluate_zero_shot", "score_retrieval"]

_THRESHOLDS = tuple(round(0.02 * i, 2) for i in range(1, 50))
_SHOWN = 6  # names in the figure of patches


class _Pairs(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@torch.no_grad()
def evaluate_zero_shot(
    output: Path,
    segmenter: ZeroShotSegmenter,
    val: WeakDataset,
    *,
    protocol: EvaluationProtocol,
    train: WeakDataset | None = None,
    pairs: _Pairs | None = None,
    every_caption: bool = True,
    figure_images: int = 8,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Score masks of named classes, the choice of classes, and retrieval; draw them.

    Results as fractions: ``zero_shot_miou``; ``zero_shot_labels_miou``, of masks of the classes
    that the image labels name, or the true mask in data without them; ``class_ap``, the mean
    average precision of the cosines of images and names; with ``pairs`` what
    :func:`score_retrieval` says. Without a refiner, maps are cut at the threshold that is best on
    the training images, of 49 from 0.02 to 0.98.

    ``metrics.json`` gets the results in per cent, each with its protocol; ``figures/`` masks of
    some images, a histogram of the scores of each name, what patches look like to each other and to
    names, and the threshold curve.

    Args:
        output: folder.
        segmenter: on ``device``, its names in the order of the labels.
        val: scored; samples with ``image``, ``mask`` and, where they have them, ``labels``.
        protocol: which data these are; the rest is taken from the segmenter's own.
        train: its masks choose the threshold; None takes the segmenter's.
        pairs: samples with ``image`` and ``captions``.
        every_caption: as :func:`score_retrieval`.
        figure_images: how many images are drawn.
        device: where the segmenter is.
        seed: of the run, for the record.
        extra: more for the record, as times.

    Returns:
        The results.

    Raises:
        ValueError: there are fewer samples than processes, or one lacks its mask.
    """
    started = time.perf_counter()
    segmenter.eval()
    own = segmenter.protocol
    protocol = replace(
        own, dataset=protocol.dataset, split=protocol.split, num_images=len(val),
        ground_truth_hash=protocol.ground_truth_hash,
    )  # fmt: skip
    found = _Masks(segmenter, device)
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    thresholds = {"zero_shot": segmenter.threshold, "zero_shot_labels": segmenter.threshold}
    source = own.threshold_source
    if train is not None and segmenter.refiner is None:
        source = f"masks of {len(train)} training images"
        for name, curve in found.sweep(train).items():
            curves[name] = (_THRESHOLDS, curve)
            thresholds[name] = _THRESHOLDS[int(torch.tensor(curve).argmax())]
    classes, names = len(val.names) + 1, ("background", *val.names)
    results: dict[str, float] = {}
    details, protocols = {}, {}
    for name, threshold in thresholds.items():
        by_labels = name == "zero_shot_labels"

        def masks(
            sample: Mapping[str, Any], threshold: float = threshold, by_labels: bool = by_labels
        ) -> Tensor:
            return found.masks(sample, (threshold,), by_labels=by_labels)[0]

        scored = evaluate_masks(masks, val, num_classes=classes, names=names).compute()
        results[f"{name}_miou"], details[name] = scored.miou, scored
        protocols[f"{name}_miou"] = protocols[name] = replace(
            protocol, labels_used=by_labels,
            threshold=threshold if segmenter.refiner is None else None,
            threshold_source=source if segmenter.refiner is None else None,
        )  # fmt: skip
    labels, scores = found.class_scores(val)
    first = scores.shape[1] - labels.shape[1]  # the background, where it was scored
    plain = replace(protocol, threshold=None, threshold_source=None, refiner="none")
    results["class_ap"] = mean_average_precision(scores[:, first:], labels)
    protocols["class_ap"] = plain
    if pairs is not None:
        retrieved = score_retrieval(
            segmenter.model, pairs, size=segmenter.size, every_caption=every_caption, device=device
        )
        results |= retrieved
        protocols |= dict.fromkeys(
            retrieved, replace(plain, dataset="captions", split="held out", num_images=len(pairs))
        )
    if rank() == 0:
        record = dict(extra or {}) | {"evaluation_seconds": round(time.perf_counter() - started, 1)}
        write_metrics(
            output / "metrics.json", {**results, **details}, protocols, seed=seed, extra=record
        )
        figures = output / "figures"
        if curves:
            curve_figure(
                curves, path=figures / "thresholds.png", mark_best=True,
                x_label="threshold of a map in [0, 1]", y_label="mIoU on training images",
            )  # fmt: skip
        limits = None
        if segmenter.sigma is not None:
            limits = class_threshold(scores, top=segmenter.top, sigma=segmenter.sigma)
        class_score_figure(
            scores[:, first:], labels, names=val.names, path=figures / "class_scores.png",
            thresholds=limits,
        )  # fmt: skip
        if figure_images:
            found.draw(figures, val, thresholds["zero_shot"], figure_images)
    return results


@torch.no_grad()
def score_retrieval(
    model: ImageTextModel,
    pairs: _Pairs,
    *,
    size: int | None = None,
    every_caption: bool = True,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Score retrieval among images and their captions; equal captions count as one.

    Args:
        model: in evaluation mode, on ``device``.
        pairs: samples with ``image`` and ``captions``.
        size: side of the square that images are squeezed into; None takes them as they are.
        every_caption: of an image; else its first.
        ks: numbers of results that are looked at.
        batch_size: captions per forward pass; images go one by one, as they differ in size.
        device: where the model is.

    Returns:
        ``image_to_text_r1`` and so on, as fractions; ``chance_image_to_text_r1`` and
        ``chance_text_to_image_r1``, what results in random order would score; ``mean_recall``, of
        all recalls (times 600 the RSUM that papers print).
    """
    images, texts, owners = [], [], []
    for index in range(rank(), len(pairs), world_size()):
        sample = pairs[index]
        image = squeezed(sample["image"][None].to(device), size)
        images.append((index, model.encode_image(image)[0].float().cpu()))
        said = sample["captions"] if every_caption else sample["captions"][:1]
        texts += said
        owners += [index] * len(said)
    rows = []
    for first in range(0, len(texts), batch_size):
        ids, mask = model.tokenize(texts[first : first + batch_size])
        rows.append(model.encode_text(ids.to(device), mask.to(device)).float().cpu())
    everywhere = gather_objects((images, texts, owners, torch.cat(rows) if rows else None))
    vectors = dict(row for part in everywhere for row in part[0])
    texts = [text for part in everywhere for text in part[1]]
    text_image = torch.tensor([owner for part in everywhere for owner in part[2]])
    text = torch.cat([part[3] for part in everywhere if part[3] is not None])
    number = {caption: i for i, caption in enumerate(dict.fromkeys(texts))}
    groups = torch.tensor([number[caption] for caption in texts])
    image = torch.stack([vectors[i] for i in range(len(pairs))])
    scores = retrieval_scores(image, text, text_image, ks=ks, groups=groups)
    chance = retrieval_chance(text_image, images=len(pairs), ks=ks, groups=groups)
    return _named(scores) | {
        "chance_image_to_text_r1": chance.image_to_text[0],
        "chance_text_to_image_r1": chance.text_to_image[0],
    }


def _named(scores: RetrievalScores) -> dict[str, float]:
    found = {"mean_recall": scores.rsum / (200 * len(scores.ks))}
    for name in ("image_to_text", "text_to_image"):
        found |= {f"{name}_r{k}": r for k, r in zip(scores.ks, getattr(scores, name), strict=True)}
    return found


class _Masks:
    """Masks, curves and pictures of one segmenter."""

    def __init__(self, segmenter: ZeroShotSegmenter, device: torch.device | str) -> None:
        self.segmenter, self.device = segmenter, device

    def masks(
        self, sample: Mapping[str, Any], thresholds: Sequence[float], *, by_labels: bool
    ) -> Tensor:
        """Return ids ``(T, H, W)``, one mask per threshold."""
        given = self.labels(sample)[None].to(self.device) if by_labels else None
        images = sample["image"][None].to(self.device)
        return self.segmenter.masks_at(images, thresholds, given=given)[:, 0].cpu()

    def labels(self, sample: Mapping[str, Any]) -> Tensor:
        """Return the image labels ``(K,)``; of data without them, what the mask shows."""
        if "labels" in sample:
            found: Tensor = sample["labels"]
            return found
        seen = torch.bincount(sample["mask"].flatten(), minlength=256)
        return (seen[1 : len(self.segmenter.names) + 1] > 0).float()

    def sweep(self, samples: WeakDataset) -> dict[str, list[float]]:
        """Return the mIoU at all thresholds, with chosen and with given classes."""
        classes = len(samples.names) + 1
        counted = {
            name: [SegmentationEvaluator(classes) for _ in _THRESHOLDS]
            for name in ("zero_shot", "zero_shot_labels")
        }
        for index in range(rank(), len(samples), world_size()):
            sample = samples[index]
            target = sample["mask"][None]
            for name, evaluators in counted.items():
                masks = self.masks(sample, _THRESHOLDS, by_labels=name == "zero_shot_labels")
                for evaluator, mask in zip(evaluators, masks, strict=True):
                    evaluator.update(mask[None], target)
        return {
            name: [evaluator.all_reduce().compute().miou for evaluator in evaluators]
            for name, evaluators in counted.items()
        }

    def class_scores(self, samples: WeakDataset) -> tuple[Tensor, Tensor]:
        """Return labels ``(N, K)`` and what the names scored ``(N, C)``, of all processes."""
        labels, scores = [], []
        for index in range(rank(), len(samples), world_size()):
            sample = samples[index]
            labels.append(self.labels(sample))
            found = self.segmenter.scores(sample["image"][None].to(self.device))
            scores.append(found[0].float().cpu())
        everywhere = gather_objects((torch.stack(labels), torch.stack(scores)))
        return torch.cat([x for x, _ in everywhere]), torch.cat([x for _, x in everywhere])

    def draw(self, folder: Path, samples: WeakDataset, threshold: float, count: int) -> None:
        """Draw masks of some images, and the patches of the first of them."""
        palette, rows = self.segmenter.palette, []
        chosen = [samples[i] for i in spread(len(samples), count)]
        for sample in chosen:
            kinds = [
                self.masks(sample, (threshold,), by_labels=given)[0] for given in (False, True)
            ]
            shown = [sample["mask"], *kinds]
            tinted = [overlay_mask(sample["image"], mask, palette=palette) for mask in shown]
            rows.append([sample["image"], *tinted])
        titles = ["image", "truth", "zero-shot", "classes given"]
        seen = torch.stack([self.labels(sample) for sample in chosen]).sum(0) > 0
        ids = seen.nonzero().flatten().tolist()
        legend = {samples.names[i]: palette[i + 1].tolist() for i in ids}
        figure_grid(rows, path=folder / "masks.png", titles=titles, legend=legend)
        sample = max(chosen, key=lambda s: float(self.labels(s).sum()))
        own = self.labels(sample).nonzero().flatten().tolist()
        ids = (own + [i for i in ids if i not in own])[:_SHOWN]
        patches = self.segmenter.patches(sample["image"][None].to(self.device))[0]
        grid = (patches.shape[1], patches.shape[2])
        patch_similarity_figure(
            sample["image"], patches.cpu(), path=folder / "patches.png",
            queries=[_middle(sample["mask"] == i + 1, grid) for i in own],
            texts=self.segmenter.bank.classes[ids].cpu(), names=[samples.names[i] for i in ids],
        )  # fmt: skip


def _middle(inside: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """Return row and column of the patch that has most of a region."""
    share = F.adaptive_avg_pool2d(inside[None, None].float(), grid)[0, 0]
    return divmod(int(share.argmax()), grid[1])
