"""Interrupts at any moment of a pass: the next pass is whole, and no thread is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import random, signal, sys, threading
import curator_dali as cd

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)  # what Ctrl-C and a notebook's stop button send

signal.signal(signal.SIGALRM, interrupt)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
rng = random.Random(int(sys.argv[1]))
loader = cd.ImageLoader(sys.argv[2:], batch_size=16, device="cpu", shuffle=0)
hits = 0
for round in range(int(sys.argv[1])):
    try:
        # most of them while threads start and stop, which is where they wait for each other
        signal.setitimer(signal.ITIMER_REAL, rng.choice([rng.uniform(1e-5, 2e-3), rng.uniform(1e-5, 0.06)]))
        for batch in loader:
            if round % 2:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if round % 3 == 0:
        ids = sorted(item.image_id for batch in loader for item in batch)
        assert ids == [f"{n:06d}" for n in range(20)], ids
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-dali")]
        assert not left, (round, left)
loader.close()
print(hits)
"""


def test_every_pass_after_an_interrupt_is_whole(shards: list[Path]) -> None:
    command = [sys.executable, "-c", CODE, "150", str(shards[0])]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) > 20


def test_an_interrupt_waits_for_short_work() -> None:
    code = """
import signal
from curator_dali.threads import uninterrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
done = []
try:
    with uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    done.append(3)
except KeyboardInterrupt:
    print(done, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "[1, 2] True\n", answer.stderr


def test_an_interrupt_while_a_pipeline_is_shut_down_is_not_lost() -> None:
    code = """
import signal
from curator_dali import dali
signal.signal(signal.SIGINT, signal.default_int_handler)

class Pipeline:
    def __del__(self):  # DALI's shuts the pipeline down, for milliseconds
        signal.raise_signal(signal.SIGINT)
        print("shut down")

kept = {"batch": Pipeline(), "again": Pipeline()}
try:
    dali.close(kept)
except KeyboardInterrupt:
    print(kept)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "shut down\nshut down\n{}\n", answer.stderr
