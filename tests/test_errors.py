"""The errors: which exit code each leads to, and the nearest valid name."""

import pytest

from resscale.errors import (
    DataFormatError,
    Preempted,
    ResscaleError,
    TrainingStopped,
    UserInputError,
    nearest,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResscaleError, 1),
        (UserInputError, 2),
        (DataFormatError, 2),
        (TrainingStopped, 70),
        (Preempted, 75),
    ],
)
def test_each_error_has_its_exit_code(error: type[ResscaleError], code: int) -> None:
    assert error("x").exit_code == code


def test_all_errors_are_caught_as_one() -> None:
    for error in (UserInputError, DataFormatError, TrainingStopped, Preempted):
        assert issubclass(error, ResscaleError)
    assert issubclass(DataFormatError, UserInputError)


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("resnet5", ["plain18", "resnet50"]) == " Did you mean 'resnet50'?"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert nearest("xyz", ["plain18", "resnet50"]) == ""
    assert nearest("xyz", []) == ""


def test_the_nearest_is_the_closest_of_several() -> None:
    # ratio("abcd", "abce") = 2·3/8 = 0.75, ratio("abcd", "abcdx") = 2·4/9 = 0.89
    assert nearest("abcd", ["abce", "abcdx"]) == " Did you mean 'abcdx'?"
