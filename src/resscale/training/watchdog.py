"""A thread in each rank that notices when a rank is gone or stands still, and ends its own.

The main thread cannot: it waits in a collective for the rank that is gone. A poll reads one folder
and the records of the ranks on the same machine. The records of all ranks are read only where
nothing has moved for a long time, so the cost does not grow with the number of machines.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from resscale.data.thread_reader import THREAD_NAME
from resscale.data.worker_stacks import worker_stacks
from resscale.training.failure import Failure, announce, first_to_blame, read_failure
from resscale.training.phase import (
    Phase,
    RankRecord,
    Record,
    State,
    is_alive,
    processes_on_this_machine,
    read_record,
    remove_record,
)

# How long a rank that is gone may stay unnamed: whoever started it knows its exit code and says it.
_UNNAMED_S = 3.0
# How long a rank that stands still has to say where, before another one speaks for it.
_ANSWER_S = 5.0
_PUBLISH_S = 5.0
STOPPED_BY_WATCHDOG = 70


class Watchdog(threading.Thread):
    """Watches this rank and, on this machine, the others.

    Args:
        run_dir: the run directory.
        life: names this start of the run.
        record: this rank's record.
        rank: global rank.
        world_size: number of ranks.
        hang_timeout_s: how long a rank may stay in one phase; 0: for ever.
        end: ends this process because of a failure.
        give_way: ends this process if a later start of its job has taken the run over.
    """

    def __init__(
        self,
        run_dir: Path,
        life: str,
        record: RankRecord,
        rank: int,
        world_size: int,
        hang_timeout_s: float,
        end: Callable[[Failure], None],
        give_way: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.run_dir = run_dir
        self.life = life
        self.record = record
        self.rank = rank
        self.world_size = world_size
        self.hang_timeout_s = hang_timeout_s
        self.stopped = threading.Event()
        # This rank was the first to name a rank that is gone.
        self.has_announced = False
        self._end = end
        self._give_way = give_way
        self._poll_s = min(1.0, hang_timeout_s / 4) if hang_timeout_s else 1.0
        self._main = threading.main_thread()
        self._beats = -1
        self._since_s = self._published_s = time.monotonic()
        self._neighbours: dict[int, int] | None = None
        self._gone_since_s: dict[int, float] = {}

    def run(self) -> None:
        """Look around until training ends or fails."""
        while not self.stopped.wait(self._poll_s):
            if self._give_way is not None:
                self._give_way()
            failure = self.look(time.monotonic())
            if failure is not None:
                self._end(failure)
                return

    def look(self, now_s: float) -> Failure | None:
        """Look around once; return the run's first failure, if there is one.

        Args:
            now_s: by a clock that is never set back.
        """
        if now_s - self._published_s >= min(_PUBLISH_S, self._poll_s * 4):
            self._published_s = now_s
            self.record.publish()
        return (
            read_failure(self.run_dir, self.life)
            or self._find_gone(now_s)
            or self._find_hung(now_s)
        )

    def say_gone(self, rank: int, pid: int, code: int | None) -> Failure:
        """Name a rank whose process is gone without a word of its own; return the first failure.

        Args:
            rank: which.
            pid: its process.
            code: its exit code, below 0 the signal's number; None where nobody knows.
        """
        record = read_record(self.run_dir, self.life, rank)
        failure = gone(rank, self.world_size, pid, code, record)
        remove_record(self.run_dir, self.life, rank)
        first = announce(self.run_dir, self.life, failure)
        self.has_announced = first is failure
        return first

    def _find_gone(self, now_s: float) -> Failure | None:
        if self._neighbours is None:
            if self.record.beats < 2:  # until the ranks have met, some have no record yet
                return None
            self._neighbours = processes_on_this_machine(self.run_dir, self.life)
        for rank, pid in self._neighbours.items():
            if is_alive(pid):
                continue
            record = read_record(self.run_dir, self.life, rank)
            if record is None or record.state == State.ENDED:
                continue
            since_s = self._gone_since_s.setdefault(rank, now_s)
            if now_s - since_s >= _UNNAMED_S:
                return self.say_gone(rank, pid, None)
        return None

    def _records(self) -> list[Record]:
        found = (read_record(self.run_dir, self.life, rank) for rank in range(self.world_size))
        return [record for record in found if record is not None]

    def _find_hung(self, now_s: float) -> Failure | None:
        if self.record.beats != self._beats:
            self._beats, self._since_s = self.record.beats, now_s
        still_s = now_s - self._since_s
        if not self.hang_timeout_s or still_s < self.hang_timeout_s:
            return None
        running = [record for record in self._records() if record.state == State.RUNNING]
        if not running:
            return None
        first, same_place = first_to_blame(running)
        is_own = first.rank == self.rank
        if not is_own and still_s < self.hang_timeout_s + _ANSWER_S:
            return None
        waiting = sorted({str(r.phase) for r in running if r.rank not in (first.rank, *same_place)})
        message = f"no progress for {_seconds(still_s)} s (hang_timeout_s={self.hang_timeout_s:g})"
        message += f"; others wait in {', '.join(waiting)}" if waiting else ""
        message += "" if is_own else "; its process does not answer"
        failure = Failure(
            kind="hang",
            rank=first.rank,
            world_size=self.world_size,
            host=first.host,
            pid=first.pid,
            step=first.step,
            phase=str(first.phase),
            exception=None,
            message=message,
            traceback=self._stacks() if is_own else "",
            exit_code=STOPPED_BY_WATCHDOG,
            same_place=same_place,
        )
        return announce(self.run_dir, self.life, failure)

    def _stacks(self) -> str:
        """Return where the main thread and the readers of this rank are."""
        frames = sys._current_frames()
        threads = [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]
        stacks = {"the main thread": self._main, **{f"thread {t.name}": t for t in threads}}
        text = "".join(
            f"Traceback of {name} (most recent call last):\n"
            + "".join(traceback.format_stack(frames[thread.ident]))
            for name, thread in stacks.items()
            if thread.ident in frames
        )
        return text + "".join(
            f"Reading process {pid}:\n{stack}" for pid, stack in worker_stacks().items()
        )


def gone(rank: int, world_size: int, pid: int, code: int | None, record: Record | None) -> Failure:
    """Describe the failure of a rank whose process is gone.

    Args:
        rank: which.
        world_size: number of ranks.
        pid: its process.
        code: its exit code, below 0 the signal's number; None where nobody knows.
        record: what it did last; None where it never said.
    """
    return Failure(
        kind="gone",
        rank=rank,
        world_size=world_size,
        host=record.host if record is not None else socket.gethostname(),
        pid=pid,
        step=record.step if record is not None else 0,
        phase=str(record.phase if record is not None else Phase.START),
        exception=None,
        message=f"{_meaning(code)}, so there is no traceback",
        traceback="",
        exit_code=code if code is not None and code > 0 else 1,
    )


def _seconds(value: float) -> str:
    """Return seconds as text; whole ones from 10 on, and never 0 for what is not."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _meaning(code: int | None) -> str:
    if code is None:
        return "its process is gone (killed, perhaps for lack of memory)"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (if nobody sent it: for lack of memory, see the kernel's log)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and no word"
