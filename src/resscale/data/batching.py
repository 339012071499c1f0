"""How a global batch becomes micro-batches, and how ranks take them: pure arithmetic.

The micro-batch is the unit that BatchNorm sees. A global batch is a fixed sequence of them and
ranks take whole ones, so 1 process accumulating 4 and 4 ranks see the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from resscale.data.locations import shown
from resscale.data.order import indivisible
from resscale.errors import UserInputError


@dataclass(frozen=True)
class BatchPlan:
    """`micro_batch_size` per rank and pass × `world_size` ranks × `accumulate` passes = global."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    accumulate: int

    def __str__(self) -> str:
        unit = "rank" if self.world_size == 1 else "ranks"
        return (
            f"{self.micro_batch_size}/rank × {self.world_size} {unit} × {self.accumulate} accum "
            f"= {self.global_batch_size} global"
        )


def plan_batches(
    global_batch_size: int, micro_batch_size: int | None, world_size: int
) -> BatchPlan:
    """Derive the micro-batch and the accumulation from what the user states.

    Args:
        global_batch_size: samples per optimizer step over all ranks.
        micro_batch_size: samples per forward pass of a rank; None takes the rank's whole share.
        world_size: number of ranks.

    Raises:
        UserInputError: the numbers do not divide.
    """
    if global_batch_size < 1:
        raise UserInputError(f"global_batch_size={global_batch_size} must be at least 1.")
    if global_batch_size % world_size:
        raise UserInputError(indivisible(global_batch_size, world_size, "ranks"))
    share = global_batch_size // world_size
    micro = share if micro_batch_size is None else micro_batch_size
    if micro < 1 or share % micro:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        close = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:2])
        raise UserInputError(
            f"micro_batch_size={micro} does not divide a rank's share of {share} "
            f"(global_batch_size={global_batch_size} / {world_size} ranks); "
            f"choose {' or '.join(map(str, close))}."
        )
    return BatchPlan(global_batch_size, micro, world_size, share // micro)


def check_counts(**values: int | None) -> None:
    """Refuse options of the data that must be at least 1; None is left alone.

    Raises:
        UserInputError: the first that is not.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserInputError(f"data.{name}={value} must be at least 1.")


def check_batch_fits(global_batch_size: int, num_samples: int, root: str) -> None:
    """Refuse training samples that are fewer than one global batch.

    Args:
        global_batch_size: samples per step over all ranks.
        num_samples: of an epoch.
        root: where they lie.

    Raises:
        UserInputError: they are.
    """
    if num_samples < global_batch_size:
        raise UserInputError(
            f"global_batch_size={global_batch_size} is more than the {num_samples} training "
            f"samples in {shown(root)}; choose {num_samples} or less."
        )


def check_accumulation(asked: int, derived: int) -> None:
    """Refuse a number of micro-batches per step that contradicts the batch sizes.

    Args:
        asked: `trainer.accumulate_grad_batches`; 1 is its default.
        derived: what the batch sizes come to.

    Raises:
        UserInputError: they differ.
    """
    if asked not in (1, derived):
        raise UserInputError(
            f"trainer.accumulate_grad_batches={asked} is not yours to set: it follows from "
            f"data.global_batch_size and data.micro_batch_size (here {derived}). Leave it out."
        )


def steps_of_limited_epoch(num_steps: int, accumulate: int, limit: int | float | None) -> int:
    """Return the optimizer steps per epoch under Lightning's `limit_train_batches`.

    Args:
        num_steps: optimizer steps of the whole epoch.
        accumulate: micro-batches per optimizer step and rank.
        limit: micro-batches per epoch and rank (int), a share of them (float), or None.

    Raises:
        UserInputError: the limit ends in the middle of a step, or before the first.
    """
    batches = num_steps * accumulate
    if isinstance(limit, float):
        limited = int(batches * limit)
    else:
        limited = batches if limit is None else min(batches, limit)
    if limited % accumulate or not limited:
        fitting = max(accumulate, limited // accumulate * accumulate)
        raise UserInputError(
            f"trainer.limit_train_batches={limit} is {limited} micro-batches, no multiple of the "
            f"{accumulate} that make up a step; choose {fitting}."
        )
    return limited // accumulate


def evaluation_slices(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """Return a rank's evaluation batches as `(start, stop)` ids.

    Every id is in exactly one batch of one rank; every rank has the same number of batches, the
    surplus ones empty (`start == stop`), so ranks stay in step. A rank's batches are neighbours: it
    touches few shards.
    """
    per_rank = -(-num_samples // (batch_size * world_size))
    firsts = range(rank * per_rank, (rank + 1) * per_rank)
    starts = [min(number * batch_size, num_samples) for number in firsts]
    return [(start, min(start + batch_size, num_samples)) for start in starts]
