"""Advice for what is no source: other containers, archives, commands and names that are nothing here."""

from __future__ import annotations

import os
import re

from curator_dali.io.ranges import strip_query

__all__ = ["COMPRESSED", "advise_on_container", "advise_on_missing", "advise_on_protocol"]

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_PACK = "write its images as .tar shards (webdataset's TarWriter does) or as a .parquet file with a column of bytes"
_CONTAINERS = {
    (".zip", ".7z", ".rar"): "an archive, which is not read: unpack it first (unzip, 7z x), and give the folder",
    (".tfrecord", ".tfrecords", ".tfrec"): f"a TFRecord file, which is not read: {_PACK}",
    (".rec", ".rio"): f"a RecordIO file, which is not read: {_PACK}",
    (".mdb", ".lmdb"): f"an LMDB database, which is not read: {_PACK}",
    (".h5", ".hdf5", ".mat", ".npy", ".npz"): f"a file of arrays, which is not read: {_PACK}",
    (".pkl", ".pickle", ".pt", ".pth"): "a pickle, which is not read: load it, and give its encoded images as a list",
    (".arrow", ".feather"): (
        "an Arrow file, which is not read: write it as Parquet (Dataset.to_parquet of datasets, write_table of "
        "pyarrow.parquet)"
    ),
    (".txt", ".lst", ".tsv", ".csv", ".json", ".jsonl"): (
        "no image. If it lists paths or URLs, give these as a list: [line.strip() for line in open(...)]"
    ),
}
_ARCHIVES = re.compile(r"(?:^|::)(zip|tar|libarchive|dir)(?:://|::)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


def advise_on_container(url: str) -> str:
    """Say what a file of a known ending is, and what to do with it; "" for other endings."""
    path = strip_query(url).lower()
    return next((advice for endings, advice in _CONTAINERS.items() if path.endswith(endings)), "")


def advise_on_protocol(text: str) -> str:
    """Say why a command, or a URL of the members of an archive, is no source; "" for others."""
    if text.startswith("pipe:"):
        return "no commands are run. Give the tars themselves, or URLs that fsspec opens (s3://, gs://, https://)"
    if match := _ARCHIVES.search(text):
        return (
            f"fsspec's {match[1]}:// goes through the whole archive for each image. Unpack the archive and give the "
            "folder; a .tar is opened by its own path or URL"
        )
    return ""


def advise_on_missing(text: str) -> str:
    """Say what a name of nothing may have been meant for; "" where that is not clear."""
    if text != text.strip():
        known = "that name without it is there" if os.path.exists(text.strip()) else "leave it out"
        return f"The name begins or ends with white space: {known}"
    if _HUB_NAME.fullmatch(text):
        return (
            "If it is a data set of the Hugging Face hub, give its Parquet files, such as "
            "'hf://datasets/OWNER/NAME/**/*.parquet' (pip install huggingface_hub)"
        )
    return ""
