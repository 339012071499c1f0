"""What bounds training follows from three rates."""

import pytest

from resscale.bench.verdict import TrainRates, judge, render_train


@pytest.mark.parametrize(
    ("loader", "step", "both", "words"),
    [
        (500.0, 1000.0, 495.0, "Bound by the loader: it reads 50% of what the step could take"),
        (2000.0, 1000.0, 990.0, "Bound by the step: it takes 50% of what the loader could read"),
        (1000.0, 1010.0, 995.0, "Loader and step are equally fast."),
    ],
)
def test_the_slower_one_is_the_bound(loader: float, step: float, both: float, words: str) -> None:
    said = judge(TrainRates(loader, step, both, 0.1))
    assert said.startswith(words)
    assert "share CPUs" not in said


def test_what_they_take_from_each_other_is_told() -> None:
    assert "Together they reach 80% of the slower one" in judge(TrainRates(500.0, 1000.0, 400.0, 0))


def test_the_table_has_the_three_rates() -> None:
    text = render_train(TrainRates(500.0, 1000.0, 480.0, 0.25))
    assert [line.split()[-1] for line in text.splitlines()[1:4]] == ["500.0", "1,000.0", "480.0"]
    assert "data wait 25%" in text
