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


def dilated(x, weight, dilation=1, *, depthwise=False):
    """A convolution that keeps the grid, zero beyond the border; or one kernel per channel."""
    B, _, h, w = x.shape
    out = torch.zeros(B, len(weight), h, w, dtype=torch.float64)
    half = weight.shape[-1] // 2
    for a in range(weight.shape[-2]):
        for b in range(weight.shape[-1]):
            for i in range(h):
                for j in range(w):
                    y, z = i + (a - half) * dilation, j + (b - half) * dilation
                    if 0 <= y < h and 0 <= z < w:
                        pixel, tap = x[:, :, y, z], weight[:, :, a, b]
                        out[:, :, i, j] += pixel * tap[:, 0] if depthwise else pixel @ tap.T
    return out


def deeplab_v3_plus(low, high, state, rates):
    """ASPP, its mixture, the join with the low-level map and the classifier; ``state`` as saved."""

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale, shift = state[f"{name}.weight"], state[f"{name}.bias"]
        out = torch.zeros_like(x)
        for c in range(x.shape[1]):
            out[:, c] = (x[:, c] - mean[c]) / (var[c] + 1e-5) ** 0.5 * scale[c] + shift[c]
        return out.clamp_min(0)

    def conv(x, name, dilation=1):
        if f"{name}.0.weight" in state:
            x = dilated(x, state[f"{name}.0.weight"], dilation, depthwise=True)
            return dilated(x, state[f"{name}.1.weight"])
        return dilated(x, state[f"{name}.weight"], dilation)

    aspp = "decoder.aspp.0"
    branches = [norm(conv(high, f"{aspp}.convs.0.0"), f"{aspp}.convs.0.1")]
    for k, rate in enumerate(rates, start=1):
        branches.append(norm(conv(high, f"{aspp}.convs.{k}.0", rate), f"{aspp}.convs.{k}.1"))
    pooled = high.mean((2, 3), keepdim=True)
    pooled = norm(conv(pooled, f"{aspp}.convs.4.1"), f"{aspp}.convs.4.2")
    branches.append(pooled.expand(-1, -1, *high.shape[2:]))
    x = norm(conv(torch.cat(branches, 1), f"{aspp}.project.0"), f"{aspp}.project.1")
    x = norm(conv(x, "decoder.aspp.1"), "decoder.aspp.2")
    x = resize(x, tuple(low.shape[2:]))
    fine = norm(conv(low, "decoder.block1.0"), "decoder.block1.1")
    x = norm(conv(torch.cat([x, fine], 1), "decoder.block2.0"), "decoder.block2.1")
    return dilated(x, state["classifier.weight"])
