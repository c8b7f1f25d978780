"""Imports that an interrupt cannot cut in half.

PyTorch does not survive a KeyboardInterrupt while it is imported: the next `import torch` of the process crashes it
(segmentation fault) or finds half a module. Importing it takes seconds, and a notebook's user who stops a cell in its
first seconds is no rare thing.
"""

from __future__ import annotations

import importlib
import sys
import threading

from curator_dali.threads import uninterrupted

__all__ = ["import_whole"]


def import_whole(name: str) -> None:
    """Import a module on a thread of its own, where no signal arrives, unless it is imported already.

    An interrupt ends the waiting, not the import, which the next one waits for. Call it in front of `import torch`
    wherever a notebook's cell may be the first to need it.

    Raises:
        ImportError: And whatever else the import raises.
    """
    if name in sys.modules or threading.current_thread() is not threading.main_thread():
        importlib.import_module(name)  # waits for one that is under way
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            importlib.import_module(name)
        except BaseException as error:  # raised where the module was asked for
            raised.append(error)

    thread = threading.Thread(target=run, name=f"curator-dali-import-{name}")
    with uninterrupted():
        thread.start()
    thread.join()
    if raised:
        raise raised[0]
