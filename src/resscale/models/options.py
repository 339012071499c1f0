"""What may differ between nets of the family, and which choices contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from resscale.errors import UserInputError, nearest

Shortcut = Literal["A", "B", "C", "none"]
StrideOn = Literal["1x1", "3x3"]
Stem = Literal["imagenet", "cifar", "deep"]
StemPool = Literal["max", "conv"]
Downsample = Literal["conv", "avg"]
Norm = Literal["batch", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "shortcut": get_args(Shortcut),
    "stride_on": get_args(StrideOn),
    "stem": get_args(Stem),
    "stem_pool": get_args(StemPool),
    "downsample": get_args(Downsample),
    "norm": get_args(Norm),
}


@dataclass(frozen=True)
class ResNetOptions:
    """What may differ between nets of the same depth; every field is an option of `create_model`.

    Raises `UserInputError` for a value that is not valid, or for two that contradict each other.
    """

    shortcut: Shortcut = "B"
    """A zero-pads and B projects where the size differs, C always projects, none is plain."""

    stride_on: StrideOn = "3x3"
    """The bottleneck convolution that strides: the paper's 1x1, or the 3x3 of "v1.5"."""

    preact: bool = False
    """BN and ReLU before each convolution (He et al. 2016, arXiv 1603.05027, section 4)."""

    groups: int = 1
    """Groups of the bottleneck's 3x3 convolution (Xie et al. 2016, arXiv 1611.05431)."""

    width_per_group: int = 64
    """Channels of each group of the 3x3 convolution in the first stage, for `widths[0] == 64`."""

    se: int = 0
    """Reduction of squeeze-and-excitation: 16 in Hu et al. 2017 (arXiv 1709.01507); 0: none."""

    stem: Stem = "imagenet"
    """imagenet: 7x7 stride 2 and a 3x3 stride 2 max-pool; cifar: 3x3 stride 1 (section 4.2);
    deep: three 3x3 in place of the 7x7 (He et al. 2018, arXiv 1812.01187, ResNet-C)."""

    stem_width: int | None = None
    """Channels of the stem, of its first two convolutions if deep; None: `widths[0]`, or half."""

    stem_pool: StemPool = "max"
    """conv: a 3x3 convolution of stride 2 for the max-pool (Bello et al. 2021, section 3)."""

    downsample: Downsample = "conv"
    """avg: a 2x2 average-pool strides before the projection (arXiv 1812.01187, ResNet-D)."""

    blurpool: bool = False
    """Low-pass before each subsampling behind the stem's convolution (Zhang 2019)."""

    norm: Norm = "batch"
    """none: no BN, and biases in its place; for studies of how signals travel."""

    zero_init_residual: bool = False
    """Start each residual branch at 0, so that each block begins as its shortcut."""

    drop_path: float = 0.0
    """Stochastic depth: chance that the last block is skipped for an image, falling linearly
    towards the first (Huang et al. 2016, arXiv 1603.09382, section 3)."""

    dropout: float = 0.0
    """Share of features that dropout zeroes before `fc`."""

    block_dropout: float = 0.0
    """Share that dropout zeroes between a basic block's convolutions (Zagoruyko 2016, 2.4)."""

    def __post_init__(self) -> None:
        for option, choices in _CHOICES.items():
            _check_choice(option, getattr(self, option), choices)
        for option in ("preact", "blurpool", "zero_init_residual"):
            if not isinstance(value := getattr(self, option), bool):
                raise UserInputError(f"Option {option}={value!r} must be True or False.")
        for option in ("groups", "width_per_group"):
            check_positive(f"Option {option}", getattr(self, option))
        if self.stem_width is not None:
            check_positive("Option stem_width", self.stem_width)
        if isinstance(self.se, bool) or not isinstance(self.se, int) or self.se < 0:
            raise UserInputError(
                f"Option se={self.se!r} must be a whole number: the reduction, such as 16, or 0."
            )
        for option in ("drop_path", "dropout", "block_dropout"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserInputError(f"Option {option}={value!r} must be from 0 up to below 1.")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.shortcut == "none" and (self.zero_init_residual or self.drop_path):
            # Without a shortcut a branch of zeros makes the output and all gradients zero.
            value = "zero_init_residual=True" if self.zero_init_residual else "drop_path"
            off = "zero_init_residual=False" if self.zero_init_residual else "drop_path=0"
            raise UserInputError(
                f"Option {value} needs shortcuts, and shortcut='none' has none: use {off} or "
                "another shortcut."
            )
        if self.downsample == "avg" and self.shortcut not in ("B", "C"):
            raise UserInputError(
                f"Option downsample='avg' pools before a projection, and "
                f"shortcut={self.shortcut!r} has none: use shortcut='B' or downsample='conv'."
            )
        if self.stem == "cifar" and self.stem_pool == "conv":
            raise UserInputError(
                "Option stem_pool='conv' replaces a max-pool, and stem='cifar' has none: use "
                "stem_pool='max', or stem='deep'."
            )


def check_positive(name: str, value: object) -> None:
    """Raise `UserInputError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserInputError(f"{name}={value!r} must be a whole number of at least 1.")


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        valid = ", ".join(map(repr, choices))
        raise UserInputError(
            f"Option {option}={value!r} must be one of {valid}.{nearest(str(value), choices)}"
        )
