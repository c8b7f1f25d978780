"""Check arguments against their annotations, before any work; refuse words of other loaders with the word used here."""

from __future__ import annotations

import inspect
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Real
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """The words for what an annotation allows, and bounds of a number or of each number of a tuple.

    Attributes:
        words: The values that are allowed, as an error names them.
        least: The smallest of them.
        most: The largest of them.
    """

    words: str
    least: float = -math.inf
    most: float = math.inf


Count = Annotated[int, Limits("a whole number of at least 1", 1)]
Natural = Annotated[int, Limits("a whole number of at least 0", 0)]
Share = Annotated[float, Limits("a share from 0 to 1", 0, 1)]
Probability = Annotated[float, Limits("a probability from 0 to 1", 0, 1)]
Level = Annotated[int, Limits("a value from 0 to 255 (int)", 0, 255)]
Size = Annotated[int | tuple[int, int], Limits("one positive number of pixels (int) or (height, width)", 1)]

_THREADS_ADVICE = "num_threads= is the number of decoding threads; they are threads of this process"
_ORDER_ADVICE = "shuffle= and shard= say in which order samples come, and on which rank"
_SEED_ADVICE = "it is not needed: what is random follows from (seed, epoch, sample), and the seed is shuffle=SEED"
_FOREIGN_KEYWORDS = {
    "num_workers": _THREADS_ADVICE,
    "persistent_workers": "it is not needed: the threads stay until close(), or the end of a with block",
    "multiprocessing_context": "it is not needed: there are no worker processes",
    "worker_init_fn": _SEED_ADVICE,
    "generator": _SEED_ADVICE,
    "timeout": "$CURATOR_DALI_TIMEOUT is how long a store may be silent, in seconds",
    "in_order": "it is not needed: batches come in the order of the epoch",
    "seed": "give the seed as shuffle=SEED",
    "prefetch_factor": "prefetch= is the number of batches that are in work or ready",
    "pin_memory": "it is not needed: encoded bytes go to the device, and pixels are made there",
    "pin_memory_device": "it is not needed: device= is where pixels are made",
    "non_blocking": "it is not needed: pixels are made on the device",
    "transform": "transforms= takes curator_dali.transforms, as [Resize(224)]",
    "target_transform": "target= of TorchImageLoader takes a function of the ImageObject",
    "collate_fn": "it is not needed: a batch is one array where sizes agree; pad= and buckets= are for others",
    "sampler": _ORDER_ADVICE,
    "batch_sampler": f"{_ORDER_ADVICE}; batch_size= and drop_last= say in which batches",
    "rank": "give shard=Shard(rank, world_size), or shard='torch'",
    "world_size": "give shard=Shard(rank, world_size), or shard='torch'",
    "dataset": "the source is the first argument, without a name",
}
_PLAIN_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: ((int, np.integer), "a whole number (int)"),
    float: ((Real,), "a number"),
    str: ((str,), "a text"),
}
_UNFIT = object()


def checked(target: F, error: type[ValueError] = ValueError) -> F:
    """Decorate a function, or a class, so that its arguments are checked against their annotations.

    Numbers of numpy become Python's; lists become tuples where the annotation is a tuple. An annotation whose names
    are imported for type checkers alone is not checked.

    Args:
        target: The function, or the class whose `__init__` is meant; a class is changed in place.
        error: Raised for a value that is not allowed.

    Raises:
        TypeError: On the call: a keyword that DataLoader or DALI has and curator_dali has not.
    """
    if isinstance(target, type):
        target.__init__ = _checked(target.__init__, target.__name__, f"{target.__name__}.", error)  # type: ignore[misc]
        return target
    owner, _, method = target.__qualname__.rpartition(".")
    return _checked(target, owner if method == "__init__" else target.__qualname__, "", error)


def _checked(function: F, owner: str, prefix: str, error: type[ValueError]) -> F:
    """Wrap a function; `prefix` comes before an argument's name in an error."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        for name in kwargs.keys() & _FOREIGN_KEYWORDS.keys() - hints.keys():
            raise TypeError(f"{owner} has no {name}=: {_FOREIGN_KEYWORDS[name]}")

        def fit(name: str, value: Any) -> Any:
            hint = hints.get(name, Any)
            fitted = _fit(value, hint)
            if fitted is _UNFIT:
                raise error(f"{prefix}{name} is {value!r}; allowed: {', '.join(dict.fromkeys(_words(hint)))}")
            return fitted

        places = [fit(name, value) for name, value in zip(hints, args, strict=False)]
        names = {name: fit(name, value) for name, value in kwargs.items()}
        return function(*places, *args[len(places) :], **names)

    return wrapper  # type: ignore[return-value]


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, in order; `Any` for one that cannot be evaluated here."""
    names = vars(typing) | function.__globals__
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = parameter.annotation
        try:
            found[name] = eval(hint, names) if isinstance(hint, str) else hint
        except NameError:
            found[name] = Any
        if found[name] is parameter.empty:
            found[name] = Any
    return found


