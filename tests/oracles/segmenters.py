"""Loop-level transcriptions of the segmentation network and the segmenter."""

import torch

from oracles import decoders
from oracles.cam import resize


def neck(x, params):
    """A 1x1 convolution with bias, then ReLU; nothing without parameters."""
    if not params:
        return x
    weight, bias = params["0.weight"].tolist(), params["0.bias"].tolist()
    out = torch.zeros(x.shape[0], len(weight), *x.shape[2:], dtype=torch.float64)
    for b in range(x.shape[0]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                pixel = x[b, :, i, j].tolist()
                for o, row in enumerate(weight):
                    total = bias[o] + sum(w[0][0] * v for w, v in zip(row, pixel, strict=True))
                    out[b, o, i, j] = max(total, 0.0)
    return out


def network(feature_map, skip, state, dilation):
    """Neck and decoder on what the encoder computed; ``state`` has the network's names."""

    def part(name):
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    return decoders.large_fov(neck(feature_map, part("neck")), part("decoder"), dilation, skip)


def segmenter_logits(seg_fn, images, *, side, **views):
    """Squeeze into the square, fuse the views on the grid of the largest, back to the image."""
    squeezed = images if side is None else resize(images, (side, side))
    fused = decoders.multi_scale_logits(seg_fn, squeezed, **views)
    return resize(fused, tuple(images.shape[-2:]))


def winners(logits):
    """The class of the largest logit of each pixel, the lowest of equals; ``(C, H, W)``."""
    out = torch.zeros(logits.shape[1:], dtype=torch.int64)
    for i in range(logits.shape[1]):
        for j in range(logits.shape[2]):
            scores = logits[:, i, j].tolist()
            out[i, j] = scores.index(max(scores))
    return out
