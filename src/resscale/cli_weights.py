"""Which weights a command begins with, and whether those of a checkpoint fit the network."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from resscale.errors import UserInputError
from resscale.models import LoadedWeights, load_weights
from resscale.models.weights_fit import compare, explain
from resscale.training.classifier import ImageClassifier
from resscale.training.ema_checkpoint import PREFIX

# Arguments that `load_weights` advises -> what a user of the command line types.
_AS_OPTIONS = {
    "skip_classifier=True": "--skip_classifier true",
    "num_classes=": "--model.num_classes ",
    "in_channels=": "--data.channels ",
}


def load_first_weights(
    stage: str, config: Namespace, model: ImageClassifier, checkpoint: Path | None
) -> LoadedWeights | None:
    """Load the weights that the user names, unless a checkpoint says more.

    Args:
        stage: the command.
        config: its options; `weights` and `skip_classifier` are read.
        model: takes the weights.
        checkpoint: what the command goes on from, if anything.

    Raises:
        UserInputError: options that contradict each other; weights that do not fit.
    """
    if checkpoint is not None or config.weights is None:
        if config.skip_classifier and config.weights is None:
            raise UserInputError(
                "--skip_classifier=true says how to read --weights: name a file or URL there."
            )
        return None
    if config.skip_classifier and stage != "fit":
        raise UserInputError(
            f"--skip_classifier=true leaves the last layer untrained, and {stage} would "
            f"measure that: leave it out, or train first with `resscale fit`."
        )
    try:
        return load_weights(model.model, config.weights, skip_classifier=config.skip_classifier)
    except UserInputError as error:
        raise UserInputError(_as_options(str(error))) from error


def check_network(checkpoint: dict[str, Any], model: ImageClassifier, source: str) -> None:
    """Refuse a checkpoint of another network before anything of it is used.

    Args:
        checkpoint: as read from the file.
        model: takes the weights later.
        source: the file's name, for the message.

    Raises:
        UserInputError: names or shapes differ.
    """
    own = {name: tuple(value.shape) for name, value in model.model.state_dict().items()}
    saved = checkpoint["state_dict"].items()
    other = {name.removeprefix(PREFIX): tuple(value.shape) for name, value in saved}
    fit = compare(own, other)
    if fit.misshapen or fit.missing or fit.unexpected:
        raise UserInputError(_as_options(explain(fit, own, other, source, strict=False)))


def _as_options(message: str) -> str:
    """Return a message whose remedies are options of the command line."""
    for argument, option in _AS_OPTIONS.items():
        message = message.replace(argument, option)
    return message
