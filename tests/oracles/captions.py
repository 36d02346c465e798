"""Loop-level transcriptions for captions: words changed one by one, a transformer on lists."""

import math


def starts(ids, mask, begins, ends, special):
    """First pieces: behind nothing, a special token, padding or an end, or at a mark."""
    found = []
    for t, i in enumerate(ids):
        word = mask[t] and not special[i]
        before = t == 0 or not mask[t - 1] or special[ids[t - 1]] or ends[ids[t - 1]]
        found.append(bool(word and (before or begins[i])))
    return found


def augment(ids, mask, table, rates, u, drawn):
    """Change one caption; ``u[t]`` and ``drawn[t]`` count where a word starts at t."""
    m, r, d = rates
    words, order = [], []  # (place of the first piece, pieces); words and specials in order
    first = starts(ids, mask, table["begins"], table["ends"], table["special"])
    for t, i in enumerate(ids):
        if not mask[t]:
            continue
        if table["special"][i]:
            order.append([i])
        elif first[t]:
            words.append((t, [i]))
            order.append(words[-1])
        else:
            words[-1][1].append(i)
    fates = {}
    for t, _ in words:
        if u[t] < m:
            fates[t] = "mask"
        elif u[t] < m + r:
            fates[t] = "replace"
        elif u[t] < m + r + d:
            fates[t] = "delete"
        else:
            fates[t] = "keep"
    if words and all(fate == "delete" for fate in fates.values()):
        fates[max(fates, key=lambda t: u[t])] = "keep"
    ordinary = [i for i, is_ordinary in enumerate(table["ordinary"]) if is_ordinary]
    out = []
    for item in order:
        if isinstance(item, list):
            out += item
            continue
        t, pieces = item
        if fates[t] == "mask":
            out += [table["mask_id"]] * len(pieces)
        elif fates[t] == "replace":
            out.append(ordinary[drawn[t]])
        elif fates[t] == "keep":
            out += pieces
    left = len(ids) - len(out)
    return out + [table["pad_id"]] * left, [True] * len(out) + [False] * left


def layer_norm(x, weight, bias, eps=1e-5):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [
        (v - mean) / math.sqrt(variance + eps) * w + b
        for v, w, b in zip(x, weight, bias, strict=True)
    ]


def linear(x, weight, bias):
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def attention(tokens, mask, state, heads):
    """Scaled dot products with the real tokens, per head."""
    dim = len(tokens[0])
    size = dim // heads
    packed = [linear(x, state["qkv.weight"], state["qkv.bias"]) for x in tokens]
    out = []
    for query in packed:
        joined = []
        for h in range(heads):
            q = query[h * size : (h + 1) * size]
            scores, values = [], []
            for key, real in zip(packed, mask, strict=True):
                if real:
                    k = key[dim + h * size : dim + (h + 1) * size]
                    scores.append(
                        math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size))
                    )
                    values.append(key[2 * dim + h * size : 2 * dim + (h + 1) * size])
            total = sum(scores)
            joined += [
                sum(s * v[c] for s, v in zip(scores, values, strict=True)) / total
                for c in range(size)
            ]
        out.append(linear(joined, state["out.weight"], state["out.bias"]))
    return out


def small_text(ids, mask, state, *, depth, heads):
    """Tokens of one caption and the mean of the real ones; ``state`` holds lists."""
    x = [
        [e + p for e, p in zip(state["embedding.weight"][i], state["position"][t], strict=True)]
        for t, i in enumerate(ids)
    ]
    for n in range(depth):
        own = {k.removeprefix(f"layers.{n}."): v for k, v in state.items()}
        normed = [layer_norm(v, own["norm1.weight"], own["norm1.bias"]) for v in x]
        added = attention(normed, mask, own, heads)
        x = [[a + b for a, b in zip(v, w, strict=True)] for v, w in zip(x, added, strict=True)]
        for t, v in enumerate(x):
            hidden = layer_norm(v, own["norm2.weight"], own["norm2.bias"])
            hidden = [gelu(h) for h in linear(hidden, own["mlp.0.weight"], own["mlp.0.bias"])]
            added_t = linear(hidden, own["mlp.2.weight"], own["mlp.2.bias"])
            x[t] = [a + b for a, b in zip(v, added_t, strict=True)]
    x = [layer_norm(v, state["norm.weight"], state["norm.bias"]) for v in x]
    real = [v for v, m in zip(x, mask, strict=True) if m]
    return x, [sum(v[c] for v in real) / len(real) for c in range(len(x[0]))]
