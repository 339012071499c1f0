"""Which processes of a run are left: those of other ranks do not share the console any more."""

from __future__ import annotations

import time
from pathlib import Path


def left_over(run_dir: Path) -> list[int]:
    """Return the process ids of ranks but the first of a run, and of all that they started."""
    mark = f"RESSCALE_RUN_DIR={run_dir.resolve()}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def wait_until_none_is_left(run_dir: Path, timeout_s: float = 100) -> None:
    """Wait for the end of all of them.

    Raises:
        AssertionError: some are still there.
    """
    deadline = time.monotonic() + timeout_s
    while left := left_over(run_dir):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)
