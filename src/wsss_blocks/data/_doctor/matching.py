"""Match ids, images, label rows and masks before any image is read."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wsss_blocks.data._doctor.duplicates import Use, same_ids
from wsss_blocks.data._doctor.files import Item
from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data._doctor.lacking import Lacking, find_masks, without_mask, without_row
from wsss_blocks.data._doctor.layout import TABLES, Layout
from wsss_blocks.data._doctor.parts import Listing, Part
from wsss_blocks.data._matching import image_id, spelled
from wsss_blocks.data.classes import check_split_size, class_table
from wsss_blocks.data.coco import _number

__all__ = ["Matched", "SplitCounts", "match"]

Key = Callable[[str], str]


class SplitCounts(NamedTuple):
    """How many images a split has, and how many of them have a label row and a mask.

    Attributes:
        images: image files.
        labelled: images with a row of labels.
        masks: images with a mask.
    """

    images: int
    labelled: int
    masks: int


class Matched(NamedTuple):
    """The images to read, what is wrong already, and where images are used."""

    items: list[Item]
    findings: list[Finding]
    splits: dict[str, SplitCounts]
    uses: dict[str, list[Use]]  # image -> splits
    twins: list[tuple[Use, Use]]  # one id, two files: duplicates if they look alike


def match(layout: Layout) -> Matched:
    """Find the file, row and mask of every id; name those that lack one."""
    key: Key = _number if layout.kind == "coco" else spelled
    findings, items = list(layout.findings), dict[str, Item]()
    splits, uses = dict[str, SplitCounts](), defaultdict[str, list[Use]](list)
    ids, shows = defaultdict[str, list[Use]](list), dict[str, Counter[str]]()
    no_row, no_mask = Lacking(), Lacking()
    files = [_files_by_key(part, key, findings) for part in layout.parts]
    rows = [_rows_by_file(*pair, key, findings) for pair in zip(layout.parts, files, strict=True)]
    used = {id(part.labels) for part, own in zip(layout.parts, rows, strict=True) if own}
    findings += _rows_without_file(layout.parts, files, key)
    for part, by_key, row_of in zip(layout.parts, files, rows, strict=True):
        fits = part.labels is None or part.labels.names == layout.names
        if part.labels is not None and not fits:
            detail = f"{_short(part.labels.names)}, expected {_short(layout.names)}"
            findings.append(Finding("class-names", str(part.labels_from), detail))
        for split in part.splits:
            chosen = _chosen(part, split, by_key, key, findings)
            labelled = [file for file in chosen if file in row_of]
            masks = find_masks(split, chosen, numbered=layout.kind == "coco")
            if part.labels is not None:
                meant = not labelled and id(part.labels) in used
                no_row.judge(without_row(part, chosen, row_of), meant=meant)
            no_mask.judge(
                without_mask(part, split, chosen, masks), meant=2 * len(masks) < len(chosen)
            )
            splits[split.name] = SplitCounts(len(chosen), len(labelled), len(masks))
            findings += _wrong_size(layout, split, len(chosen))
            shows[split.name] = Counter()
            for file in chosen:
                path, present = str(part.images / file), None
                if part.labels is not None and file in row_of:
                    present = tuple(part.labels.classes(row_of[file]))
                    shows[split.name].update(present)
                    if not present and path not in items:
                        findings.append(Finding("no-class", path, f"row of {part.labels_from}"))
                old = items.get(path, Item(path, (), present if fits else None))
                mask = (masks[file],) if file in masks and masks[file] not in old.masks else ()
                items[path] = old._replace(masks=old.masks + mask)
                uses[path].append(Use(path, split.name))
                ids[key(image_id(file))].append(uses[path][-1])
    repeated, twins = same_ids(ids.values())
    findings += [*no_row.left(), *no_mask.left(), *_empty_classes(layout, shows), *repeated]
    for image in {use.image for pair in twins for use in pair}:
        items[image] = items[image]._replace(twin=True)
    return Matched(list(items.values()), findings, splits, dict(uses), twins)


def _files_by_key(part: Part, key: Key, findings: list[Finding]) -> dict[str, str]:
    """Map each image's id, with and without its suffix, to the file."""
    by_key: dict[str, str] = {}
    for file in part.files:
        first = by_key.setdefault(key(image_id(file)), file)
        by_key.setdefault(key(file), file)
        if first != file:
            detail = f"the same id as {part.images / first}"
            findings.append(Finding("duplicate-id", str(part.images / file), detail))
    return by_key


def _rows_by_file(
    part: Part, by_key: dict[str, str], key: Key, findings: list[Finding]
) -> dict[str, str]:
    row_of: dict[str, str] = {}
    for row in part.labels or ():
        file = by_key.get(key(row))
        if file is not None and row_of.setdefault(file, row) != row:
            detail = f"two rows for {part.images / file}: {row_of[file]!r}, {row!r}"
            findings.append(Finding("duplicate-id", str(part.labels_from), detail))
    return row_of


def _rows_without_file(
    parts: Sequence[Part], files: Sequence[dict[str, str]], key: Key
) -> Iterator[Finding]:
    """Name the rows that have no image in any of the parts that share their label file."""
    for number, part in enumerate(parts):
        group = [i for i, other in enumerate(parts) if other.labels is part.labels]
        if part.labels is None or group[0] != number:
            continue
        listed = {key(i) for n in group for split in parts[n].splits for i in split.ids or ()}
        for row in part.labels:
            if key(row) not in listed and not any(key(row) in files[n] for n in group):
                where = ", ".join(str(parts[n].images) for n in group)
                detail = f"row of {part.labels_from}, no image in {where}"
                yield Finding("label-without-file", str(part.images / row), detail)


def _chosen(
    part: Part, split: Listing, by_key: dict[str, str], key: Key, findings: list[Finding]
) -> list[str]:
    """Return the files of a split."""
    if split.ids is None:
        return [file for file in part.files if by_key[key(image_id(file))] == file]
    chosen: dict[str, None] = {}
    for name in split.ids:
        file = by_key.get(key(name))
        if file is None:
            if name not in part.lost:  # it may be in several lists
                path = str(part.images / f"{name}{part.suffix}")
                detail = f"listed in {split.source}, no such image"
                findings.append(Finding("label-without-file", path, detail))
            part.lost.add(name)
        elif file in chosen:
            findings.append(Finding("duplicate-id", str(split.source), f"lists {name!r} twice"))
        else:
            chosen[file] = None
    return list(chosen)


def _wrong_size(layout: Layout, split: Listing, count: int) -> Iterator[Finding]:
    """Compare with the official number; folders of other classes only borrow the layout."""
    if layout.kind in TABLES and layout.names == class_table(layout.kind).names:
        try:
            check_split_size(layout.kind, split.name, count)
        except ValueError as error:
            yield Finding("split-size", str(split.source), str(error))


def _empty_classes(layout: Layout, shows: dict[str, Counter[str]]) -> Iterator[Finding]:
    """Name the classes that no training image shows; without a training split, that none shows."""
    labelled = {name: count for name, count in shows.items() if count}
    training = [name for name in labelled if name.startswith("train")] or list(labelled)
    total = sum((labelled[name] for name in training), Counter[str]())
    source = next((part.labels_from for part in layout.parts if part.labels is not None), None)
    for name in layout.names if labelled else ():
        if not total[name]:
            detail = f"no image of {', '.join(training)} shows {name!r}"
            yield Finding("empty-class", str(source), detail)


def _short(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
