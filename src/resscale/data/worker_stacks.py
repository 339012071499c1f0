"""Where reading processes stand: each writes its Python stack into memory when it is asked to.

A read that never returns hangs in a worker, while the rank only waits for it; without this, nobody
could say which line it is. Linux only; elsewhere there are no stacks.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from pathlib import Path

_NAME = "resscale-stack"


def offer_stack() -> None:
    """Let SIGUSR1 write this process's stack into a file in memory, named in its /proc entry."""
    if hasattr(os, "memfd_create"):
        # The handler is C, so it answers while Python waits in a system call.
        descriptor = os.memfd_create(_NAME)
        faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)


def worker_stacks(answer_s: float = 0.5) -> dict[int, str]:
    """Return the stacks of this process's reading processes, by process id.

    Args:
        answer_s: how long they have to write them.
    """
    asked = []
    for child in multiprocessing.active_children():
        if child.pid is not None and _file_of(child.pid) is not None:
            os.kill(child.pid, signal.SIGUSR1)
            asked.append(child.pid)
    if asked:
        time.sleep(answer_s)
    return {pid: stack for pid in asked if (stack := _read(pid))}


def _file_of(pid: int) -> Path | None:
    """Return the file that a process offers, None where it offers none."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.readlink().name.startswith(f"memfd:{_NAME}"):
                return link
    except OSError:  # it has ended, or there is no /proc
        return None
    return None


def _read(pid: int) -> str:
    file = _file_of(pid)
    try:
        threads = file.read_text(errors="replace") if file is not None else ""
    except OSError:
        return ""
    # The newest thread stands first; the one that reads samples is the oldest.
    return threads.strip().rpartition("\n\n")[2] + "\n" if threads else ""
