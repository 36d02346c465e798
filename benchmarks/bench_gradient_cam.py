"""Grad-CAM of the present classes of a batch against grad-cam, torchcam and plain torch loops.

Run ``python -m benchmarks.bench_gradient_cam [--quick] [--output DIR]``.

Every candidate gets images and labels and starts with the forward, as grad-cam cannot do without.
The weights are random, which changes no time. grad-cam takes one class per image and call: it is
measured image by image, as its users do it, and at its best, with the s-th class of every image
in one call. Its maps are resized to the image and normalised, so ours are, too, to compare them.
"""

from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._harness import Candidate, Options, compare, run
from benchmarks.baselines import gradient_cam_loop
from wsss_blocks.cam import gradient_cam, tap_output

try:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
except ImportError:
    pytorch_grad_cam = None
try:
    import torchcam.methods as torchcam
except ImportError:
    torchcam = None

CLASSES, PRESENT = 20, 3
ONE, SLOTS = "grad-cam, image by image", "grad-cam, batch of 4"
TORCHCAM = "torchcam, batch"
LOOP, PLAIN = "torch, class by class", "torch, s-th classes at once"


def cases(options: Options) -> Iterator[dict[str, Any]]:
    size = 64 if options.quick else 224
    names = ("resnet18",) if options.quick else ("resnet18", "resnet50", "vit_small_patch16_224")
    for device in options.devices:
        for name in names:
            yield model(options, device, name, size)


def model(options: Options, device: str, name: str, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=CLASSES).eval().to(device)
    tokens = hasattr(net, "blocks")
    layer = net.blocks[-1].norm1 if tokens else net.layer4
    first, side = int(tokens), size // 16
    images = torch.rand(4, 3, size, size).to(device)
    labels = torch.rand(4, CLASSES).argsort(1).lt(PRESENT).float().to(device)
    at = "before the last attention" if tokens else "layer4"

    @torch.enable_grad()
    def ours() -> Tensor:
        with tap_output(layer) as taps:
            scores = net(images)
        return gradient_cam(scores, taps[0], labels, grid=(side, side) if tokens else None)

    def plain(form: Any) -> Candidate:
        return lambda: torch.enable_grad()(form)(net, layer, images, labels, first=first)

    def difference(cam: Tensor, truth: Tensor) -> float:
        if cam.shape != truth.shape:
            truth = _resized(truth, size)
        return float((cam.cpu() - truth.cpu()).abs().max() / truth.abs().max())

    return compare(
        f"{name} at {at}, B4 {size} x {size}, {PRESENT} of {CLASSES} classes, with the forward",
        {
            ONE: _grad_cam(net, layer, images, labels, first, one=True),
            SLOTS: _grad_cam(net, layer, images, labels, first, one=False),
            TORCHCAM: _torchcam(net, layer, images, labels, first),
            LOOP: plain(gradient_cam_loop.published),
            PLAIN: plain(gradient_cam_loop.best),
            "ours": ours,
        },
        reference="ours",
        options=options,
        device=device,
        bars={SLOTS: 5},
        difference=difference,
        tolerance=1e-3,
        note="the forward bounds it: torchcam and a careful loop stop at the layer as well",
    )


def _slots(labels: Tensor) -> Iterator[list[int]]:
    rows = [row.nonzero()[:, 0].tolist() for row in labels]
    yield from ([row[s] for row in rows] for s in range(PRESENT))


def _grad_cam(
    net: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, first: int, *, one: bool
) -> Candidate | None:
    if pytorch_grad_cam is None:
        return None

    @torch.enable_grad()
    def call() -> Tensor:
        cam = torch.zeros(*labels.shape, *images.shape[2:])
        reshape = _as_map if first else None
        with pytorch_grad_cam.GradCAM(net, [layer], reshape_transform=reshape) as method:
            for chosen in _slots(labels):
                targets = [ClassifierOutputTarget(c) for c in chosen]
                if one:
                    maps = [method(images[i : i + 1], [t])[0] for i, t in enumerate(targets)]
                else:
                    maps = method(images, targets)
                for i, (c, found) in enumerate(zip(chosen, maps, strict=True)):
                    cam[i, c] = torch.from_numpy(found)
        return cam

    return call


def _torchcam(
    net: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, first: int
) -> Candidate | None:
    if torchcam is None:
        return None

    @torch.enable_grad()
    def call() -> Tensor:
        cam, every = None, torch.arange(len(images))
        options = {"reshape_transform": _as_map} if first else {}
        with torchcam.GradCAM(net, target_layer=layer, **options) as method:
            scores = net(images)
            for chosen in _slots(labels):
                (found,) = method(chosen, scores, normalized=False, retain_graph=True)
                cam = found.new_zeros(*labels.shape, *found.shape[1:]) if cam is None else cam
                cam[every, chosen] = found
        return cam

    return call


def _as_map(tokens: Tensor) -> Tensor:
    side = int((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].mT.reshape(len(tokens), -1, side, side)


def _resized(cam: Tensor, size: int) -> Tensor:
    """Normalise, resize and normalise again, as grad-cam does."""
    for step in (F.interpolate, None):
        cam = cam - cam.amin((2, 3), keepdim=True)
        cam = cam / (cam.amax((2, 3), keepdim=True) + 1e-7)
        cam = cam if step is None else step(cam, size=(size, size), mode="bilinear")
    return cam


if __name__ == "__main__":
    run("bench_gradient_cam", cases)
