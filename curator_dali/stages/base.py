"""`Stage`: a small object that maps an `ImageBatch` to an `ImageBatch` and says what it reads and writes.

`Selector` and `GlobalSelector` decide which images stay; `ScoredRows` is what the latter sees of a whole run.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import textwrap
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.outputs import EmbeddingReader, Function
from curator_dali.sources import image_member
from curator_dali.transforms import Transform

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

View = tuple[Transform, ...]
"""A sequence of transforms, whose result a stage looks at."""


class Reason(str):
    """Why a stage drops an image, in one line.

    Attributes:
        kind: The reason without what is particular to one image, by which it is counted.
    """

    __slots__ = ("kind",)
    kind: str

    def __new__(cls, text: str, kind: str) -> Self:
        """Make a reason of its text and its kind."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind)


class Prepared(NamedTuple):
    """The state of a stage with a model, as `setup` makes it."""

    device: str
    model: Any


@dataclass(frozen=True)
class Stage(ABC):
    """Base of all stages: a frozen dataclass whose fields are its settings.

    What it needs to work (weights) is loaded by `setup`, and stays behind when the stage is pickled. A stage keeps
    every image that it is given, in order, and never moves pixels to the host: scores come back as one small transfer
    a batch. What leaves images out is a `Selector`, or a `GlobalSelector` where all samples have to be seen first.
    """

    # What `setup` and `connect` made. It is no field, so that a stage is equal before and after.
    _state: ClassVar[Any] = None

    @property
    def reads(self) -> frozenset[str]:
        """Fields that must be there: "embeddings", "encoded", columns, or fields of the metadata."""
        return frozenset()

    @property
    def expects(self) -> Mapping[str, str]:
        """Fields of `reads` with the type that it compares them as: "float64", "bool" or "string"."""
        return {}

    @property
    def writes(self) -> Mapping[str, str]:
        """Fields that are there afterwards: "embeddings", or columns, each with its type of `DTYPES`."""
        return {}

    @property
    def views(self) -> tuple[View, ...]:
        """Sequences of transforms whose results it looks at in `batch.views`; known after `setup`."""
        return ()

    @property
    def dim(self) -> int:
        """Width of the embeddings that it writes, if it does; known after `setup`."""
        return 0

    @property
    def name(self) -> str:
        """What the stage is called in reports and in the column `stage`."""
        return type(self).__name__

    @property
    def lineage(self) -> dict[str, Any]:
        """Which weights it works with, as plain JSON; empty where it has none. Known after `setup`."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields as plain JSON, with its type: what has to be the same for a run to be taken up again."""
        own = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}
        return {"type": type(self).__name__, **own}

    def setup(self, device: str) -> None:  # noqa: B027 - an option, not a duty
        """Load what it needs onto a device, "cpu" or "cuda:N". A second call with the same device does nothing."""

    def connect(self, before: Sequence[Stage]) -> None:  # noqa: B027 - as above
        """Look at the stages before it, all of them set up, and take what it needs of them.

        Raises:
            StageError: They do not fit, as embeddings of another width.
        """

    @abstractmethod
    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """The batch with what the stage adds: the same object, or another one of the same images."""

    @property
    def state(self) -> Any:
        """What `setup` and `connect` made.

        Raises:
            StageError: They were not called.
        """
        if self._state is None:
            raise StageError(f'{self.name} is not set up: call setup("cpu") or setup("cuda:0") first')
        return self._state

    def _is_set_up(self, device: str) -> bool:
        """Whether the state, whose first item is the device, is there and of this device."""
        return self._state is not None and self._state[0] == device

    def _keep(self, state: Any) -> None:
        object.__setattr__(self, "_state", state)  # a frozen dataclass refuses assignment

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_state"}


@dataclass(frozen=True)
class Selector(Stage):
    """A stage that decides, batch by batch, which images stay, and changes nothing else."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that `judge` looks at, to decide from a stored output alone.

        By default what the stage reads, and "views" if it looks at any, which no output stores.
        """
        return (*sorted(self.reads), *(["views"] if self.views else []))

    @abstractmethod
    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        """(N,) objects: None for an image that stays, else the reason in one line, as a `Reason` or any `str`."""

    def kind(self, reason: str) -> str:
        """A reason without what is particular to one image, for counting: that of a `Reason`, or the text itself."""
        return getattr(reason, "kind", reason)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """The images that stay."""
        return batch.where(np.array([reason is None for reason in self.judge(batch)], bool))


