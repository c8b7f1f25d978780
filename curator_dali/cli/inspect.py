"""Commands that look at a data set and write none: info, verify, preview, bench."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_dali.cli import common
from curator_dali.errors import ImageError
from curator_dali.errors import count as counted

if TYPE_CHECKING:
    from curator_dali.loader import ImageLoader

_EXIT_BROKEN = 1  # `verify` found images that are broken, or that cannot be read now
_MOST_LISTED = 20  # broken images named in `verify`'s table
_THUMBNAIL = 160  # pixels of the longer side


def info(arguments: argparse.Namespace) -> None:
    """Say what a source holds."""
    from curator_dali.decoding import scan
    from curator_dali.sources import open_source

    with (
        closing(common.trust_sizes(open_source(common.source_of(arguments.source)), arguments)) as source,
        common.progress(len(source), "headers") as bar,
    ):
        survey = scan(source, bar.update)
    if arguments.json:
        common.print_json(survey.as_dict())
        return
    images = survey.samples - survey.unreadable
    partial = survey.images_sized < survey.samples
    formats = ", ".join(f"{name} {count:,}" for name, count in survey.formats.items())
    rows = [
        ("source", survey.name),
        ("samples", f"{survey.samples:,} in {counted(survey.shards, 'shard')}"),
        ("formats", (formats or "none") + (f" ({survey.by_pillow:,} decoded by Pillow)" if survey.by_pillow else "")),
        (
            "bytes",
            common.size_text(survey.image_bytes)
            + (f" in the {survey.images_sized:,} images read now" if partial else ""),
        ),
    ]
    for name, side in (("width", survey.width), ("height", survey.height)):
        if side:
            rows.append((name, f"{side.minimum:,} to {side.maximum:,} pixels, median {side.median:,}"))
    if images:
        rows.append(("pixels", f"{survey.pixels / 1e6:,.1f} megapixels, {survey.pixels / images:,.0f} pixels an image"))
    if survey.unreadable:
        rows.append(("broken", f"{survey.unreadable:,} have no readable header: `curator-dali verify` names them"))
    common.print_rows(rows)


def verify(arguments: argparse.Namespace) -> int:
    """Decode everything, and list what is broken."""
    from curator_dali.curation import check_file
    from curator_dali.errors import kind_of_failure
    from curator_dali.loader import write_errors

    report: Path | None = arguments.report
    if report:  # a wrong ending or folder shows now, not after hours of decoding
        common.check_folder_of(report)
        probe = report.with_name(f".probe-{report.name}")
        write_errors([], probe)
        probe.unlink()
    interrupted = False
    with _loader(arguments) as loader:
        if report:
            check_file(report, loader.source)
        loader.max_errors = sys.maxsize  # all of them are the answer
        with common.progress(loader.num_samples, "verified") as bar:
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
    unread = sum(error.unread for error in errors)
    broken = stats.failed - unread
    kinds = Counter(kind_of_failure(error.reason) for error in errors)
    if arguments.json:
        counts = {"samples": samples, "checked": checked, "broken": broken, "unread": unread}
        summary = {**counts, "complete": not interrupted}
        rows = [asdict(error) for error in errors]
        common.print_json({**summary, "device": device, "reasons": kinds, "errors": rows, "stats": stats.as_dict()})
    else:
        _print_verdict(errors, kinds)
        rate = f"{checked / stats.seconds:,.0f} images/s" if stats.seconds else "no time measured"
        gone = f", {unread:,} that cannot be read now" if unread else ""
        print(f"{checked - stats.failed:,} good, {broken:,} broken{gone} of {checked:,} decoded on {device} ({rate})")
        if interrupted:
            print(f"interrupted: {samples - checked:,} of {samples:,} samples were not looked at")
        if report:
            print(f"wrote {report} ({counted(len(errors), 'row')})")
    if interrupted:
        return common.EXIT_INTERRUPTED
    return _EXIT_BROKEN if errors else 0


def _print_verdict(errors: Sequence[ImageError], kinds: Counter[str]) -> None:
    if not errors:
        return
    shown = errors[:_MOST_LISTED]
    head = "images that are broken, or cannot be read now" if any(e.unread for e in errors) else "broken images"
    print(head + (f" (the first {_MOST_LISTED} of {len(errors):,})" if len(errors) > _MOST_LISTED else ""))
    common.print_rows([(error.image_id, Path(error.shard).name, error.reason) for error in shown], indent="  ")
    if len(errors) > _MOST_LISTED:
        print("  --report FILE names them all")
    print("reasons")
    common.print_rows([(f"{count:,}", kind) for kind, count in kinds.most_common()], indent="  ")


def preview(arguments: argparse.Namespace) -> None:
    """Draw a contact sheet."""
    from curator_dali.batch import contact_sheet
    from curator_dali.curation import check_file
    from curator_dali.loader import ImageLoader
    from curator_dali.view import make_thumbnails

    out: Path = arguments.out
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"cannot draw to {str(out)!r}: the name must end in .png, .jpg or .webp")
    common.check_folder_of(out)
    # Small batches, of which only thumbnails are kept: hundreds of large photographs need not fit in memory.
    size = min(arguments.count, 16)
    thumbnails: list[Any] = []
    captions = []
    with ImageLoader(
        common.source_of(arguments.source),
        batch_size=size,
        device=common.device_of(arguments.device),
        shuffle=arguments.shuffle,
    ) as loader:
        check_file(out, loader.source)
        with common.progress(min(arguments.count, loader.num_samples), "images") as bar:
            for batch in loader:
                thumbnails += make_thumbnails(batch.images, _THUMBNAIL, _THUMBNAIL)
                for item, image in zip(batch.data, batch.images, strict=True):
                    height, width = image.shape[:2]
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


def bench(arguments: argparse.Namespace) -> int:
    """Measure the loader."""
    import statistics

    with _loader(arguments) as loader:
        with common.progress(loader.num_samples * (arguments.rounds + 1), "images") as bar:
            passes = _measure(loader, arguments.rounds, bar.update)
        source, device = loader.source.name, loader.device
    complete = len(passes) == arguments.rounds + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    first, last = passes[0], passes[-1]
    rates = [one.images_per_second for one in passes[1:] or passes]  # the first pass builds the pipeline
    speed, low, high = statistics.median(rates), min(rates), max(rates)
    if arguments.json:
        settings = {"batch_size": arguments.batch_size, "threads": arguments.threads, "complete": complete}
        rate = {"images_per_second": speed, "spread": [low, high], "peak_bytes": peak}
        rows = [one._asdict() for one in passes]
        common.print_json({"source": source, **settings, "device": device, **rate, "passes": rows})
        return 0 if complete else common.EXIT_INTERRUPTED
    stats = last.stats
    split = ", ".join(f"{part} {stats[f'{part}_seconds']:.2f} s" for part in ("wait", "read", "gate", "decode"))
    common.print_rows(
        [
            ("source", f"{source}, {first.samples:,} images, {first.failed:,} broken"),
            ("speed", f"{speed:,.0f} images/s, median of {counted(len(rates), 'pass', 'es')}"),
            ("spread", f"{low:,.0f} to {high:,.0f} images/s"),
            ("first pass", f"{first.images_per_second:,.0f} images/s, with building the pipeline"),
            ("encoded", f"{stats['bytes'] / last.seconds / 1e6:,.1f} MB/s"),
            ("time", f"{last.seconds:.2f} s in the last pass; threads overlap: {split}"),
            ("memory", f"{common.size_text(peak)} at the peak, the whole process"),
            ("device", f"{device}, batches of {arguments.batch_size:,}"),
        ]
    )
    if not complete:
        print("interrupted: the passes so far are above")
    return 0 if complete else common.EXIT_INTERRUPTED


class _Pass(NamedTuple):
    """One pass over a source: images decoded and broken, seconds to the end, and the loader's own account of it."""

    samples: int
    failed: int
    seconds: float
    stats: dict[str, Any]
    images_per_second: float  # good and bad


def _measure(loader: ImageLoader, rounds: int, progress: Callable[[int], object]) -> list[_Pass]:
    """Pass over a loader's source once to warm up, and then `rounds` times; `progress` gets the numbers of images done.

    Ctrl-C ends the measurement; what was measured until then is returned if it holds a whole pass.
    """
    if not loader.num_samples:
        raise ValueError("the source has no samples: nothing to measure")
    passes: list[_Pass] = []
    try:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            seen = 0
            for _ in loader:
                done = loader.stats.samples + loader.stats.failed
                progress(done - seen)
                seen = done
            seconds = time.perf_counter() - started
            stats = loader.stats
            rate = (stats.samples + stats.failed) / seconds if seconds else 0.0
            passes.append(_Pass(stats.samples, stats.failed, seconds, stats.as_dict(), rate))
    except KeyboardInterrupt:
        if not passes:
            raise
    return passes


def _loader(arguments: argparse.Namespace) -> ImageLoader:
    from curator_dali.loader import ImageLoader

    return ImageLoader(
        common.source_of(arguments.source),
        batch_size=arguments.batch_size,
        device=common.device_of(arguments.device),
        num_threads=arguments.threads,
    )
