"""How fast encoded images in tar shards become arrays, here and elsewhere: a program, not a test.

    make bench                                   # all rows over 2,000 photographs
    make bench ARGS='--corpus tiny'              # over 20,000 images of 64x64: what Python costs
    make bench ARGS='--bad 1%'                   # what damaged images cost the others
    make bench ARGS='--train'                    # to random crops for training, in PyTorch
    make bench ARGS='--memory'                   # whether 10,000 batches leave memory flat
    make bench ARGS='--cpu-split'                # which of our threads the CPU time goes into
    make bench ARGS='--shards DIR --photos DIR'  # tars of your own; or photographs to cut the corpus from

Prints a Markdown table and writes everything measured as JSON. `whole` is from construction to the last image (tar
indexes kept), `steady` the third pass of one object. Ratios are taken within a round; (lowest to highest) is over
rounds. `others` is the CPUs that other processes took: a row with much of it is worthless.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import corpus, training
from tests.benchmarks.harness import ROOT, Job, in_child, ratios, rounds, spread
from tests.benchmarks.rows import DALI, DALI_JSON, DALI_LIMIT, LIMIT, NEMO, OURS, OURS_METADATA, ROWS, WEBDATASET

WORK = ROOT / ".bench"
DEFAULT_ROWS = {
    "full": [OURS, DALI, LIMIT, DALI_LIMIT, WEBDATASET, NEMO],
    "tiny": [OURS, OURS_METADATA, DALI, DALI_JSON, LIMIT],
}


def table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def median(results: list[dict[str, Any]], *path: str) -> float | None:
    values = []
    for result in results:
        value: Any = result
        for key in path:
            value = value.get(key, {})
        if value != {}:
            values.append(value)
    return statistics.median(values) if values else None


def compare(jobs: dict[str, Job], args: argparse.Namespace) -> dict[str, Any]:
    """All rows against DALI's and the limit's."""
    results = rounds(jobs, args.rounds, {NEMO: args.curator_python})
    header = ["row", "whole, img/s", "x DALI", "steady, img/s", "x DALI", "x limit"]
    header += ["CPU ms/img", "faults/img", "peak MB", "not of files", "others"]
    lines = []
    for name, all_found in results.items():
        found = [one for one in all_found if "failed" not in one]
        if not found:
            lines.append([name, all_found[0]["failed"]] + [""] * (len(header) - 2))
            continue
        part = "whole" if "whole" in found[0] else "steady"
        children = median(found, "children_mb") if name == WEBDATASET else None
        lines.append(
            [name]
            + [spread([one["whole"]["rate"] for one in found if "whole" in one])]
            + [spread(ratios(results, name, DALI, "whole"), 2)]
            + [spread([one["steady"]["rate"] for one in found if "steady" in one])]
            + [spread(ratios(results, name, to, "steady"), 2) for to in (DALI, LIMIT)]
            + [f"{median(found, part, 'cpu_ms'):.3f}", f"{median(found, part, 'faults'):.1f}"]
            + [f"{median(found, 'peak_mb'):.0f}" + (f" + {args.threads} x {children:.0f}" if children else "")]
            + [f"{median(found, 'anonymous_mb'):.0f}", f"{median(found, part, 'others'):.2f}"]
        )
    print(table(header, lines))
    return results


def compare_bad(args: argparse.Namespace, shards: list[Path]) -> dict[str, Any]:
    """Our row over the same shards, clean and with some images damaged, by the images that are good."""
    rate = float(args.bad.rstrip("%")) / 100
    # by rate alone: a corpus is made once, and tars given by hand are damaged anew each time
    folder = WORK / f"{args.corpus if not args.shards else 'given'}-bad-{rate:g}"
    damaged = corpus.damage(shards, folder, rate)
    clean, bad = "clean", f"{damaged} damaged"
    jobs = {clean: job(OURS, shards, args), bad: job(OURS, sorted(folder.glob("*.tar")), args)}
    results = rounds(jobs, args.rounds, {})
    lines = []
    for name, found in results.items():
        if "failed" in found[0]:
            lines.append([name, found[0]["failed"], "", "", "", ""])
            continue
        lines.append([name, f"{found[0]['whole']['images']}"])
        for part in ("whole", "steady"):
            lines[-1] += [spread([one[part]["rate"] for one in found]), spread(ratios(results, name, clean, part), 2)]
    print(table(["shards", "good images", "whole, good img/s", "x clean", "steady, good img/s", "x clean"], lines))
    return results


def memory(args: argparse.Namespace, shards: list[Path]) -> dict[str, Any]:
    """Memory over many small batches; an error where it grows."""
    answer = in_child("tests.benchmarks.split:memory", job(OURS, shards, args, limit=args.memory))
    if "failed" in answer:
        sys.exit(answer["failed"])
    print(
        table(
            ["batches", "RSS MB", "not of files, MB"], [[f"{n:,}", f"{a:.1f}", f"{b:.1f}"] for n, a, b in answer["at"]]
        )
    )
    warm = [one for one in answer["at"] if one[0] >= args.memory // 5]
    growth = warm[-1][2] - warm[0][2]
    print(f"\n{growth:+.1f} MB from batch {warm[0][0]:,} to {warm[-1][0]:,}")
    if growth > 8:
        sys.exit("memory grows")
    return answer


def cpu_split(args: argparse.Namespace, shards: list[Path]) -> dict[str, Any]:
    answer = in_child("tests.benchmarks.split:threads", job(OURS, shards, args))
    if "failed" in answer:
        sys.exit(answer["failed"])
    for title, part in answer.items():
        print(table([title, "us of CPU an image"], [[name, f"{value:.1f}"] for name, value in part.items()]), "\n")
    return answer


def job(row: str, shards: list[Path], args: argparse.Namespace, limit: int = 0) -> Job:
    return Job(row, [str(shard) for shard in shards], args.threads, str(WORK / "cache"), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=["full", "tiny"], help="default: full; tiny with --memory")
    parser.add_argument("--shards", type=Path, help="a folder of tars instead (.jpg and .json members)")
    parser.add_argument("--photos", type=Path, help="a folder of further photographs for making the corpus")
    known = "; ".join([*ROWS, *training.ROWS])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"parts of names; of: {known}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="default: .bench/results-TIME.json")
    parser.add_argument("--curator-python", default=sys.executable, help="a Python that has nemo-curator and DALI")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--bad", nargs="?", const="1%", metavar="SHARE", help="damage this share of the images")
    modes.add_argument("--memory", nargs="?", const=10_000, type=int, metavar="BATCHES")
    modes.add_argument("--cpu-split", action="store_true")
    modes.add_argument("--train", action="store_true", help="the rows of training.py")
    args = parser.parse_args()
    args.corpus = args.corpus or ("tiny" if args.memory else "full")

    folder = args.shards or WORK / args.corpus
    if not args.shards and not list(folder.glob("*.tar")):
        print(f"making {folder}", file=sys.stderr)
        corpus.build(args.corpus, folder, photos=args.photos)
    shards = sorted(folder.resolve().glob("*.tar"))
    if not shards:
        sys.exit(f"no *.tar in {folder}")

    if args.bad:
        results = compare_bad(args, shards)
    elif args.memory:
        results = memory(args, shards)
    elif args.cpu_split:
        results = cpu_split(args, shards)
    elif args.train:
        names = [n for n in training.ROWS if not args.rows or any(part in n for part in args.rows)]
        header, lines, results = training.compare({name: job(name, shards, args) for name in names}, args.rounds)
        print(table(header, lines))
    else:
        names = [n for n in ROWS if any(part in n for part in args.rows)] if args.rows else DEFAULT_ROWS[args.corpus]
        results = compare({name: job(name, shards, args) for name in names}, args)
    out = args.json or WORK / f"results-{time.strftime('%Y%m%d-%H%M%S')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": platform.platform(), "python": platform.python_version(), "arguments": sys.argv[1:]}
    out.write_text(json.dumps({**about, "results": results}, indent=1))
    print(f"\n{len(shards)} shards of {folder}, {args.threads} threads; all of it in {out}")


if __name__ == "__main__":
    main()
