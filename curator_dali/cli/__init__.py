"""The command line: `curator-dali info | verify | preview | bench | curate | rethreshold | ...`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curator_dali._version import __version__
from curator_dali.cli import curate, inspect, outputs, prepare
from curator_dali.cli.common import EXIT_INTERRUPTED, SOURCES, add_cache, add_trust, cache_of, device_of, positive

__all__ = ["main"]

_EXIT_ERROR = 2  # the user's error, as argparse has it

# Heavy modules are imported by the commands that need them, so that --help and a typing error answer at once.


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
    arguments = _make_parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code or 0
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
        return _EXIT_ERROR


def _run(arguments: argparse.Namespace) -> int | None:
    """Run the command, with the cache that the flags ask for."""
    if not getattr(arguments, "cache", None) and not getattr(arguments, "cache_limit", None):
        return arguments.command(arguments)  # type: ignore[no-any-return]
    from curator_dali.io import use_cache

    with use_cache(cache_of(arguments)):
        return arguments.command(arguments)  # type: ignore[no-any-return]


def _make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.command` is the function to call."""
    parser = argparse.ArgumentParser(
        prog="curator-dali",
        description="Load images through NVIDIA DALI and look after image data sets.",
        epilog="CURATOR_DALI_DEBUG=1 shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"curator-dali {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", metavar="SRC", nargs="+", help=SOURCES)
    add_cache(source)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of text")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="auto", help="auto (the default), cpu or cuda:N")
    decoding = argparse.ArgumentParser(add_help=False, parents=[device])
    decoding.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images a batch (default 64)")
    decoding.add_argument("--threads", type=positive, metavar="N", help="decoding threads (default: all cores)")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str, *parents: Any) -> Any:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents)
        added.set_defaults(command=run)
        return added

    looked = command("info", inspect.info, "say what a source holds; reads headers, decodes nothing", source, as_json)
    add_trust(looked)
    verify = command("verify", inspect.verify, "decode everything and list what is broken", source, decoding, as_json)
    verify.add_argument(
        "--report", type=Path, metavar="FILE", help="write all broken images to .parquet, .jsonl or .json"
    )
    preview = command("preview", inspect.preview, "draw a contact sheet with ids", source, device)
    preview.add_argument("-o", "--out", type=Path, default=Path("sheet.png"), help="where (default sheet.png)")
    preview.add_argument("-n", "--count", type=positive, default=48, metavar="N", help="images (default 48)")
    preview.add_argument("--shuffle", type=int, metavar="SEED", help="take images from all over the source")
    preview.add_argument("--columns", type=positive, metavar="N", help="images a row (default: what looks well)")
    bench = command("bench", inspect.bench, "measure how fast the loader is on a source", source, decoding, as_json)
    bench.add_argument("--rounds", type=positive, default=3, metavar="N", help="passes after a first one (default 3)")
    curating = command(
        "curate", curate.run, "keep what passes, write it as tars and everything known as Parquet", as_json
    )
    curate.add_arguments(curating)
    prepare.add_arguments(
        command("prepare", prepare.run, "make the index of a data set, which opens it at once", source, as_json)
    )
    outputs.add_rethreshold(
        command(
            "rethreshold", outputs.rethreshold, "other thresholds for an output that is there, from its scores", as_json
        )
    )
    outputs.add_duplicates(
        command("duplicates", outputs.duplicates, "list what an output's deduplication found alike", device, as_json)
    )
    outputs.add_index(
        command("index", outputs.index, "let later runs look images up in an output at their own cost", device, as_json)
    )
    outputs.add_search(
        command("search", outputs.search, "find images of an output by an image or a text", device, as_json)
    )
    outputs.add_report(command("report", outputs.report, "write an output's report.html, pictures included", device))
    cached = command("cache", outputs.cache, "say what a --cache folder holds, or remove it", as_json)
    cached.add_argument("action", choices=["info", "clear"], help="say it, or remove what the cache keeps")
    cached.add_argument("folder", metavar="DIR", help="the folder")
    demo = command("demo", _demo, "load real photographs, some of them broken, and show what comes out", device)
    demo.add_argument("--out", type=Path, default=Path("curator-dali-demo"), help="folder (default curator-dali-demo)")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from curator_dali.demo import run

    for line in run(arguments.out, device_of(arguments.device)):
        print(line, flush=True)
