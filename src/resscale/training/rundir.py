"""The run directory: what a run leaves behind, and how it is cut back to a checkpoint.

```
runs/<run-id>/
  config.yaml  metrics.csv  speed.csv  summary.json  events.jsonl  tensorboard/  checkpoints/
  samples/  logs/
```
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from resscale.errors import ResscaleError, UserInputError
from resscale.training.owner import Owner, read_owner, write_owner

# How long an earlier start of a job may take to see that it is over: some rounds of its watchdog.
_NOTICED_S = 5.0
_MOMENT_S = 2.0

METRIC_COLUMNS = (
    "epoch",
    "step",
    "train/loss",
    "train/top1",
    "val/loss",
    "val/top1",
    "val/top5",
    "val/ema_top1",
    "lr",
    "images_per_s",
    "data_wait",
)
# The table above keeps its columns, which others rely on; what else is known of an interval's speed
# stands in a file of its own, since TensorBoard's cannot be read without TensorBoard.
SPEED_COLUMNS = (
    "epoch",
    "step",
    "images_per_s_per_rank",
    "step_s_p50",
    "step_s_p90",
    "step_s_p99",
    "mfu",
    "memory_bytes",
    "slowest_rank",
    "slowest_ratio",
)


class RunDir:
    """Paths and appends of one run; safe to open again after a restart.

    Args:
        path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: TextIO | None = None
        self._owner: Owner | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics table."""
        return self.path / "metrics.csv"

    @property
    def speed(self) -> Path:
        """The table of speed and memory."""
        return self.path / "speed.csv"

    @property
    def summary(self) -> Path:
        """The run's state and result."""
        return self.path / "summary.json"

    @property
    def events(self) -> Path:
        """The ledger: one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def config(self) -> Path:
        """The effective configuration."""
        return self.path / "config.yaml"

    def samples(self, rank: int) -> Path:
        """A rank's log of consumed sample ids."""
        return self.path / "samples" / f"rank-{rank}.jsonl"

    def log(self, rank: int) -> Path:
        """What a rank has said, where there are several."""
        return self.path / "logs" / f"rank-{rank}.log"

    def take(self, owner: Owner | None = None, patience_s: float = 180.0) -> None:
        """Keep other processes from training in here, until `leave` or the end of this one.

        An earlier start of the same job that still trains is told to end, and waited for.

        Args:
            owner: who takes it; None: this process, of no job.
            patience_s: how long to wait for that end. Network file systems keep the lock of a
                machine that has lost its power for a minute and a half.

        Raises:
            UserInputError: another process trains here.
        """
        owner = Owner() if owner is None else owner
        self.path.mkdir(parents=True, exist_ok=True)
        before = read_owner(self.path)
        self._lock = self.config.open("a")
        try:
            # Who lists runs holds the lock for a moment.
            is_free = _lock(self._lock) or _wait_for_lock(self._lock, _MOMENT_S)
            if not is_free and owner.follows(before):
                write_owner(self.path, owner)
                is_free = _wait_for_lock(self._lock, patience_s)
        except OSError:
            # A file system without locks: it is the user's own care, as ever. An earlier start
            # of the job is given the time to see that it is over.
            self.leave()
            is_free = True
            if owner.follows(before):
                write_owner(self.path, owner)
                time.sleep(_NOTICED_S)
        if not is_free and owner.follows(before):
            self.leave()
            # No user's error: the job is worth another start.
            raise ResscaleError(
                f"{self.path} is still locked{_whose(before)}: an earlier start of this job has "
                f"not ended in {patience_s:g} s, or its machine's lock outlives it."
            )
        if not is_free:
            self.leave()
            raise UserInputError(
                f"another process trains in {self.path} just now{_whose(before)}: wait for its "
                f"end, or choose another --run_dir."
            )
        write_owner(self.path, owner)
        self._owner = owner

    def belong_to(self, owner: Owner) -> None:
        """Note which start this process is of, without taking anything; for the other ranks."""
        self._owner = owner

    def lost_to(self) -> Owner | None:
        """Return the later start of this job that has taken the run directory over, if any."""
        if self._owner is None:
            return None
        now = read_owner(self.path)
        return now if now is not None and now.follows(self._owner) else None

    def leave(self) -> None:
        """Let other processes train in here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append_event(self, event: str, **facts: Any) -> None:
        """Add a line to the ledger."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        append_line(self.events, json.dumps({"time": stamp, "event": event, **facts}))

    def read_events(self, event: str) -> list[dict[str, Any]]:
        """Return the ledger's lines of one kind; a torn line is passed over."""
        found = []
        for line in self.events.read_text().splitlines() if self.events.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("event") == event:
                found.append(entry)
        return found

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row to the metrics table; columns the table does not have are left out."""
        _append_row(self.metrics, METRIC_COLUMNS, row)

    def append_speed(self, row: Mapping[str, Any]) -> None:
        """Add a row to the table of speed; columns the table does not have are left out."""
        _append_row(self.speed, SPEED_COLUMNS, row)

    def read_summary(self) -> dict[str, Any]:
        """Return the summary, empty where there is none yet."""
        try:
            found: dict[str, Any] = json.loads(self.summary.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def write_summary(self, facts: Mapping[str, Any]) -> None:
        """Replace the summary in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.summary.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(dict(facts), indent=1) + "\n")
        temporary.replace(self.summary)

    def cut_back(self, epoch: int, step_in_epoch: int, global_step: int) -> None:
        """Drop what was written behind a checkpoint: it is about to be trained again.

        A killed run has logged steps that its newest checkpoint does not hold; kept, they would
        stand twice in the history.
        """

        def sample_holds(line: str) -> bool:
            entry = json.loads(line)
            return (entry["epoch"], entry["step"]) < (epoch, step_in_epoch)

        for file in sorted((self.path / "samples").glob("rank-*.jsonl")):
            _keep_lines(file, sample_holds)
        column = METRIC_COLUMNS.index("step")
        assert column == SPEED_COLUMNS.index("step"), "both tables are cut by one rule"

        def row_holds(line: str) -> bool:
            cell = next(csv.reader([line]))[column]
            return not cell.isdigit() or int(cell) <= global_step

        for table in (self.metrics, self.speed):
            if table.exists():
                _keep_lines(table, row_holds)


def _lock(file: TextIO) -> bool:
    """Take the lock if nobody has it; tell whether it is taken now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(file: TextIO, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if _lock(file):
            return True
        time.sleep(0.5)
    return False


def _whose(owner: Owner | None) -> str:
    if owner is None:
        return ""
    job = f", job {owner.job_id}" if owner.job_id is not None else ""
    return f" (process {owner.pid} on {owner.host}{job})"


def append_line(path: Path, line: str) -> None:
    """Append one line with a single write, so that ranks can share a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)


def _append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, with the heading where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(columns)
        writer.writerow([_short(row.get(column)) for column in columns])


def _keep_lines(path: Path, keep: Callable[[str], bool]) -> None:
    """Rewrite a file without the lines that `keep` refuses; a torn line goes too."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if keep(line):
                kept.append(line)
        except (json.JSONDecodeError, KeyError, StopIteration, IndexError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


def _short(value: Any) -> Any:
    return f"{value:.9g}" if isinstance(value, float) else value
