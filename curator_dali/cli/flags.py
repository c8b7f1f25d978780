"""Flags that several commands share: limits, deduplication, what is written, and where work is done."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from curator_dali.cli.common import positive, size_in_bytes

if TYPE_CHECKING:
    from curator_dali.stages.base import Stage

__all__ = [
    "add_deduplicate",
    "add_executor",
    "add_limits",
    "add_output",
    "deduplicate_of",
    "executor_of",
    "settings_of",
]


def add_deduplicate(parser: Any) -> None:
    """Add the flags that make a `Deduplicate`."""
    parser.add_argument(
        "--dedup", choices=["all", "bytes", "pixels", "none"], nargs="?", const="all",
        help="keep one of equal files and of equal pixels (all, the default), of one of these, or of neither",
    )  # fmt: skip
    parser.add_argument("--near", type=int, metavar="BITS", help="... of perceptual hashes this near (4 to 6 is usual)")
    parser.add_argument("--similarity", type=float, metavar="X", help="... of embeddings with this cosine (0 to 1)")
    parser.add_argument("--keep", metavar="RULE", help="largest (the default), first, or a score: the highest stays")
    parser.add_argument(
        "--against", action="append", metavar="DIR", help="drop, too, what is like an image kept in this output"
    )


def add_limits(parser: Any) -> None:
    """Add --min and --max."""
    for name in ("min", "max"):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="FIELD=X", type=_limit,
            help=f"drop images whose score or metadata field is {'below' if name == 'min' else 'above'} X",
        )  # fmt: skip


def deduplicate_of(arguments: argparse.Namespace) -> list[Stage]:
    """The `Deduplicate` that the flags ask for, if they do."""
    from curator_dali.stages.deduplicate import Deduplicate

    asked = (arguments.dedup, arguments.near, arguments.similarity)
    if all(value is None for value in asked):
        for flag in ("keep", "against"):
            if getattr(arguments, flag) is not None:
                raise ValueError(f"--{flag} says how to deduplicate: give --dedup, --near or --similarity too")
        return []
    exact: Any = {None: True, "all": True, "none": False}.get(arguments.dedup, arguments.dedup)
    keep = arguments.keep or "largest"
    rule: dict[str, Any] = {"keep": keep} if keep in ("largest", "first") else {"keep": "best", "score": keep}
    return [Deduplicate(exact, arguments.near, arguments.similarity, against=tuple(arguments.against or ()), **rule)]


def _limit(text: str) -> tuple[str, float]:
    field, _, limit = text.rpartition("=")
    if not field:
        raise argparse.ArgumentTypeError(f"{text!r} has no '='; write it as sharpness=100")
    try:
        number = float(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{limit!r} in {text!r} is no number") from None
    return field, int(number) if number.is_integer() else number


def add_output(parser: Any, embeddings: str) -> None:
    """Add the flags of what is written; `embeddings` is the help of that flag."""
    parser.add_argument("--embeddings", choices=["float32", "float16"], nargs="?", const="float32", help=embeddings)
    parser.add_argument("--no-tars", dest="tars", action="store_const", const=False, help="write Parquet only")
    parser.add_argument("--no-html", dest="html", action="store_const", const=False, help="leave no report.html")
    parser.add_argument("--shard-samples", type=positive, metavar="N", help="samples in a tar (default: a part's)")
    parser.add_argument("--shard-bytes", type=size_in_bytes, metavar="SIZE", help="bytes in a tar, as 1GB")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Settings` that flags of the same name give."""
    from curator_dali.curation.config import Settings

    names = [field.name for field in fields(Settings)]
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def add_executor(parser: Any) -> None:
    """Add the flags of an executor."""
    parser.add_argument("--executor", choices=["local", "ray"], help="where: this process, or a Ray cluster")
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="the cluster, as ray.init takes it (default: one it finds, or its own)"
    )
    parser.add_argument(
        "--num-workers", type=positive, metavar="N", help="Ray actors (default: what there is room for)"
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        metavar="X",
        help="GPUs of a Ray actor (default: 1 in a curation on GPUs, else 0)",
    )


def executor_of(arguments: argparse.Namespace) -> Any:
    """What the flags say of Ray; None where they say nothing."""
    asked = (("address", arguments.ray_address), ("num_workers", arguments.num_workers),
             ("gpus_per_worker", arguments.gpus_per_worker))  # fmt: skip
    given = {name: value for name, value in asked if value is not None}
    if arguments.executor == "local" and given:
        raise ValueError(f"--executor local takes no {', '.join(sorted(given))}: these are for --executor ray")
    if arguments.executor == "local" or not (arguments.executor or given):
        return arguments.executor
    from curator_dali.curation.ray_executor import RayExecutor

    return RayExecutor(**given)
