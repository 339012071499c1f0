"""Which rank failed first, and how all ranks come to say the same.

The first rank that knows why the run fails links a file into `ranks/failures/`. A link can be made
once, so all others find it there: what they meet afterwards (connections closed by their peer) is
its consequence, and they name it instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import distributed

from resscale.errors import UserInputError
from resscale.training.phase import Record
from resscale.training.rundir import RunDir

# Name of a failure's line in the ledger.
EVENT = "rank_failed"

_COMMUNICATION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|tim(ed|e) ?-?out|process ?group"
    r"|tcpstore|socket",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """Why a run fails: the first rank to fail, and what is known of it.

    Args:
        kind: it raised an exception, its process is gone, or it does not move.
        rank: global rank.
        world_size: number of ranks.
        host: its machine.
        pid: its process.
        step: optimizer steps done.
        phase: start, data, forward, backward, sync, save or evaluate.
        exception: type of the exception, if there was one.
        message: what happened, in a sentence or the exception's own words.
        traceback: where it happened; empty where nobody can tell.
        exit_code: what all ranks end with.
        same_place: other ranks that stood still at the very same place, where that is why the
            first is not certain.
        time_s: seconds since 1970.
    """

    kind: Literal["exception", "gone", "hang"]
    rank: int
    world_size: int
    host: str
    pid: int
    step: int
    phase: str
    exception: str | None
    message: str
    traceback: str
    exit_code: int
    same_place: list[int] = field(default_factory=list)
    time_s: float = field(default_factory=time.time)

    def summary(self) -> str:
        """Return who failed, where and of what, in one line or few."""
        what = self.message if self.exception is None else f"{self.exception}: {self.message}"
        unsure = ""
        if self.same_place:
            others = ", ".join(map(str, self.same_place))
            unsure = f"; ranks at the same place, so it may be one of them: {others}"
        return (
            f"rank {self.rank} of {self.world_size} failed first, at step {self.step} in phase "
            f"{self.phase} (host {self.host}, process {self.pid}): {what}{unsure}"
        )

    def report(self) -> str:
        """Return the traceback, unless it is a user's error, and the summary as the last lines."""
        if self.exit_code == UserInputError.exit_code:
            return self.summary()
        trace = self.traceback.rstrip() or "(no traceback)"
        return f"{trace}\n{self.summary()}"


def first_to_blame(records: Sequence[Record]) -> tuple[Record, list[int]]:
    """Return the rank that keeps all others waiting, and ranks that stand exactly where it does.

    All ranks run the same program, and those that are well wait for the one that is not. So it is
    the one that came least far; where several came as far, the one that stands there longest.

    Args:
        records: what is known of the ranks that still run, at least one.
    """
    ordered = sorted(records, key=lambda r: (r.step, r.beats, r.entered_s, r.rank))
    first = ordered[0]
    same = [r.rank for r in ordered[1:] if (r.step, r.beats) == (first.step, first.beats)]
    return first, sorted(same)


def is_consequence(error: BaseException) -> bool:
    """Tell whether an error looks like what a rank meets when another one has failed."""
    if isinstance(error, distributed.DistError):
        return True
    return type(error) is RuntimeError and _COMMUNICATION.search(str(error)) is not None


def claim(run_dir: Path, life: str, failure: Failure) -> Failure:
    """Make `failure` the run's first; return what is the first then, its own or an earlier one.

    Args:
        run_dir: the run directory.
        life: names this start of the run.
        failure: what this rank knows.
    """
    target = _verdict(run_dir, life)
    name = f"{life}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp"
    temporary = target.with_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(failure)) + "\n")
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            return read_failure(run_dir, life) or failure
        except OSError:  # file systems without hard links: not the first, perhaps, but one
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        # A full disk may be why the run fails: it must be said all the same.
        return failure
    return failure


def announce(run_dir: Path, life: str, failure: Failure) -> Failure:
    """Claim, and write the ledger's line if the claim was the first; return the first."""
    first = claim(run_dir, life, failure)
    if first is failure:
        # As above: without the ledger the console still says it.
        with contextlib.suppress(OSError):
            RunDir(run_dir).append_event(EVENT, **asdict(failure))
    return first


def read_failure(run_dir: Path, life: str) -> Failure | None:
    """Return the failure that was claimed first in this life of the run, if any."""
    target = _verdict(run_dir, life)
    try:
        # Opening the folder makes network file systems look for what is new in it.
        if target.name not in os.listdir(target.parent):  # noqa: PTH208 - names are enough
            return None
        return Failure(**json.loads(target.read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def _verdict(run_dir: Path, life: str) -> Path:
    return run_dir / "ranks" / "failures" / f"{life}.json"
