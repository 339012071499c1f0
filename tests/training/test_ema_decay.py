"""The course of the decay: its formula by hand, where it ends, what is refused."""

import pytest

from resscale.errors import UserInputError
from resscale.training.ema_decay import EmaConfig, decay_at, warmup_updates


@pytest.mark.parametrize(
    ("update", "expected"),
    [(1, 2 / 11), (2, 3 / 12), (8, 9 / 18), (80, 81 / 90), (890, 0.99), (891, 0.99)],
)
def test_the_decay_rises_to_its_value_as_the_formula_says(update: int, expected: float) -> None:
    assert decay_at(update, 0.99) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.99, 0.999, 0.9999])
def test_the_warm_up_ends_with_the_first_update_that_keeps_the_decay(decay: float) -> None:
    last = warmup_updates(decay)
    assert decay_at(last, decay) == pytest.approx(decay, rel=1e-9)
    if last > 1:
        assert decay_at(last - 1, decay) < decay


def test_the_usual_decay_is_reached_after_about_ninety_thousand_updates() -> None:
    assert warmup_updates(0.9999) == 89_990  # (10 × 0.9999 - 1)/(1 - 0.9999) = 8.999/0.0001


def test_the_first_weights_are_forgotten_within_a_short_run() -> None:
    kept = 1.0
    for update in range(1, 101):
        kept *= decay_at(update, 0.9999)
    assert kept < 1e-10  # (2/11)(3/12)...(101/110) = 101! 10! / 110!, where 0.9999^100 = 0.99


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan")])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(UserInputError, match=r"ema\.decay=.* must be from 0 up to 1, such as 0"):
        EmaConfig(decay=decay)


def test_without_a_decay_there_is_no_average() -> None:
    assert EmaConfig().decay is None
    assert EmaConfig(decay=0.0).decay == 0.0
