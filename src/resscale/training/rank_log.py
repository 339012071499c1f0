"""One log file per rank: rank 0 speaks on the console too, the others in their files alone."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import time
from typing import Any, TextIO, cast

from resscale.errors import UserInputError
from resscale.training.rundir import RunDir


class RankLog:
    """What this rank says, in `logs/rank-<r>.log` of its run; starts follow one another in it.

    Ranks but the first hand over their file descriptors: what C libraries say lands in the file
    too. Rank 0 copies what Python says and keeps its console as it is: a pipe between would hide a
    terminal from the progress bar, and lose the last words of a process that crashes.

    Args:
        run: the run directory.
        rank: global rank.
        world_size: number of ranks; one alone needs no file.
        job: the launcher's name for the job, if it has one.
        restart: how often the launcher has started the job before.
    """

    def __init__(
        self, run: RunDir, rank: int, world_size: int, job: str | None = None, restart: int = 0
    ) -> None:
        self.path = run.log(rank)
        self.rank = rank
        self.world_size = world_size
        self._job = "" if job is None else f"  {job}  restart {restart}"
        self._console: int | None = None

    def open(self) -> None:
        """Open the file, and speak there from here on.

        Raises:
            UserInputError: the file cannot be written.
        """
        if self.world_size == 1:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = self.path.open("a", buffering=1, encoding="utf-8")
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            log.write(f"=== {stamp}  {self._who()}  process {os.getpid()}{self._job}\n")
        except OSError as error:
            raise UserInputError(
                f"{self._who()} cannot write its log {self.path} ({error}): the run directory must "
                f"be writable on every node; free space there, or choose another --run_dir."
            ) from error
        if self.rank == 0:
            _copy_to(log)
        else:
            with log:
                self._console = _send_to(log.fileno())

    def speak_up(self) -> None:
        """Speak on the console again, and in the file still: no other rank can tell of this one."""
        if self._console is None:
            return
        log = self.path.open("a", buffering=1, encoding="utf-8")
        _flush()
        os.dup2(self._console, 1)
        os.dup2(self._console, 2)
        os.close(self._console)
        self._console = None
        _copy_to(log)
        print(f"{self._who()}, process {os.getpid()}:", file=sys.stderr, flush=True)

    def _who(self) -> str:
        return f"rank {self.rank} of {self.world_size} on {socket.gethostname()}"


class Tee:
    """A console stream of which a file gets a copy; in all else it is the console's.

    Args:
        console: where a reader looks.
        log: the file.
    """

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self.console = console
        self.log = log

    def write(self, text: str) -> int:
        """Write to the file and to the console."""
        # A full disk ends training when a checkpoint is written, not here.
        with contextlib.suppress(OSError):
            self.log.write(text)
        return self.console.write(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush both."""
        with contextlib.suppress(OSError):
            self.log.flush()
        self.console.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


def keep_copying(before: tuple[TextIO, TextIO]) -> None:
    """Let the files get their copies again where another library has replaced `sys.stdout`, too.

    Args:
        before: `sys.stdout` and `sys.stderr` as they were before that.
    """
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        now = getattr(sys, name)
        if isinstance(stream, Tee) and now is not stream:
            setattr(sys, name, Tee(now, stream.log))


def write_to_log(text: str) -> None:
    """Write a line into this rank's file alone, where it has one beside its console."""
    if isinstance(sys.stderr, Tee):
        with contextlib.suppress(OSError):
            sys.stderr.log.write(text + "\n")


def _copy_to(log: TextIO) -> None:
    sys.stdout = cast("TextIO", Tee(sys.stdout, log))
    sys.stderr = cast("TextIO", Tee(sys.stderr, log))


def _send_to(descriptor: int) -> int:
    """Send standard output and error to a file; return where the console can be reached."""
    _flush()
    console = os.dup(2)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # What is written to a file waits in a buffer otherwise, and a rank that is killed loses it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return console


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
