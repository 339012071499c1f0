"""Progressive resizing: the size of each epoch, and what is refused."""

import pytest

from resscale.data.progressive import ProgressiveConfig, TrainSizes, describe_sizes
from resscale.errors import UserInputError


def sizes(full: int = 192, **options: int) -> TrainSizes:
    return TrainSizes(ProgressiveConfig(**options), full)


def test_without_a_size_to_begin_at_all_epochs_have_the_full_one() -> None:
    all_same = TrainSizes(ProgressiveConfig(), 224)
    assert {all_same.at(epoch) for epoch in range(100)} == {224}
    assert all_same.all == (224,)
    assert describe_sizes(all_same, 90) == []


def test_sizes_grow_linearly_in_multiples() -> None:
    growing = sizes(192, from_size=96, from_epoch=2, until_epoch=8)
    # 96 + 16 × (epoch - 2): 112 is 3.5 × 32, half way, and goes to the even 4 × 32.
    expected = [96, 96, 96, 128, 128, 128, 160, 192, 192, 192, 192]
    assert 96 + 16 * 3 == 144  # 4.5 × 32, half way as well: to 4 × 32
    assert 96 + 16 * 5 == 176  # 5.5 × 32: to 6 × 32
    assert [growing.at(epoch) for epoch in range(11)] == expected
    assert growing.all == (96, 128, 160, 192)


@pytest.mark.parametrize(
    ("start", "until", "epochs", "small"),
    [(11, 13, 16, 12), (65, 76, 88, 71)],
)
def test_the_recipes_of_ffcv_have_the_sizes_of_their_script(
    start: int, until: int, epochs: int, small: int
) -> None:
    # rn50_16_epochs and rn50_88_epochs, 160 to 192: small up to the epoch where the line passes
    # 176. Of 16: epoch 12 is at 176, half way, and goes to 6 × 32. Of 88: 160 + 32 × 5 / 11 = 174.5
    # in epoch 70, 177.5 in epoch 71.
    found = sizes(192, from_size=160, from_epoch=start, until_epoch=until)
    assert [found.at(epoch) for epoch in range(epochs)] == [160] * small + [192] * (epochs - small)


def test_between_there_are_sizes_only_where_multiples_are_finer() -> None:
    fine = sizes(32, from_size=24, from_epoch=0, until_epoch=4, multiple=2)
    assert [fine.at(epoch) for epoch in range(6)] == [24, 26, 28, 30, 32, 32]
    coarse = sizes(32, from_size=24, from_epoch=0, until_epoch=4, multiple=8)
    assert [coarse.at(epoch) for epoch in range(6)] == [24, 24, 32, 32, 32, 32]  # 28 = 3.5 × 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_size": 128}, "say which epoch is the first at the full size, --data.progressive.u"),
        ({"until_epoch": 5}, "name the size that they begin at, --data.progressive.from_size, or"),
        ({"from_size": 0, "until_epoch": 5}, r"data\.progressive\.from_size=0 must be at least 1"),
        ({"multiple": 0}, r"data\.progressive\.multiple=0 must be at least 1"),
        (
            {"from_size": 128, "from_epoch": 5, "until_epoch": 5},
            r"from_epoch=5 must be from 0 up to until_epoch - 1 = 4\.",
        ),
        ({"from_size": 128, "from_epoch": -1, "until_epoch": 5}, "from_epoch=-1 must be from 0"),
    ],
)
def test_impossible_growth_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        ProgressiveConfig(**options)


@pytest.mark.parametrize(
    ("full", "first", "message"),
    [
        (192, 192, r"from_size=192 must be below data\.image_size=192, the size that images gr"),
        (192, 150, r"from_size=150 is not a multiple of .*multiple=32; choose 128 or 160, or ano"),
        (200, 160, r"data\.image_size=200 is not a multiple .*=32; choose 192 or 224, or another"),
        (192, 8, r"from_size=8 is not a multiple of .*; choose 32, or another multiple\."),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(full: int, first: int, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        sizes(full, from_size=first, until_epoch=5)


def test_sizes_are_told_with_the_epochs_that_have_them() -> None:
    growing = sizes(192, from_size=96, from_epoch=2, until_epoch=8)
    (line,) = describe_sizes(growing, 9)
    assert line == (
        "image size: 96x96 in epochs 1 to 3, 128x128 in epochs 4 to 6, 160x160 in epoch 7, "
        "192x192 from epoch 8 on; memory must hold the largest, which comes last"
    )


def test_an_end_before_the_full_size_is_warned_of() -> None:
    growing = sizes(192, from_size=160, from_epoch=11, until_epoch=13)  # full from epoch 12 on
    assert len(describe_sizes(growing, 13)) == len(describe_sizes(growing, None)) == 1
    _, warning = describe_sizes(growing, 12)
    assert warning == (
        "warning: training ends behind epoch 12, before images have their full size; set "
        "data.progressive.until_epoch to 11 or less."
    )
