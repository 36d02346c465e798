"""The ``wsss`` command: weak labels, health of a data set, masks, evaluation, exports."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

__all__ = ["main"]

DESCRIPTION = """\
Weakly supervised semantic segmentation: labels and health of your data, masks, scores, exports.

Exit code 0: done; 1: done, and the answer is no (doctor found something); 2: could not be done.
`wsss COMMAND --help` has examples. WSSS_DEBUG=1 shows where an error comes from."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        args: the words after ``wsss``; None for those of the process.

    Returns:
        The exit code: 0, 1 for what a command found to be wrong, 2 for what it could not do, 130
        when interrupted.

    Raises:
        SystemExit: after ``--help``, and with code 2 for a command line that cannot be understood.
    """
    try:
        for module in ("tyro", "rich"):
            importlib.import_module(module)
    except ImportError as error:
        print(f"wsss needs {error.name}: pip install 'wsss-blocks[cli]'", file=sys.stderr)
        return 2
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("wsss: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("WSSS_DEBUG"):
            raise
        print(f"wsss: {error}", file=sys.stderr)
        return 2


def _run(args: Sequence[str] | None) -> int:
    import tyro

    from wsss_blocks.cli.commands import COMMANDS

    words = sys.argv[1:] if args is None else args

    def overview(name: str) -> str | None:
        """Return the first line of a command's text, or None for all of it in its own help."""
        text = COMMANDS[name].__doc__ or ""
        return None if name in words[:1] else text.partition("\n")[0]

    commands = tuple(
        Annotated[Any, tyro.conf.subcommand(name, constructor=run, description=overview(name))]
        for name, run in sorted(COMMANDS.items())
    )
    choice: Any = Union[commands]  # noqa: UP007
    code: int = tyro.cli(
        choice,
        prog="wsss",
        description=DESCRIPTION,
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return code
