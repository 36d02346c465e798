"""Say at the start of a run where each of its values comes from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wsss_blocks.cli.run import RunConfig

__all__ = ["describe_recipe"]

# What says where and how to run rather than what is learnt.
_OF_A_RUN = {
    *("data", "preset", "root", "labels", "split", "strict", "keep_empty", "output", "resume"),
    *("seed", "device", "predict", "workers", "save_every", "log_every", "evaluate"),
    *("eval_every", "eval_images", "compile", "refine"),
}


def describe_recipe(cfg: RunConfig, preset: RunConfig, *, sources: Mapping[str, str]) -> str:
    """List the options of a method with their values and where these come from.

    Args:
        cfg: of the run.
        preset: the one it started from; what differs is listed as changed.
        sources: option -> where the preset's value comes from, as ``"paper, Tab. 5"``; under the
            name ``""`` where all others come from.

    Returns:
        Lines of ``option  value  source``, those with a source of their own first.

    Raises:
        ValueError: a source for an option that does not exist.

    Example:
        >>> cfg = RunConfig(lr=0.1)
        >>> text = describe_recipe(cfg, RunConfig(), sources={"steps": "paper", "": "ours"})
        >>> print(text.splitlines()[0].split())
        ['steps', '1000', 'paper']
        >>> [line for line in text.splitlines() if line.startswith("lr ")][0].split()
        ['lr', '0.1', 'changed', '(preset:', '0.001)']
    """
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    if unknown := sorted(set(sources) - {"", *values}):
        raise ValueError(f"sources must name options, got {unknown}.")
    names = [name for name in values if name not in _OF_A_RUN]
    names.sort(key=lambda name: name not in sources)
    rows = []
    for name in names:
        source = sources.get(name, sources.get("", "?"))
        if values[name] != getattr(preset, name):
            source = f"changed (preset: {_shown(getattr(preset, name))})"
        rows.append((name, _shown(values[name]), source))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{n:<{widths[0]}}  {v:<{widths[1]}}  {s}" for n, v, s in rows)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_shown, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
