"""The averaged weights in a checkpoint: found, loaded for evaluation, or said to be missing."""

from __future__ import annotations

from typing import Any

from torch import nn

from resscale.errors import UserInputError
from resscale.models.weights import LoadedWeights
from resscale.models.weights_fit import compare, explain
from resscale.training.ema_decay import EmaConfig, warmup_updates

EMA_KEY = "ema_state_dict"
"""Where a checkpoint holds the averaged weights, by the keys of its `state_dict`."""

PREFIX = "model."
"""What a LightningModule's state dict puts before the network's own keys."""


def load_averaged(
    model: nn.Module, checkpoint: dict[str, Any] | None, source: str
) -> LoadedWeights:
    """Copy a checkpoint's averaged weights into a whole network, in place.

    Args:
        model: the network, without a LightningModule around it.
        checkpoint: as read from the file; None where the user named none.
        source: its name, for messages.

    Raises:
        UserInputError: it has none, or they are of another network.
    """
    if checkpoint is None:
        raise UserInputError(
            "--use_ema=true takes the averaged weights of a checkpoint: name it with --ckpt_path "
            "FILE, or its run with --run_dir DIR, in place of --weights."
        )
    if EMA_KEY not in checkpoint:
        raise UserInputError(
            f"--use_ema=true: {source} holds no averaged weights, as it was trained without "
            f"ema.decay. Leave --use_ema out to measure the weights themselves."
        )
    state = {key.removeprefix(PREFIX): value for key, value in checkpoint[EMA_KEY].items()}
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    other = {name: tuple(value.shape) for name, value in state.items()}
    fit = compare(own, other)
    if fit.misshapen or fit.missing or fit.unexpected:
        raise UserInputError(explain(fit, own, other, source, strict=False))
    model.load_state_dict(state)
    return LoadedWeights(f"{source} (averaged weights)", EMA_KEY, len(state), (), ())


def explain_average(config: EmaConfig, checkpoint: dict[str, Any] | None) -> str | None:
    """Return what to say of the average before training begins; None where it plays no part.

    Args:
        config: what was asked for.
        checkpoint: what training goes on from, if anything.
    """
    has_average = checkpoint is not None and EMA_KEY in checkpoint
    if config.decay is None:
        dropped = "averaged weights: those of the checkpoint are dropped, ema.decay is not set"
        return dropped if has_average else None
    said = f"averaged weights: decay {config.decay:g}"
    if config.warmup:
        said += f", reached at update {warmup_updates(config.decay):,}"
    if checkpoint is not None and not has_average:
        said += "; the checkpoint has none, so the average begins with its weights"
    return said
