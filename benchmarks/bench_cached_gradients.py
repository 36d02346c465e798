"""One step of a contrastive loss in the memory of a chunk: time over the plain step, and the peak.

Run ``python -m benchmarks.bench_cached_gradients [--quick] [--output DIR]``.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from timm.models import VisionTransformer
from torch import Tensor

from benchmarks._harness import Options, compare, run
from benchmarks.baselines.accumulated_contrast import accumulated
from wsss_blocks.backbones import OpenCLIPTextEncoder, TimmViT
from wsss_blocks.losses import image_text_contrastive_loss
from wsss_blocks.segmenters import LoDAModel
from wsss_blocks.training import cached_gradient_backward

PLAIN, ACCUMULATED = "plain step", "loss again per chunk (open_clip)"
ONE_CHUNK = "plain step of one chunk, other gradients"
NOTE = (
    "One more forward pass is a third of the forward and backward. The peak is that of a chunk of "
    "one encoder, beside all embeddings and their similarities."
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    chunk, batches = (4, (8, 16)) if options.quick else (32, (64, 256))
    for device in options.devices:
        model = small_model(options.quick).to(device)
        side = 32 if options.quick else 96
        for batch in batches:
            g = torch.Generator().manual_seed(0)
            images = torch.rand(batch, 3, side, side, generator=g).to(device)
            ids = torch.randint(3, 90, (batch, 25), generator=g).to(device)
            ids[:, -1] = 99  # end of text
            sizes = f"ViT and text transformer, B{batch} in chunks of {chunk}"
            whole, part = Step(model, images, ids, chunk), Step(model, images, ids, chunk, chunk)
            yield compare(
                f"{sizes}: gradients",
                {PLAIN: whole.plain, ACCUMULATED: whole.accumulated, "ours": whole.cached},
                reference="ours",
                options=options,
                device=device,
                bars={PLAIN: 1 / 1.45},
                tolerance=1e-3,
                note=NOTE,
            )
            yield compare(
                f"{sizes}: peak",
                {ONE_CHUNK: part.plain, "ours": whole.cached},
                reference="ours",
                options=options,
                device=device,
                memory_bars={ONE_CHUNK: 1.1},
                note=NOTE,
            )


class Step:
    """The ways to the gradients of a batch, of its first ``rows``; each returns them scaled."""

    def __init__(
        self, model: LoDAModel, images: Tensor, ids: Tensor, chunk: int, rows: int | None = None
    ) -> None:
        self.model, self.chunk = model, chunk
        self.images, self.ids = images[:rows], ids[:rows]

    def plain(self) -> Tensor:
        """One graph of the whole batch."""
        return self._gradients(lambda: self._loss(*self._encoded()).backward())

    def cached(self) -> Tensor:
        """Ours."""
        model, inputs = self.model, (self.images, self.ids)
        return self._gradients(
            lambda: cached_gradient_backward(
                [model.encode_image, model.encode_text], inputs, self._loss, chunk_size=self.chunk
            )
        )

    def accumulated(self) -> Tensor:
        """Encode all, then each chunk again with the loss of all."""
        model, inputs = self.model, (self.images, self.ids)
        return self._gradients(
            lambda: accumulated(
                model.encode_image, model.encode_text, *inputs, self._loss, chunk_size=self.chunk
            )
        )

    def _loss(self, image: Tensor, text: Tensor) -> Tensor:
        return image_text_contrastive_loss(image, text, self.model.logit_scale)

    def _encoded(self) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(self.images), self.model.encode_text(self.ids)

    @torch.enable_grad()
    def _gradients(self, backward: Callable[[], object]) -> Tensor:
        self.model.zero_grad(set_to_none=False)  # no allocation of gradients in the peak
        backward()
        found = self.model.image.projection.weight.grad
        return found / found.abs().max()


def small_model(quick: bool) -> LoDAModel:
    torch.manual_seed(0)
    width, depth = (24, 2) if quick else (192, 6)
    vit = VisionTransformer(
        img_size=96, patch_size=16, embed_dim=width, depth=depth, num_heads=width // 12
    )
    text = TextTransformer(25, 100, width=width, heads=width // 12, layers=depth, output_dim=width)
    model = LoDAModel(TimmViT(vit), OpenCLIPTextEncoder(text), dim=64)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


if __name__ == "__main__":
    run("bench_cached_gradients", cases)
