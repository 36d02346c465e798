"""Encoders and text rows with explicit loops over Python numbers."""

import math

import torch


def resize_bilinear(image, height, width):
    """Bilinear, pixel centres at i + 0.5, clamped at the border; ``image`` (C, H, W)."""
    channels, rows, columns = image.shape
    out = torch.zeros(channels, height, width, dtype=image.dtype)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                y = max((i + 0.5) * rows / height - 0.5, 0.0)
                x = max((j + 0.5) * columns / width - 0.5, 0.0)
                i0, j0 = int(y), int(x)
                i1, j1 = min(i0 + 1, rows - 1), min(j0 + 1, columns - 1)
                a, b = y - i0, x - j0
                top = image[c, i0, j0] * (1 - b) + image[c, i0, j1] * b
                bottom = image[c, i1, j0] * (1 - b) + image[c, i1, j1] * b
                out[c, i, j] = top * (1 - a) + bottom * a
    return out


def fit(image, stride, policy):
    channels, height, width = image.shape
    if policy == "floor":
        return image[:, : height // stride * stride, : width // stride * stride]
    up = math.ceil(height / stride) * stride, math.ceil(width / stride) * stride
    if policy == "resize":
        return resize_bilinear(image, *up)
    out = torch.zeros(channels, *up, dtype=image.dtype)
    for i in range(height):
        for j in range(width):
            out[:, i, j] = image[:, i, j]
    return out


def convolve(x, weight, stride):
    """3x3 convolution with a border of one zero; ``x`` (C, H, W)."""
    count, channels, _, _ = weight.shape
    _, height, width = x.shape
    values, kernel = x.tolist(), weight.tolist()
    out = torch.zeros(count, (height - 1) // stride + 1, (width - 1) // stride + 1, dtype=x.dtype)
    for o in range(count):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                total = 0.0
                for di in range(3):
                    for dj in range(3):
                        y, z = i * stride + di - 1, j * stride + dj - 1
                        if 0 <= y < height and 0 <= z < width:
                            for c in range(channels):
                                total += kernel[o][c][di][dj] * values[c][y][z]
                out[o, i, j] = total
    return out


def batch_norm(x, state, name):
    """Evaluation mode: the running statistics, channel by channel."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    out = x.clone()
    for c in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                scaled = (x[c, i, j] - mean[c]) / math.sqrt(var[c] + 1e-5)
                out[c, i, j] = scaled * weight[c] + bias[c]
    return out


def relu(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def small_cnn(image, state, blocks):
    """Stage outputs of one image (3, H, W) whose sides the stride divides."""
    x = torch.stack([(image[c] - state["mean"][c]) / state["std"][c] for c in range(3)])
    outputs = []
    for s, count in enumerate(blocks):
        name = f"stages.{s}"
        x = convolve(x, state[f"{name}.0.weight"], 2)
        x = relu(batch_norm(x, state, f"{name}.1"))
        for b in range(count):
            block = f"{name}.{3 + b}"
            y = x
            for k in (1, 2):
                y = convolve(y, state[f"{block}.conv{k}.weight"], 1)
                y = batch_norm(y, state, f"{block}.norm{k}")
                y = relu(y) if k == 1 else relu(x + y)
            x = y
        outputs.append(x)
    return outputs


def bilateral_features(image, directions, *, colour_scale, position_scale, stride):
    """``directions`` (D / 2, 5) ~ N(0, 1); ``image`` (3, H, W), sides divisible; (D, h, w)."""
    _, height, width = image.shape
    h, w = height // stride, width // stride
    out = torch.zeros(2 * len(directions), h, w, dtype=image.dtype)
    for i in range(h):
        for j in range(w):
            z = []
            for c in range(3):
                total = 0.0
                for di in range(stride):
                    for dj in range(stride):
                        total += float(image[c, i * stride + di, j * stride + dj])
                z.append(total / stride**2 / colour_scale)
            z.append((i + 0.5) / max(h, w) / position_scale)
            z.append((j + 0.5) / max(h, w) / position_scale)
            for d, direction in enumerate(directions.tolist()):
                phase = sum(a * b for a, b in zip(direction, z, strict=True))
                out[d, i, j] = math.cos(phase) / math.sqrt(len(directions))
                out[len(directions) + d, i, j] = math.sin(phase) / math.sqrt(len(directions))
    return out


def unit(vector):
    norm = math.sqrt(sum(v * v for v in vector))
    return [v / norm for v in vector]


def class_rows(embeddings):
    """``embeddings[class][template]`` -> mean of the unit vectors, of unit length again."""
    rows = []
    for templates in embeddings:
        units = [unit(e) for e in templates]
        rows.append(unit([sum(u[d] for u in units) / len(units) for d in range(len(units[0]))]))
    return rows
