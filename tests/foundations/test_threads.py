"""What threads hand over: in order, a bounded number at a time, and nobody waits for a side that gave up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.threads import DaemonPool, HandOver, run_ahead


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 5), st.booleans())
def test_items_arrive_in_order_and_no_more_are_made_than_there_are_slots(count: int, slots: int, fails: bool) -> None:
    items: HandOver[int] = HandOver(slots)
    in_use = most = 0

    def produce() -> None:
        nonlocal in_use, most
        for item in range(count):
            items.reserve()
            in_use += 1
            most = max(most, in_use)
            items.put(item)
        items.finish(ValueError("the end") if fails else None)

    thread = threading.Thread(target=produce)
    thread.start()
    taken = []
    try:
        while (item := items.take()) is not None:
            taken.append(item)
            in_use -= 1
            items.free()
        assert not fails
    except ValueError:
        assert fails
    thread.join()
    assert taken == list(range(count))
    assert most <= slots


def test_a_producer_is_woken_when_the_consumer_gives_up() -> None:
    items: HandOver[int] = HandOver(1)
    assert items.reserve()
    assert not items.reserve(wait=False)
    threading.Timer(0.05, items.cancel, [OSError("disk full")]).start()
    assert items.reserve()
    assert items.reserve()  # from now on nobody waits
    assert items.cancelled
    assert str(items.error) == "disk full"


def test_a_consumer_is_woken_when_the_producer_gives_up() -> None:
    items: HandOver[int] = HandOver(2)
    threading.Timer(0.05, items.cancel).start()
    assert items.take() is None


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 6), st.integers(1, 4))
def test_results_come_in_order_with_a_bounded_number_ahead(count: int, window: int, workers: int) -> None:
    begun = 0

    def numbers() -> Iterator[int]:
        nonlocal begun
        for number in range(count):
            begun += 1
            yield number

    def square(number: int) -> int:
        time.sleep(0.0002 * (number % 3))  # later ones may be done first
        return number * number

    with ThreadPoolExecutor(workers) as pool:
        for done, result in enumerate(run_ahead(pool, square, numbers(), window), 1):
            assert result == (done - 1) ** 2
            assert begun - done <= window + 1
    assert begun == count


def test_what_was_not_started_is_cancelled_when_the_loop_is_left() -> None:
    started: list[int] = []
    release = threading.Event()

    def work(number: int) -> int:
        started.append(number)
        if number:
            release.wait(10)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = run_ahead(pool, work, range(100), 8)
        assert next(results) == 0
        results.close()
        release.set()
    assert len(started) <= 2


def test_an_error_comes_out_at_its_place() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = run_ahead(pool, lambda number: 6 // (3 - number), range(8), 4)
        assert [next(results) for _ in range(3)] == [2, 3, 6]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_what_has_to_be_waited_for_is_taken_only_if_nothing_is_under_way() -> None:
    ready, taken = 0, 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in range(6):
            taken += 1
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = run_ahead(pool, lambda number: number, numbers(), 4, lambda: taken < ready)
        assert (next(results), taken) == (0, 1)
        assert (next(results), taken) == (1, 2)
        ready = 4
        assert (next(results), taken) == (2, 4)
        assert (next(results), taken) == (3, 4)
        assert list(results) == [4, 5]


def test_a_pool_of_daemons_does_its_work() -> None:
    pool = DaemonPool(3, "daemon")
    futures = [pool.submit(divmod, number, 4) for number in range(40)]
    assert [future.result(5) for future in futures] == [divmod(number, 4) for number in range(40)]
    assert len({thread for thread in threading.enumerate() if thread.name == "daemon"}) <= 3
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(5)
    late = [pool.submit(time.sleep, 0.01) for _ in range(5)]
    pool.shutdown()
    assert all(future.done() and not future.cancelled() for future in late)
    with pytest.raises(RuntimeError):
        pool.submit(print)


def test_a_pool_of_daemons_cancels_what_was_not_started() -> None:
    pool, release = DaemonPool(1, "daemon"), threading.Event()
    first = pool.submit(release.wait, 10)
    while not first.running():
        time.sleep(0.001)
    others = [pool.submit(print) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in others)
    release.set()
    assert first.result(5)
    pool.shutdown()
