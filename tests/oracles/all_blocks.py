"""Loop-level transcription of the decoder over all blocks, one number at a time."""

import math

import torch


def linear(x, weight, bias):
    """One vector."""
    rows = weight.flatten(1).tolist()
    return [sum(a * b for a, b in zip(r, x, strict=True)) + c
            for r, c in zip(rows, bias.tolist(), strict=True)]  # fmt: skip


def norm(x, weight, bias):
    """Standardise a vector, then scale and shift its numbers."""
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    pairs = zip(x, weight.tolist(), bias.tolist(), strict=True)
    return [(v - mean) / math.sqrt(var + 1e-5) * a + b for v, a, b in pairs]


def gelu(v):
    """The exact one."""
    return v * (1 + math.erf(v / math.sqrt(2))) / 2


def attend(tokens, heads, weight, bias):
    """Multi-head attention of a list of tokens among each other, without the last projection."""
    dim = len(tokens[0])
    size = dim // heads
    qkv = [linear(x, weight, bias) for x in tokens]
    out = [[] for _ in tokens]
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        q, k, v = ([row[i * dim : (i + 1) * dim][part] for row in qkv] for i in range(3))
        for i, query in enumerate(q):
            logits = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(size)
                      for key in k]  # fmt: skip
            e = [math.exp(x - max(logits)) for x in logits]
            for c in range(size):
                out[i].append(sum(w / sum(e) * value[c] for w, value in zip(e, v, strict=True)))
    return out


def added(x, y):
    """Sum of two vectors."""
    return [a + b for a, b in zip(x, y, strict=True)]


def layer(tokens, params, prefix, heads):
    """Attention, then the feed-forward network, each behind a norm and beside a shortcut."""

    def of(name):
        return params[f"{prefix}.{name}.weight"], params[f"{prefix}.{name}.bias"]

    looked = attend([norm(x, *of("norm1")) for x in tokens], heads, *of("qkv"))
    tokens = [added(x, linear(y, *of("proj"))) for x, y in zip(tokens, looked, strict=True)]
    hidden = [[gelu(v) for v in linear(norm(x, *of("norm2")), *of("fc1"))] for x in tokens]
    return [added(x, linear(y, *of("fc2"))) for x, y in zip(tokens, hidden, strict=True)]


def all_blocks(maps, params, layers, heads):
    """Return fused maps and logits of one set of parameters."""
    batch, _, h, w = maps[0].shape

    def of(name):
        return params[f"{name}.weight"], params[f"{name}.bias"]

    fused, logits = [], []
    for b in range(batch):
        tokens = []
        for i in range(h * w):
            row = []
            for n, x in enumerate(maps):
                hidden = linear(x[b, :, i // w, i % w].tolist(), *of(f"perceptrons.{n}.0"))
                row += linear([max(v, 0.0) for v in hidden], *of(f"perceptrons.{n}.2"))
            tokens.append(linear(row, *of("fusion")))
        fused.append(tokens)
        for n in range(layers):
            tokens = layer(tokens, params, f"layers.{n}", heads)
        logits.append([linear(x, *of("classifier")) for x in tokens])
    return tuple(
        torch.tensor(x, dtype=torch.float64).mT.reshape(batch, -1, h, w) for x in (fused, logits)
    )
