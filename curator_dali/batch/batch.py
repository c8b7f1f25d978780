"""The data model: `Task` and `ImageBatch`, with the names and meanings of NeMo Curator's; batches joined, and drawn."""

from __future__ import annotations

import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.arguments import Count, checked
from curator_dali.batch.image import ImageObject, clone, describe_image, dtype_of, find_problems, misaligned
from curator_dali.batch.notebook import Viewable
from curator_dali.view import draw_contact_sheet

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

T = TypeVar("T")

# What a batch holds as rows of arrays, and the field of an image that a row goes to on the host.
_ROWS = {"images": "image_data", "embeddings": "embedding"}


@dataclass(repr=False, eq=False)
class Task(ABC, Generic[T]):
    """A unit of work that goes through a pipeline's stages.

    Attributes:
        task_id: Tells the tasks of a run apart.
        dataset_name: The data set it came from.
        data: What the stages work on.
    """

    task_id: str
    dataset_name: str
    data: T
    _stage_perf: list[Any] = field(default_factory=list)
    _metadata: dict[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Number of items in this task."""

    @abstractmethod
    def validate(self) -> bool:
        """Whether the data is as it should be."""

    def add_stage_perf(self, perf_stats: Any) -> None:
        """Add what a stage measured of itself."""
        self._stage_perf.append(perf_stats)


class _Identity:
    """The identity of an array, or of a list of arrays, which it does not keep alive.

    The first array is held weakly: an address could be used again.
    """

    def __init__(self, rows: Any) -> None:
        parts = rows if isinstance(rows, list) else [rows]
        self._first = weakref.ref(parts[0]) if parts else None
        self._ids = list(map(id, parts))

    def fits(self, rows: Any) -> bool:
        """Check whether these are the same objects."""
        parts = rows if isinstance(rows, list) else [rows]
        return self._first is not None and self._first() is not None and self._ids == list(map(id, parts))


@dataclass(repr=False, eq=False)
class ImageBatch(Viewable, Task[list[ImageObject]]):
    """Images as arrays on a device, together with who each of them is.

    Row i of `images`, `views`, `embeddings`, `columns` and `encoded` belongs to `data[i]`; slices and `where` keep it
    so. Batches compare by identity. Every selection shares its `ImageObject`s with the batch it came from. Its pixels
    are views while it keeps at least half of the memory they pin, else copies: treat pixels as read-only, or `copy()`
    first.

    Pickling goes through the host: `images`, `views` and `embeddings` arrive as numpy arrays, and `encoded` stays
    behind.

    Attributes:
        data: N images.
        images: None, an (N, H, W, 3) array or a list of N (H_i, W_i, 3) arrays, uint8 RGB; CuPy on a GPU, numpy
            without. After a `Normalize` it is floating point, (N, 3, H, W) or (N, H, W, 3).
        embeddings: None or (N, D) floating point.
        encoded: None or, a sample, its members' original bytes, {extension: memoryview}.
        views: Further versions of the same images, each under the sequence of transforms that made it:
            `views[transforms.clip(224)]` is (N, 224, 224, 3). Arrays as `images`, made by the same decode.
        columns: What is known of the images, one value each: name -> (N,) numpy. The loader gives `width` and
            `height` (int32, pixels of the upright original); stages add their scores. A column of another length is
            refused when it is put in.

    Raises:
        ValueError: `images`, `embeddings`, `encoded`, a view or a column does not have a row an image.
    """

    task_id: str = ""
    dataset_name: str = ""
    data: list[ImageObject] = field(default_factory=list)
    images: Any = field(default=None, kw_only=True)
    embeddings: Any = field(default=None, kw_only=True)
    encoded: Sequence[Mapping[str, memoryview]] | None = field(default=None, kw_only=True)
    views: dict[Any, Any] = field(default_factory=dict, kw_only=True)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict, kw_only=True)  # a `Columns` once it is assigned
    # Of what `data` has the rows on the host: "images" or "embeddings" -> which array they are of.
    _host_of: dict[str, _Identity] = field(default_factory=dict, init=False)
    # Bytes that `images` keep alive, where they are views of a larger batch; else 0.
    _held: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for problem in misaligned(self.data, self._rows()):
            raise ValueError(f"ImageBatch: {problem}; give one row an image")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "columns":
            value = Columns(self.data, value)
        elif name == "images":
            self.__dict__["_held"] = 0  # by other arrays
        elif name == "data" and isinstance(columns := self.__dict__.get("columns"), Columns):
            columns.data = value
        super().__setattr__(name, value)

    @property
    def num_items(self) -> int:
        """Number of images."""
        return len(self.data)

    @property
    def device(self) -> str:
        """Where `images` (without them `embeddings`, or a view) lie: "cuda:N" or "cpu"."""
        rows = next((rows for rows in (self.images, self.embeddings, *self.views.values()) if rows is not None), None)
        return arrays.device_of([] if rows is None else rows)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[ImageObject]:
        return iter(self.data)

    @overload
    def __getitem__(self, rows: int) -> ImageObject: ...
    @overload
    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> Self: ...
    def __getitem__(self, rows: Any) -> Any:
        """One image by its number; a batch by a slice, row numbers (repeats allowed) or a boolean mask."""
        if isinstance(rows, slice):
            return self._take(rows)
        if not hasattr(rows, "__len__") and hasattr(rows, "__index__"):
            return self.data[operator.index(rows)]
        picked = _on_host(rows)
        if picked.dtype == bool:
            return self.where(picked)
        if picked.ndim != 1 or not (picked.size == 0 or np.issubdtype(picked.dtype, np.integer)):
            raise TypeError(f"rows must be an int, a slice, (M,) ints or a mask, not {picked.ndim}-D {picked.dtype}")
        n = len(self)
        if picked.size and not (-n <= picked.min() and picked.max() < n):
            raise IndexError(f"rows {picked.min()}..{picked.max()} are not all in a batch of {n} images")
        return self._take(np.where(picked < 0, picked + n, picked).astype(np.int64))

    def where(self, mask: Any) -> Self:
        """The images whose mask is true.

        Args:
            mask: N booleans: a list, numpy, CuPy or torch. For row numbers use `batch[[0, 2]]`.

        Raises:
            TypeError: Not booleans.
            ValueError: Not N of them.
        """
        flags = _on_host(mask)
        if flags.size and flags.dtype != bool:
            raise TypeError(f"where() takes booleans, not {flags.dtype}; for row numbers use batch[[0, 2]]")
        if flags.shape != (len(self),):
            raise ValueError(f"where() takes one boolean an image: the mask is {flags.shape}, the batch ({len(self)},)")
        return self._take(np.flatnonzero(flags))

    def copy(self) -> Self:
        """The same batch in memory of its own, on the same device; images and their metadata are copies too."""
        return self._take(slice(None), copy=True)

    def to_host(self, release: bool = False) -> Self:
        """Fill `data[i].image_data` and `data[i].embedding` with numpy rows; return the batch itself.

        From a GPU all images go in one transfer into one block of pinned memory, of which the rows are views. On a
        CPU nothing is copied: the rows are views of `images`. A second call does nothing, unless an image lacks its
        row or `images` was assigned anew; a change *inside* the device's array goes unnoticed.

        Args:
            release: Drop the device's arrays: `images` and `embeddings` become the host's.
        """
        for name in _ROWS:
            rows = getattr(self, name)
            if rows is None:
                continue
            if not self._is_hosted(name):
                self._set_rows(name, arrays.to_host(rows))
            if release and arrays.device_of(rows) != "cpu":
                setattr(self, name, self._from_items(name) if self.data else arrays.to_host(rows))
                self._set_rows(name, getattr(self, name))
        return self

    def to_device(self, device: str) -> Self:
        """Move `images`, `views` and `embeddings`; return the batch itself. What lies there already is not touched.

        Without `images` (`embeddings`) they are first gathered from `data[i].image_data` (`embedding`), if those
        are there: `to_device("cpu")` makes arrays of what was assigned by hand.

        Raises:
            ValueError: Some images have pixels and some have not.
        """
        device = arrays.resolve_device(device)
        for name in _ROWS:
            rows = self._from_items(name) if getattr(self, name) is None else getattr(self, name)
            if rows is None:
                continue
            moved = arrays.to_device(rows, device)
            if moved is not getattr(self, name):
                hosted = self._is_hosted(name)
                setattr(self, name, moved)
                if hosted:
                    self._host_of[name] = _Identity(moved)
        self.views = {view: arrays.to_device(rows, device) for view, rows in self.views.items()}
        return self

    def to_torch(self, what: Literal["images", "embeddings"] | Sequence[Any] = "images") -> Any:
        """Torch tensors on the same memory (DLPack): one tensor, or a list where `images` is one.

        A tensor keeps what it looks at alive, for images a whole batch, so `clone()` a slice that is to stay.

        Args:
            what: "images", "embeddings", or the sequence of transforms that a view is kept under.

        Raises:
            ValueError: The batch has no such arrays.
        """
        rows = getattr(self, what) if isinstance(what, str) else self.views.get(tuple(what))
        if rows is None:
            raise ValueError(
                f"the batch has no {what}; load them, or call to_device() if they are in `data`"
                if isinstance(what, str)
                else f"the batch has no view {tuple(what)}: name it in the loader's views="
            )
        return arrays.to_torch(rows)

    def validate(self) -> bool:
        """Whether `problems()` finds none."""
        return not self.problems()

    def problems(self, check_paths: bool = True) -> list[str]:
        """Everything that is wrong with the batch, a line each.

        Rows and images must be equal in number; ids must be there and unique; paths must exist; pixels must be
        (H, W, 3) uint8 or, after `Normalize`, (H, W, 3) or (3, H, W) floating point; embeddings must be (N, D).

        Args:
            check_paths: Whether to look for every path, through fsspec for URLs (`tar://a.jpg::/data/0.tar`).
        """
        return find_problems(self.data, self._rows(), check_paths)

    def __repr__(self) -> str:
        parts = [repr(self.task_id)] if self.task_id else []
        parts += [f"dataset {self.dataset_name!r}"] if self.dataset_name else []
        parts.append(f"{len(self)} images")
        if self.images is not None and len(self.images):
            sizes = sorted(
                {_size(shape) for shape in arrays.shapes(self.images)}, key=lambda size: (np.prod(size), size)
            )
            ends = ["x".join(map(str, size)) for size in (sizes[0], sizes[-1])]
            parts.append(f"{'..'.join(dict.fromkeys(ends))} {dtype_of(self.images[0])}")
        elif self.images is None:
            parts.append("no pixels")
        if self.embeddings is not None:
            parts.append(f"embeddings {'x'.join(map(str, self.embeddings.shape))}")
        return f"{type(self).__name__}({', '.join([*parts, self.device])})"

    def __copy__(self) -> Self:
        return self[:]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"encoded": None, "_host_of": {}, "_held": 0, "columns": dict(self.columns)}
        state["views"] = {view: arrays.to_host(rows) for view, rows in self.views.items()}
        state["_hosted"] = {}  # an earlier version reads it
        state["_again"] = []  # names whose rows in `data` are those of the array: they travel once, in the array
        for name in _ROWS:
            if (rows := getattr(self, name)) is None:
                continue
            state[name] = arrays.to_host(rows)
            if self._is_hosted(name) and all(map(_equal_rows, self._items(name), state[name])):
                state["_again"].append(name)
        if state["_again"]:
            state["data"] = [clone(item, dict.fromkeys(_ROWS[name] for name in state["_again"])) for item in self.data]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        again, columns = state.pop("_again"), state.pop("columns")
        state.pop("_hosted", None)
        self.__dict__.update(state | {"_host_of": {}})
        self.columns = columns
        for name in again:
            self._set_rows(name, getattr(self, name))

    def _take(self, rows: slice | NDArray[np.int64], copy: bool = False) -> Self:
        """A batch of some rows.

        Args:
            rows: Which.
            copy: Whether everything gets memory of its own, `data` too. Else pixels and bytes do, if less than half
                of what they keep alive is taken.
        """
        n = len(self)
        if isinstance(rows, slice) and (rows.step or 1) < 0:
            rows = np.arange(n)[rows]  # torch knows no negative strides
        elif not isinstance(rows, slice) and len(rows) and bool(np.all(np.diff(rows) == 1)):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)  # a mask that keeps a run is a slice, so a view
        picked = np.arange(n)[rows].tolist()
        new = object.__new__(type(self))
        new.__dict__.update({name: value for name, value in self.__dict__.items() if name != "columns"})
        new._stage_perf, new._metadata = list(self._stage_perf), dict(self._metadata)
        new._host_of, new._held = {}, 0
        new.data = [clone(self.data[row], {}) if copy else self.data[row] for row in picked]
        own = copy or 2 * len(picked) < n
        if self.images is not None:
            held = max(self._held, arrays.nbytes(self.images))
            kept = arrays.take(self.images, rows, copy=False)
            gathered = not (isinstance(kept, list) or isinstance(rows, slice))  # has memory of its own already
            own = copy or gathered or 2 * arrays.nbytes(kept) < held
            new.images = arrays.copy(kept) if own and not gathered else kept
            new._held = 0 if own else held
        new.views = {view: arrays.take(kept, rows, copy=own or None) for view, kept in self.views.items()}
        new.columns = {name: values[rows].copy() for name, values in self.columns.items()}
        if self.embeddings is not None:
            new.embeddings = arrays.take(self.embeddings, rows, copy=True)  # small; so they never keep the others'
        if self.encoded is not None:
            new.encoded = [self.encoded[row] for row in picked]
            if own:
                new.encoded = [{key: memoryview(bytes(value)) for key, value in row.items()} for row in new.encoded]
        for name in _ROWS:
            hosted = self._is_hosted(name)
            if copy or (hosted and (own or name == "embeddings")):
                new._release_rows(name, getattr(self, name), picked, copy)
            if hosted:
                new._host_of[name] = _Identity(getattr(new, name))
        return new

    def _release_rows(self, name: str, old: Any, picked: Sequence[int], copy: bool) -> None:
        """Let rows of `data` not keep alive the array that they were picked from; with `copy`, copy all others, too."""
        on_host = old is not None and arrays.device_of(old) == "cpu"
        before, now = map(arrays.to_host, (old, getattr(self, name)) if on_host else ([], []))
        for place, (row, item) in enumerate(zip(picked, self.data, strict=True)):
            value = getattr(item, _ROWS[name])
            if on_host and getattr(value, "__array_interface__", None) == before[row].__array_interface__:
                setattr(item, _ROWS[name], now[place])
            elif value is not None and (copy or not on_host):
                setattr(item, _ROWS[name], value.copy())

    def _is_hosted(self, name: str) -> bool:
        """Whether each image in `data` has a row, since those of this very array were brought there."""
        known, rows = self._host_of.get(name), getattr(self, name)
        return known is not None and known.fits(rows) and all(row is not None for row in self._items(name))

    def _rows(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "embeddings": self.embeddings,
            "encoded": self.encoded,
            **{f"view {view}": rows for view, rows in self.views.items()},
            **{f"column {name!r}": rows for name, rows in self.columns.items()},
        }

    def _items(self, name: str) -> list[Any]:
        return [getattr(item, _ROWS[name]) for item in self.data]

    def _set_rows(self, name: str, rows: Any) -> None:
        """Give `data` the rows of `images` (`embeddings`) on the host."""
        for item, row in zip(self.data, rows, strict=True):
            setattr(item, _ROWS[name], row)
        self._host_of[name] = _Identity(getattr(self, name))

    def _from_items(self, name: str) -> Any:
        """The rows that `data` has, as arrays; None if it has none."""
        rows = self._items(name)
        missing = [i for i, row in enumerate(rows) if row is None]
        if len(missing) == len(rows):
            return None
        if missing:
            raise ValueError(
                f"{describe_image(self.data, missing[0])} has no {_ROWS[name]}, others have; fill all of them or none"
            )
        return _merge([rows])


@checked
def concat(batches: Sequence[ImageBatch]) -> ImageBatch:
    """One batch with the rows of all, in order; task, data set and what a batch lacks are the first one's.

    Pixels are copied only where rows of one shape become one array. `images`, `embeddings`, `encoded`, a view or a
    column is kept where every batch with images in it has it.

    Args:
        batches: At least one; all on one device.

    Raises:
        ValueError: There are none, or they lie on different devices.
    """
    wrong = [batch for batch in batches if not isinstance(batch, ImageBatch)]
    if wrong:
        raise ValueError(f"batches has {wrong[0]!r:.60}; give a list of ImageBatch")
    if not batches:
        raise ValueError("concat() needs at least one batch")
    parts = [batch for batch in batches if len(batch)] or [batches[0]]
    if len(parts) == 1:
        return parts[0]
    devices = {part.device for part in parts}
    if len(devices) > 1:
        raise ValueError(f"the batches lie on {' and '.join(sorted(devices))}: move them with to_device() first")
    first = parts[0]
    encoded = [part.encoded for part in parts if part.encoded is not None]
    return ImageBatch(
        task_id=first.task_id,
        dataset_name=first.dataset_name,
        data=[item for part in parts for item in part.data],
        images=_merge([part.images for part in parts]),
        embeddings=_merge([part.embeddings for part in parts]),
        encoded=[row for rows in encoded for row in rows] if len(encoded) == len(parts) else None,
        views={view: _merge([part.views[view] for part in parts]) for view in _common([part.views for part in parts])},
        columns={
            name: np.concatenate([part.columns[name] for part in parts])
            for name in _common([part.columns for part in parts])
        },
    )


def _common(mappings: Sequence[dict[Any, Any]]) -> list[Any]:
    return [key for key in mappings[0] if all(key in mapping for mapping in mappings)]


def _merge(parts: Sequence[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    rows = [row for part in parts for row in part]
    return arrays.merge([(range(len(rows)), rows)], len(rows))


class Columns(dict[str, NDArray[Any]]):
    """Name -> (N,) numpy, of N images. A list, a tensor or an array on a GPU becomes a numpy array.

    Pickled and copied it is a plain dict.

    Args:
        data: The N images; a list that grows takes longer columns.
        columns: Name -> N values.

    Raises:
        ValueError: A column has not a value an image; on every assignment.
    """

    def __init__(self, data: Sequence[Any], columns: Mapping[str, Any]) -> None:
        self.data = data
        self.update(columns)

    def __setitem__(self, name: str, values: Any) -> None:
        column = values if isinstance(values, np.ndarray) else _to_column(values)
        count = len(self.data)
        if column.ndim == 0 or len(column) != count:
            found = f"one {type(values).__name__}, {values!r:.60}," if column.ndim == 0 else f"{len(column)} values"
            raise ValueError(
                f"column {name!r}: {found} for {count} images; give one value an image, as np.full({count}, 1.0)"
            )
        super().__setitem__(name, column)

    def update(self, *others: Mapping[str, Any] | Iterable[tuple[str, Any]], **columns: Any) -> None:  # type: ignore[override]
        """Add columns, as `dict.update`."""
        for name, values in dict(*others, **columns).items():
            self[name] = values

    def setdefault(self, name: str, values: Any = None) -> NDArray[Any]:
        """Return a column, added if it is not there, as `dict.setdefault`."""
        if name not in self:
            self[name] = values
        return self[name]

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _to_column(values: Any) -> NDArray[Any]:
    """An array of values that are none yet; a scalar becomes an array without dimensions."""
    if hasattr(values, "device") and not isinstance(values, np.generic):
        return np.asarray(arrays.to_host(values))
    if isinstance(values, (list, tuple)) and not all(
        isinstance(value, (bool, int, float, np.generic)) for value in values
    ):
        return arrays.objects(values)  # texts, None, lists
    return np.asarray(values)


@checked
def contact_sheet(
    images: ImageBatch | Sequence[NDArray[Any] | Image.Image],
    captions: Sequence[str] | None = None,
    columns: Count | None = None,
    thumb: int = 160,
) -> Image.Image:
    """Draw images as a grid of letterboxed thumbnails with a caption under each.

    Args:
        images: A batch, or (H, W, 3) uint8 RGB arrays (numpy, CuPy) of any sizes, or Pillow images.
        captions: One text an image; the ids of a batch's images by default, none for other images. Text after a
            line break goes onto a fainter line of its own. What does not fit is shortened in its middle.
        columns: Cells a row; by default so many that the sheet is about 3:2.
        thumb: Side of a cell's square in pixels.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: There are no images, an image has another shape or type, or the number of captions differs.
    """
    if isinstance(images, ImageBatch):
        captions = [" ".join(item.image_id.split()) for item in images.data] if captions is None else captions
        images = _host_images(images)
    return draw_contact_sheet(images, captions, columns, thumb)


def _host_images(batch: ImageBatch) -> list[NDArray[Any]]:
    """The batch's pixels, from the host where they are there already; the batch stays as it is."""
    images = batch.images if batch.images is not None else [item.image_data for item in batch.data]
    missing = [item.image_id for item, image in zip(batch.data, images, strict=True) if image is None]
    if missing:
        raise ValueError(f"image {missing[0]!r} has no pixels, nor have {len(missing) - 1} more: load them first")
    return list(images)


def _equal_rows(a: Any, b: NDArray[Any]) -> bool:
    return getattr(a, "dtype", None) == b.dtype and np.array_equal(a, b, equal_nan=True)


def _on_host(rows: Any) -> NDArray[Any]:
    """A mask or row numbers (a list, numpy, CuPy or torch) in numpy."""
    return np.asarray(arrays.to_host(rows) if hasattr(rows, "device") else rows)


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Width and height of an (H, W, 3) image; any other shape as it is."""
    return (shape[1], shape[0]) if len(shape) == 3 and shape[2] == 3 else shape
