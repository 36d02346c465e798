"""Command lines of the examples: a dataclass, named presets, and options that override them."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wsss_blocks._files import replaced
from wsss_blocks._optional import require

__all__ = ["load_config", "parse_config", "save_config"]

ConfigT = TypeVar("ConfigT")


def parse_config(
    presets: Mapping[str, ConfigT], *, args: Sequence[str] | None = None, description: str = ""
) -> ConfigT:
    """Read a command line: ``--preset`` chooses the values that the other options override.

    Without ``--preset`` the one named like ``--data`` is taken, or else the first one for that
    data; with neither option, the first of all.

    Args:
        presets: dataclass instances of one type, with fields ``data`` and ``preset``.
        args: command line; None for that of the process.
        description: text of ``--help``.

    Returns:
        The preset with the options applied. Unknown options, or an unknown preset, end the process
        with exit code 2.

    Raises:
        ImportError: tyro is not installed.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     data: str = "scenes"
        ...     preset: str = "scenes"
        ...     steps: int = 10
        >>> presets = {"scenes": Config(), "voc": Config("voc", "voc", steps=20000)}
        >>> parse_config(presets, args=["--data", "voc"]).steps
        20000
        >>> parse_config(presets, args=["--data", "voc", "--preset", "scenes"])
        Config(data='voc', preset='scenes', steps=10)
    """
    tyro = require("tyro", extra="cli", what="a command line")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--data", default=next(iter(presets)))
    early.add_argument("--preset")
    known, _ = early.parse_known_args(args)
    like = [name for name, preset in presets.items() if getattr(preset, "data", "") == known.data]
    name = known.preset or (known.data if known.data in presets else (*like, known.data)[0])
    if name not in presets:
        early.error(f"--preset must be one of {', '.join(presets)}, got {name}.")
    config: ConfigT = tyro.cli(
        type(presets[name]), args=args, default=presets[name], description=description
    )
    return config


def save_config(path: Path, config: Any, **extra: Any) -> None:
    """Write a dataclass, and what else belongs to the run, as JSON.

    The file appears under its name only when it is whole.
    """
    values = dataclasses.asdict(config) | extra
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=str) + "\n")


def load_config(path: Path, like: ConfigT) -> tuple[ConfigT, dict[str, Any]]:
    """Read what :func:`save_config` wrote.

    Args:
        path: the JSON file.
        like: an instance that gives the fields which the file lacks.

    Returns:
        The dataclass, and what else was in the file.

    Raises:
        ValueError: the file is not JSON.

    Example:
        >>> import tempfile
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     root: Path | None = None
        ...     scales: tuple[float, ...] = ()
        >>> path = Path(tempfile.mkdtemp()) / "config.json"
        >>> save_config(path, Config(Path("voc"), (1.0, 2.0)), names=["cat"])
        >>> load_config(path, Config())
        (Config(root=PosixPath('voc'), scales=(1.0, 2.0)), {'names': ['cat']})
    """
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got {error}.") from error
    fields = {f.name: f for f in dataclasses.fields(like)}  # type: ignore[arg-type]
    known = {
        name: _restore(value, str(fields[name].type))
        for name, value in values.items()
        if name in fields
    }
    rest = {name: value for name, value in values.items() if name not in fields}
    return dataclasses.replace(like, **known), rest  # type: ignore[type-var]


def _restore(value: Any, annotation: str) -> Any:
    if isinstance(value, list):
        inner = [Path(v) if "Path" in annotation else v for v in value]
        return tuple(inner)
    return Path(value) if value is not None and "Path" in annotation else value
