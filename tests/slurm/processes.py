"""Processes of this machine, found by what they run and by their environment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty where it is gone."""
    return _read(pid, "cmdline")


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process began with; empty where it is gone."""
    return dict(entry.split("=", 1) for entry in _read(pid, "environ") if "=" in entry)


def parent_of(pid: int) -> int:
    """The parent's process id; 0 where the process is gone."""
    try:
        # The name before it, in brackets, may hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except _GONE:
        return 0


def every_pid() -> Iterator[int]:
    """All processes, those of inner namespaces too."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208


def running(*arguments: str) -> list[int]:
    """The processes whose command line ends like this."""
    sought = list(arguments)
    return [pid for pid in every_pid() if arguments_of(pid)[-len(sought) :] == sought]


def numbers_of(pid: int) -> list[int]:
    """The numbers of a process in its namespaces, outermost first; empty where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except _GONE:
        return []
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


def first_of(*arguments: str) -> list[int]:
    """The processes with just this command line that are number 1 of their namespace.

    A copy of them that is about to become another program has the same command line.
    """
    found = [pid for pid in running(*arguments) if arguments_of(pid) == list(arguments)]
    return [pid for pid in found if numbers_of(pid)[-1:] == [1]]


def with_environment(**sought: str) -> list[int]:
    """The processes that began with these variables."""
    return [pid for pid in every_pid() if sought.items() <= environment_of(pid).items()]


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_gone(pids: list[int], timeout_s: float = 30.0) -> None:
    """Wait until none of the processes is left.

    Raises:
        TimeoutError: one of them stays.
    """
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if arguments_of(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there after {timeout_s:g} s: {left}")
        time.sleep(0.02)


def _read(pid: int, name: str) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except _GONE:
        return []
    return text.removesuffix("\0").split("\0") if text else []
