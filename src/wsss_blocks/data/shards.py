"""Find tar shards of image-text pairs and how many samples each of them holds."""

import glob
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wsss_blocks._optional import require
from wsss_blocks.data._files import read_text

__all__ = ["SHARD_IMAGES", "ShardList", "find_shards", "shard_key"]

SHARD_IMAGES = ("jpg", "jpeg", "png", "webp")


class ShardList(NamedTuple):
    """Tar files and the number of samples in each, from :func:`find_shards`.

    Example:
        >>> ShardList((Path("0.tar"), Path("1.tar")), (9000, 8500)).samples
        17500
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(self.counts)


def find_shards(patterns: str | Path | Sequence[str | Path]) -> ShardList:
    """List the shards of a data set in webdataset's format; none may be missing or broken.

    The number of samples in a shard is what a file beside it says: ``00000_stats.json`` of
    img2dataset (``successes``), or ``sizes.json`` (``{"00000.tar": 8731, ...}``). Without one, the
    headers of the tar are read and its images counted, which takes about a second for 10,000
    samples; published numbers of a data set do not count, because many of its links are dead.

    Args:
        patterns: one or several of: a folder (all its ``*.tar``), a file, a pattern with
            ``*``, ``?`` or ``[...]``, or one with braces, ``cc3m/{00000..00575}.tar``.

    Returns:
        The shards, in the order of the patterns and sorted within each.

    Raises:
        FileNotFoundError: a shard that a path or braces name does not exist (all such shards are
            listed), or a pattern or folder matches none.
        ValueError: a shard is empty, no tar file, cut short, without images or listed twice, or
            the file beside it does not hold a number of samples.
        TypeError: a pattern is neither text nor a path.
        ImportError: webdataset is not installed.

    Example:
        >>> import io, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(f"{folder}/00000.tar", "w") as tar:
        ...         for name in ("1.jpg", "1.txt", "2.jpg", "2.txt"):
        ...             tar.addfile(tarfile.TarInfo(name))
        ...     find_shards(folder).counts
        (2,)
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        paths += _matched(pattern)
    if missing := [str(path) for path in paths if not path.is_file()]:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} shards do not exist: {shown}.")
    if not paths:
        raise ValueError("patterns must name shards, got none.")
    if twice := [str(path) for path, times in Counter(paths).items() if times > 1]:
        raise ValueError(f"patterns must name a shard once, got {', '.join(twice[:10])} again.")
    sizes: dict[Path, dict[str, Any]] = {}
    return ShardList(tuple(paths), tuple(_count(path, sizes) for path in paths))


def shard_key(member: str) -> tuple[str, str]:
    """Split the name of a member into the key of its sample and the suffix: at the first dot."""
    parent, _, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    return (f"{parent}/{stem}" if parent else stem), suffix.lower()


def _matched(pattern: str | Path) -> list[Path]:
    if not isinstance(pattern, str | Path):
        raise TypeError(f"patterns must be text or paths, got {pattern!r}.")
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
    elif Path(pattern).is_file():
        return [Path(pattern)]
    elif "{" in str(pattern):
        lists = require("webdataset.shardlists", extra="webdata", what="find_shards with braces")
        return [Path(name) for name in lists.expand_urls(str(pattern))]
    elif glob.has_magic(str(pattern)):
        found = [Path(name) for name in sorted(glob.glob(str(pattern)))]
    else:
        return [Path(pattern)]
    if not found:
        raise FileNotFoundError(f"no shards *.tar at {pattern}.")
    return found


def _count(path: Path, sizes: dict[Path, dict[str, Any]]) -> int:
    try:
        with tarfile.open(path) as tar:  # reads the first header
            told = _told(path, sizes)
            count = _counted(tar) if told is None else told
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} must be a tar file of samples: {error}") from error
    if count < 1:
        raise ValueError(f"{path} must hold images ({', '.join(SHARD_IMAGES)}), got none.")
    return count


def _told(path: Path, sizes: dict[Path, dict[str, Any]]) -> int | None:
    """Return the count from the file beside a shard, None without one."""
    stats, listed = path.with_name(f"{path.stem}_stats.json"), path.with_name("sizes.json")
    if stats.is_file():
        count = _json(stats).get("successes")
    elif listed.is_file():
        if listed not in sizes:
            sizes[listed] = _json(listed)
        stats, count = listed, sizes[listed].get(path.name)
    else:
        return None
    if not isinstance(count, int):
        raise ValueError(f"{stats} must give the number of samples in {path.name}, got {count!r}.")
    return count


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, "file of counts"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file of counts: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _counted(tar: tarfile.TarFile) -> int:
    keys = set()
    for member in tar:
        key, suffix = shard_key(member.name)
        if member.isfile() and suffix in SHARD_IMAGES and not _hidden(member.name):
            keys.add(key)
    return len(keys)


def _hidden(member: str) -> bool:
    return PurePosixPath(member).name.startswith(".")