def _fit(value: Any, hint: Any) -> Any:
    """The value as the annotation has it, or `_UNFIT`."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if hint is None or hint is type(None):
        return value if value is None else _UNFIT
    if hint in _PLAIN_TYPES:
        is_truth = isinstance(value, (bool, np.bool_))
        fits = isinstance(value, _PLAIN_TYPES[hint][0]) and is_truth == (hint is bool)
        return (value if type(value) in _PLAIN_TYPES else hint(value)) if fits else _UNFIT
    if origin is Annotated:
        fitted = _fit(value, parts[0])
        numbers = [item for item in (fitted if isinstance(fitted, tuple) else [fitted]) if isinstance(item, Real)]
        return fitted if all(parts[1].least <= number <= parts[1].most for number in numbers) else _UNFIT
    if origin in (Union, UnionType):
        return next((fitted for part in parts if (fitted := _fit(value, part)) is not _UNFIT), _UNFIT)
    if origin is Literal:
        return next((part for part in parts if isinstance(value, type(part)) and value == part), _UNFIT)
    if origin is tuple:
        items = list_items(value) if _is_list(value) else None
        if items is None or (parts[-1] is not ... and len(items) != len(parts)):
            return _UNFIT
        kinds = parts[:1] * len(items) if parts[-1] is ... else parts
        fitted = tuple(_fit(item, kind) for item, kind in zip(items, kinds, strict=True))
        return _UNFIT if any(item is _UNFIT for item in fitted) else fitted
    if origin is not None and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        if not _is_list(value):
            return _UNFIT
        return list_items(value) if issubclass(origin, Sequence) else value
    kind = origin or hint
    try:
        return value if isinstance(value, kind) else _UNFIT
    except TypeError:  # a protocol that cannot be looked for
        return value


def _is_list(value: Any) -> bool:
    """Whether a value has items in an order; the order of a set of texts differs between processes."""
    no_list = (str, bytes, os.PathLike, Mapping, Set)
    return isinstance(value, Iterable) and not isinstance(value, no_list) and getattr(value, "ndim", 1) > 0


def _words(hint: Any) -> list[str]:
    """The values that an annotation allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _PLAIN_TYPES:
        return [_PLAIN_TYPES[hint][1]]
    if hint is type(None) or hint is None:
        return ["None"]
    if origin is Annotated:
        return [parts[1].words]
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [f'"{part}"' if isinstance(part, str) else repr(part) for part in parts]
    if origin is tuple:
        inner = " or ".join(_words(parts[0]))
        return [f"a tuple, each {inner}" if parts[-1] is ... else f"({', '.join([inner] * len(parts))})"]
    if origin is not None and issubclass(origin, Iterable):
        return ["a mapping" if issubclass(origin, Mapping) else "a list"]
    name = getattr(origin or hint, "__name__", str(hint))
    return [{"Callable": "a function", "PathLike": "a path"}.get(name, f"a {name}")]


def list_items(value: Iterable[Any]) -> Sequence[Any]:
    """Make a sequence of an array, a tensor or a generator, which is used up; a sequence stays as it is."""
    if isinstance(value, Sequence):
        return value
    return tuple(value.tolist() if hasattr(value, "tolist") else value)


def list_paths(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Texts of one path or URL, or of several.

    Raises:
        ValueError: One is no path.
    """
    items = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    for item in items:
        if not isinstance(item, (str, os.PathLike)):
            raise ValueError(f"{item!r} is no path; allowed: a text, a path")
    return [str(item) if isinstance(item, str) else os.fspath(item) for item in items]  # as Python's own, also of numpy


def parse_size(text: str) -> int | None:
    """Parse bytes as people write them: `500000`, `64MB`, `1.5 GiB`, `2TB`; None for another text."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        return None
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** " kmgt".index(match[2] or " "))
