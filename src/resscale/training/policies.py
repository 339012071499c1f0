"""TrivialAugment and RandAugment: which operation each image gets, and how strong."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from resscale.data.permutation import Int64, uniforms
from resscale.errors import UserInputError, nearest
from resscale.training.apply_policy import OPERATIONS, Layer
from resscale.training.policy_spaces import (
    INCREASING,
    LEVELS,
    Choice,
    Floats,
    increasing_values,
    rand_augment,
    trivial_augment_wide,
)

Interpolation = Literal["nearest", "bilinear"]
_INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
_NAMES = ("trivial_augment_wide", "rand_augment")
_PER_LAYER = 5  # uniforms of an image: operation, two of the magnitude, sign, whether at all
_SECTION = re.compile(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)")
_MOST_OPS = 10


class IncreasingRand(NamedTuple):
    """What a name such as rand-m7-mstd0.5-inc1 says.

    Args:
        magnitude: mean level, 0 to 10.
        deviation: standard deviation of the level.
        num_ops: operations one behind the other.
        probability: chance that each of them acts.
    """

    magnitude: float = LEVELS
    deviation: float = 0.0
    num_ops: int = 2
    probability: float = 0.5


# Options that not every policy has, and which have them.
_OWNERS = {
    "num_ops": ("rand_augment",),
    "magnitude": ("rand_augment",),
    "num_magnitudes": ("rand_augment", "trivial_augment_wide"),
}


@dataclass(frozen=True)
class PolicyConfig:
    """An augmentation policy over uint8 images, drawn for each image; off without a name.

    Args:
        name: "trivial_augment_wide" (Müller and Hutter 2021), "rand_augment" (Cubuk et al. 2019),
            or timm's name of a RandAugment of increasing severity, such as
            "rand-m7-mstd0.5-inc1"; None: no policy.
        num_ops: of "rand_augment": operations one behind the other.
        magnitude: of "rand_augment": which of the magnitudes, from 0.
        num_magnitudes: of "rand_augment" and "trivial_augment_wide": steps of each range.
        interpolation: where an image is sheared, shifted or turned: "nearest" or "bilinear".
        fill: level of each channel, or one for all, where there is no image then.

    Raises:
        UserInputError: an unknown name, or a number out of its range.
    """

    name: str | None = None
    num_ops: int = 2
    magnitude: int = 9
    num_magnitudes: int = 31
    interpolation: Interpolation = "nearest"
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in _NAMES:
            parse_rand(self.name)
        if not 1 <= self.num_ops <= _MOST_OPS:
            raise UserInputError(
                f"model.policy.num_ops={self.num_ops} must be from 1 to {_MOST_OPS}."
            )
        if self.num_magnitudes < 2:
            raise UserInputError(
                f"model.policy.num_magnitudes={self.num_magnitudes} must be at least 2: the "
                f"weakest and the strongest. torchvision has 31."
            )
        if not 0 <= self.magnitude < self.num_magnitudes:
            raise UserInputError(
                f"model.policy.magnitude={self.magnitude} must be from 0 to "
                f"{self.num_magnitudes - 1}: one of num_magnitudes={self.num_magnitudes}."
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise UserInputError(
                f"model.policy.interpolation={self.interpolation} must be one of "
                f"{', '.join(_INTERPOLATIONS)}.{nearest(self.interpolation, _INTERPOLATIONS)}"
            )
        if not self.fill or not all(0 <= level <= 255 for level in self.fill):
            raise UserInputError(
                f"model.policy.fill={list(self.fill)} must be levels from 0 to 255, one for each "
                f"channel or one for all."
            )
        self._check_owners()

    def _check_owners(self) -> None:
        for option, owners in _OWNERS.items():
            value = getattr(self, option)
            default = type(self).__dataclass_fields__[option].default
            if self.name not in owners and value != default:
                chosen = "not set" if self.name is None else self.name
                raise UserInputError(
                    f"model.policy.{option}={value} is for {' and '.join(owners)}, and "
                    f"model.policy.name is {chosen}, which would ignore it: leave {option} out, or "
                    f"choose another name."
                )

    def check_channels(self, channels: int) -> None:
        """Refuse images that the operations are not defined for, or other fills than channels.

        Raises:
            UserInputError: they are.
        """
        if self.name is None:
            return
        if channels not in (1, 3):
            raise UserInputError(
                f"model.policy.name={self.name} is for grey or RGB images, of 1 or 3 channels, and "
                f"data.channels={channels}; leave the policy out."
            )
        if len(self.fill) not in (1, channels):
            raise UserInputError(
                f"model.policy.fill={list(self.fill)} has {len(self.fill)} levels for images of "
                f"{channels} channels; give {channels} of them, or 1 for all."
            )


def parse_rand(name: str) -> IncreasingRand:
    """Read a name such as rand-m7-mstd0.5-inc1, as timm means it.

    m: mean level of 10; mstd: deviation of the level; n: operations; p: chance of each; inc1:
    severity increases with the level, the only set that is offered.

    Raises:
        UserInputError: no such name, or a section that is not offered.
    """
    first, *sections = name.split("-")
    if first != "rand":
        raise UserInputError(
            f"model.policy.name={name} must be one of {', '.join(_NAMES)}, or as "
            f"rand-m7-mstd0.5-inc1.{nearest(name, _NAMES)}"
        )
    found: dict[str, float] = {}
    for section in sections:
        match = _SECTION.fullmatch(section)
        if match is None or match[1] in found:
            raise UserInputError(
                f"model.policy.name={name}: section {section!r} must be one of m, mstd, n, p and "
                f"inc with a number behind it, each once, as in rand-m7-mstd0.5-inc1."
            )
        found[match[1]] = float(match[2])
    if found.pop("inc", 0.0) != 1.0:
        raise UserInputError(
            f"model.policy.name={name} needs inc1: of timm's two sets only that of increasing "
            f"severity is offered."
        )
    level, num_ops = found.get("m", LEVELS), found.get("n", 2.0)
    if level > LEVELS or num_ops not in range(1, _MOST_OPS + 1) or found.get("p", 0.5) > 1:
        raise UserInputError(
            f"model.policy.name={name}: m must be from 0 to {LEVELS:g}, n a whole number from 1 to "
            f"{_MOST_OPS}, and p from 0 to 1."
        )
    return IncreasingRand(level, found.get("mstd", 0.0), int(num_ops), found.get("p", 0.5))


def draw_policy(config: PolicyConfig, ids: Int64, key: int, height: int, width: int) -> list[Layer]:
    """Draw what happens to each image of a micro-batch, on the host.

    Args:
        config: a policy with a name.
        ids: augmentation ids of the rows, int64 (N,).
        key: names seed and epoch.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        One layer for each operation of an image.
    """
    assert config.name is not None
    rand = None if config.name in _NAMES else parse_rand(config.name)
    count = 1 if config.name == "trivial_augment_wide" else config.num_ops
    count = count if rand is None else rand.num_ops
    draws = uniforms(ids, _PER_LAYER * count, key).reshape(len(ids), count, _PER_LAYER)
    layers = [draws[:, layer] for layer in range(count)]
    if rand is not None:
        return [_draw_increasing(rand, drawn, height, width) for drawn in layers]
    if config.name == "trivial_augment_wide":
        space = trivial_augment_wide(config.num_magnitudes)
        number = (layers[0][:, 1] * config.num_magnitudes).astype(np.int64)
        return [_draw_choices(space, layers[0], number)]
    space = rand_augment(config.num_magnitudes, height, width)
    number = np.full(len(ids), config.magnitude)
    return [_draw_choices(space, drawn, number) for drawn in layers]


def _draw_choices(space: tuple[Choice, ...], draws: Floats, number: Int64) -> Layer:
    """Choose an operation of a space for each row, at the magnitude of a number."""
    chosen = (draws[:, 0] * len(space)).astype(np.int64)
    signs = np.where(draws[:, 3] < 0.5, -1.0, 1.0)
    operations, values = np.zeros_like(chosen), np.zeros(len(chosen))
    for index, choice in enumerate(space):
        rows = np.flatnonzero(chosen == index)
        operations[rows] = OPERATIONS.index(choice.operation)
        magnitude = choice.table[number[rows]]
        values[rows] = choice.base + (signs[rows] * magnitude if choice.signed else magnitude)
    return Layer(operations, values)


def _draw_increasing(rand: IncreasingRand, draws: Floats, height: int, width: int) -> Layer:
    """Choose an operation of `INCREASING` for each row, at a level drawn about the mean."""
    chosen = (draws[:, 0] * len(INCREASING)).astype(np.int64)
    # A normal deviate of two uniforms (Box and Muller 1958).
    radius = np.sqrt(-2.0 * np.log1p(-draws[:, 1]))
    deviate = radius * np.cos(2.0 * math.pi * draws[:, 2])
    levels = np.clip(rand.magnitude + rand.deviation * deviate, 0.0, LEVELS)
    signs = np.where(draws[:, 3] < 0.5, -1.0, 1.0)
    acts = draws[:, 4] < rand.probability
    operations = np.full(len(chosen), OPERATIONS.index("identity"))
    values = np.zeros(len(chosen))
    for index, operation in enumerate(INCREASING):
        rows = np.flatnonzero((chosen == index) & acts)
        operations[rows] = OPERATIONS.index(operation)
        side_px = width if operation == "translate_x" else height
        values[rows] = increasing_values(operation, levels[rows], signs[rows], side_px)
    return Layer(operations, values)
