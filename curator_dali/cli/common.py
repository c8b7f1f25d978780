"""What commands share: arguments that become objects, progress, and how results are printed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from curator_dali.errors import count as counted
from curator_dali.errors import terminal_safe

__all__ = [
    "EXIT_INTERRUPTED",
    "SOURCES",
    "check_folder_of",
    "counted",
    "device_of",
    "positive",
    "print_json",
    "print_rows",
    "progress",
    "size_in_bytes",
    "size_text",
    "source_of",
]

EXIT_INTERRUPTED = 130  # Ctrl-C, as shells have it
SOURCES = "a folder, tars, Parquet files, a glob, a brace list such as 'shards/{00000..00099}.tar', or URLs of these"


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def size_in_bytes(text: str) -> int:
    """Bytes, of a text such as 500000, 64MB or 1GiB, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    step = 1024 if match and match[3] else 1000
    size = int(float(match[1]) * step ** " kmgt".index(match[2] or " ")) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 64MB or 1GB")
    return size


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


def progress(total: int, unit: str, initial: int = 0) -> Any:
    """A bar on stderr with images/s and the time left; `initial` are done already, and count for neither."""
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    scale = total >= 100_000
    return tqdm(total=total, initial=initial, desc=unit, unit="img", unit_scale=scale, disable=None, leave=False)


def print_json(value: dict[str, Any]) -> None:
    """Print JSON for people and programs."""
    print(json.dumps(value, indent=1))


def print_rows(rows: Iterable[tuple[str, ...]], indent: str = "", right: Collection[int] = ()) -> None:
    """Columns as wide as their widest text; the last one runs free. Control characters of names stay harmless.

    Args:
        rows: Cells; as many in each.
        indent: Before each line.
        right: Numbers of the columns that are aligned to the right.
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
