"""Whether every sample of a source came out of a curation exactly once: kept, dropped or failed."""

from __future__ import annotations

import tarfile
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from curator_dali.errors import OutputError
from curator_dali.io import store
from curator_dali.io.store import join
from curator_dali.outputs.manifest import Manifest, Part
from curator_dali.outputs.parquet import STATUSES
from curator_dali.outputs.row_files import RowFiles

__all__ = ["Accounts", "account"]


@dataclass
class Accounts:
    """What was counted.

    Attributes:
        samples: Samples of the source.
        counts: Rows by status.
        problems: What does not add up, a line each.
    """

    samples: int
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Make sure that everything adds up.

        Raises:
            OutputError: Something does not; names the first places.
        """
        if self.problems:
            more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
            raise OutputError(f"the output does not account for its input: {'; '.join(self.problems[:5])}{more}")


def account(folder: str, *, tars: bool = False) -> Accounts:
    """Count the rows of an output, part by part, against the ranges of the source that they are for.

    Every sample must be in one part; every part must have one row for each sample of its range and as many of each
    status as its record says; every file must be there with its size.

    Args:
        folder: The output.
        tars: Whether to go through the tars, too: each must have the samples that the rows say, and no other.

    Raises:
        OutputError: There is no output, or a file of it cannot be read.
    """
    manifest = Manifest.load(folder)
    accounts = Accounts(manifest.samples, problems=manifest.verify())
    if accounts.problems:  # files that are not there cannot be counted
        return accounts
    for part in manifest.parts():
        _count(accounts, manifest.folder, part, tars)
    if (total := accounts.counts.total()) != accounts.samples:
        accounts.problems.append(f"{total} rows for {accounts.samples} samples")
    return accounts


def _count(accounts: Accounts, folder: str, part: Part, tars: bool) -> None:
    where = f"samples {part.start} to {part.stop - 1}"
    files = [join(folder, file.name) for file in part.files if file.name.endswith(".parquet")]
    seen = np.zeros(len(part), np.int64)
    counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
    kept: dict[str, list[str]] = {file.name: [] for file in part.files if file.name.endswith(".tar")}
    for url in files:
        for batch in RowFiles(url).batches(["index", "status", "tar", "key"]):
            index = batch.column("index").to_numpy() - part.start
            inside = (index >= 0) & (index < len(part))
            if not inside.all():
                accounts.problems.append(f"{where}: {np.count_nonzero(~inside)} rows are of other samples")
            np.add.at(seen, index[inside], 1)
            statuses = batch.column("status").to_pylist()
            counts.update(statuses)
            places = zip(statuses, batch.column("tar").to_pylist(), batch.column("key").to_pylist(), strict=True)
            for status, tar, key in places:
                if status == "kept" and tar is not None:
                    kept.setdefault(tar, []).append(str(key))
    accounts.counts += counts
    for count, what in ((np.count_nonzero(seen == 0), "no row"), (np.count_nonzero(seen > 1), "more than one row")):
        if count:
            accounts.problems.append(f"{where}: {count} have {what}")
    if {name: count for name, count in counts.items() if count} != {n: c for n, c in part.counts.items() if c}:
        accounts.problems.append(f"{where}: the rows are {dict(counts)}, the record says {dict(part.counts)}")
    for name, keys in kept.items() if tars else ():
        if (found := _keys(join(folder, name))) != keys:
            accounts.problems.append(f"{name} has {len(found)} samples, not the {len(keys)} that the rows say")


def _keys(url: str) -> list[str]:
    """Keys of a tar's samples, in order."""
    try:
        with store.open_input(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found = (member.name for member in tar)
            return list(dict.fromkeys(name[: name.find(".", name.rfind("/") + 1)] for name in found))
    except (tarfile.TarError, OSError) as error:
        raise OutputError(f"{url} is damaged: {error}") from error
