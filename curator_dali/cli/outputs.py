"""Commands on an output that is there: search, rethreshold, duplicates, index, report."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.cli import common
from curator_dali.errors import count as counted

if TYPE_CHECKING:
    from curator_dali.stages import Stage

_MOST_LISTED = 20  # groups or leaks, without --all
_FILE_OPTIONS = (
    "stages",
    "executor",
    "source",
    "tars",
    "shard_samples",
    "shard_bytes",
    "embeddings",
    "html",
    "write",
    "device",
)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add what `search` takes."""
    parser.add_argument("out", metavar="OUT", help="the output of a curation that stored embeddings")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--image", metavar="FILE", help="a path or URL of an image")
    query.add_argument("--text", help='as "a red bus", where the model has a text tower')
    query.add_argument("--id", help="the image_id of an image of the output")
    parser.add_argument("-k", type=common.positive, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("-o", "--sheet", type=Path, metavar="FILE", help="draw a contact sheet")
    parser.add_argument("--dropped", action="store_true", help="look among dropped images too")
    parser.add_argument("--source", metavar="SRC", help="where the data set is, if it has moved (for -o)")


def search(arguments: argparse.Namespace) -> None:
    """Print what is most like an image or a text."""
    from curator_dali.batch import contact_sheet
    from curator_dali.report import search as find

    if arguments.sheet:
        common.check_folder_of(arguments.sheet)
    device = common.device_of(arguments.device)
    found = find(
        arguments.out, image=arguments.image, text=arguments.text, id=arguments.id, k=arguments.k,
        dropped=arguments.dropped, device=device, source=arguments.source,
    )  # fmt: skip
    if arguments.json:
        common.print_json(found.as_dict())
    elif len(found):
        common.print_rows([(f"{cosine:.4f}", key, path) for key, path, cosine in found])
    else:
        print("nothing to search: the output has no images with embeddings")
    if arguments.sheet and len(found):
        batch = found.batch(device)
        if not len(batch):
            raise ValueError(f"nothing to draw: none of the {counted(len(found), 'image')} found can be decoded now")
        pairs = zip(batch.data, batch.columns["cosine"].tolist(), strict=True)
        contact_sheet(batch, [f"{item.image_id}\n{cosine:.3f}" for item, cosine in pairs]).save(arguments.sheet)


def add_rethreshold(parser: argparse.ArgumentParser) -> None:
    """Add what `rethreshold` takes."""
    parser.epilog = (
        "The filters and the deduplication of OUT stay, unless a --config has stages; --min and --max replace those of "
        "the same field, the flags of deduplication replace the deduplication; --exclude and --include come first."
    )
    parser.add_argument("out", metavar="OUT", help="the finished output of a curation")
    parser.add_argument("new", metavar="NEW", help="the folder to write to")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a .toml or .yaml file with rethreshold()'s arguments"
    )
    common.add_lists(parser)
    common.add_limits(parser)
    common.add_deduplicate(parser)
    common.add_executor(parser)
    parser.add_argument("--source", metavar="SRC", help="where the data set is, if it has moved")
    parser.add_argument("--device", help="for --resize and --format: auto (the default), cpu or cuda:N")
    common.add_output(parser, embeddings="store them (default: as OUT has them)")


