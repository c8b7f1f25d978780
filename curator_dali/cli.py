"""The command line: `curator-dali info | verify | preview | bench | demo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali import __version__

if TYPE_CHECKING:
    from curator_dali.errors import ImageError
    from curator_dali.loader import ImageLoader

__all__ = ["main"]

# Heavy modules are imported by the commands that need them, so that --help and a typing error answer at once.

EXIT_BROKEN = 1  # `verify` found broken images
EXIT_ERROR = 2  # the user's error, as argparse has it
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells have it
_LISTED = 20  # broken images named in `verify`'s table
_SOURCES = "a folder, tars, Parquet files, a glob, a brace list such as 'shards/{00000..00099}.tar', or URLs of these"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 well, 1 `verify` found broken images, 2 the user's error, 130 Ctrl-C.
    """
    from curator_dali.errors import CuratorDaliError

    arguments = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curator-dali",
        description="Load images through NVIDIA DALI and look after image data sets.",
        epilog="CURATOR_DALI_DEBUG=1 shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"curator-dali {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", metavar="SRC", nargs="+", help=_SOURCES)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of text")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="auto", help="auto (the default), cpu or cuda:N")
    decoding = argparse.ArgumentParser(add_help=False, parents=[device])
    decoding.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images a batch (default 64)")
    decoding.add_argument("--threads", type=_positive, metavar="N", help="decoding threads (default: all cores)")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, *parents: Any) -> Any:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents)
        added.set_defaults(command=run)
        return added

    command("info", _info, "say what a source holds, from headers alone", source, as_json)
    verify = command("verify", _verify, "decode everything and list what is broken", source, decoding, as_json)
    verify.add_argument("--report", type=Path, metavar="FILE", help="write every broken image to .parquet or .jsonl")
    preview = command("preview", _preview, "draw a contact sheet with ids", source, device)
    preview.add_argument("-o", "--out", type=Path, default=Path("sheet.png"), help="where (default sheet.png)")
    preview.add_argument("-n", "--count", type=_positive, default=48, metavar="N", help="images (default 48)")
    preview.add_argument("--shuffle", type=int, metavar="SEED", help="take images from all over the source")
    preview.add_argument("--columns", type=_positive, metavar="N", help="images a row (default: what looks well)")
    bench = command("bench", _bench, "measure how fast the loader is on a source", source, decoding, as_json)
    bench.add_argument("--rounds", type=_positive, default=3, metavar="N", help="passes after a first one (default 3)")
    demo = command("demo", _demo, "load real photographs, some of them broken, and show what comes out", device)
    demo.add_argument("--out", type=Path, default=Path("curator-dali-demo"), help="folder (default curator-dali-demo)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _info(arguments: argparse.Namespace) -> int:
    from curator_dali.sources import open_source
    from curator_dali.survey import scan

    with closing(open_source(_argument(arguments.source))) as source, _progress(len(source), "headers") as bar:
        survey = scan(source, bar.update)
    if arguments.json:
        _print_json(survey.as_dict())
        return 0
    images = survey.samples - survey.unreadable
    partial = survey.images_sized < survey.samples
    formats = ", ".join(f"{name} {count:,}" for name, count in survey.formats.items())
    rows = [
        ("source", survey.name),
        ("samples", f"{survey.samples:,} in {_count(survey.shards, 'shard')}"),
        ("formats", (formats or "none") + (f" ({survey.by_pillow:,} decoded by Pillow)" if survey.by_pillow else "")),
        ("bytes", _bytes(survey.image_bytes) + (f" in the {survey.images_sized:,} images read now" if partial else "")),
    ]
    for name, side in (("width", survey.width), ("height", survey.height)):
        if side:
            rows.append((name, f"{side.minimum:,} to {side.maximum:,} pixels, median {side.median:,}"))
    if images:
        rows.append(("pixels", f"{survey.pixels / 1e6:,.1f} megapixels, {survey.pixels / images:,.0f} pixels an image"))
    if survey.unreadable:
        rows.append(("broken", f"{survey.unreadable:,} have no readable header: `curator-dali verify` names them"))
    _print_rows(rows)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from curator_dali.errors import write_errors

    report: Path | None = arguments.report
    if report:  # a wrong ending or folder shows now, not after hours of decoding
        _check_folder_of(report)
        probe = report.with_name(f".probe-{report.name}")
        write_errors([], probe)
        probe.unlink()
    interrupted = False
    with _loader(arguments) as loader:
        with _progress(loader.num_samples, "verified") as bar:
            try:
                for _ in loader:
                    bar.update(loader.stats.samples + loader.stats.failed - bar.n)
                bar.update(loader.stats.samples + loader.stats.failed - bar.n)
            except KeyboardInterrupt:
                interrupted = True
        errors, stats, samples, device = loader.errors, loader.stats, loader.num_samples, loader.device
    if report:
        write_errors(errors, report)

    checked = stats.samples + stats.failed
    kinds = Counter(error.reason.partition(":")[0] for error in errors)
    if arguments.json:
        summary = {"samples": samples, "checked": checked, "broken": stats.failed, "complete": not interrupted}
        rows = [asdict(error) for error in errors]
        _print_json({**summary, "device": device, "reasons": kinds, "errors": rows, "stats": stats.as_dict()})
    else:
        _print_verdict(errors, kinds)
        rate = f"{checked / stats.seconds:,.0f} images/s" if stats.seconds else "no time measured"
        print(f"{checked - stats.failed:,} good, {stats.failed:,} broken of {checked:,} decoded on {device} ({rate})")
        if interrupted:
            print(f"interrupted: {samples - checked:,} of {samples:,} samples were not looked at")
        if report:
            print(f"wrote {report} ({_count(len(errors), 'row')})")
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_BROKEN if errors else 0


def _print_verdict(errors: Sequence[ImageError], kinds: Counter[str]) -> None:
    if not errors:
        return
    shown = errors[:_LISTED]
    print("broken images" + (f" (the first {_LISTED} of {len(errors):,})" if len(errors) > _LISTED else ""))
    _print_rows([(error.image_id, Path(error.shard).name, error.reason) for error in shown], indent="  ")
    if len(errors) > _LISTED:
        print("  --report FILE names them all")
    print("reasons")
    _print_rows([(f"{count:,}", kind) for kind, count in kinds.most_common()], indent="  ")


def _preview(arguments: argparse.Namespace) -> int:
    from curator_dali.display import contact_sheet, thumbnail
    from curator_dali.loader import ImageLoader

    out: Path = arguments.out
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"cannot draw to {str(out)!r}: the name must end in .png, .jpg or .webp")
    _check_folder_of(out)
    # Small batches, of which only thumbnails are kept: hundreds of large photographs need not fit in memory.
    size = min(arguments.count, 16)
    thumbnails, captions = [], []
    with ImageLoader(
        _argument(arguments.source), batch_size=size, device=_device(arguments.device), shuffle=arguments.shuffle
    ) as loader:
        with _progress(min(arguments.count, loader.num_samples), "images") as bar:
            for batch in loader:
                for item, image in zip(batch.data, batch.images, strict=True):
                    height, width = image.shape[:2]
                    thumbnails.append(thumbnail(image))
                    captions.append(f"{' '.join(item.image_id.split())}\n{width} x {height}")
                bar.update(len(batch))
                if len(thumbnails) >= arguments.count:
                    break
        failed, samples = loader.stats.failed, loader.num_samples
    if not thumbnails:
        raise ValueError(f"nothing to draw: none of the {samples:,} samples could be decoded")
    thumbnails, captions = thumbnails[: arguments.count], captions[: arguments.count]
    contact_sheet(thumbnails, captions, arguments.columns).save(out)
    skipped = f"; {failed:,} on the way are broken, `curator-dali verify` names them" if failed else ""
    print(f"wrote {out}: {len(thumbnails):,} of {samples:,} images{skipped}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from curator_dali.bench import measure

    with _loader(arguments) as loader:
        with _progress(loader.num_samples * (arguments.rounds + 1), "images") as bar:
            result = measure(loader, arguments.rounds, bar.update)
        source = loader.source.name
        complete = len(result.passes) == arguments.rounds + 1
    if arguments.json:
        settings = {"batch_size": arguments.batch_size, "threads": arguments.threads, "complete": complete}
        _print_json({"source": source, **settings, **result.as_dict()})
        return 0 if complete else EXIT_INTERRUPTED
    first, last = result.passes[0], result.passes[-1]
    low, high = result.spread
    passes = _count(len(result.steady), "pass", "es")
    stats = last.stats
    split = ", ".join(f"{part} {stats[f'{part}_seconds']:.2f} s" for part in ("wait", "read", "gate", "decode"))
    _print_rows(
        [
            ("source", f"{source}, {first.samples:,} images, {first.failed:,} broken"),
            ("speed", f"{result.images_per_second:,.0f} images/s, median of {passes}"),
            ("spread", f"{low:,.0f} to {high:,.0f} images/s"),
            ("first pass", f"{first.images_per_second:,.0f} images/s, with building the pipeline"),
            ("encoded", f"{stats['bytes'] / last.seconds / 1e6:,.1f} MB/s"),
            ("time", f"{last.seconds:.2f} s in the last pass; threads overlap: {split}"),
            ("memory", f"{_bytes(result.peak_bytes)} at the peak, the whole process"),
            ("device", f"{result.device}, batches of {arguments.batch_size:,}"),
        ]
    )
    if not complete:
        print("interrupted: the passes so far are above")
    return 0 if complete else EXIT_INTERRUPTED


def _demo(arguments: argparse.Namespace) -> int:
    from curator_dali.demo import run

    for line in run(arguments.out, _device(arguments.device)):
        print(line, flush=True)
    return 0


def _loader(arguments: argparse.Namespace) -> ImageLoader:
    from curator_dali.loader import ImageLoader

    return ImageLoader(
        _argument(arguments.source),
        batch_size=arguments.batch_size,
        device=_device(arguments.device),
        num_threads=arguments.threads,
    )


def _device(name: str) -> str:
    """The device that is meant. That it is missing is the user's error here, and no RuntimeError of ours."""
    from curator_dali.arrays import resolve_device
    from curator_dali.errors import CuratorDaliError

    try:
        return resolve_device(name)
    except RuntimeError as error:
        raise CuratorDaliError(str(error)) from error


def _argument(source: list[str]) -> str | list[str]:
    """One SRC as it is, several (a glob that the shell expanded) as a list."""
    return source[0] if len(source) == 1 else source


def _check_folder_of(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist")


def _progress(total: int, unit: str) -> Any:
    from tqdm import tqdm

    # disable=None: silent where stderr is no terminal
    return tqdm(total=total, desc=unit, unit="img", unit_scale=total >= 100_000, disable=None, leave=False)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def _print_rows(rows: Iterable[tuple[str, ...]], indent: str = "") -> None:
    """Columns as wide as their widest text; the last one runs free. Control characters of names stay harmless."""
    printable = [tuple("".join(c if c.isprintable() else "?" for c in text) for text in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*printable, strict=True)]
    for row in printable:
        cells = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)]
        print(indent + "  ".join([*cells, row[-1]]))


def _count(number: int, word: str, plural: str = "s") -> str:
    return f"{number:,} {word}{'' if number == 1 else plural}"


def _bytes(number: float) -> str:
    text = f"{number:,.0f} bytes"
    for unit in ("KB", "MB", "GB", "TB"):
        number /= 1000
        if number < 1000:
            return text if unit == "KB" and number < 1 else f"{number:,.1f} {unit}"
    return f"{number:,.1f} TB"


if __name__ == "__main__":
    sys.exit(main())
