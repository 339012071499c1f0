"""Losses over hard and mixed targets: cross entropy, and binary cross entropy per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from resscale.data.dataset import IGNORED
from resscale.errors import UserInputError, nearest

LossName = Literal["cross_entropy", "bce"]
_NAMES: tuple[str, ...] = get_args(LossName)


class Targets(NamedTuple):
    """What the rows of a micro-batch show.

    Args:
        label: int64 (N,), -1 where not counted.
        other: labels of the images that were mixed in, int64 (N,); None: nothing was.
        share: of `label` in each row's image, 0 to 1; the rest is `other`'s.
    """

    label: Tensor
    other: Tensor | None = None
    share: float = 1.0

    @property
    def larger(self) -> Tensor:
        """The label of the larger share, int64 (N,): what training's top-1 is counted against."""
        return self.label if self.other is None or self.share >= 0.5 else self.other


@dataclass(frozen=True)
class LossConfig:
    """The training loss; evaluation always measures plain cross entropy.

    Args:
        name: "cross_entropy" of the softmax, or "bce", binary cross entropy of each class by
            itself (Wightman et al. 2021, section 3.1).
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2015, sec. 7).
        target_threshold: of "bce": targets above it become 1 and all others 0, so that a mixed
            image fully shows both its classes. None: targets are the shares.

    Raises:
        UserInputError: an unknown name, or a number out of its range.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    target_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserInputError(
                f"model.loss={self.name} must be one of {', '.join(_NAMES)}."
                f"{nearest(self.name, _NAMES)}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserInputError(
                f"model.label_smoothing={self.label_smoothing} must be from 0 up to 1."
            )
        if self.target_threshold is None:
            return
        if not 0 <= self.target_threshold < 1:
            raise UserInputError(
                f"model.target_threshold={self.target_threshold} must be from 0 up to 1: targets "
                f"above it become 1."
            )
        if self.name != "bce":
            raise UserInputError(
                f"model.target_threshold={self.target_threshold} is for the loss 'bce', and "
                f"model.loss is {self.name!r}: set that to bce, or leave the threshold out."
            )

    def check_classes(self, num_classes: int) -> None:
        """Refuse a threshold that smoothed targets are all above, or all below.

        Raises:
            UserInputError: it is.
        """
        if self.target_threshold is None:
            return
        spread = self.label_smoothing / num_classes
        least, most = spread, 1 - self.label_smoothing + spread
        if not least <= self.target_threshold < most:
            raise UserInputError(
                f"model.target_threshold={self.target_threshold} would make all targets equal: "
                f"with model.label_smoothing={self.label_smoothing:g} and {num_classes} classes "
                f"they are {least:.4g} or {most:.4g}; choose one between, such as 0.2."
            )


def training_loss(logits: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Return the mean loss of a micro-batch, a scalar in float32 or better.

    Each row counts by the shares of its labels that are not -1, which is 1 for labelled images.

    Args:
        logits: (N, C), of any precision.
        targets: what the rows show.
        config: the loss.
    """
    if config.name == "bce":
        return _binary_cross_entropy(logits, targets, config)
    if targets.other is None:
        return functional.cross_entropy(
            logits, targets.label, ignore_index=IGNORED, label_smoothing=config.label_smoothing
        )
    own, other = _shares(targets)
    log_chances = _at_least_float32(logits).log_softmax(dim=1)
    labelled = own * _pick(log_chances, targets.label) + other * _pick(log_chances, targets.other)
    counted = own + other
    smoothing = config.label_smoothing
    rows = (1 - smoothing) * labelled + smoothing * counted * log_chances.mean(dim=1)
    return -rows.sum() / counted.sum()


def soft_targets(targets: Targets, num_classes: int, config: LossConfig) -> Tensor:
    """Return the target of each class: float32 (N, C).

    `(1 - e) × share + e / C` with smoothing e, then the threshold, as timm does. A row without any
    label has e / C everywhere.

    Args:
        targets: what the rows show.
        num_classes: C.
        config: smoothing and threshold.
    """
    own, other = _shares(targets)
    # Of a row with one label of two, that label has all.
    counted = (own + other).clamp(min=torch.finfo(own.dtype).tiny)
    dense = torch.zeros(len(own), num_classes, device=own.device)
    dense.scatter_add_(1, targets.label.clamp(min=0)[:, None], (own / counted)[:, None])
    if targets.other is not None:
        dense.scatter_add_(1, targets.other.clamp(min=0)[:, None], (other / counted)[:, None])
    dense = dense * (1 - config.label_smoothing) + config.label_smoothing / num_classes
    if config.target_threshold is not None:
        dense = (dense > config.target_threshold).to(dense.dtype)
    return dense


def _binary_cross_entropy(logits: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Return the mean over counted rows and over classes."""
    dense = soft_targets(targets, logits.shape[1], config)
    precise = _at_least_float32(logits)
    rows = functional.binary_cross_entropy_with_logits(
        precise, dense.to(precise.dtype), reduction="none"
    ).mean(dim=1)
    own, other = _shares(targets)
    counted = own + other
    return (rows * counted).sum() / counted.sum()


def _shares(targets: Targets) -> tuple[Tensor, Tensor]:
    """Return how much each row's two labels count, float32 (N,) each; 0 for a label of -1."""
    own = (targets.label != IGNORED).float()
    if targets.other is None:
        return own, torch.zeros_like(own)
    other = (targets.other != IGNORED).float()
    return own * targets.share, other * (1 - targets.share)


def _pick(log_chances: Tensor, label: Tensor) -> Tensor:
    """Return each row's value at its label, (N,); that of class 0 for a label of -1."""
    return log_chances.gather(1, label.clamp(min=0)[:, None])[:, 0]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
