"""The figures that show what patches have in common with texts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.backbones import TextBank
from wsss_blocks.cli._spread import spread
from wsss_blocks.data.sample import SampleSource
from wsss_blocks.distributed import rank
from wsss_blocks.viz import similarity_figure

__all__ = ["draw_similarity"]


def draw_similarity(
    path: Path,
    similarity: Callable[[Tensor, Tensor], Tensor],
    samples: SampleSource,
    bank: TextBank,
    *,
    outside: Mapping[str, Tensor | None] = MappingProxyType({}),
    images: int = 4,
    columns: int = 6,
    side: int = 224,
) -> None:
    """Draw the similarity of each patch to the texts of classes, background and other prompts.

    One row per image, spread over the samples; one column per class that these images show, most
    frequent first, then the background texts and the prompts outside the classes. All on one
    colour scale. Texts of one tower are so alike that all their maps are; a second figure,
    ``NAME_centred.png``, therefore shows what is left after the mean over all texts of the bank is
    taken off each patch: what the patch has more in common with one text than with the others.

    In a process group only the first process draws.

    Reference:
        "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", supplement
        Figs. 7, 9 and 10, https://arxiv.org/abs/2409.15801

    Args:
        path: PNG file to write; the second one lies beside it.
        similarity: images ``(1, 3, H, W)``, texts ``(M, D)`` -> ``(1, M, h, w)``.
        samples: with ``image`` and ``labels``.
        bank: texts of the classes, in the order of the labels, and of the background; on the device
            where ``similarity`` wants its arguments.
        outside: prompts that no image was labelled with -> text ``(D,)``, or None where it is not
            to be had.
        images: how many are drawn.
        columns: at most so many classes.
        side: images are drawn as squares of this side.

    Raises:
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> scenes = Scenes(size=2)
        >>> bank = TextBank.stand_in(scenes.names, dim=16, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_similarity(
        ...         Path(folder) / "similarity.png",
        ...         lambda image, rows: image.mean(1, keepdim=True) * rows.sum(1)[:, None, None],
        ...         scenes,
        ...         bank,
        ...         outside={"a letter": torch.ones(16)},
        ...         side=48,
        ...     )
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['similarity.png', 'similarity_centred.png']
    """
    if rank() != 0:
        return
    chosen = [samples[i] for i in spread(len(samples), images)]
    counts = torch.stack([sample["labels"] for sample in chosen]).sum(0)
    shown = counts.argsort(descending=True, stable=True)[: max(1, int((counts > 0).sum()))]
    texts = {bank.names[k]: bank.classes[k] for k in shown.tolist()[:columns]}
    for i, row in enumerate(bank.background):
        texts["background" if len(bank.background) == 1 else f"background {i}"] = row
    texts |= {f"{name} (outside)": row for name, row in outside.items() if row is not None}
    device = bank.classes.device
    rows = torch.stack([row.to(device) for row in texts.values()])
    every = torch.cat([bank.classes, bank.background])
    with torch.no_grad():
        inputs = [s["image"][None].to(device) for s in chosen]
        scores = [similarity(image, rows).float() for image in inputs]
        means = [similarity(image, every).float().mean(1, keepdim=True) for image in inputs]
    pictures = torch.cat([_square(s["image"][None], side) for s in chosen])
    centred = [score - mean for score, mean in zip(scores, means, strict=True)]
    for file, maps in ((path, scores), (path.with_stem(f"{path.stem}_centred"), centred)):
        similarity_figure(
            pictures,
            torch.cat([_square(score.cpu(), side) for score in maps]),
            path=file,
            names=list(texts),
            row_labels=[str(s["id"]) for s in chosen],
        )


def _square(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
