"""The command line: `curator-dali info | verify | preview | bench | curate | rethreshold | ...`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from curator_dali.cli.common import EXIT_INTERRUPTED
from curator_dali.cli.parser import make_parser

__all__ = ["main"]

# Heavy modules are imported by the commands that need them, so that --help and a typing error answer at once.

EXIT_ERROR = 2  # the user's error, as argparse has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 well, 1 `verify` found broken images, 2 the user's error, 130 Ctrl-C.
    """
    from curator_dali.errors import CuratorDaliError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a name's letters is no reason to end
            stream.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `curator-dali info ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (CuratorDaliError, ValueError, OSError, ImportError) as error:
        if os.environ.get("CURATOR_DALI_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
