"""The commands of ``wsss``: a module each, which loads torch only once the command runs."""

from collections.abc import Callable

from wsss_blocks.cli.commands.compare import compare
from wsss_blocks.cli.commands.deploy import deploy
from wsss_blocks.cli.commands.doctor import doctor
from wsss_blocks.cli.commands.evaluate import evaluate
from wsss_blocks.cli.commands.export import export
from wsss_blocks.cli.commands.labels import labels
from wsss_blocks.cli.commands.prepare import prepare
from wsss_blocks.cli.commands.segment import segment
from wsss_blocks.cli.commands.sweep import sweep

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., int]] = {
    "compare": compare,
    "deploy": deploy,
    "doctor": doctor,
    "evaluate": evaluate,
    "export": export,
    "labels": labels,
    "prepare": prepare,
    "segment": segment,
    "sweep": sweep,
}
