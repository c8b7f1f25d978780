"""Round trip and bandwidth are estimated from answers; files are read ahead within a number of connections."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from curator_dali.io import links
from curator_dali.io.links import CONNECTIONS, Connections, Link, RemoteReader, link_to


def test_estimates_begin_with_a_guess_and_follow_the_answers() -> None:
    link = Link()
    assert link.break_even == int(0.03 * 50e6)
    for _ in range(20):
        link.add(1000, 0.1)
        link.add(10_000_000, 0.1 + 0.5)
    assert link.round_trip == pytest.approx(0.1)
    assert link.bandwidth == pytest.approx(20e6)
    assert link.break_even == pytest.approx(2e6)


def test_answers_that_waited_in_a_queue_do_not_count() -> None:
    link = Link()
    for n in range(100):
        link.add(1000, 0.02 if n % 5 == 0 else 3.0)
    assert link.round_trip == pytest.approx(0.02)


@pytest.mark.parametrize(("size", "seconds"), [(0, 0.0), (1 << 30, 0.0), (0, 1e9), (1 << 22, 1e9)])
def test_absurd_answers_leave_estimates_in_bounds(size: int, seconds: float) -> None:
    link = Link()
    for _ in range(200):
        link.add(size, seconds)
    assert 1e-4 <= link.round_trip <= 2
    assert 1e6 <= link.bandwidth <= 1e10


def test_a_slow_start_is_forgotten() -> None:
    link = Link()
    for _ in range(9):
        link.add(links.SAMPLE, 4.0)
    assert link.bandwidth == pytest.approx(1e6)
    distance = 2 * link.break_even
    due = 0
    for _ in range(1000):  # hops; each sample that is due comes fast now
        link.add(1000, 0.03)
        if link.is_sample_due(distance):
            due += 1
            link.add(links.SAMPLE, 0.03 + links.SAMPLE / 100e6)
    assert link.bandwidth == pytest.approx(100e6)
    assert due < 1000 / 30


def test_no_samples_are_taken_where_members_are_far_apart() -> None:
    link = Link()
    for _ in range(1000):
        link.add(1000, 0.03)
        assert not link.is_sample_due(100 * link.break_even)


def test_each_host_has_a_link() -> None:
    assert link_to("s3://one/a.tar") is link_to("s3://one/b/c.tar")
    assert link_to("s3://one/a.tar") is not link_to("s3://two/a.tar")
    assert link_to("http://h:1/a?b") is not link_to("http://h:2/a?b")
    assert link_to("simplecache::s3://one/a.tar") is link_to("s3://one/b.tar")


def test_a_number_of_requests_runs_at_the_same_time() -> None:
    connections, lock, now = Connections(), threading.Lock(), [0, 0]

    def read() -> bytes:
        with lock:
            now[0] += 1
            now[1] = max(now)
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return b""

    with ThreadPoolExecutor(3 * CONNECTIONS) as pool:
        list(pool.map(lambda _: connections.ask("s3://limited/a", read), range(6 * CONNECTIONS)))
    assert now == [0, CONNECTIONS]


def test_pieces_are_read_ahead_once_and_given_up() -> None:
    connections, begun = Connections(), []

    def read(offset: int, length: int) -> bytes:
        begun.append(offset)
        return bytes([offset]) * length

    reader = RemoteReader("s3://ahead/a", read, connections)
    reader.read_ahead([(0, 3), (3, 3)])
    reader.read_ahead([(3, 3), (6, 3)])
    assert [reader(3, 3), reader(6, 3), reader(9, 1)] == [b"\3\3\3", b"\6\6\6", b"\t"]
    assert sorted(begun)[-3:] == [3, 6, 9]
    assert len(begun) == len(set(begun))
    other = RemoteReader("s3://ahead/b", read, connections)
    assert reader.room == other.room == CONNECTIONS // 2
    other.close()
    other.close()
    assert reader.room == CONNECTIONS
    reader.close()
    connections.close()


def test_connections_survive_pickling_and_forks() -> None:
    connections = Connections()
    assert connections.submit(lambda: b"here").result() == b"here"
    assert pickle.loads(pickle.dumps(connections)).submit(lambda: b"there").result() == b"there"
    child = os.fork()
    if child == 0:
        os._exit(connections.submit(lambda: b"fork").result(5) != b"fork")
    assert os.waitpid(child, 0)[1] == 0
    connections.close()
