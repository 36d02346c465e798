"""Loop transcriptions of the heads; plain numbers in, plain numbers out."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def class_map(features, weight):
    """cam[b][k][y][x] = <w_k, f(y, x)>."""
    out = []
    for image in features:
        maps = []
        for row in weight:
            values = []
            for y in range(len(image[0])):
                columns = range(len(image[0][0]))
                values.append([dot(row, [channel[y][x] for channel in image]) for x in columns])
            maps.append(values)
        out.append(maps)
    return out


def maximum(maps, valid):
    """Largest value of each map among the valid positions, 0 where there is none."""
    out = []
    for b, image in enumerate(maps):
        row = []
        for channel in image:
            values = [
                channel[y][x]
                for y in range(len(channel))
                for x in range(len(channel[0]))
                if valid is None or valid[b][y][x]
            ]
            row.append(max(values) if values else 0.0)
        out.append(row)
    return out


def class_head(features, weight, valid, pool_at):
    cam = class_map(features, weight)
    if pool_at == "cam":
        return maximum(cam, valid), cam
    pooled = maximum(features, valid)
    return [[dot(row, vector) for row in weight] for vector in pooled], cam


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def linear(vector, weight, bias):
    return [dot(row, vector) + (bias[i] if bias else 0.0) for i, row in enumerate(weight)]


def project(vector, layers, normalize):
    """Apply [(weight, bias), ...] with GELU between the layers, then the L2 norm."""
    for i, (weight, bias) in enumerate(layers):
        if i:
            vector = [gelu(x) for x in vector]
        vector = linear(vector, weight, bias)
    if normalize:
        norm = math.sqrt(sum(x * x for x in vector))
        vector = [x / norm if norm > 0 else 0.0 for x in vector]
    return vector


def dino(vector, layers, prototypes):
    """Cosines between what a perceptron makes of a vector and each prototype."""
    unit = project(vector, layers, True)
    rows = [project(row, [], True) for row in prototypes]
    return [dot(row, unit) for row in rows]
