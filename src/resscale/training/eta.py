"""When training will end: the recent pace, what is left of it, and the evaluations between.

Pure but for the marks: an epoch on larger images (progressive resizing) weighs as the square of
their side, as the cost of convolutions does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

# A pace is that of the newest minutes: long enough for a checkpoint or two, short enough to follow
# a machine that has become slower.
_WINDOW_S = 300.0
# A process's first batches start readers, compile and choose kernels.
_WARM_UP_BATCHES = 3
# Training on an image costs three forward passes (backward is twice forward), evaluation one.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Course:
    """What a whole training consists of, in batches of a rank.

    Args:
        batches_per_epoch: of training.
        last_batch: all batches of training.
        size_at: side of the training images of an epoch, in pixels.
        check_every_batches: batches of an epoch (or of all training, see below) from one evaluation
            to the next; None: there is none.
        check_every_epochs: only every so many epochs have evaluations; None: batches are counted
            over the epochs.
    """

    batches_per_epoch: int
    last_batch: int
    size_at: Callable[[int], int]
    check_every_batches: int | None = None
    check_every_epochs: int | None = 1

    def work_of(self, batch: int) -> float:
        """Return what one training batch costs: pixels per image."""
        return float(self.size_at(batch // self.batches_per_epoch) ** 2)

    def work_left(self, done: int) -> float:
        """Return what all batches behind the first `done` of training cost together."""
        total = 0.0
        while done < self.last_batch:
            epoch = done // self.batches_per_epoch
            stop = min((epoch + 1) * self.batches_per_epoch, self.last_batch)
            total += (stop - done) * self.work_of(done)
            done = stop
        return total

    def evaluations_left(self, done: int) -> int:
        """Return how many evaluations stand behind the batches that come after the first `done`."""
        every, per_epoch = self.check_every_batches, self.batches_per_epoch
        if every is None:
            return 0
        if self.check_every_epochs is None:
            return max(0, self.last_batch // every - done // every)
        count = 0
        while done < self.last_batch:
            epoch, start = divmod(done, per_epoch)
            stop = min(per_epoch, self.last_batch - epoch * per_epoch)
            if (epoch + 1) % self.check_every_epochs == 0:
                count += stop // every - start // every
            done = (epoch + 1) * per_epoch
        return count


class Pace:
    """How fast training goes at present, from marks of the clock.

    Args:
        window_s: seconds of training that count.
    """

    def __init__(self, window_s: float = _WINDOW_S) -> None:
        self.window_s = window_s
        self.evaluation_s: float | None = None
        # (seconds of training, work done) at each mark.
        self._marks: deque[tuple[float, float]] = deque()
        self._work = 0.0
        self._cold_batches = _WARM_UP_BATCHES
        self._since_s = 0.0
        self._paused_s: float | None = None

    def note_batch(self, now_s: float, work: float) -> None:
        """Note that a training batch has ended.

        Args:
            now_s: the clock.
            work: what it costs, see `Course.work_of`.
        """
        if self._cold_batches:
            self._cold_batches -= 1
            if self._cold_batches:
                return
            self._since_s = now_s
            work = 0.0
        self._work += work
        trained_s = now_s - self._since_s
        self._marks.append((trained_s, self._work))
        # The oldest is what the newest is compared with: it may stand outside the window.
        while len(self._marks) > 2 and self._marks[1][0] < trained_s - self.window_s:
            self._marks.popleft()

    def begin_evaluation(self, now_s: float) -> None:
        """Stop training's clock."""
        self._paused_s = now_s

    def end_evaluation(self, now_s: float) -> None:
        """Let training's clock go on; keep what the evaluation took."""
        if self._paused_s is not None:
            self.evaluation_s = now_s - self._paused_s
            self._since_s += self.evaluation_s
        self._paused_s = None

    @property
    def s_per_work(self) -> float | None:
        """Seconds per unit of work over the window; None before two batches have been timed."""
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last_s - first_s) / (last - first) if last > first else None


def left_s(
    pace: Pace, course: Course, done: int, evaluated: int, evaluation_work: float
) -> float | None:
    """Return the seconds until training ends; None while its pace is not known.

    Args:
        pace: the recent one.
        course: what training consists of.
        done: batches that are done.
        evaluated: batches whose evaluations are done: one less where that behind the last batch
            is still to come.
        evaluation_work: what an evaluation costs in a batch's unit, as long as none has been timed.
    """
    per_work = pace.s_per_work
    if per_work is None:
        return None
    evaluation_s = pace.evaluation_s
    if evaluation_s is None:
        evaluation_s = _FORWARD_SHARE * evaluation_work * per_work
    return per_work * course.work_left(done) + evaluation_s * course.evaluations_left(evaluated)


def describe_end(seconds: float, now: datetime | None = None) -> str:
    """Return when training ends: "ends in 3:12:05", and with a clock " (Tue 14:20)".

    Args:
        seconds: from now on.
        now: the local time; None: leave the clock out.
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    text = f"ends in {hours}:{minute:02d}:{second:02d}"
    if now is None:
        return text
    end = now + timedelta(seconds=seconds)
    # A weekday alone would be ambiguous from a week on.
    form = "%a %H:%M" if end - now < timedelta(days=6) else "%a %d %b %H:%M"
    return f"{text} ({end.strftime(form)})"