@dataclass(frozen=True)
class GlobalSelector(Stage):
    """A stage that decides once all samples of a run are scored, as the removal of duplicates does.

    Called with a batch it may add columns (hashes) that `decide` looks at. Stages behind it see all images of the
    batch, also those that it will drop: an image is dropped by the first stage in the list that has a reason.
    """

    @property
    def decides(self) -> Mapping[str, str]:
        """Columns that `decide` adds, each with its type of `DTYPES`."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """What `decide` looks at, to decide from a stored output alone: columns, and "embeddings".

        By default what the stage reads, and "views" if it looks at any, which no output stores.
        """
        return (*sorted(self.reads), *(["views"] if self.views else []))

    @property
    def optional(self) -> frozenset[str]:
        """Columns of `needs` that an image may lack: it is decided on without them."""
        return frozenset()

    def check_embeddings(self, dim: int, lineage: Mapping[str, Any]) -> None:
        """Refuse stored embeddings, of this width and of a model of this lineage, if they do not fit.

        Raises:
            StageError: They do not.
        """

    @abstractmethod
    def decide(self, scored: ScoredRows) -> tuple[NDArray[np.object_], Mapping[str, NDArray[Any]]]:
        """Decide who stays.

        Returns:
            (M,) objects, None for an image that stays, else the reason in one line, as a `Reason` or any `str`; and
            the columns of `decides`, (M,) each.
        """

    def kind(self, reason: str) -> str:
        """A reason without what is particular to one image; see `Selector.kind`."""
        return getattr(reason, "kind", reason)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """The batch, with what `decide` needs to know of its images."""
        return batch


class ScoredRows(Protocol):
    """What a `GlobalSelector` sees: all images that no earlier stage dropped, M of them, in the source's order."""

    def __len__(self) -> int:
        """M."""

    def column(self, name: str) -> NDArray[Any]:
        """(M,) values of a column."""

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of (m, D) embeddings, M rows in all: those of a large run need not fit in memory."""

    @property
    def dim(self) -> int:
        """D; 0 where there are no embeddings."""

    @property
    def workers(self) -> Workers | None:
        """Other processes that may share the work; None: this process alone. Experimental."""

    def reader(self, rows: NDArray[np.int64]) -> EmbeddingReader:
        """The embeddings of some of the M images, by their numbers among these, ascending, for a worker to read."""


class Workers(Protocol):
    """Other processes, on machines that all see the output's folder, for work on the rows of a whole run.

    Attributes:
        device: What a function finds there to compute on: "cpu", or "cuda:0".
    """

    device: str

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of a function for each item, in their order.

        Args:
            function: Of the item alone; it may be run more than once for one, where a process died. It pickles, and so
                do the items and what it gives.
            items: Taken as they are needed: few are under way at a time.
        """

    def scratch(self) -> AbstractContextManager[str]:
        """A new folder, or its URL, for files between the processes, which goes away with the block."""


def list_images(stage: Stage, batch: ImageBatch) -> list[memoryview]:
    """List the encoded images of a batch, for a stage that reads "encoded".

    Raises:
        StageError: The batch was loaded without these bytes.
    """
    if batch.encoded is None:
        raise StageError(f"{stage.name} reads the images' bytes, which were not kept: keep_encoded=True")
    pairs = zip(batch.data, batch.encoded, strict=True)
    return [image_member(members, item.image_path) for item, members in pairs]


def checked_stage(stage: F) -> F:
    """Decorate a stage so that `StageError` refuses settings of other types than its fields have."""
    return checked(stage, StageError)


def _plain(value: Any) -> Any:
    """A setting as JSON has it. An object that is no value of JSON's is its `name`, or its `repr`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__qualname__"):
        return _name_function(value)
    if hasattr(value, "__fspath__"):
        return str(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)


def _name_function(function: Any) -> str:
    """Name a function by its module, its name and a digest of its source: one that was changed is another.

    Without source (typed at a prompt, `python -c`) the digest is of the bytecode. So is a lambda's, whose source is
    that of the whole statement around it. Bytecode is another with every version of Python. What the function refers
    to is in neither digest.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    former = f"{name} {_digest(_spell_code(code))}"
    if code.co_name == "<lambda>":
        return former
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return former
    return Function(f"{name} source {_digest(_strip_source(source))}", former)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _strip_source(source: str) -> str:
    """Strip source text of its indentation, its comments and its blank lines."""
    lines = textwrap.dedent(source).split("\n")
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError):  # a method with a text that begins left of it: comments count
        pass
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _spell_code(code: CodeType) -> str:
    """Spell out bytecode, the same in every process with the same Python."""
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts.append(_spell_code(constant))
        else:  # a set has its order from the process
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
    return "\n".join(parts)
