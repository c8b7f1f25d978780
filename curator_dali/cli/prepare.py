"""The command that makes the index of a data set: prepare."""

from __future__ import annotations

import argparse
from typing import Any

from curator_dali.cli import common


def add_arguments(parser: Any) -> None:
    """Add what `prepare` takes."""
    parser.epilog = (
        "Interrupted, it goes on where it was. Run again after files were added or replaced, it indexes those. An "
        "index beside the data is found by whatever opens these; open_source(SRC, index=DIR) opens another one."
    )
    parser.add_argument("--index", metavar="DIR", help="the index's folder or URL (default: beside the data)")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="files at a time (default 4; remote 16)")
    parser.add_argument("--processes", type=common.positive, default=1, metavar="N", help="processes here (default 1)")
    parser.add_argument(
        "--worker", type=_worker, metavar="K/N", help="do the K-th of N shares alone, from 0/N on; others do theirs"
    )
    parser.add_argument("--no-headers", dest="headers", action="store_false", help="read no header of an image")
    parser.add_argument("--anew", action="store_true", help="index all files anew, where the index is damaged")
    common.add_executor(parser)


def run(arguments: argparse.Namespace) -> None:
    """Make the index of a data set."""
    from dataclasses import asdict

    from curator_dali.preparation import prepare
    from curator_dali.sampling import Shard

    executor = common.executor_of(arguments)
    with _Bar() as bar:
        made = prepare(
            common.source_of(arguments.source),
            arguments.index,
            threads=arguments.threads,
            processes=arguments.processes,
            shard=Shard(*arguments.worker) if arguments.worker else None,
            executor=None if executor in (None, "local") else executor,
            headers=arguments.headers,
            anew=arguments.anew,
            progress=bar.update,
        )
    if arguments.json:
        common.print_json(asdict(made))
    else:
        print(made)


class _Bar:
    """A bar of files on stderr, with the samples so far, files a second and the time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._samples = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, files: int, samples: int, total: int) -> None:
        """Show that files are done."""
        if self._bar is None:  # files that the index has already are no part of the rate
            self._bar = common.progress(total, "files", files, unit="file")
            return
        self._samples += samples
        self._bar.set_postfix_str(f"{self._samples:,} samples", refresh=False)
        self._bar.update(files)


def _worker(text: str) -> tuple[int, int]:
    rank, slash, count = text.partition("/")
    if not slash or not rank.isdigit() or not count.isdigit() or not int(rank) < int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0/16 to 15/16, for one of sixteen")
    return int(rank), int(count)
