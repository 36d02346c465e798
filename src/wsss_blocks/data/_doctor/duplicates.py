"""Images that occur twice: one id, the same bytes, or, under one id, the same looks."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from wsss_blocks.data._doctor.files import Seen
from wsss_blocks.data._doctor.kinds import Finding

__all__ = ["Use", "same_bytes", "same_ids", "same_looks"]

# Mean difference of 16 x 16 grey values of a picture saved again or rescaled; two photographs of
# one thing from one place differ more.
ALIKE = 2.0


class Use(NamedTuple):
    """An image and a split that it is in."""

    image: str
    split: str


def same_ids(
    uses_of_ids: Iterable[list[Use]],
) -> tuple[list[Finding], list[tuple[Use, Use]]]:
    """Name the images in two splits; of two files with one id, return the pair instead."""
    findings: dict[str, Finding] = {}
    twins: dict[tuple[str, str], tuple[Use, Use]] = {}
    for uses in uses_of_ids:
        for a, b in combinations(uses, 2) if len(uses) > 1 else ():
            if not _disjoint(a.split, b.split):
                continue
            if a.image == b.image:
                found = Finding("duplicate-id", a.image, f"in {a.split} and in {b.split}")
                findings.setdefault(a.image, found)
            else:
                twins.setdefault((a.image, b.image), (a, b))
    return list(findings.values()), list(twins.values())


def same_looks(twins: Iterable[tuple[Use, Use]], seen: dict[str, Seen]) -> Iterable[Finding]:
    """Name the second of two files that have one id, look alike, and differ in their bytes.

    In folders of their own, splits often count from 1: the id alone says nothing.
    """
    for a, b in twins:
        first, second = seen.get(a.image), seen.get(b.image)
        if first is None or second is None or first.digest == second.digest:
            continue
        if first.looks and second.looks:
            pairs = zip(first.looks, second.looks, strict=True)
            if sum(abs(x - y) for x, y in pairs) / len(first.looks) < ALIKE:
                detail = f"in {b.split}; looks like {a.image} in {a.split}"
                yield Finding("duplicate-id", b.image, detail)


def same_bytes(seen: Iterable[Seen], uses: dict[str, list[Use]]) -> Iterable[Finding]:
    """Name each file that has the bytes of an earlier one, in its split or in another."""
    first: dict[tuple[bytes, str], str] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for one in seen:
        if one.digest is not None:
            year = _year(uses[one.item.image][0].split)
            image = first.setdefault((one.digest, year), one.item.image)
            groups[image].append(one.item.image)
    for image, copies in groups.items():
        for copy in copies[1:]:
            where, there = _splits(uses[copy]), _splits(uses[image])
            detail = f"the bytes of {image}" + (f" ({there})" if there != where else "")
            yield Finding("duplicate-content", copy, f"{where}: {detail}")


def _disjoint(a: str, b: str) -> bool:
    """Tell whether two splits must not share images: train, val and test of one year."""
    roles = _role(a), _role(b)
    return "" not in roles and roles[0] != roles[1] and _year(a) == _year(b)


def _role(split: str) -> str:
    """Return train, val or test; nothing for unions such as trainval and names of one's own."""
    found = re.match("(?!trainval)(train|val|test)", split.lower())
    return found[1] if found else ""


def _year(split: str) -> str:
    """Return the year of COCO: its two releases divide the same photographs differently."""
    found = re.search(r"20\d\d$", split)
    return found[0] if found else ""


def _splits(uses: Iterable[Use]) -> str:
    return "in " + ", ".join(dict.fromkeys(use.split for use in uses))
