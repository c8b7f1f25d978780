"""`Selection`: kept, dropped or failed samples of an output, as a table, a sheet of pictures and cards, or a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked
from curator_dali.arrays import objects
from curator_dali.batch import ImageBatch, ImageObject, concat, sort_rows
from curator_dali.errors import SourceError
from curator_dali.io import printable
from curator_dali.loader import ImageLoader
from curator_dali.outputs import Manifest, RowFiles, to_numpy
from curator_dali.report.scan import Row, find_kinds, kind_columns, priority, thresholds
from curator_dali.sources import Subset, open_recorded
from curator_dali.view import Sheet, html, make_card, make_sheet, make_thumbnails

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import torch

_OTHER_COLUMNS = ("image_id", "image_path", "embedding")  # a batch has these in other places
_IMAGES_AT_ONCE = 8  # whole images in memory
_MOST_FACTS = 3


@dataclass(frozen=True, repr=False)
class Selection:
    """Samples of an output that were kept, dropped or failed, of all reasons or of some.

    Attributes:
        out: The output.
        status: "kept", "dropped" or "failed".
        title: What they are, in words.
        count: How many.
        stages: The stages that dropped them; None for all.
        kind: The kind of reason; None for all.
        source: The data set, where the output does not say how to open it.
        counts: Stage -> kind of reason -> number, of what was dropped; see `find_kinds`.
    """

    out: str
    status: str
    title: str
    count: int
    stages: frozenset[str] | None = None
    kind: str | None = None
    source: Any = field(default=None, repr=False)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def to_table(self) -> pa.Table:
        """Their rows as a `pyarrow.Table`: every column of the output but the embeddings."""
        import pyarrow as pa

        files = RowFiles(self.out)
        names = [name for name in files.schema.names if name != "embedding"]
        return pa.Table.from_batches(self._blocks(files, names), pa.schema(map(files.schema.field, names)))

    def to_pandas(self) -> pd.DataFrame:
        """`to_table()` as a pandas frame.

        Raises:
            ImportError: pandas is not installed: `pip install 'curator-dali[notebook]'`.
        """
        try:
            import pandas  # noqa: F401 - pyarrow's own message does not say what to install
        except ImportError as error:
            raise ImportError(f"to_pandas() needs pandas ({error}): pip install 'curator-dali[notebook]'") from error
        frame: pd.DataFrame = self.to_table().to_pandas()
        return frame

    @checked
    def show(
        self,
        n: int = 24,
        *,
        sort_by: str | None = None,
        descending: bool = False,
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> Sheet:
        """A contact sheet of some of them, from the data set that the output is of; a table of text in a terminal.

        Args:
            n: How many.
            sort_by: A column: the first in its order. By default some by chance, the same every time.
            descending: Whether the highest value comes first.
            device: Where to decode.
            seed: Of the chance.

        Raises:
            KeyError: The output has no such column.
        """
        rows = self._rows(self._chosen(n, sort_by, descending, seed)).to_pylist()
        manifest = Manifest.load(self.out)
        decodable = [row["index"] for row in rows if self.status != "failed"]
        shots, problem = read_pictures(manifest, decodable, self.source, str(device))
        scores = dict.fromkeys([*([sort_by] if sort_by else []), *thresholds(manifest.run.get("settings", {}))])
        cards = make_cards(rows, shots, [*scores], without="no picture" if problem else "cannot be decoded")
        head = [f"{self.title}: {html.count(self.count, 'image')}"]
        head += [f"Without pictures: {problem}"] if problem else []
        return make_sheet(head, [("", "", cards)], self.count - len(rows))

    @checked
    def load(
        self,
        n: int | None = None,
        *,
        sort_by: str | None = None,
        descending: bool = False,
        images: bool = True,
        transforms: Sequence[Any] = (),
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> ImageBatch:
        """A batch of them, with every column of the output, and the embeddings if it stores them.

        Args:
            n: How many; None for all. Chosen as `show` does.
            sort_by: See `show`.
            descending: See `show`.
            images: Whether to decode them (those that cannot be are left out), or to leave pixels out.
            transforms: What to do to the images.
            device: Where to decode.
            seed: Of the chance.

        Raises:
            SourceError: The data set cannot be opened again.
        """
        indices = self._chosen(self.count if n is None else n, sort_by, descending, seed)
        table = self._rows(indices, embeddings=True)
        columns = {name: to_numpy(table[name]) for name in table.column_names if name not in _OTHER_COLUMNS}
        embeddings = None
        if "embedding" in table.column_names and not table["embedding"].null_count and len(table):
            flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            embeddings = flat.reshape(len(table), -1).astype(np.float32)
        pairs = zip(table["image_path"].to_pylist(), table["image_id"].to_pylist(), strict=True)
        data = [ImageObject(path, key) for path, key in pairs]
        known = ImageBatch(self.title, self.out, data, embeddings=embeddings, columns=columns)
        if not images:
            return known
        return load_samples(known, indices, self.source, transforms=transforms, device=str(device))

    def _chosen(self, n: int, sort_by: str | None, descending: bool, seed: int) -> NDArray[np.int64]:
        """Indices of at most n of them, in the order that they are wanted in."""
        if n < 0:
            raise ValueError(f"n is {n}; give the number of images, at least 0")
        if not self.count:
            return np.empty(0, np.int64)
        files = RowFiles(self.out)
        if sort_by is not None and sort_by not in files.schema.names:
            raise KeyError(f"the output has no column {sort_by!r}; it has {', '.join(files.schema.names)}")
        names = ["index", *([sort_by] if sort_by not in (None, "index") else [])]
        blocks = list(self._blocks(files, names))
        index = np.concatenate([block.column(0).to_numpy() for block in blocks] or [np.empty(0, np.int64)])
        if sort_by is None:
            return np.sort(index[np.argsort(priority(index, seed), kind="stable")[:n]])
        values = objects([value for block in blocks for value in block.column(len(names) - 1).to_pylist()])
        found: NDArray[np.int64] = index[sort_rows(values, descending)[:n]]
        return found

    def _rows(self, indices: NDArray[np.int64], embeddings: bool = False) -> Any:
        """The rows of some indices, in their order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(indices) and not self.count:
            return pa.table({"index": [], "image_id": [], "image_path": [], "reason": []})
        files, wanted = RowFiles(self.out), pa.array(indices)
        names = [name for name in files.schema.names if name != "embedding" or embeddings]
        blocks = (block.filter(pc.is_in(block.column("index"), wanted)) for block in files.batches(names))
        table = pa.Table.from_batches(blocks, pa.schema(map(files.schema.field, names)))
        return table.take(pc.index_in(wanted, table["index"].combine_chunks()))

    def _blocks(self, files: RowFiles, names: Sequence[str]) -> Iterator[Any]:
        """Blocks of columns, of the rows that are meant."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for block in files.batches(list(dict.fromkeys([*names, *kind_columns(files)]))):
            meant = pc.equal(block.column("status"), self.status)
            if self.stages is not None:
                stages = pa.array(map(printable, self.stages), pa.string())
                meant = pc.and_(meant, pc.is_in(block.column("stage"), stages))
            if self.kind is not None:
                meant = pc.and_(meant, pc.equal(find_kinds(block, self.counts), printable(self.kind)))
            yield block.select(list(names)).filter(meant)

    def _repr_html_(self) -> str:
        return self.show()._repr_html_()

    def __repr__(self) -> str:
        return f"Selection({self.title}: {html.count(self.count, 'image')}; .show(), .to_table(), .load())"


class _Selectable:
    """A number of samples of an output, or numbers by reason."""

    _out = ""
    _status = ""
    _stages: tuple[str, ...] = ()

    def of(self, out: str, status: str, stages: tuple[str, ...] = ()) -> Any:
        """Set the output, the status and the stages of the count, and return the count."""
        self._out, self._status, self._stages = out, status, stages
        return self

    def __call__(self, which: str | None = None, *, source: Any = None) -> Any:
        """The samples, a `Selection` to look at or to load: `report.dropped("nsfw_score").show()`.

        Args:
            which: Of what was dropped: a stage ("Filter(nsfw_score)"), the field that it looks at ("nsfw_score"), or a
                reason ("nsfw_score > 0.2"). Of what failed: a reason ("truncated"). None: all.
            source: The data set, where the output does not say how to open it, or it has moved.

        Raises:
            KeyError: No stage, field or reason is called that; names those that are.
        """
        status, counts = self._status, self if isinstance(self, dict) else {}
        nested = counts if status == "dropped" else {"": counts}
        sizes = {(stage, kind): count for stage, kinds in nested.items() for kind, count in kinds.items()}
        if which is None:
            total = int(self) if isinstance(self, int) else sum(sizes.values())
            return Selection(self._out, status, status, total, source=source)
        there = {*(self._stages if status == "dropped" else ()), *nested} - {""}
        if stages := frozenset(stage for stage in there if _is_of(stage, which)):
            count = sum(size for (stage, _), size in sizes.items() if stage in stages)
            return Selection(
                self._out, status, f"{status} by {', '.join(sorted(stages))}", count, stages, source=source
            )
        if count := sum(size for (_, kind), size in sizes.items() if kind == which):
            return Selection(self._out, status, f"{status}: {which}", count, None, which, source, nested)
        known = filter(None, dict.fromkeys([*nested, *(kind for _, kind in sizes)]))
        raise KeyError(f"nothing was {status} by {which!r}; there are {', '.join(known) or 'no reasons'}")

    def show(self, n: int = 24, *, sort_by: str | None = None, descending: bool = False) -> Any:
        """A contact sheet of all of them; see `Selection.show`."""
        return self().show(n, sort_by=sort_by, descending=descending)


class Count(_Selectable, int):
    """A number, as any other, that can be looked at."""


class Counts(_Selectable, dict[str, Any]):
    """Numbers by reason, or by stage and reason, that can be looked at."""


def _is_of(stage: str, which: str) -> bool:
    """Whether a stage's label is the one named, or the one of the field named, or another of that name."""
    name = stage.partition(" #")[0]
    return which in (stage, name) or name.endswith(f"({which})")


