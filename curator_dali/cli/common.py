"""Flags and arguments that commands share, progress, and how results are printed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.arguments import parse_size
from curator_dali.errors import terminal_safe

if TYPE_CHECKING:
    from curator_dali.io import Cache
    from curator_dali.sources import Source
    from curator_dali.stages import Stage

EXIT_INTERRUPTED = 130  # Ctrl-C, as shells have it
SOURCES = "a folder, tars, Parquet files, a glob, a brace list such as 'shards/{00000..00099}.tar', or URLs of these"


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def device_of(name: str) -> str:
    """The device that is meant. That it is missing is the user's error here, and no RuntimeError of ours."""
    from curator_dali.arrays import resolve_device
    from curator_dali.errors import CuratorDaliError

    try:
        return resolve_device(name)
    except RuntimeError as error:
        raise CuratorDaliError(str(error)) from error


def source_of(source: list[str]) -> str | list[str]:
    """One SRC as it is, several (a glob that the shell expanded) as a list."""
    return source[0] if len(source) == 1 else source


def check_folder_of(path: Path) -> None:
    """Refuse to write into a folder that does not exist."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist")


def progress(total: int | None, name: str, initial: int = 0, *, unit: str = "img") -> Any:
    """A bar on stderr with images/s and the time left; `initial` are done already, and count for neither.

    Where `total` is None it tells no time left.
    """
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    scale = total is None or total >= 100_000
    return tqdm(total=total, initial=initial, desc=name, unit=unit, unit_scale=scale, disable=None, leave=False)


def print_json(value: dict[str, Any]) -> None:
    """Print JSON for people and programs."""
    print(json.dumps(value, indent=1))


def print_rows(rows: Iterable[tuple[str, ...]], indent: str = "", right: Collection[int] = ()) -> None:
    """Columns as wide as their widest text; the last one runs free. Control characters of names stay harmless.

    `right` are the numbers of the columns that are aligned to the right.
    """
    printable = [tuple(map(terminal_safe, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*printable, strict=True)]
    for row in printable:
        pairs = enumerate(zip(row[:-1], widths, strict=False))
        cells = [text.rjust(width) if column in right else text.ljust(width) for column, (text, width) in pairs]
        print(indent + "  ".join([*cells, row[-1]]))


def size_text(number: float) -> str:
    """Bytes in the unit that reads best."""
    text = f"{number:,.0f} bytes"
    for unit in ("KB", "MB", "GB", "TB"):
        number /= 1000
        if number < 1000:
            return text if unit == "KB" and number < 1 else f"{number:,.1f} {unit}"
    return f"{number:,.1f} TB"


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


def _limit(text: str) -> tuple[str, float]:
    field, _, limit = text.rpartition("=")
    if not field:
        raise argparse.ArgumentTypeError(f"{text!r} has no '='; write it as sharpness=100")
    try:
        number = float(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{limit!r} in {text!r} is no number") from None
    return field, int(number) if number.is_integer() else number


def add_lists(parser: Any) -> None:
    """Add --exclude and --include."""
    for name, verb in (("exclude", "drop"), ("include", "keep only")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="[BY=]FILE",
            help=f"{verb} the images that a list names, one a line, by image_id or by BY: sha256, md5, url or another "
            "field; phash:N within N bits",
        )  # fmt: skip


def lists_of(arguments: argparse.Namespace) -> list[Stage]:
    """The `Exclude` and `Include` stages that the flags ask for."""
    from curator_dali.stages import Exclude, Include

    stages: list[Stage] = []
    for kind, texts in ((Exclude, arguments.exclude), (Include, arguments.include)):
        for text in texts:
            by, equals, path = text.partition("=")
            if not equals or os.path.exists(text):
                by, path = "image_id", text
            by, _, bits = by.partition(":")
            if bits and not bits.isdigit():
                raise ValueError(f"{text!r}: {bits!r} is no number of bits; write it as phash:4=list.txt")
            stages.append(kind(path, by, distance=int(bits or 0)))
    return stages


def deduplicate_of(arguments: argparse.Namespace) -> list[Stage]:
    """The `Deduplicate` that the flags ask for, if they do."""
    from curator_dali.stages import Deduplicate

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


def add_output(parser: Any, embeddings: str) -> None:
    """Add the flags of what is written; `embeddings` is the help of that flag."""
    parser.add_argument("--embeddings", choices=["float32", "float16"], nargs="?", const="float32", help=embeddings)
    parser.add_argument("--no-tars", dest="tars", action="store_const", const=False, help="write Parquet only")
    parser.add_argument("--no-html", dest="html", action="store_const", const=False, help="leave no report.html")
    parser.add_argument("--shard-samples", type=positive, metavar="N", help="samples in a file (default: a part's)")
    parser.add_argument("--shard-bytes", type=size_in_bytes, metavar="SIZE", help="bytes in a file, as 1GB")
    parser.add_argument("--resize", type=positive, metavar="N", help="scale written images to N pixels a side")
    parser.add_argument("--side", choices=["shortest", "longest"], help="the side that --resize sets")
    parser.add_argument("--enlarge", action="store_const", const=True, help="let --resize enlarge smaller images")
    parser.add_argument("--format", choices=["jpeg", "webp", "png"], help="encode images so (default: as they are)")
    parser.add_argument("--write-quality", type=positive, metavar="N", help="of JPEG and WebP, 1 to 100 (default 95)")
    parser.add_argument(
        "--profile", choices=["srgb", "keep"], help="of encoded images: convert to sRGB (default), or keep their own"
    )
    parser.add_argument(
        "--layout", choices=["webdataset", "huggingface"], help="tars (default), or Parquet that load_dataset reads"
    )


def size_in_bytes(text: str) -> int:
    """Bytes, of a text such as 500000, 64MB or 1GiB, for argparse."""
    size = parse_size(text) or 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 64MB or 1GB")
    return size


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Settings` that flags of the same name give."""
    from curator_dali.curation import Settings

    names = [field.name for field in fields(Settings)]
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def write_of(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The argument `write` of a file's options, with what flags say of it; empty where neither says anything."""
    from curator_dali.curation import Write

    flags = {field.name: "write_quality" if field.name == "quality" else field.name for field in fields(Write)}
    given = {name: value for name, flag in flags.items() if (value := getattr(arguments, flag)) is not None}
    return {"write": replace(options.get("write") or Write(), **given)} if given else {}


def add_cache(parser: Any) -> None:
    """Add the flags of a cache."""
    parser.add_argument("--cache", metavar="DIR", help="keep what is read of remote files in this folder of the node")
    parser.add_argument("--cache-limit", metavar="SIZE", help="bytes that the cache may take, as 2TB")


def cache_of(arguments: argparse.Namespace) -> Cache | None:
    """The cache that the flags ask for, if they do."""
    from curator_dali.io import Cache

    folder, limit = getattr(arguments, "cache", None), getattr(arguments, "cache_limit", None)
    if (folder is None) != (limit is None):
        raise ValueError("--cache DIR and --cache-limit SIZE belong together, as --cache /nvme/cache --cache-limit 2TB")
    return None if folder is None or limit is None else Cache(folder, limit)


def add_trust(parser: Any) -> None:
    """Add the flag of sizes in the metadata."""
    parser.add_argument(
        "--trust-sizes",
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="fields of the metadata with the sizes of images, for filters that come first, where headers are unknown",
    )


def trust_sizes(source: Source, arguments: argparse.Namespace) -> Source:
    """Take the sizes that the flag names."""
    return source if arguments.trust_sizes is None else source.trust_sizes(*arguments.trust_sizes)


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
    flags = {"address": "ray_address", "num_workers": "num_workers", "gpus_per_worker": "gpus_per_worker"}
    given = {name: value for name, flag in flags.items() if (value := getattr(arguments, flag)) is not None}
    if arguments.executor == "local" and given:
        raise ValueError(f"--executor local takes no {', '.join(sorted(given))}: these are for --executor ray")
    if arguments.executor == "local" or not (arguments.executor or given):
        return arguments.executor
    from curator_dali.curation import RayExecutor

    return RayExecutor(**given)
