"""Loaders and displays in a real Jupyter kernel: interrupts, cells that run again, several loaders at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel", reason="needs a kernel: pip install 'curator-dali[notebook]'")
from jupyter_client.manager import KernelManager

SET_UP = """
import gc, json, threading, time
import curator_dali as cd

def threads():
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a stopped thread needs a moment to be gone
        alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-dali")]
        if not alive:
            break
        time.sleep(0.05)
    return alive

def megabytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
"""


class Kernel:
    """A kernel, and its answers to cells."""

    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, interrupt_at: str | None = None) -> dict[str, Any]:
        """Run a cell: `text` printed, `data` of its last value, `error` raised; interrupt it once it printed a text."""
        answer: dict[str, Any] = {"text": "", "data": {}, "error": ""}
        request = self.client.execute(code)
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, f"the cell still runs: {code}\n{answer['text'][-2000:]}"
            message = self.client.get_iopub_msg(timeout=20)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                answer["text"] += content["text"]
                if interrupt_at is not None and interrupt_at in answer["text"]:
                    interrupt_at = None
                    time.sleep(0.05)  # into the work behind the print
                    self.manager.interrupt_kernel()
            elif kind == "execute_result":
                answer["data"] = content["data"]
            elif kind == "error":
                answer["error"] = content["ename"]
                answer["text"] += "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return answer

    def value(self, code: str) -> Any:
        """The value of an expression, through JSON."""
        answer = self.run(f"print(json.dumps({code}))")
        assert not answer["error"], answer["text"]
        return json.loads(answer["text"])


@pytest.fixture(scope="module")
def kernel(shards: list[Path]) -> Iterator[Kernel]:
    kernel = Kernel()
    answer = kernel.run(f"{SET_UP}\nshards = {list(map(str, shards))}")
    assert not answer["error"], answer["text"]
    yield kernel
    kernel.close()


@pytest.mark.parametrize(
    "body",
    ["pass", "time.sleep(0.2)", "batch.show(4)", "loader.peek(4)"],
    ids=["loading", "in the body", "showing", "peeking"],
)
def test_an_interrupted_loader_goes_on(kernel: Kernel, body: str) -> None:
    kernel.run("loader = cd.ImageLoader(shards, batch_size=8, device='cpu', shuffle=0)")
    loop = f"""
while True:
    for batch in loader:
        print("running", flush=True)
        {body}
"""
    answer = kernel.run(loop, interrupt_at="running")
    assert answer["error"] == "KeyboardInterrupt", answer["text"]
    assert kernel.value("threads()") == []
    assert kernel.value("len(loader.peek(5))") == 5
    assert kernel.value("sorted(item.image_id for batch in loader for item in batch)") == [
        f"{n:06d}" for n in range(60)
    ]
    assert kernel.value("[loader.close(), threads()]") == [None, []]


def test_a_cell_that_runs_again_leaves_nothing_behind(kernel: Kernel) -> None:
    cell = """
loader = cd.ImageLoader(shards, batch_size=16, device="cpu", shuffle=0)  # never closed, as people do it
for batch in loader:
    break
batch.show(8)
"""
    used = []
    for _ in range(8):
        answer = kernel.run(cell)
        assert "text/html" in answer["data"], answer["text"]
        used.append(kernel.value("megabytes()"))
    assert kernel.value("[thread.name for thread in threading.enumerate()].count('curator-dali-decode')") <= 1
    # one batch has a megabyte of pixels, a pipeline tens of them
    assert max(used[4:]) - used[3] < 25, used
    assert kernel.value("[loader.close(), threads()]") == [None, []]


def test_two_loaders_live_side_by_side(kernel: Kernel) -> None:
    kernel.run("""
a = cd.ImageLoader(shards, batch_size=8, device="cpu", shuffle=1)
b = cd.ImageLoader(shards[:1], batch_size=8, device="cpu", transforms=cd.transforms.clip(32))
seen = [], []
for one, other in zip(a, b):
    a.peek(2)
    seen[0].extend(item.image_id for item in one)
    seen[1].extend(item.image_id for item in other)
    assert other.images.shape[1:] == (32, 32, 3)
""")
    assert kernel.value("seen[1]") == [f"{n:06d}" for n in range(20)]
    expected = kernel.value("[item.image_id for batch in a for item in batch]")
    assert sorted(expected) == [f"{n:06d}" for n in range(60)]
    assert kernel.value("seen[0]") == expected[:24]
    assert kernel.value("[a.close(), b.close(), threads()]") == [None, None, []]


def test_everything_has_a_display(kernel: Kernel) -> None:
    kernel.run("loader = cd.ImageLoader(shards, batch_size=8, device='cpu'); batch = loader.peek(8)")
    for value in ("batch", "batch.show(2)", "batch[0]", "loader", "loader.errors"):
        data = kernel.run(value)["data"]
        assert "cd" in data["text/html"], value
        assert data["text/plain"], value
    assert "image/png" in kernel.run("batch.histogram('width')")["data"]
    kernel.run("loader.close()")
