"""What surrounds the few lines that are a method: steps with batches, log, checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from wsss_blocks._optional import require
from wsss_blocks.cli.run import RunConfig
from wsss_blocks.data import Resize, compute_maps, step_loader, training_transform
from wsss_blocks.data.sample import SampleSource, Transform
from wsss_blocks.distributed import rank, sum_over_ranks, world_size
from wsss_blocks.segmenters import Segmenter
from wsss_blocks.training import Stateful, load_run_state, save_run_state

__all__ = ["Checkpoints", "TrainingSteps"]


class TrainingSteps:
    """Iterate over ``(step, micro-batches)``, from 1 to ``cfg.steps``, with a progress bar.

    The micro-batches of a step are ``cfg.accumulate`` dictionaries with ``image``, ``labels``,
    ``box``, each map by its name and where it shows the image as ``NAME_valid``, and what the
    samples have of ``pseudo_mask``, ``text_ids`` and ``text_mask``, on the device of the
    accelerator. What a view of the samples
    (:class:`~wsss_blocks.data.AddView`) holds follows as ``VIEW_image`` and so on. They depend on
    seed and step alone.

    Args:
        cfg: of the run.
        dataset: labelled samples.
        accelerator: of :func:`start_run`.
        start: number of steps that are done.
        cache: name -> what a frozen network makes of images ``(1, 3, size, size)``: it runs once
            over all of them now, and its maps follow the mirroring and cropping of each image.
        maps: name -> a map of each image, which follows likewise; see
            :class:`~wsss_blocks.data.WithMaps`.
        map_sizes: name -> grid over the crop, for maps that differ in size.
        transform: augmentation; None makes that of ``cfg``.
        loader: batches from ``start * cfg.accumulate`` on, in the place of all that is made of
            ``dataset``: see :func:`~wsss_blocks.data.shard_loader`.

    Raises:
        ValueError: ``maps`` and ``cache`` share a name, a name has not one map per image,
            ``map_sizes`` names no map, or there is neither ``dataset`` nor ``loader``.

    Example:
        >>> from wsss_blocks.cli import open_data, start_run
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cfg = RunConfig(steps=2, batch_size=3, accumulate=2, output=Path(folder), size=32)
        ...     steps = TrainingSteps(cfg, open_data(cfg, "train"), start_run(cfg))
        ...     [(step, len(group), tuple(group[0]["image"].shape)) for step, group in steps]
        [(1, 2, (3, 3, 32, 32)), (2, 2, (3, 3, 32, 32))]
    """

    def __init__(
        self,
        cfg: RunConfig,
        dataset: SampleSource | None,
        accelerator: Any,
        *,
        start: int = 0,
        cache: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({}),
        maps: Mapping[str, Sequence[Tensor]] = MappingProxyType({}),
        map_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        transform: Transform | None = None,
        loader: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        if both := maps.keys() & cache.keys():
            raise ValueError(f"maps must not have names of cache, got {sorted(both)}.")
        self.cfg, self.accelerator, self.start, self.step = cfg, accelerator, start, start
        if loader is None:
            if dataset is None:
                raise ValueError("dataset must be given where there is no loader, got None.")
            loader = self._loader(dataset, cache, maps, map_sizes, transform)
        self.loader = loader
        progress = require("tqdm", extra="examples", what="an example")
        quiet = not accelerator.is_main_process
        self.bar = progress.tqdm(initial=start, total=cfg.steps, disable=quiet)

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        batches = iter(self.loader)
        for step in range(self.start + 1, self.cfg.steps + 1):
            self.step = step
            yield step, [self._moved(next(batches)) for _ in range(self.cfg.accumulate)]
            self.bar.update()
        self.bar.close()

    def synchronised(self, model: torch.nn.Module, micro: int) -> AbstractContextManager[None]:
        """Let processes exchange gradients in the last micro-batch of a step only."""
        if micro == self.cfg.accumulate - 1:
            return nullcontext()
        skipped: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return skipped

    def log(
        self,
        shares: Sequence[Mapping[str, Tensor]],
        *,
        beside: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Log and show the losses of this step, every ``cfg.log_every`` steps.

        Args:
            shares: the named losses of each micro-batch, as their share in those of the step; the
                mean over processes is logged, beside the sum of all as ``loss``.
            beside: what is no loss, the same in all processes.
        """
        if self.step % self.cfg.log_every:
            return
        rows = [torch.stack(list(share.values())).detach().float() for share in shares]
        means = sum_over_ranks(torch.stack(rows).sum(0)) / world_size()
        values = dict(zip(shares[0], means.tolist(), strict=True))
        total = {"loss": sum(values.values())}
        values |= {name: float(value.detach()) for name, value in beside.items()}
        self.accelerator.log(total | values, step=self.step)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})

    def _loader(
        self,
        dataset: SampleSource,
        cache: Mapping[str, Callable[[Tensor], Tensor]],
        maps: Mapping[str, Sequence[Tensor]],
        map_sizes: Mapping[str, tuple[int, int]],
        transform: Transform | None,
    ) -> Iterable[Mapping[str, Any]]:
        cfg = self.cfg
        if transform is None:
            transform = training_transform(
                cfg.size, scale=cfg.scale, flip=cfg.flip, colour=cfg.colour, square=cfg.square
            )
        whole, device = Resize((cfg.size, cfg.size)), self.accelerator.device
        made = {name: compute_maps(fn, dataset, whole, device=device) for name, fn in cache.items()}
        return step_loader(
            dataset,
            transform,
            batch_size=cfg.batch_size,
            steps=cfg.steps * cfg.accumulate,
            start=self.start * cfg.accumulate,
            seed=cfg.seed,
            workers=cfg.workers,
            maps={**maps, **made},
            map_sizes=map_sizes,
        )

    def _moved(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        found = _tensors(batch)
        for view, shown in batch.get("views", {}).items():
            found |= {f"{view}_{key}": value for key, value in _tensors(shown).items()}
        return {key: value.to(self.accelerator.device) for key, value in found.items()}


def _tensors(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    keys = ("image", "labels", "box", "pseudo_mask", "text_ids", "text_mask")
    found: dict[str, Tensor] = {key: batch[key] for key in keys if key in batch}
    found |= batch.get("maps", {})
    return found | {f"{name}_valid": where for name, where in batch.get("valid", {}).items()}


class Checkpoints:
    """Keep the newest state of a run in ``OUTPUT/checkpoint``, for an exact resume.

    Args:
        cfg: of the run.
        accelerator: of :func:`start_run`; the state of its loss scaling is kept, too.
        stateful: what has a state: see :func:`wsss_blocks.training.save_run_state`.
        names: class names; a run of other classes, or of another preset, is refused.
        segmenter: written to ``OUTPUT/segmenter.safetensors`` before each state, so that a state
            never has an older one, or none, beside it.
    """

    def __init__(
        self,
        cfg: RunConfig,
        accelerator: Any,
        stateful: Mapping[str, Stateful],
        *,
        names: Sequence[str],
        segmenter: Segmenter | None = None,
    ) -> None:
        self.segmenter = segmenter
        scaler = {"scaler": accelerator.scaler} if accelerator.scaler else {}
        self.cfg, self.stateful = cfg, dict(stateful) | scaler
        self.folder = cfg.output / "checkpoint"
        self.identity = {"preset": cfg.preset, "names": list(names)}

    def resume(self) -> int:
        """Return the number of finished steps, 0 without ``--resume`` or without a checkpoint."""
        if not (self.cfg.resume and (self.folder / "latest.json").exists()):
            return 0
        return load_run_state(self.folder, stateful=self.stateful, identity=self.identity)

    def save(self, step: int) -> bool:
        """Write a checkpoint every ``cfg.save_every`` steps and after the last; tell whether."""
        due = step % self.cfg.save_every == 0 or step == self.cfg.steps
        if due and self.segmenter is not None and rank() == 0:
            self.segmenter.save(self.cfg.output / "segmenter.safetensors")
        if due:
            save_run_state(self.folder, step=step, stateful=self.stateful, identity=self.identity)
        return due
