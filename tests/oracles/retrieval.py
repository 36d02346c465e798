"""Recall among the first k results, by sorting one list after the other."""

import itertools
import math


def cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def recall(queries, candidates, right, ks):
    """``right[q]`` is the set of candidates that are right for query q; ties go to the wrong."""
    hits = dict.fromkeys(ks, 0)
    asked = 0
    for q, query in enumerate(queries):
        if not right[q]:
            continue
        asked += 1
        order = sorted(
            range(len(candidates)),
            key=lambda c: (-round(cosine(query, candidates[c]), 10), c in right[q]),
        )
        for k in ks:
            hits[k] += any(c in right[q] for c in order[:k])
    return [hits[k] / asked for k in ks]


def scores(image, text, text_image, ks):
    """One caption belongs to one image."""
    captions_of = [{c for c, i in enumerate(text_image) if i == n} for n in range(len(image))]
    return recall(image, text, captions_of, ks), recall(text, image, [{i} for i in text_image], ks)


def grouped_scores(image, text, text_image, groups, ks):
    """Captions with one number are one caption of several images."""
    numbers = sorted(set(groups))
    images_of = [{i for i, g in zip(text_image, groups, strict=True) if g == n} for n in numbers]
    texts = [text[groups.index(n)] for n in numbers]
    captions_of = [{c for c, own in enumerate(images_of) if n in own} for n in range(len(image))]
    return recall(image, texts, captions_of, ks), recall(texts, image, images_of, ks)


def chance(right, candidates, k):
    """Mean over queries of the share of all k-subsets that hold something right."""
    shares = []
    for count in right:
        if count:
            subsets = list(itertools.combinations(range(candidates), min(k, candidates)))
            shares.append(sum(any(c < count for c in s) for s in subsets) / len(subsets))
    return sum(shares) / len(shares)
