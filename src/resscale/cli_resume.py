"""Going on with a run: what may not change, found before anything is touched, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from resscale.data.batching import steps_of_limited_epoch
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.checkpoint import check_resumable, find_newest_valid
from resscale.training.checkpoint_load import check_repeats_of
from resscale.training.rundir import RunDir

# What decides which parameters share a group, and what is kept for each of them.
_OF_THE_STATE = ("name", "decay_norm_and_bias")


def check_resume(
    checkpoint: dict[str, Any], config: Mapping[str, Any], data: ShardDataModule, trainer: Trainer
) -> None:
    """Refuse to go on from a checkpoint with what would not be the same run.

    Args:
        checkpoint: as read from the file.
        config: the effective configuration of now, plain values.
        data: of now.
        trainer: before it has met the data.

    Raises:
        UserInputError: not one of ours; other data, batch or seed; another optimizer; an end of
            training before it; other repeats where samples would not come equally often.
    """
    state = check_resumable(checkpoint, data)
    check_optimizer(state, config)
    steps_per_epoch = steps_of_limited_epoch(
        data.order().num_steps,
        data.plan(trainer.world_size).accumulate,
        trainer.limit_train_batches,
    )
    check_epochs(state, trainer.max_epochs or 1, steps_per_epoch)
    check_repeats_of(state, data, *divmod(state["global_step"], steps_per_epoch))


def check_optimizer(state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse an optimizer that cannot take over the checkpoint's state.

    Its numbers (rate, momentum, decay) may change: training goes on with those of now.

    Args:
        state: what the checkpoint says of its run; without a configuration nothing is refused.
        config: the effective configuration of now, plain values.

    Raises:
        UserInputError: another optimizer, or the parameters in other groups.
    """
    saved = (state.get("config") or {}).get("model", {}).get("optimizer") or {}
    now = config["model"]["optimizer"]
    for name in _OF_THE_STATE:
        if name in saved and saved[name] != now[name]:
            raise UserInputError(
                f"the checkpoint was trained with model.optimizer.{name}={_plain(saved[name])}, "
                f"now it is {_plain(now[name])}: the optimizer cannot go on with that state. Set "
                f"model.optimizer.{name} as it was, or start a new run from the weights alone: "
                f"--weights in place of --ckpt_path."
            )


def check_epochs(state: Mapping[str, Any], max_epochs: int, steps_per_epoch: int) -> None:
    """Refuse an end of training that lies before the checkpoint.

    Args:
        state: what the checkpoint says of its run.
        max_epochs: where training shall end.
        steps_per_epoch: optimizer steps.

    Raises:
        UserInputError: more epochs are done already.
    """
    epochs = state["global_step"] // steps_per_epoch
    if epochs > max_epochs:
        raise UserInputError(
            f"trainer.max_epochs={max_epochs} lies before the checkpoint, which has {epochs} "
            f"epochs behind it: set it to {epochs} or more, or name an earlier checkpoint."
        )


def explain_giving_up(run: RunDir, command: str) -> str:
    """Return what to say when the user did not wait for a step's end.

    Args:
        run: the run.
        command: goes on with it.
    """
    newest = find_newest_valid(run)
    if newest is None:
        return f"given up; {run.path} holds no checkpoint yet."
    return f"given up; the newest checkpoint is {newest}\ngo on with:  {command}"


def _plain(value: Any) -> str:
    """Return a value as a user writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
