"""What augmentation policies choose from: the operations, and how strong each may be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

LEVELS = 10.0
"""The level of full strength of `increasing_value`."""

INCREASING = (
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
"""The 15 operations of timm's RandAugment, each as likely."""


class Choice(NamedTuple):
    """An operation and its magnitudes.

    Args:
        operation: its name.
        table: magnitudes from weakest to strongest, float64 (num_magnitudes,).
        signed: either sign is as likely.
        base: the parameter is `base + sign × magnitude`.
    """

    operation: str
    table: Floats
    signed: bool = False
    base: float = 0.0


@functools.cache
def trivial_augment_wide(num_magnitudes: int) -> tuple[Choice, ...]:
    """Return the space of TrivialAugment-Wide (Müller and Hutter 2021), their wide one.

    As torchvision has it: factors of 1 ± 0 to 0.99, where the paper's own code goes from 0.01 to 2.

    Args:
        num_magnitudes: of each operation; 31 in the paper.
    """
    return _space(
        num_magnitudes, shear=0.99, shift_x=32.0, shift_y=32.0, turn=135.0, factor=0.99, bits=6
    )


@functools.lru_cache(maxsize=64)
def rand_augment(num_magnitudes: int, height: int, width: int) -> tuple[Choice, ...]:
    """Return the space of RandAugment (Cubuk et al. 2019, section 3) with torchvision's magnitudes.

    The strongest is that of AutoAugment (Cubuk et al. 2018, table 6), whose shifts of up to 150 of
    331 pixels are scaled to the image.

    Args:
        num_magnitudes: of each operation.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    share = 150.0 / 331.0
    shift_x, shift_y = share * width, share * height
    return _space(
        num_magnitudes, shear=0.3, shift_x=shift_x, shift_y=shift_y, turn=30.0, factor=0.9, bits=4
    )


def increasing_values(operation: str, levels: Floats, signs: Floats, side_px: int) -> Floats:
    """Return the parameters of an operation of `INCREASING`: stronger with the level.

    The ranges are those of timm's `rand-...-inc1`.

    Args:
        operation: its name.
        levels: 0 to 10, float64 (k,).
        signs: 1 or -1, float64 (k,).
        side_px: pixels of the image along which it is shifted.
    """
    strength = levels / LEVELS
    rules: dict[str, Callable[[], Floats]] = {
        "rotate": lambda: signs * (strength * 30.0),
        "posterize": lambda: np.maximum(4.0 - np.floor(strength * 4.0), 1.0),
        "solarize": lambda: 256.0 - np.minimum(np.floor(strength * 256.0), 256.0),
        "solarize_add": lambda: np.minimum(np.floor(strength * 110.0), 128.0),
        "shear_x": lambda: signs * (strength * 0.3),
        "shear_y": lambda: signs * (strength * 0.3),
        "translate_x": lambda: signs * (strength * 0.45) * side_px,
        "translate_y": lambda: signs * (strength * 0.45) * side_px,
    }
    if operation in ("color", "contrast", "brightness", "sharpness"):
        return np.maximum(1.0 + signs * (strength * 0.9), 0.1)
    return rules[operation]() if operation in rules else np.zeros(len(levels))


def _space(
    num_magnitudes: int,
    *,
    shear: float,
    shift_x: float,
    shift_y: float,
    turn: float,
    factor: float,
    bits: int,
) -> tuple[Choice, ...]:
    """Return the 14 operations of torchvision's policies with their strongest magnitudes."""

    def up_to(most: float) -> Floats:
        return _linspace(0.0, most, num_magnitudes)

    # Whole pixels; and a shift to the right takes pixels from the left.
    shifts = {"x": -np.trunc(up_to(shift_x)), "y": -np.trunc(up_to(shift_y))}
    none = np.zeros(num_magnitudes)
    steps = torch.arange(num_magnitudes) / ((num_magnitudes - 1) / bits)
    kept_bits: Floats = (8 - steps.round()).double().numpy()
    return (
        Choice("identity", none),
        Choice("shear_x", up_to(shear), signed=True),
        Choice("shear_y", up_to(shear), signed=True),
        Choice("translate_x", shifts["x"], signed=True),
        Choice("translate_y", shifts["y"], signed=True),
        Choice("rotate", up_to(turn), signed=True),
        Choice("brightness", up_to(factor), signed=True, base=1.0),
        Choice("color", up_to(factor), signed=True, base=1.0),
        Choice("contrast", up_to(factor), signed=True, base=1.0),
        Choice("sharpness", up_to(factor), signed=True, base=1.0),
        Choice("posterize", kept_bits),
        Choice("solarize", _linspace(255.0, 0.0, num_magnitudes)),
        Choice("auto_contrast", none),
        Choice("equalize", none),
    )


def _linspace(first: float, last: float, count: int) -> Floats:
    """Return equal steps in float32, as torchvision computes its magnitudes."""
    steps: Floats = torch.linspace(first, last, count).double().numpy()
    return steps
