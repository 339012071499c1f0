"""Ranks come together without waiting for ever for one that does not come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    Store,
    TCPStore,
    rendezvous,
)

from resscale.cluster.doctor.finding import Finding, Rank, ranges
from resscale.cluster.doctor.interfaces import own_connections
from resscale.cluster.environment import SlurmJob
from resscale.cluster.ranks import (
    HeldPort,
    Meeting,
    call_meeting,
    join_meeting,
    main_address,
    meeting_file,
)

NAME = "meeting"
_POLL_S = 0.1
_ANSWER_TIMEOUT_S = 30.0
# What Python takes to end with torch loaded, on a busy machine.
_LEAVING_S = 15.0


class Gathering:
    """The ranks of one start, around a store that rank 0 keeps.

    Args:
        store: the store.
        rank: this rank.
        world_size: ranks that should come.
        close: called when all is over.
    """

    def __init__(
        self, store: Store, rank: Rank, world_size: int, close: Callable[[], None] | None = None
    ) -> None:
        self._store = store
        self.rank = rank
        self.world_size = world_size
        self._close = close
        # All ranks that have come to the first roll call; only rank 0 learns of later losses.
        self.present: list[Rank] = []

    def call_the_roll(self, timeout_s: float) -> list[Finding]:
        """Wait for the others; return what is to be said of it, and fill `present`.

        Args:
            timeout_s: how long; the same for all ranks.
        """
        here = self.collect("roll", self.rank.host, timeout_s)
        if here is not None:
            present = [[rank.number, rank.host] for rank in here]
            self._store.set("present", json.dumps(present))
        # Rank 0's word comes after its own patience is at an end.
        self.present = [
            Rank(number, host)
            for number, host in self._wait_for("present", timeout_s + _ANSWER_TIMEOUT_S)
        ]
        came = {rank.number for rank in self.present}
        missing = [number for number in range(self.world_size) if number not in came]
        return judge_roll(missing, self.world_size, timeout_s)

    def collect(self, what: str, value: Any, timeout_s: float) -> dict[Rank, Any] | None:
        """Hand a plain value to rank 0; return there what has come from each rank in time.

        Args:
            what: names the value; each name is used once.
            value: of this rank.
            timeout_s: how long rank 0 waits for those that have not handed in theirs.
        """
        number, host = self.rank.number, self.rank.host
        self._store.set(f"{what}/{number}", json.dumps([host, value]))
        if number:
            return None
        expected = [rank.number for rank in self.present] or list(range(self.world_size))
        deadline = time.monotonic() + timeout_s
        waiting, come = expected, {}
        while waiting:
            still = []
            for other in waiting:
                if self._store.check([f"{what}/{other}"]):
                    host, found = json.loads(self._store.get(f"{what}/{other}"))
                    come[Rank(other, host)] = found
                else:
                    still.append(other)
            waiting = still
            if time.monotonic() > deadline:
                break
            if waiting:
                time.sleep(_POLL_S)
        return come

    def tell(self, what: str, value: Any = None) -> None:
        """Tell all ranks something; for rank 0.

        Args:
            what: names it; each name is used once.
            value: a plain value.
        """
        self._store.set(what, json.dumps(value))

    def hear(self, what: str, timeout_s: float) -> Any:
        """Return what rank 0 tells; None where it has told nothing in time.

        Args:
            what: names it.
            timeout_s: how long to wait.
        """
        with suppress(DistError, TimeoutError, RuntimeError):
            return self._wait_for(what, timeout_s)
        return None

    @property
    def store(self) -> Store:
        """Where ranks leave words for each other."""
        return self._store

    def end(self, timeout_s: float) -> None:
        """Leave together: the store is gone with rank 0.

        Args:
            timeout_s: how long rank 0 stays for the others, and they for its last word.
        """
        if self.rank.number == 0:
            self.tell("end")
        else:
            self.hear("end", timeout_s)
        self.collect("bye", None, min(timeout_s, _ANSWER_TIMEOUT_S))
        if self._close is not None:
            self._close()

    def _wait_for(self, what: str, timeout_s: float) -> Any:
        self._store.wait([what], timedelta(seconds=timeout_s))
        return json.loads(self._store.get(what))


def judge_roll(missing: Sequence[int], world_size: int, timeout_s: float) -> list[Finding]:
    """Judge whether all ranks have come.

    Args:
        missing: ranks that have not.
        world_size: ranks that should have.
        timeout_s: how long they were waited for.
    """
    if not missing:
        return [Finding(NAME, "ok", f"all {world_size} ranks have met")]
    unit, verb = ("rank", "has") if len(missing) == 1 else ("ranks", "have")
    return [
        Finding(
            NAME,
            "fail",
            f"{unit} {ranges(missing)} of {world_size} {verb} not come in {timeout_s:g} s",
            "see what they have said on their nodes, whether these can reach rank 0's address, and "
            "whether --runs_dir lies on a file system that all nodes share",
        )
    ]


def gather_srun(job: SlurmJob, folder: Path, timeout_s: float) -> Gathering:
    """Gather the tasks of one srun; they find each other as the ranks of `fit` do.

    Args:
        job: this job.
        folder: on a file system that all nodes share.
        timeout_s: how long to wait for rank 0.

    Raises:
        UserInputError: rank 0 has not spoken in this time.
        DistError: it cannot be reached.
    """
    me = Rank(job.rank, job.node_name)
    if job.rank == 0:
        held = HeldPort()
        meeting = Meeting(main_address(job), held.number)
        store = _store(meeting, timeout_s, is_first=True)
        # The store listens there now.
        held.close()
        call_meeting(folder, job, meeting)

        def close() -> None:
            _forget(folder, job)
            _stay_to_the_last()

        return Gathering(store, me, job.num_tasks, close)
    meeting = join_meeting(folder, job, timeout_s)
    return Gathering(_store(meeting, timeout_s, is_first=False), me, job.num_tasks)


def gather_torchrun(rank: Rank, world_size: int, timeout_s: float) -> Gathering:
    """Gather the ranks of torchrun, by the store that it keeps.

    Args:
        rank: this rank.
        world_size: ranks in all.
        timeout_s: how long to wait for the store.

    Raises:
        DistError: it cannot be reached.
    """
    found = next(
        rendezvous("env://", rank.number, world_size, timeout=timedelta(seconds=timeout_s))
    )
    return Gathering(found[0], rank, world_size)


def _store(meeting: Meeting, timeout_s: float, *, is_first: bool) -> TCPStore:
    return TCPStore(
        meeting.address,
        meeting.port,
        is_master=is_first,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


def _stay_to_the_last() -> None:
    """Wait until the other ranks have left: SLURM kills those that outlive one with a bad code."""
    deadline = time.monotonic() + _LEAVING_S
    # Its own way to the store has two ends in this process.
    while len(own_connections()) > 2 and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _forget(folder: Path, job: SlurmJob) -> None:
    """Remove the meeting's file, and the folders that were made for it alone."""
    file = meeting_file(folder, job)
    file.unlink(missing_ok=True)
    for made in (file.parent, folder):
        with suppress(OSError):
            made.rmdir()