def load_samples(known: ImageBatch, indices: NDArray[np.int64], source: Any = None, **options: Any) -> ImageBatch:
    """Load samples of an output from its data set as one batch. Unreadable samples are left out.

    Args:
        known: What is known of them: columns and embeddings; its data set is the output's folder.
        indices: Their indices in the source.
        source: The data set, where it is known better than recorded.
        options: Arguments of `ImageLoader`.

    Raises:
        SourceError: The data set cannot be opened again.
    """
    if not len(known):
        return known
    batches = []
    for places, batch in _read_samples(Manifest.load(known.dataset_name), indices, source, batch_size=64, **options):
        mine = known[places]
        loaded = {name: values for name, values in batch.columns.items() if name not in mine.columns}
        batch.columns, batch.embeddings = {**mine.columns, **loaded}, mine.embeddings
        batches.append(batch)
    return concat(batches) if batches else ImageBatch(known.task_id, known.dataset_name)


def _read_samples(
    manifest: Manifest, indices: NDArray[np.int64], source: Any, **options: Any
) -> Iterator[tuple[NDArray[np.int64], ImageBatch]]:
    """Decode samples of an output: yield batches, and the places of their images in `indices`."""
    opened = open_recorded(manifest, source, argument="source=")
    try:
        with ImageLoader(Subset(opened, indices), **options) as loader:
            for decoded, batch in loader.steps():
                if batch is not None:
                    yield decoded.encoded.indices[decoded.rows], batch
    finally:
        if opened is not source:
            opened.close()


