"""Methods of `ImageBatch` for notebooks: contact sheets, tables, plots, and the images nearest to one."""

from __future__ import annotations

import io
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.arguments import checked
from curator_dali.batch.image import ImageObject, dtype_of, field_values, sort_rows
from curator_dali.errors import count
from curator_dali.threads import import_whole
from curator_dali.view import html, make_card, make_sheet, plots, size_of, take_pictures

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_LEAST_OF_GROUP = 4  # images of a group that are shown, at the least
_LONGEST_TAG = 200  # characters of an EXIF value; maker's notes are kilobytes


class Viewable(ABC):
    """The methods of `ImageBatch` for notebooks, and declarations of the attributes that these methods read."""

    data: list[ImageObject]
    images: Any
    embeddings: Any
    encoded: Sequence[Mapping[str, memoryview]] | None
    views: dict[Any, Any]
    columns: dict[str, NDArray[Any]]

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the pixels lie."""

    @abstractmethod
    def __getitem__(self, rows: Any) -> Any: ...

    @abstractmethod
    def to_torch(self, what: Any) -> Any:
        """Torch tensors on the memory of `images`, `embeddings` or a view."""

    def values(self, field: str) -> NDArray[Any]:
        """A field's value for each image, (N,): a column, an attribute such as `nsfw_score`, or of the metadata.

        Numbers that some images lack are NaN, anything else that they lack is None.

        Raises:
            KeyError: No image has the field.
        """
        return field_values(self.data, self.columns, field)

    @checked
    def show(
        self,
        n: int = 24,
        *,
        sort_by: str | None = None,
        descending: bool = False,
        columns: Sequence[str] | None = None,
        group_by: Any = None,
        view: Sequence[Any] | None = None,
    ) -> Any:
        """A contact sheet: HTML in a notebook, text in a terminal. Only thumbnails leave the device.

        Args:
            n: Images to show; the rest is counted.
            sort_by: A field, as `values` takes it.
            descending: Whether the highest value comes first.
            columns: Fields to write beneath each image; by default size, scores and caption.
            group_by: A field whose equal values stand together; title -> row numbers; or duplicates, as
                `similarity.group` finds them. Of each the first `n` / groups are shown, at least four while `n` has
                room.
            view: Show this view instead of `images`.

        Returns:
            A `view.Sheet`: the last value of a cell is shown; `.save("sheet.html")` writes a page.

        Raises:
            KeyError: No image has the field.
        """
        if n < 0:
            raise ValueError(f"n is {n}; give the number of images to show, at least 0")
        if sort_by is not None and not (group_by is None or isinstance(group_by, str)):
            raise ValueError("group_by with row numbers means the rows as they are; leave sort_by out")
        batch = self if sort_by is None else self.sort_by(sort_by, descending=descending)
        total = len(batch.data)
        chosen = None if columns is None else {name: batch.values(name) for name in columns}
        picked = [("", "", list(range(min(n, total))))]
        head, marks = " · ".join(_describe(batch)), None
        if group_by is not None:
            groups = _find_groups(batch, group_by)
            picked, room = [], n
            for title, rows in groups:
                few = rows[: min(room, max(_LEAST_OF_GROUP, n // len(groups)))]
                room -= len(few)
                of = "" if len(few) == len(rows) else f"{len(few):,} of "
                picked += [(title, of + count(len(rows), "image"), few)] if few else []
            head = count(len(groups), "group") + (f" by {group_by}" if isinstance(group_by, str) else "")
            marks = np.where(group_by.kept, "kept", "dropped") if hasattr(group_by, "kept") else None
        shown = [row for _, _, rows in picked for row in rows]
        cards = iter(_make_cards(batch, shown, chosen, view, marks))
        sheets = [(title, note, [next(cards) for _ in rows]) for title, note, rows in picked]
        return make_sheet([head], sheets, total - len(shown), repr(batch))

    def sort_by(self, field: str, *, descending: bool = False) -> Self:
        """The same images in the order of a field, as `values` takes it; those without a value come last.

        Raises:
            KeyError: No image has the field.
            TypeError: Its values cannot be compared with each other.
        """
        try:
            rows = sort_rows(self.values(field), descending)
        except TypeError as error:
            raise TypeError(f"the values of {field!r} are of different kinds: {error}") from error
        return cast("Self", self[rows])

    def to_table(self, *, exif: bool = False, embeddings: bool = False) -> pa.Table:
        """A `pyarrow.Table`, a row an image: id, path, scores, `columns`, metadata.

        A metadata field with values of several kinds is JSON text. Where a column and a metadata field have one name,
        the column counts, as in `values`.

        Args:
            exif: Add a column `exif`, tag name -> text, read from `encoded` (the loader's `keep_encoded`) or,
                far slower for members of tars, from `image_path`.
            embeddings: Add the embeddings, as float32 lists of a fixed size.

        Raises:
            ValueError: Embeddings are asked for and there are none.
        """
        import pyarrow as pa

        columns: dict[str, Any] = {
            "image_id": pa.array([item.image_id for item in self.data], pa.string()),
            "image_path": pa.array([item.image_path for item in self.data], pa.string()),
        }
        for name in ("aesthetic_score", "nsfw_score"):
            scores = [getattr(item, name) for item in self.data]
            if any(score is not None for score in scores):
                columns[name] = pa.array(scores, pa.float64())
        columns |= {name: _to_arrow(values) for name, values in self.columns.items()}
        for name in dict.fromkeys(str(key) for item in self.data for key in item.metadata):
            if name not in columns:
                columns[name] = _to_arrow([item.metadata.get(name) for item in self.data])
        if exif:
            tags = [list(_read_exif(self, row).items()) for row in range(len(self.data))]
            columns["exif"] = pa.array(tags, pa.map_(pa.string(), pa.string()))
        if embeddings:
            rows = np.ascontiguousarray(arrays.to_host(_need_embeddings(self)), np.float32)
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), max(rows.shape[1], 1))
        return pa.table(columns)

    def to_pandas(self, *, exif: bool = False) -> pd.DataFrame:
        """`to_table()` as a pandas frame; whole numbers that some images lack stay whole.

        Raises:
            ImportError: pandas is not installed: `pip install 'curator-dali[notebook]'`.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(f"to_pandas() needs pandas ({error}): pip install 'curator-dali[notebook]'") from error

        table = self.to_table(exif=exif)
        whole = {field.type: None for field in table.schema if str(field.type).startswith(("int", "uint"))}
        nullable = {kind: pd.api.types.pandas_dtype(str(kind).replace("u", "U").replace("i", "I", 1)) for kind in whole}
        frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
        return frame

    def histogram(self, field: str, *, bins: int = 30) -> Any:
        """How often each value of a field occurs: bars of numbers in `bins` ranges, or of the most frequent texts.

        Returns:
            A `view.plots.Plot`: a picture in a notebook; `.figure` is matplotlib's, `.save("x.png")` writes it.

        Raises:
            KeyError: No image has the field.
            ImportError: matplotlib is not installed: `pip install 'curator-dali[notebook]'`.
        """
        return plots.histogram(self.values(field), field, bins)

    def embedding_map(
        self, color_by: str | None = None, *, method: Literal["pca", "umap"] = "pca", seed: int = 0
    ) -> Any:
        """The embeddings on a plane, a dot an image: what lies close together is alike.

        Args:
            color_by: A field, as `values` takes it: numbers on a scale, up to ten texts or classes in colours.
            method: "pca" keeps the two directions of the largest variance, on the device; "umap" keeps neighbours
                together, if umap-learn is installed.
            seed: Of UMAP.

        Returns:
            A `view.plots.Plot`.

        Raises:
            ValueError: There are fewer than three images, or no embeddings.
            ImportError: matplotlib or umap-learn is not installed.
        """
        values = None if color_by is None else self.values(color_by)
        return plots.embedding_map(_need_embeddings(self), values, color_by, method=method, seed=seed)

    def nearest(self, query: int | str | NDArray[np.floating[Any]] | Any, k: int = 12) -> Self:
        """The images whose embeddings have the highest cosine with a query, best first.

        Args:
            query: A row number or an image's id (which comes first itself), or a (D,) embedding: numpy, CuPy or torch.
            k: How many, at the most.

        Returns:
            A batch with `columns["similarity"]`, (k,) float32.

        Raises:
            ValueError: No embeddings, or one of another length.
            KeyError: No image has that id.
        """
        import_whole("torch")
        import torch

        from curator_dali import similarity

        embeddings = arrays.to_torch(_need_embeddings(self)).float()
        if isinstance(query, str):
            rows = [row for row, item in enumerate(self.data) if item.image_id == query]
            if not rows:
                raise KeyError(f"no image of the batch has the id {query!r}")
            query = rows[0]
        if isinstance(query, (int, np.integer)):
            if not -len(self.data) <= query < len(self.data):
                raise IndexError(f"row {query} is not in a batch of {len(self.data)} images")
            vector = embeddings[int(query)]
        else:
            vector = torch.as_tensor(query, dtype=torch.float32, device=embeddings.device).reshape(-1)
        bad = similarity.bad_rows(embeddings)  # an image without a direction is near nothing
        good = np.setdiff1d(np.arange(len(self.data)), bad)
        there = embeddings if not len(bad) else embeddings[torch.from_numpy(good).to(embeddings.device)]
        places, cosines = similarity.nearest(vector[None], there, k)
        found = cast("Self", self[good[places[0]]])
        found.columns["similarity"] = cosines[0]
        return found

    def search(self, text: str, encoder: Any, k: int = 12) -> Self:
        """The images that fit a text best, by an encoder with a text tower; the one that made the embeddings.

        Args:
            text: What is looked for.
            encoder: A `models.ImageEncoder`.
            k: How many, at the most.

        Raises:
            ValueError: No embeddings, or of another length than the encoder's.
            NotImplementedError: The encoder knows no texts.
        """
        return self.nearest(encoder.encode_text([text])[0], k)

    def _repr_html_(self) -> str:
        text: str = self.show()._repr_html_()
        return text


def _describe(batch: Viewable) -> list[str]:
    """Describe a batch: number of images, their sizes, the device."""
    about = [count(len(batch.data), "image")]
    if batch.images is not None and batch.data:
        sizes = sorted(map(size_of, arrays.shapes(batch.images)), key=lambda size: (size[0] * size[1], size))
        ends = dict.fromkeys(f"{size[1]} × {size[0]}" for size in (sizes[0], sizes[-1]))
        about.append(f"{' to '.join(ends)} {dtype_of(batch.images[0])}")
    elif batch.images is None:
        about.append("a view" if batch.views else "no pixels on the device")
    if batch.embeddings is not None:
        about.append(f"embeddings of {batch.embeddings.shape[1]}")
    return [*about, batch.device]


def _find_groups(batch: Viewable, by: Any) -> list[tuple[str, list[int]]]:
    """Return title and rows of each group, in the order of the batch or of a given mapping."""
    if hasattr(by, "members"):
        return [(batch.data[keeper].image_id, rows) for keeper, rows in by.members().items()]
    if not isinstance(by, str):
        return [(str(key), [int(row) for row in rows]) for key, rows in by.items() if len(rows)]
    found: dict[str, list[int]] = {}
    for row, value in enumerate(batch.values(by)):
        found.setdefault(html.number(value) or "none", []).append(row)
    return [(f"{by} {title}", rows) for title, rows in found.items()]


def _make_cards(
    batch: Viewable, rows: Sequence[int], chosen: Mapping[str, Any] | None, view: Sequence[Any] | None, marks: Any
) -> list[html.Card]:
    pixels = _find_pixels(batch, rows, view)
    cards = []
    for row, image in zip(rows, pixels, strict=True):
        item = batch.data[row]
        mark = "" if marks is None else str(marks[row])
        shape = None if image is None else size_of(tuple(image.shape))[::-1]
        if chosen is not None:
            texts = {name: html.number(values[row]) or "none" for name, values in chosen.items()}
            cards.append(make_card(item.image_id, shape, None, texts, mark=mark))
            continue
        columns = {name: values[row] for name, values in batch.columns.items()}
        size = (columns.pop("width"), columns.pop("height")) if {"width", "height"} <= columns.keys() else shape
        scores = {"aesthetic_score": item.aesthetic_score, "nsfw_score": item.nsfw_score, **columns}
        text = str(item.metadata.get("caption") or "")
        cards.append(make_card(item.image_id, shape, size, scores, text=text, mark=mark))
    take_pictures(cards, pixels)
    return cards


def _find_pixels(batch: Viewable, rows: Sequence[int], view: Sequence[Any] | None) -> list[Any]:
    """Return the pixels of rows where they lie: of `images`, else of the first view, else of `data`."""
    if view is not None:
        batch.to_torch(view)  # says what is missing
        return [batch.views[tuple(view)][row] for row in rows]
    if batch.images is not None:
        return [batch.images[row] for row in rows]
    if batch.views:
        first = next(iter(batch.views.values()))
        return [first[row] for row in rows]
    return [batch.data[row].image_data for row in rows]


def _need_embeddings(batch: Viewable) -> Any:
    if batch.embeddings is None:
        raise ValueError("the batch has no embeddings; a stage Embed makes them")
    return batch.embeddings


def _read_exif(batch: Viewable, row: int) -> dict[str, str]:
    """Return an image's EXIF, tag name -> text; {} if there is none or the file cannot be read."""
    from PIL import ExifTags, Image

    try:
        with _open_image(batch, row) as file, Image.open(file) as image:
            tags: Mapping[int, Any] = image.getexif()
            found = {**tags, **image.getexif().get_ifd(ExifTags.IFD.Exif)}
    except Exception as error:  # a damaged header has as many exceptions as there are formats
        logger.debug("no EXIF of %s: %s", batch.data[row].image_path, error)
        return {}
    names = {tag: ExifTags.TAGS.get(tag, f"0x{tag:04x}") for tag in found}
    return {names[tag]: _clean_text(value) for tag, value in found.items() if not isinstance(value, dict)}


def _open_image(batch: Viewable, row: int) -> Any:
    if batch.encoded is not None:
        for extension, data in batch.encoded[row].items():
            if extension.lower() not in ("json", "txt", "cls"):
                return io.BytesIO(data)
    import fsspec

    return fsspec.open(batch.data[row].image_path)  # the object itself: it closes the file when it is collected


def _clean_text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "".join(c for c in text.strip("\0 ") if c.isprintable())[:_LONGEST_TAG]


def _to_arrow(values: Sequence[Any] | NDArray[Any]) -> Any:
    """Return an Arrow array; values of several kinds become JSON text."""
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.dtype != object:
        return pa.array(values)
    rows = list(values)
    try:
        return pa.array(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if row is None else json.dumps(row, default=str) for row in rows], pa.string())
