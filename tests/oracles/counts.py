"""What the normalised losses divide by, counted one pixel and one pair at a time."""


def balanced_segmentation(mask, ignore_index=255):
    """Background pixels, foreground pixels."""
    background = foreground = 0
    for grid in mask.tolist():
        for row in grid:
            for c in row:
                if c == ignore_index:
                    continue
                if c == 0:
                    background += 1
                else:
                    foreground += 1
    return [background, foreground]


def segmentation(mask, ignore_index=255):
    """Pixels that have a label."""
    return sum(c != ignore_index for grid in mask.tolist() for row in grid for c in row)


def patch_token_contrast(mask, ignore_index=255):
    """Ordered pairs i != j of one image: of one label, of two labels."""
    positive = negative = 0
    for grid in mask:
        ids = grid.flatten().tolist()
        for i in range(len(ids)):
            for j in range(len(ids)):
                if i == j or ignore_index in (ids[i], ids[j]):
                    continue
                if ids[i] == ids[j]:
                    positive += 1
                else:
                    negative += 1
    return [positive, negative]


def cross_contrastive(mask, labels, ignore_index=255):
    """Images with a pixel of a class that has a label."""
    images = 0
    for grid, y in zip(mask.tolist(), labels.tolist(), strict=True):
        ids = {c for row in grid for c in row if c not in (0, ignore_index)}
        if any(y[c - 1] > 0 for c in ids):
            images += 1
    return images


def global_implicit_alignment(labels):
    """Images with a class."""
    return sum(any(value > 0 for value in row) for row in labels.tolist())