class Picture(NamedTuple):
    """One image to be shown: its thumbnail, (h, w, 3) uint8 on the host, and what came beside it."""

    pixels: NDArray[np.uint8]
    caption: str = ""


def read_pictures(
    manifest: Manifest, indices: Sequence[int], source: Any, device: str
) -> tuple[dict[int, Picture], str]:
    """Decode thumbnails of samples, by their index in the source; say why, if the data set cannot be opened again.

    Unreadable samples are left out.

    Args:
        manifest: The output's.
        indices: Indices in the source.
        source: The data set, where it is known better than recorded.
        device: The device to decode on.

    Raises:
        SourceError: `source` was given, and is not the output's.
    """
    wanted = np.unique(np.array(indices, np.int64))
    found: dict[int, Picture] = {}
    options = {"batch_size": _IMAGES_AT_ONCE, "device": device, "prefetch": 1}
    try:
        for places, batch in _read_samples(manifest, wanted, source, **options) if len(wanted) else ():
            captions = [str(item.metadata.get("caption") or "") for item in batch]
            found.update(
                zip(wanted[places].tolist(), map(Picture, make_thumbnails(batch.images), captions), strict=True)
            )
    except SourceError as error:
        if source is not None:
            raise
        return {}, str(error)
    return found, ""


def make_cards(
    rows: Sequence[Row],
    pictures: Mapping[int, Picture],
    scores: Sequence[str] = (),
    marked: bool = False,
    without: str = "no picture",
) -> list[html.Card]:
    """Make a card for a contact sheet of each row.

    Args:
        rows: Of the output.
        pictures: Index in the source -> picture, of those that there are.
        scores: Columns to tell of an image that was kept, the most important first.
        marked: Whether to say "kept" or "dropped".
        without: Why there is no picture of a row that has none, and did not fail.
    """
    cards = []
    for row in rows:
        size = (row["width"], row["height"]) if row.get("width") and row.get("height") else None
        reason, failed = str(row.get("reason") or ""), row["status"] == "failed"
        told = [name for name in scores if not failed and html.number(row.get(name))][:_MOST_FACTS]
        pixels, caption = pictures.get(row["index"], (None, ""))
        cards.append(
            make_card(
                str(row["image_id"]),
                size,
                size,
                {name: row[name] for name in told},
                reason="" if failed else reason,
                text=caption,
                mark=row["status"] if marked else "",
                missing=reason if failed else without,
                pixels=pixels,
            )
        )
    return cards
