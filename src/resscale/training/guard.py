"""Guards that end training: losses that are not finite, and too many damaged samples.

Losses are kept on the device and read once per logging interval. Every rank is told what all ranks
found, so every rank stops at the same step with the same message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resscale.data.batching import BatchPlan
from resscale.data.permutation import Int64
from resscale.data.repeats import TrainOrder
from resscale.data.samples import Samples
from resscale.errors import TrainingStopped, UserInputError
from resscale.training.rundir import RunDir

# Losses that one interval tells of, per rank and in the ledger; all are counted.
_TOLD = 4
# Losses, sample keys and damaged samples that a message names; the ledger has more.
_NAMED_LOSSES = 3
_NAMED_KEYS = 4
_NAMED_BAD = 20
_FIRST_ROOM = 256


@dataclass(frozen=True, order=True)
class Place:
    """A micro-batch: epoch, optimizer step within it and number within the step, each from 0."""

    epoch: int
    step: int
    micro: int


@dataclass(frozen=True)
class NonFinite:
    """A loss that is not finite: where in training, on which rank, and its value."""

    place: Place
    rank: int
    loss: float


class LossTrail:
    """The losses of an interval's micro-batches, on the device, and where each belongs."""

    def __init__(self) -> None:
        self._losses: Tensor | None = None
        self._places: list[Place] = []

    def add(self, loss: Tensor, epoch: int, step: int) -> None:
        """Keep the loss of a micro-batch; nothing waits for the device.

        Args:
            loss: scalar, on the device.
            epoch: from 0.
            step: optimizer step within the epoch, from 0.
        """
        count = len(self._places)
        last = self._places[-1] if count else None
        again = last is not None and (last.epoch, last.step) == (epoch, step)
        self._places.append(Place(epoch, step, last.micro + 1 if again and last else 0))
        if self._losses is None:
            self._losses = torch.zeros(_FIRST_ROOM, device=loss.device)
        elif count == len(self._losses):
            self._losses = torch.cat([self._losses, torch.zeros_like(self._losses)])
        self._losses[count].copy_(loss.detach())

    def take(self, rank: int) -> list[NonFinite]:
        """Read the losses off the device; return those that are not finite, in order."""
        places, self._places = self._places, []
        if self._losses is None:
            return []
        losses = self._losses[: len(places)].tolist()
        return [
            NonFinite(place, rank, loss)
            for place, loss in zip(places, losses, strict=True)
            if not math.isfinite(loss)
        ]


def pack_nonfinite(found: Sequence[NonFinite]) -> list[float]:
    """Return the number of a rank's non-finite losses and the first ones, as so many floats."""
    told = [
        [float(entry.place.epoch), float(entry.place.step), float(entry.place.micro), entry.loss]
        for entry in found[:_TOLD]
    ]
    told += [[0.0] * 4] * (_TOLD - len(told))
    return [float(len(found)), *(value for entry in told for value in entry)]


def unpack_nonfinite(values: Sequence[float], rank: int) -> tuple[int, list[NonFinite]]:
    """Return what `pack_nonfinite` packed: the number, and the first ones."""
    count = int(values[0])
    entries = [values[1 + 4 * i : 5 + 4 * i] for i in range(min(count, _TOLD))]
    return count, [
        NonFinite(Place(int(epoch), int(step), int(micro)), rank, loss)
        for epoch, step, micro, loss in entries
    ]


def micro_batch_ids(order: TrainOrder, plan: BatchPlan, place: Place, rank: int) -> Int64:
    """Return the sample ids of any rank's micro-batch: int64 (micro_batch_size,).

    Args:
        order: the run's order, of any epoch.
        plan: how the global batch is cut.
        place: which micro-batch.
        rank: whose.
    """
    share = order.at_epoch(place.epoch).rank_batch(place.step, rank, plan.world_size)
    start = place.micro * plan.micro_batch_size
    return share[start : start + plan.micro_batch_size]


