"""`curator-dali curate`: a curation from flags, from a file, or from both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.cli import common
from curator_dali.errors import count as counted

if TYPE_CHECKING:
    from curator_dali.curation import Curation
    from curator_dali.stages import Stage

_EPILOG = """\
stages run in this order: --min-size, --exclude, --include, --info, --embed, --aesthetic, --nsfw, --quality,
--min and --max, --dedup; those of a --config come first. A run that was interrupted goes on with the same command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("paths", metavar="SRC... OUT", nargs="*", help=f"{common.SOURCES}; and the folder to write to")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a .toml or .yaml file with curate()'s arguments")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")

    stages = parser.add_argument_group("stages")
    stages.add_argument("--min-size", type=common.positive, metavar="N", help="drop images with a side under N pixels")
    stages.add_argument(
        "--embed", metavar="MODEL", help="a folder or hub id of CLIP or SigLIP, efficientnet-lite0, timm:NAME"
    )
    stages.add_argument("--aesthetic", metavar="MODEL", help="score with LAION's predictor in this folder")
    stages.add_argument("--aesthetic-min", type=float, metavar="X", help="score, and drop what is below X (1 to 10)")
    stages.add_argument("--nsfw", metavar="MODEL", help="score with open-nsfw, or with LAION's head in this folder")
    stages.add_argument("--nsfw-max", type=float, metavar="X", help="score, and drop what is above X (0 to 1)")
    stages.add_argument("--quality", action="store_true", help="score sharpness, brightness, contrast, entropy, shape")
    stages.add_argument(
        "--info",
        metavar="COLUMN,...",
        help="write facts of the file: sha256, md5, format, color_profile, taken_at, ...",
    )
    common.add_lists(stages)
    common.add_limits(stages)
    common.add_deduplicate(parser.add_argument_group("deduplication, after all other stages"))

    output = parser.add_argument_group("output")
    common.add_output(output, embeddings="store them")
    output.add_argument(
        "--metadata", type=_fields, metavar="FIELDS",
        help="fields of the metadata that are columns: all, or names as caption,label; NAME=TYPE says a type",
    )  # fmt: skip
    output.add_argument("--part-size", type=common.positive, metavar="N", help="samples done as a whole (default 8192)")

    running = parser.add_argument_group("running")
    running.add_argument("--device", help="auto (the default), cpu or cuda:N")
    running.add_argument("--batch-size", type=common.positive, metavar="N", help="images a batch (default 64)")
    running.add_argument("--threads", dest="num_threads", type=common.positive, metavar="N", help="decoding threads")
    common.add_executor(running)
    common.add_cache(running)
    common.add_trust(running)
    running.add_argument("--limit", type=common.positive, metavar="N", help="only the first N samples")
    running.add_argument("--max-error-rate", type=float, metavar="X", help="end if this share (0 to 1) is broken")


def _fields(text: str) -> Any:
    """The argument `metadata` of `curate`, for argparse: all; names; or names with types."""
    if text == "all":
        return True
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(name for name, _, _ in pairs) or len({equals for _, equals, _ in pairs}) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} are no fields; write all, caption,label or score=float64")
    return {name: kind for name, _, kind in pairs} if pairs[0][1] else [name for name, _, _ in pairs]


def run(arguments: argparse.Namespace) -> None:
    """Curate, or say what would be done."""
    from curator_dali.curation import Curation
    from curator_dali.sources import Subset, open_source

    options = _options(arguments)
    source = options.pop("source")
    opened = common.trust_sizes(open_source(source, cache=options.pop("cache", None)), arguments)
    try:
        limited = opened if arguments.limit is None else Subset(opened, slice(arguments.limit))
        with Curation(limited, options.pop("out"), **options) as curation:
            if arguments.dry_run:
                _print_plan(curation, arguments.json)
                return
            done, total = curation.work
            with common.progress(total, "curated", done) as bar:
                report = curation.run(bar.update)
    finally:
        opened.close()
    if arguments.json:
        common.print_json(report.as_dict())
        return
    common.print_rows(report.rows(), right=(1, 2))
    print()
    common.print_rows(report.times())


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Curation`: the file's, and over them the command line's."""
    options: dict[str, Any] = {"stages": []}
    if arguments.config:
        from curator_dali.curation import read_config

        options |= read_config(arguments.config)
    paths = arguments.paths
    if len(paths) == 1:
        raise ValueError(f"curate takes SRC and OUT, and got only {paths[0]!r}")
    if paths:
        options |= {"source": common.source_of(paths[:-1]), "out": paths[-1]}
    missing = [name for name in ("source", "out") if name not in options]
    if missing:
        raise ValueError(f"curate needs {' and '.join(missing)}: give SRC OUT, or put them into --config")
    options["stages"] = [*options["stages"], *_stages(arguments)]
    options |= common.settings_of(arguments) | common.write_of(arguments, options)
    options["device"] = common.device_of(arguments.device or options.get("device", "auto"))
    if (executor := common.executor_of(arguments)) is not None:
        options["executor"] = executor
    return options


def _stages(arguments: argparse.Namespace) -> list[Stage]:
    from curator_dali.stages import NSFW, Aesthetic, Embed, FileInfo, Filter, Quality

    stages: list[Stage] = []
    if arguments.min_size:
        stages += [Filter(side, min=arguments.min_size) for side in ("width", "height")]
    stages += common.lists_of(arguments)
    if arguments.info:
        stages.append(FileInfo(tuple(name.strip() for name in arguments.info.split(","))))
    if arguments.embed:
        stages.append(Embed(arguments.embed))
    if arguments.aesthetic or arguments.aesthetic_min is not None:
        stages.append(Aesthetic(arguments.aesthetic) if arguments.aesthetic else Aesthetic())
    if arguments.aesthetic_min is not None:
        stages.append(Filter("aesthetic_score", min=arguments.aesthetic_min))
    if arguments.nsfw or arguments.nsfw_max is not None:
        stages.append(NSFW(arguments.nsfw) if arguments.nsfw else NSFW())
    if arguments.nsfw_max is not None:
        stages.append(Filter("nsfw_score", max=arguments.nsfw_max))
    if arguments.quality:
        stages.append(Quality())
    stages += [Filter(field, min=limit) for field, limit in arguments.min]
    stages += [Filter(field, max=limit) for field, limit in arguments.max]
    return [*stages, *common.deduplicate_of(arguments)]


def _print_plan(curation: Curation, as_json: bool) -> None:
    plan = curation.plan
    len(curation.source)  # waits for tars that are not indexed
    done, total = curation.work
    assert total is not None
    if as_json:
        steps = [{"stage": label, "reads": reads, "writes": writes} for label, reads, writes in plan.rows()]
        about = {"source": curation.source.name, "samples": len(curation.source), "out": curation.out}
        state = {"device": curation.device, "done": done, "total": total}
        known = {
            "columns": {**plan.columns, **curation.fields},
            "settings": curation.settings,
            "lineage": curation.lineage,
        }
        common.print_json({**about, **state, "stages": steps, **known})
        return
    common.print_rows(
        [
            ("source", f"{curation.source.name}, {counted(len(curation.source), 'sample')}"),
            ("out", f"{curation.out}, {f'{done:,} of {total:,} are done' if done else 'new'}"),
            ("device", curation.device),
            ("views", f"{len(plan.views)}, made by one decode" if plan.views else "none: images are only checked"),
            ("columns", ", ".join([*plan.columns, *curation.fields])),
        ]
    )
    if plan.stages:
        print()
        common.print_rows([("stage", "reads", "writes"), *((a, b or "-", c or "-") for a, b, c in plan.rows())])
