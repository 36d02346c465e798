"""A few samples out of many, for figures."""

__all__ = ["spread"]


def spread(count: int, most: int) -> range:
    """Return at most ``most`` indices below ``count``, evenly spaced from the first one on."""
    return range(0, count, max(1, count // most))[:most]
