"""Which tensor of a file goes where in a model, and a helpful word where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from resscale.errors import UserInputError

CLASSIFIERS = ("fc", "head.fc")
"""Names of the last layer over the whole family."""

_COUNTER = "num_batches_tracked"
_SHOWN = 3
_DEPTH_SLACK = 5
_LEADING_WRAPPERS = ("module", "model")  # DataParallel, DDP, AveragedModel; LightningModule
_WRAPPERS = ("_orig_mod", "_forward_module")  # torch.compile, DeepSpeed; at any depth
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How the short names of a file and of a model compare; all are short names."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Of the model, not in the file."""
    unexpected: tuple[str, ...]
    """Of the file, not in the model."""
    misshapen: tuple[str, ...]
    """Of both, with different shapes."""


def short_name(key: str) -> str:
    """Return a state-dict key without the names that wrappers add, in any nesting."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _LEADING_WRAPPERS:
        del parts[0]
    return ".".join(parts)


def by_short_name(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the tensors by their short names.

    Raises:
        UserInputError: two keys have the same short name.
    """
    keys: dict[str, str] = {}
    for key in tensors:
        if (other := keys.setdefault(short_name(key), key)) != key:
            raise UserInputError(
                f"{owner} has both {other!r} and {key!r}, which are one weight once the names of "
                f"wrappers are taken off; keep one of the two in a file of its own."
            )
    return {name: tensors[key] for name, key in keys.items()}


def is_classifier(name: str) -> bool:
    """Tell whether a short name belongs to the last layer."""
    return name.rpartition(".")[0] in CLASSIFIERS


def compare(model: Shapes, file: Shapes) -> Fit:
    """Compare by name and shape.

    BatchNorm's counters may be missing: files from before torch 0.4.1 have none, and torch's own
    `load_state_dict` lets them be.
    """
    both = [name for name in model if name in file]
    return Fit(
        matched=tuple(name for name in both if model[name] == file[name]),
        missing=tuple(n for n in model if n not in file and n.rpartition(".")[2] != _COUNTER),
        unexpected=tuple(name for name in file if name not in model),
        misshapen=tuple(name for name in both if model[name] != file[name]),
    )


def explain(fit: Fit, model: Shapes, file: Shapes, source: str, *, strict: bool) -> str:
    """Return the message for a file that does not fit: what differs, and what to do about it."""
    differences = []
    if fit.missing:
        differences.append(f"{_count(fit.missing, 'key')} missing ({_some(fit.missing)})")
    if fit.unexpected:
        differences.append(f"{_count(fit.unexpected, 'key')} unexpected ({_some(fit.unexpected)})")
    if fit.misshapen:
        shapes = [f"{n}: {_shape(file[n])}, model {_shape(model[n])}" for n in fit.misshapen]
        keys = _count(fit.misshapen, "key")
        differences.append(f"{keys} of another shape ({_some(shapes, '; ')})")
    if not fit.matched and not fit.misshapen:
        differences.insert(0, "no key in common")
    return f"{source} does not fit the model: {', '.join(differences)}. " + _remedy(
        fit, model, file, strict=strict
    )


def _remedy(fit: Fit, model: Shapes, file: Shapes, *, strict: bool) -> str:
    wrong = {*fit.missing, *fit.unexpected, *fit.misshapen}
    inputs = _other_input(fit, model, file)
    advice = []
    if inputs is not None:
        name, has, wants = inputs
        wrong.discard(name)
        advice.append(
            f"The file's first convolution {name} takes {has} channels, the model's {wants}: "
            f"create the model with in_channels={has}."
        )
    if wrong and all(map(is_classifier, wrong)):
        advice.append(_classifier_advice(wrong, file))
    elif wrong and (names := _other_net(file)):
        shown = " or ".join(map(repr, names[:_SHOWN]))
        advice.append(f"The file looks like {shown}: create that model to load it.")
    elif wrong:
        advice.append("Load it into a model of the kind that it was saved from.")
        if strict and fit.matched and not fit.misshapen:
            advice.append("strict=False accepts missing and unexpected keys.")
    return " ".join(advice)


def _classifier_advice(wrong: Collection[str], file: Shapes) -> str:
    advice = (
        "Only the classifier differs: skip_classifier=True loads everything else and leaves the "
        "classifier fresh"
    )
    classes = next((file[name][0] for name in sorted(wrong) if file.get(name)), None)
    return advice + ("." if classes is None else f"; or create it with num_classes={classes}.")


def _other_input(fit: Fit, model: Shapes, file: Shapes) -> tuple[str, int, int] | None:
    """Return the first convolution's name and channels, if they are all that differs in it."""
    first = _first_convolution(model)
    if first not in fit.misshapen or len(file[first]) != 4:
        return None
    own, other = model[first], file[first]
    return (first, other[1], own[1]) if _without_inputs(own) == _without_inputs(other) else None


def _without_inputs(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:]


def _first_convolution(shapes: Shapes) -> str:
    return next((name for name, shape in shapes.items() if len(shape) == 4), "")


def _other_net(file: Shapes) -> list[str]:
    """Return the named nets whose layers are those of the file.

    The classifier, the input channels and BatchNorm's counters do not count. Nets are built on the
    meta device, without memory for their weights.
    """
    from resscale.models.meta import create_on_meta
    from resscale.models.variants import list_models

    # The largest number in a name is the depth, with or without projections and deep stems.
    depth = _count_layers(file)
    near = [name for name in list_models() if abs(_largest_number(name) - depth) <= _DEPTH_SLACK]
    found = []
    for name in near:
        state = create_on_meta(name).state_dict()
        if _same_layers({key: tuple(value.shape) for key, value in state.items()}, file):
            found.append(name)
    return found


def _largest_number(name: str) -> int:
    return max(map(int, re.findall(r"\d+", name)), default=0)


def _count_layers(shapes: Shapes) -> int:
    """Count convolutions and linear layers as papers do: without projections and gates."""
    uncounted = {"downsample", "se"}
    return sum(len(s) > 1 and uncounted.isdisjoint(n.split(".")) for n, s in shapes.items())


def _same_layers(model: Shapes, file: Shapes) -> bool:
    # By the model's order: safetensors files are sorted by name.
    first = _first_convolution(model)
    return _signature(model, first) == _signature(file, first)


def _signature(shapes: Shapes, first: str) -> dict[str, tuple[int, ...]]:
    return {
        name: _without_inputs(shape) if name == first else shape
        for name, shape in shapes.items()
        if not is_classifier(name) and name.rpartition(".")[2] != _COUNTER
    }


def _count(names: Collection[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _some(texts: Iterable[str], separator: str = ", ") -> str:
    texts = list(texts)
    rest = len(texts) - _SHOWN
    return separator.join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
