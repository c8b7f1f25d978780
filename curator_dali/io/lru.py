"""A mapping that drops the values that were used least recently."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """A thread-safe mapping that drops the least recently used values once their weights pass `limit`.

    A value is loaded once however many threads ask for it, and loads of different keys run at the same time.
    """

    def __init__(
        self,
        limit: int,
        weigh: Callable[[V], int] = lambda value: 1,
        dropped: Callable[[K, V], None] | None = None,
    ) -> None:
        self._limit, self._weigh, self._dropped = limit, weigh, dropped
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()
        self._loading: dict[K, threading.Lock] = {}

    def get(self, key: K, load: Callable[[], V]) -> V:
        """The value of `key`, loaded if it is not there."""
        with self._lock:
            if (item := self._items.get(key)) is not None:
                self._items.move_to_end(key)
                return item[0]
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if (item := self._items.get(key)) is not None:
                    return item[0]
            try:
                value = load()
                self.put(key, value)
            finally:
                with self._lock:
                    self._loading.pop(key, None)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep `value`, and drop the oldest ones (never the one just put)."""
        out: list[tuple[K, V]] = []
        with self._lock:
            self._weight -= self._items.pop(key, (None, 0))[1]
            weight = self._weigh(value)
            self._items[key] = value, weight
            self._weight += weight
            while self._weight > self._limit and len(self._items) > 1:
                old, (gone, weight) = self._items.popitem(last=False)
                self._weight -= weight
                out.append((old, gone))
        if self._dropped is not None:
            for old, gone in out:
                self._dropped(old, gone)

    def drop(self, key: K) -> None:
        """Drop the value of a key, if it is there."""
        with self._lock:
            value, weight = self._items.pop(key, (None, 0))
            self._weight -= weight
        if self._dropped is not None and value is not None:
            self._dropped(key, value)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            items, self._items, self._weight = self._items, OrderedDict(), 0
        if self._dropped is not None:
            for key, (value, _) in items.items():
                self._dropped(key, value)
