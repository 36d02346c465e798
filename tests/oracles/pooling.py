"""Loop transcriptions of the pooling equations; plain numbers in, plain numbers out."""

from fractions import Fraction


def overlap(a0, a1, b0, b1):
    """Length of the intersection of two intervals."""
    return max(Fraction(0), min(a1, b1) - max(a0, b0))


def class_areas(image, size, num_classes, ignore_index):
    """Exact share of each grid cell that each class covers; image is a list of rows."""
    h, w = size
    height, width = len(image), len(image[0])
    out = [[[Fraction(0)] * w for _ in range(h)] for _ in range(num_classes)]
    for y in range(h):
        top, bottom = Fraction(y * height, h), Fraction((y + 1) * height, h)
        for x in range(w):
            left, right = Fraction(x * width, w), Fraction((x + 1) * width, w)
            for i in range(height):
                rows = overlap(top, bottom, Fraction(i), Fraction(i + 1))
                if not rows:
                    continue
                for j in range(width):
                    columns = overlap(left, right, Fraction(j), Fraction(j + 1))
                    if columns and image[i][j] != ignore_index:
                        share = rows * columns / ((bottom - top) * (right - left))
                        out[image[i][j]][y][x] += share
    return out


def patch_class_weights(mask, size, num_classes, assign, valid, ignore_index=255):
    """Nested lists (B, C, h, w) of exact fractions."""
    h, w = size
    result = []
    for b, image in enumerate(mask):
        height, width = len(image), len(image[0])
        areas = class_areas(image, size, num_classes, ignore_index)
        out = [[[Fraction(0)] * w for _ in range(h)] for _ in range(num_classes)]
        for y in range(h):
            for x in range(w):
                if valid is not None and not valid[b][y][x]:
                    continue
                if assign == "area":
                    for c in range(num_classes):
                        out[c][y][x] = areas[c][y][x]
                elif assign == "majority":
                    best, winner = Fraction(0), None
                    for c in range(num_classes):
                        if areas[c][y][x] > best:
                            best, winner = areas[c][y][x], c
                    if winner is not None:
                        out[winner][y][x] = Fraction(1)
                else:
                    i = int((y + Fraction(1, 2)) * Fraction(height, h))
                    j = int((x + Fraction(1, 2)) * Fraction(width, w))
                    if image[i][j] != ignore_index:
                        out[image[i][j]][y][x] = Fraction(1)
        result.append(out)
    return result


def class_average_pool(features, weights):
    """Eq. 2 of DHR with weights: centroids (B, C, D) and total weights (B, C)."""
    centroids, totals = [], []
    for maps, classes in zip(features, weights, strict=True):
        rows, sums = [], []
        for weight in classes:
            total, vector = 0.0, [0.0] * len(maps)
            for y in range(len(weight)):
                for x in range(len(weight[0])):
                    total += float(weight[y][x])
                    for d in range(len(maps)):
                        vector[d] += float(weight[y][x]) * maps[d][y][x]
            rows.append([v / total if total > 0 else 0.0 for v in vector])
            sums.append(total)
        centroids.append(rows)
        totals.append(sums)
    return centroids, totals


def valid_values(channel, keep):
    """The values of one map at its valid positions."""
    return [
        channel[y][x]
        for y in range(len(channel))
        for x in range(len(channel[0]))
        if keep is None or keep[y][x]
    ]


def average(values):
    return sum(values) / len(values)


def weighted_rank(values, decay):
    numerator = denominator = 0.0
    for rank, value in enumerate(sorted(values, reverse=True)):
        numerator += decay**rank * value
        denominator += decay**rank
    return numerator / denominator


def top_fraction(values, fraction):
    """Mean of the largest share, rounded to the nearest count (halves up), at least one."""
    exact = Fraction(str(fraction)) * len(values)
    number = int(exact)
    if exact - number >= Fraction(1, 2):
        number += 1
    number = max(number, 1)
    return sum(sorted(values, reverse=True)[:number]) / number


def pool_maps(maps, valid, pool):
    """Apply ``pool`` to the valid values of each map; 0 where there is none."""
    out = []
    for b, image in enumerate(maps):
        row = []
        for channel in image:
            values = valid_values(channel, None if valid is None else valid[b])
            row.append(pool(values) if values else 0.0)
        out.append(row)
    return out


def max_response_pool(tokens, k, mask):
    """Eq. 2-3 of SimSeg, then the mean over the responses."""
    out = []
    for b, rows in enumerate(tokens):
        pooled = []
        for d in range(len(rows[0])):
            values = [rows[n][d] for n in range(len(rows)) if mask is None or mask[b][n]]
            values.sort(reverse=True)
            number = min(k, len(values))
            pooled.append(sum(values[:number]) / number if number else 0.0)
        out.append(pooled)
    return out
