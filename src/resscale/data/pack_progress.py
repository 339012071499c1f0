"""Progress of a long piece of work: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL_S = 10.0


class PackProgress:
    """Shows how many of `total` units are done, on stderr; a context manager.

    Args:
        label: what is worked on.
        total: number of units.
        done: number of them that an earlier run has finished.
        unit: what is counted, "samples" or "bytes".
        interval_s: seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        unit: str = "samples",
        interval_s: float = LINE_INTERVAL_S,
    ) -> None:
        self._unit = unit
        self._label, self._total, self._done = label, total, done
        self._interval_s = interval_s
        self._begun_with = done
        self._begun_at = self._line_at = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn() if unit == "bytes" else MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(label, total=total, completed=done, rate="")

    def __enter__(self) -> PackProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, units: int) -> None:
        """Count `units` more as done."""
        self._done += units
        if self._bar:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif time.monotonic() - self._line_at >= self._interval_s and self._done < self._total:
            self._line_at = time.monotonic()
            print(
                f"{self._label}: {self._done:,} of {self._total:,} {self._unit}, {self._rate()}",
                file=sys.stderr,
                flush=True,
            )

    def _rate(self) -> str:
        elapsed_s = max(time.monotonic() - self._begun_at, 1e-6)
        return f"{(self._done - self._begun_with) / elapsed_s:,.0f}/s"