def rethreshold(arguments: argparse.Namespace) -> None:
    """Decide anew who stays of an output."""
    from curator_dali.curation import rethreshold as decide
    from curator_dali.outputs import Manifest

    options = _options(arguments)
    with common.progress(Manifest.load(arguments.out).samples, "decided") as bar:
        report = decide(arguments.out, arguments.new, progress=bar.update, **options)
    if arguments.json:
        common.print_json(report.as_dict())
    else:
        common.print_rows(report.rows(), right=(1, 2))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `rethreshold`: the file's, and over them the command line's."""
    from curator_dali.curation import read_config, stages_of

    options = read_config(arguments.config) if arguments.config else {}
    if refused := [name for name in options if name not in _FILE_OPTIONS]:
        raise ValueError(
            f"{arguments.config}: rethreshold takes no {', '.join(refused)}; it takes {', '.join(_FILE_OPTIONS)}"
        )
    stages = options["stages"] if "stages" in options else stages_of(arguments.out)
    options |= {"stages": _changed(stages, arguments)} | common.settings_of(arguments)
    options |= common.write_of(arguments, options)
    device = common.device_of(arguments.device) if arguments.device else None
    given = {"source": arguments.source, "executor": common.executor_of(arguments), "device": device}
    return options | {name: value for name, value in given.items() if value is not None}


def _changed(stages: list[Stage], arguments: argparse.Namespace) -> list[Stage]:
    """Stages with the lists, the limits and the deduplication of the command line."""
    from curator_dali.stages import Deduplicate, Filter

    stages = [*common.lists_of(arguments), *stages]
    for name in ("min", "max"):
        for field, limit in getattr(arguments, name):
            places = [
                n for n, s in enumerate(stages)
                if isinstance(s, Filter) and s.field == field and getattr(s, name) is not None
            ]  # fmt: skip
            if len(places) > 1:
                raise ValueError(f"{len(places)} filters have a {name} of {field}: say which in a --config")
            if places:
                stages[places[0]] = replace(stages[places[0]], **{name: limit})
            else:  # before the deduplication, so that no image is dropped for one that goes itself
                last = isinstance(stages[-1], Deduplicate) if stages else False
                stages.insert(len(stages) - last, Filter(field, **{name: limit}))
    new = common.deduplicate_of(arguments)
    return [*(s for s in stages if not isinstance(s, Deduplicate)), *new] if new else stages


def add_duplicates(parser: argparse.ArgumentParser) -> None:
    """Add what `duplicates` takes."""
    parser.add_argument("out", metavar="OUT", help="the output of a curation")
    parser.add_argument("--all", action="store_true", help=f"list everything, not only the first {_MOST_LISTED}")
    parser.add_argument("--leaks", metavar="OTHER", help="instead: what of OUT is also in this output (test, training)")
    parser.add_argument("--near", type=int, metavar="BITS", help="with --leaks: by perceptual hashes")
    parser.add_argument("--similarity", type=float, metavar="X", help="with --leaks: by embeddings' cosine")


def duplicates(arguments: argparse.Namespace) -> None:
    """List groups of duplicates, or what two outputs share."""
    from curator_dali.report import duplicate_groups, leaks

    most = None if arguments.all else _MOST_LISTED
    found: list[Any]
    if arguments.leaks:
        found = leaks(
            arguments.out, arguments.leaks, near=arguments.near, similarity=arguments.similarity,
            device=common.device_of(arguments.device),
        )  # fmt: skip
        about = {"out": arguments.out, "other": arguments.leaks, "leaks": [asdict(leak) for leak in found]}
        head = f"{counted(len(found), 'image')} of {arguments.out} are like one of {arguments.leaks}"
        lines = [(leak.image_id, leak.other, leak.why) for leak in found[:most]]
    elif arguments.near is not None or arguments.similarity is not None:
        raise ValueError("--near and --similarity go with --leaks; the groups are those that the curation found")
    else:
        found = duplicate_groups(arguments.out)
        about = {"out": arguments.out, "groups": [asdict(group) for group in found]}
        head = f"{counted(len(found), 'group')} of duplicates, {sum(len(g.members) for g in found):,} images"
        lines = [
            (f"{group.number}" if n == 0 else "", member.image_id, member.reason or member.status)
            for group in found[:most]
            for n, member in enumerate(group.members)
        ]
    if arguments.json:
        common.print_json(about)
        return
    print(head)
    if lines:
        common.print_rows(lines, indent="  ")
    if rest := len(found) - len(found[:most]):
        print(f"  and {rest:,} more: --all lists them")


def add_index(parser: argparse.ArgumentParser) -> None:
    """Add what `index` takes."""
    parser.epilog = (
        "Later runs with --against OUT, and --leaks OUT, then look their images up in OUT/_index and cost these, not "
        "what OUT holds. Make it again once OUT has grown."
    )
    parser.add_argument("out", metavar="OUT", help="the output of a curation, a local folder")
    parser.add_argument(
        "--similarity", type=float, default=0.9, metavar="X", help="lowest cosine to be asked for (default 0.9)"
    )


def index(arguments: argparse.Namespace) -> None:
    """Make the index of an output."""
    from curator_dali.index import write_index

    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()  # the last one's
                bars[what] = stack.enter_context(common.progress(total, what))
            bars[what].update(done - bars[what].n)

        device = common.device_of(arguments.device)
        made = write_index(arguments.out, similarity=arguments.similarity, device=device, progress=show)
    if arguments.json:
        common.print_json(made.as_dict())
        return
    by = ", ".join(made.columns) or "nothing: the output has neither hashes nor embeddings"
    least = f" (cosine {made.threshold:g} and more)" if made.threshold else ""
    print(f"indexed {counted(made.rows, 'kept image')} of {made.out} by {by}{least}: {common.size_text(made.nbytes)}")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add what `report` takes."""
    parser.add_argument("out", metavar="OUT", help="the output of a curation")
    parser.add_argument("-o", "--to", type=Path, metavar="FILE", help="where (default OUT/report.html)")
    parser.add_argument("--source", metavar="SRC", help="where the data set is, if it has moved")


def report(arguments: argparse.Namespace) -> None:
    """Write report.html anew."""
    from curator_dali.report import write_report

    if arguments.to:
        common.check_folder_of(arguments.to)
    device = common.device_of(arguments.device)
    print("wrote", write_report(arguments.out, source=arguments.source, to=arguments.to, device=device))


def cache(arguments: argparse.Namespace) -> None:
    """Say what the folder of a cache holds, or remove it."""
    from curator_dali.io import clear_cache, read_cache_info

    is_clear = arguments.action == "clear"
    about = (clear_cache if is_clear else read_cache_info)(arguments.folder)
    if arguments.json:
        common.print_json(about._asdict())
        return
    text = common.size_text
    limit = f" of at most {text(about.limit)}" if about.limit else ""
    rows = [("files", f"{about.files:,}"), ("bytes", f"{text(about.bytes)}{limit}")]
    rows += [("read from it", text(about.hits)), ("downloaded", text(about.downloads))]
    common.print_rows([("removed", f"{about.files:,} files, {text(about.bytes)}")] if is_clear else rows)
