"""Scenes, version 1: the embedded default, real handwriting on cluttered backgrounds."""

from typing import Literal

import torch
from torch.utils.data import Dataset

from wsss_blocks._validate import check_choice, check_int
from wsss_blocks.data._drawing import Scene, draw_scene, scene_captions
from wsss_blocks.data.names import DIGIT_NAMES
from wsss_blocks.data.sample import Sample, new_sample

__all__ = ["Scenes"]


class Scenes(Dataset[Sample]):
    """Paste handwritten digits on cluttered canvases: 10 classes, exact masks, generated captions.

    Each 96-pixel image shows one or two of scikit-learn's 8x8 digits, enlarged to 36-56 pixels, in
    bright ink on dim low-frequency noise, with lines and one distractor: a digit with its quadrants
    exchanged, in the same ink, drawn again when it reads as a digit. Digits 0-1199 make the
    training images and the others the validation images. Image ``i`` is a pure function of
    ``(seed, split, i)``, the same on every machine. Class ids of the mask are ``digit + 1``; a
    pixel belongs to the digit whose ink covers at least half of it, and later digits lie on top.
    ``captions`` says what is there in several phrasings and all orders, ``caption`` is the first
    (see :class:`RandomCaption`).

    Note:
        The digits carry no writer ids, so training and validation writers may overlap.

    Args:
        split: ``"train"`` or ``"val"``.
        size: number of images, by default 2,000 for training and 200 for validation.
        seed: a non-negative number; each draws another data set.
        hard: paste up to three digits at 30-56 pixels and two distractors.
        with_masks: put the mask into the samples, by default only for ``"val"``.

    Raises:
        ValueError: unknown ``split``, ``size < 1`` or ``seed < 0``.
        TypeError: ``size`` or ``seed`` is no whole number.
        ImportError: scikit-learn is not installed.

    Example:
        >>> scenes = Scenes("val", size=2)
        >>> sample = scenes[0]
        >>> tuple(sample["image"].shape), tuple(sample["labels"].shape)
        ((3, 96, 96), (10,))
        >>> sample["caption"], sorted(sample["mask"].unique().tolist())
        ('a two', [0, 3])
    """

    names: tuple[str, ...] = DIGIT_NAMES

    def __init__(
        self,
        split: Literal["train", "val"] = "train",
        *,
        size: int | None = None,
        seed: int = 0,
        hard: bool = False,
        with_masks: bool | None = None,
    ) -> None:
        check_choice("split", split, ("train", "val"))
        self.split = split
        self.size = (2000 if split == "train" else 200) if size is None else size
        self.seed = seed
        self.hard = hard
        self.with_masks = split == "val" if with_masks is None else with_masks
        check_int("size", self.size, least=1)
        check_int("seed", seed, least=0)
        self.draw(0)

    def __len__(self) -> int:
        return self.size

    @property
    def ids(self) -> list[str]:
        """Names of the images."""
        return [f"{self.split}_{index:05d}" for index in range(self.size)]

    def draw(self, index: int) -> Scene:
        """Draw image and mask as uint8 arrays."""
        return draw_scene(self.split, index=index, seed=self.seed, hard=self.hard)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"index must be in [0, {self.size}), got {index}.")
        scene = self.draw(index)
        labels = torch.zeros(len(self.names))
        labels[list(scene.digits)] = 1.0
        sample = new_sample(
            torch.from_numpy(scene.image).permute(2, 0, 1).float().div_(255),
            id=f"{self.split}_{index:05d}",
            labels=labels,
        )
        sample["captions"] = list(scene_captions(scene.digits))
        sample["caption"] = sample["captions"][0]
        if self.with_masks:
            sample["mask"] = torch.from_numpy(scene.mask).long()
        return sample
