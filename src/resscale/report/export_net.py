"""Which net the weights belong to, and the net with the weights in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resscale.data.augment import CenterCrop
from resscale.data.datamodule import ShardDataModule
from resscale.errors import DataFormatError, UserInputError
from resscale.models import ResNet, create_model
from resscale.models.variants import find_variant
from resscale.models.weights_fit import by_short_name, compare, explain
from resscale.report.export_source import Source
from resscale.training.classifier import IMAGENET_MEAN, IMAGENET_STD, channels_of

# What `explain` advises a programmer -> what a user of the command line types.
_AS_OPTIONS = (
    (r"skip_classifier=True .* fresh; or create it with num_classes=", "give --num_classes "),
    (r"create the model with in_channels=", "give --in_channels "),
    (r"create that model to load it", "give that name as --model"),
)


@dataclass(frozen=True)
class Preparation:
    """How images of 0 to 255 become the net's input: crop, `/ 255`, `- mean`, `/ std`."""

    crop: CenterCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Architecture:
    """A net of the family as `create_model` takes it.

    Args:
        name: one of `list_models()`, or a CIFAR net by its rule.
        num_classes: outputs.
        in_channels: channels of the input.
        options: of `ResNetOptions`, those that replace the name's own.
        image_size: pixels per side of the images that it is evaluated on.
        preparation: of these images; None where it is not known.
    """

    name: str
    num_classes: int = 1000
    in_channels: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    preparation: Preparation | None = None


def architecture_of(
    source: Source, stated: Mapping[str, Any], image_size: int | None = None
) -> Architecture:
    """Return the net that the source's configuration names, or else the user.

    Args:
        source: of the weights.
        stated: what the user says: `model`, and where they wish `num_classes`, `in_channels` and
            `model_options`.
        image_size: pixels per side, in place of the configuration's or the name's.

    Raises:
        UserInputError: neither says it, both do, or the net has no name.
    """
    model = source.config.get("model")
    if not isinstance(model, Mapping):
        return _stated_architecture(source, stated, image_size)
    if stated:
        raise UserInputError(
            f"--{next(iter(stated))}: {source.path} says itself which net it holds "
            f"({model.get('model')}). Leave the option out."
        )
    name = model.get("model")
    if not isinstance(name, str):
        # A class named by a file is not imported: that would execute what the file says.
        what = name.get("class_path") if isinstance(name, Mapping) else name
        raise UserInputError(
            f"{source.path} holds a net of the class {what}, and only the named nets of `resscale "
            f"models` are exported. Save its state dict where it is defined."
        )
    data = source.config.get("data") or {}
    channels: int = data["channels"] if "channels" in data else model.get("in_channels", 3)
    crop = _evaluation_crop(data)
    mean = tuple(model.get("mean") or channels_of(IMAGENET_MEAN, channels))
    std = tuple(model.get("std") or channels_of(IMAGENET_STD, channels))
    return Architecture(
        name=name,
        num_classes=model.get("num_classes", 1000),
        in_channels=channels,
        options=model.get("model_options") or {},
        image_size=image_size or crop.size,
        preparation=Preparation(crop, mean, std),
    )


def build_net(architecture: Architecture, weights: Mapping[str, Tensor], path: Path) -> ResNet:
    """Return the net in evaluation mode with exactly these weights, in float32.

    Args:
        architecture: of the net.
        weights: by keys with or without the names of wrappers (`model.`, `_orig_mod.`).
        path: where they are from, for messages.

    Raises:
        UserInputError: keys are missing, unexpected or of another shape, or a value is not finite.
    """
    a = architecture
    net = create_model(a.name, a.num_classes, a.in_channels, **a.options)
    net.check_size(a.image_size, a.image_size)
    named = by_short_name(weights, str(path))
    own, other = _shapes(net.state_dict()), _shapes(named)
    fit = compare(own, other)
    if fit.missing or fit.unexpected or fit.misshapen:
        # strict=False: its only effect is to leave out advice that export has no option for.
        message = explain(fit, own, other, str(path), strict=False)
        for pattern, option in _AS_OPTIONS:
            message = re.sub(pattern, option, message)
        raise UserInputError(message)
    for name, value in named.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserInputError(
                f"{path}: {name} holds values that are not finite, so the net answers nothing. "
                f"Name a checkpoint from before training diverged."
            )
    try:
        net.load_state_dict(named, strict=False)  # counters may be missing; all else was compared
    except RuntimeError as error:
        raise DataFormatError(f"{path}: {' '.join(str(error).split())}") from error
    return net.float().eval()


def _stated_architecture(
    source: Source, stated: Mapping[str, Any], image_size: int | None
) -> Architecture:
    if "model" not in stated:
        raise UserInputError(
            f"{source.path} does not say which net its weights belong to, as checkpoints of "
            f"`resscale fit` do: give --model NAME (see `resscale models`), and where they differ "
            f"from 1000 classes and 3 channels, --num_classes N and --in_channels C."
        )
    name = stated["model"]
    return Architecture(
        name=name,
        num_classes=stated.get("num_classes", 1000),
        in_channels=stated.get("in_channels", 3),
        options=stated.get("model_options", {}),
        image_size=image_size or find_variant(name).image_size,
    )


def _evaluation_crop(data: Mapping[str, Any]) -> CenterCrop:
    """Return the crop that evaluation takes, from the data's options and their defaults."""
    known = ("image_size", "train_crop", "eval_size", "eval_resize")
    return ShardDataModule(**{name: data[name] for name in known if name in data}).eval_crop


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
