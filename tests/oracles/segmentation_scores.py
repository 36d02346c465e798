"""Loops over pixels and classes: IoU, FP and FN shares, precision, recall; the CAM label rule."""

import math


def confusion(pairs, classes, ignore):
    """``pairs`` of nested lists (pred, target), each (H, W)."""
    table = [[0] * classes for _ in range(classes)]
    for pred, target in pairs:
        for pred_row, target_row in zip(pred, target, strict=True):
            for p, t in zip(pred_row, target_row, strict=True):
                if t != ignore:
                    table[t][p] += 1
    return table


def scores(table, absent):
    classes = range(len(table))
    iou, fpr, fnr, precision, recall = [], [], [], [], []
    right = total = 0
    for c in classes:
        tp = table[c][c]
        fn = sum(table[c][p] for p in classes if p != c)
        fp = sum(table[t][c] for t in classes if t != c)
        right += tp
        total += tp + fn
        in_target, in_pred = tp + fn > 0, tp + fp > 0
        counted = in_target if absent == "target" else in_target or in_pred
        union = tp + fp + fn
        iou.append(tp / union if counted else math.nan)
        if counted:
            fpr.append(fp / union)
            fnr.append(fn / union)
        precision.append(tp / (tp + fp) if in_pred else math.nan)
        recall.append(tp / (tp + fn) if in_target else math.nan)

    def mean(values):
        values = [v for v in values if not math.isnan(v)]
        return sum(values) / len(values) if values else math.nan

    return {
        "iou": iou,
        "precision": precision,
        "recall": recall,
        "miou": mean(iou),
        "mfpr": mean(fpr),
        "mfnr": mean(fnr),
        "pixel_accuracy": right / total if total else math.nan,
    }


def bilinear(plane, height, width):
    """Half-pixel centres (align_corners=False), borders clamped."""
    h, w = len(plane), len(plane[0])

    def taps(i, size, source):
        x = min(max((i + 0.5) * source / size - 0.5, 0.0), source - 1)
        low = math.floor(x)
        return low, min(low + 1, source - 1), x - low

    out = []
    for i in range(height):
        y0, y1, fy = taps(i, height, h)
        row = []
        for j in range(width):
            x0, x1, fx = taps(j, width, w)
            top = plane[y0][x0] * (1 - fx) + plane[y0][x1] * fx
            low = plane[y1][x0] * (1 - fx) + plane[y1][x1] * fx
            row.append(top * (1 - fy) + low * fy)
        out.append(row)
    return out


def cam_label(cam, present, height, width, threshold, normalize=True, eps=1e-5):
    """One image: ``cam`` K planes, ``present`` K bools."""
    best = [[0.0] * width for _ in range(height)]
    label = [[0] * width for _ in range(height)]
    for k, plane in enumerate(cam):
        if not present[k]:
            continue
        up = [[max(v, 0.0) for v in row] for row in bilinear(plane, height, width)]
        low, high = min(map(min, up)), max(map(max, up))
        for i in range(height):
            for j in range(width):
                s = (up[i][j] - low) / (high - low + eps) if normalize else up[i][j]
                if s > best[i][j]:
                    best[i][j], label[i][j] = s, k + 1
    return [
        [label[i][j] if best[i][j] > threshold else 0 for j in range(width)] for i in range(height)
    ]