class NonFiniteGuard:
    """Ends training when too many losses were not finite.

    Args:
        max_nonfinite_losses: losses (one per micro-batch, over all ranks, since this process
            began) at which training ends with exit code 70; 0: it never does.
    """

    def __init__(self, max_nonfinite_losses: int = 3) -> None:
        if max_nonfinite_losses < 0:
            raise UserInputError(
                f"guard.max_nonfinite_losses={max_nonfinite_losses} must be 1 or more, or 0 for "
                f"no limit."
            )
        self.max_nonfinite_losses = max_nonfinite_losses
        self.count = 0
        self._first: list[str] = []

    def note(
        self,
        count: int,
        found: Sequence[NonFinite],
        *,
        order: TrainOrder,
        plan: BatchPlan,
        samples: Samples,
        steps_per_epoch: int,
        ledger: RunDir | None,
    ) -> None:
        """Count what all ranks found in an interval, and tell the ledger of the first ones.

        Args:
            count: non-finite losses over all ranks.
            found: those that were told of.
            order: the run's order.
            plan: how the global batch is cut.
            samples: names the samples.
            steps_per_epoch: optimizer steps.
            ledger: the run directory, where this rank writes to it.
        """
        self.count += count
        for entry in sorted(found, key=lambda one: (one.place, one.rank))[:_TOLD]:
            place = entry.place
            ids = micro_batch_ids(order, plan, place, entry.rank).tolist()
            keys = [samples.key(sample) for sample in ids]
            global_step = place.epoch * steps_per_epoch + place.step + 1
            if ledger is not None:
                ledger.append_event(
                    "nonfinite_loss",
                    rank=entry.rank,
                    epoch=place.epoch,
                    step=place.step,
                    micro_batch=place.micro,
                    global_step=global_step,
                    # JSON has no word for them.
                    loss=str(entry.loss),
                    keys=keys,
                )
            if len(self._first) < _NAMED_LOSSES:
                where = f"step {global_step} on rank {entry.rank}"
                self._first.append(f"{entry.loss} at {where} (samples {_name_keys(keys)})")

    def check(self) -> None:
        """End training if the limit is reached.

        Raises:
            TrainingStopped: it is.
        """
        if self.max_nonfinite_losses and self.count >= self.max_nonfinite_losses:
            losses = "loss was" if self.count == 1 else "losses were"
            raise TrainingStopped(
                f"{self.count} {losses} not finite, guard.max_nonfinite_losses="
                f"{self.max_nonfinite_losses} ends training there: {'; '.join(self._first)}. "
                f"Lower model.optimizer.lr, lengthen model.schedule.warmup_epochs or look at these "
                f"samples, then go on from an earlier checkpoint."
            )


def check_bad_samples(
    bad_in_epoch: int, max_bad_fraction: float, num_samples: int, run: RunDir
) -> None:
    """End training if an epoch has more damaged samples than the budget allows.

    Args:
        bad_in_epoch: damaged samples so far, over all ranks.
        max_bad_fraction: share of the data set that may be damaged.
        num_samples: training samples.
        run: its ledger names them.

    Raises:
        TrainingStopped: it has.
    """
    if bad_in_epoch > max_bad_fraction * num_samples:
        raise TrainingStopped(
            f"{bad_in_epoch} damaged samples in this epoch, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} of {num_samples} allows: "
            f"{_name_bad(run)} (listed with their shards and reasons in {run.events}). Mend or "
            f"pack the data again, or raise the fraction."
        )


def _name_keys(keys: Sequence[str]) -> str:
    shown, more = ", ".join(keys[:_NAMED_KEYS]), len(keys) - _NAMED_KEYS
    return f"{shown} and {more} more" if more > 0 else shown


def _name_bad(run: RunDir) -> str:
    """Return the keys of the newest damaged samples in the ledger, of all ranks."""
    keys = [str(line["key"]) for line in run.read_events("bad_sample")]
    shown = ", ".join(keys[-_NAMED_BAD:])
    return f"... {shown}" if len(keys) > _NAMED_BAD else shown
