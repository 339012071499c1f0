"""Progressive resizing: training images are small at first and grow to their full size.

Small images cost less (the cost goes with the square of the side), and what is learnt from them
carries over: Howard et al. 2018 (DAWNBench), Tan and Le 2021 (EfficientNetV2, section 4), Leclerc
et al. 2023 (FFCV, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from resscale.errors import UserInputError


@dataclass(frozen=True)
class ProgressiveConfig:
    """How the side of training images grows to `data.image_size`, from epoch to epoch.

    Args:
        from_size: side of the first images, pixels. None: all are of `data.image_size`.
        from_epoch: last epoch at `from_size`; epochs count from 0.
        until_epoch: first epoch at the full size.
        multiple: sides between are rounded to multiples of so many pixels.

    Raises:
        UserInputError: a value outside its range.
    """

    from_size: int | None = None
    from_epoch: int = 0
    until_epoch: int | None = None
    multiple: int = 32

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise UserInputError(f"data.progressive.multiple={self.multiple} must be at least 1.")
        if self.from_size is None:
            if self.until_epoch is not None:
                raise UserInputError(
                    "data.progressive.until_epoch ends the growth of images: name the size that "
                    "they begin at, --data.progressive.from_size, or leave it out."
                )
            return
        if self.from_size < 1:
            raise UserInputError(f"data.progressive.from_size={self.from_size} must be at least 1.")
        if self.until_epoch is None:
            raise UserInputError(
                "data.progressive.from_size makes images grow: say which epoch is the first at the "
                "full size, --data.progressive.until_epoch."
            )
        if not 0 <= self.from_epoch < self.until_epoch:
            raise UserInputError(
                f"data.progressive.from_epoch={self.from_epoch} must be from 0 up to "
                f"until_epoch - 1 = {self.until_epoch - 1}."
            )


@dataclass(frozen=True)
class TrainSizes:
    """The side of training images in each epoch: pure.

    Args:
        config: how it grows.
        full_size: what it ends at, pixels.

    Raises:
        UserInputError: the two do not fit.
    """

    config: ProgressiveConfig
    full_size: int

    def __post_init__(self) -> None:
        first, multiple = self.config.from_size, self.config.multiple
        if first is None:
            return
        if first >= self.full_size:
            raise UserInputError(
                f"data.progressive.from_size={first} must be below data.image_size="
                f"{self.full_size}, the size that images grow to."
            )
        sides = {"data.progressive.from_size": first, "data.image_size": self.full_size}
        for name, side in sides.items():
            if side % multiple:
                below = side // multiple * multiple
                choices = f"{below} or {below + multiple}" if below else f"{multiple}"
                raise UserInputError(
                    f"{name}={side} is not a multiple of data.progressive.multiple={multiple}; "
                    f"choose {choices}, or another multiple."
                )

    def at(self, epoch: int) -> int:
        """Return the side of an epoch's images in pixels.

        Linear in the epoch, rounded to the nearest multiple; half way, to the even multiple (as
        ffcv-imagenet does).

        Args:
            epoch: from 0.
        """
        first, last = self.config.from_size, self.config.until_epoch
        if first is None or last is None or epoch >= last:
            return self.full_size
        done = Fraction(max(0, epoch - self.config.from_epoch), last - self.config.from_epoch)
        side = first + (self.full_size - first) * done
        return round(side / self.config.multiple) * self.config.multiple

    @property
    def all(self) -> tuple[int, ...]:
        """All sides, in the order of epochs."""
        return tuple(side for side, _ in self.starts)

    @property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """Each side with the first epoch that has it."""
        last = self.config.until_epoch or 0
        found: dict[int, int] = {}
        for epoch in range(self.config.from_epoch if last else 0, last + 1):
            found.setdefault(self.at(epoch), epoch)
        first, *others = found.items()
        return ((first[0], 0), *others)


def describe_sizes(sizes: TrainSizes, max_epochs: int | None) -> list[str]:
    """Return what a user should know of growing images, as lines; none where they do not grow.

    Args:
        sizes: of each epoch.
        max_epochs: where training ends; None: unknown.
    """
    starts = sizes.starts
    if len(starts) == 1:
        return []
    ends = [epoch for _, epoch in starts[1:]]
    parts = [
        f"{side}x{side} in {_epochs(start, end)}"
        for (side, start), end in zip(starts, ends, strict=False)
    ]
    full = sizes.full_size
    lines = [
        f"image size: {', '.join(parts)}, {full}x{full} from epoch {ends[-1] + 1} on; memory must "
        f"hold the largest, which comes last"
    ]
    if max_epochs is not None and max_epochs <= ends[-1]:
        lines.append(
            f"warning: training ends behind epoch {max_epochs}, before images have their full "
            f"size; set data.progressive.until_epoch to {max_epochs - 1} or less."
        )
    return lines


def _epochs(start: int, end: int) -> str:
    """Return epochs `start` up to `end` - 1 as text, counted from 1."""
    return f"epoch {start + 1}" if end - start == 1 else f"epochs {start + 1} to {end}"
