"""The figures: what is drawn how, axes that show the course, and files that hold a picture."""

import io
import sys
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from resscale.report.curves import Picture, colours, draw, upper_limit
from resscale.report.groups import Group, group_runs
from resscale.report.runs import Run

Made = Callable[..., Run]


@pytest.fixture
def groups(made: Made) -> list[Group]:
    """Two seeds of one network, and one of another."""
    plain = {"model.model": "plain20_cifar"}
    return group_runs([made("a", seed=0), made("b", seed=4), made("c", options=plain)])


def pixels(picture: Picture) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(io.BytesIO(picture.png())) as image:
        return np.asarray(image.convert("RGB"))


def test_there_are_three_pictures(groups: list[Group]) -> None:
    assert [picture.name for picture in draw(groups)] == ["error", "loss", "throughput"]


def test_training_is_dashed_and_test_solid_in_the_groups_colour(groups: list[Group]) -> None:
    (axis,) = draw(groups)[0].figure.axes
    drawn = [(to_hex(str(line.get_color())), line.is_dashed()) for line in axis.lines]
    first, second = colours(2)
    assert drawn == [(first, True), (first, False), (second, True), (second, False)]


def test_the_line_is_the_mean_and_the_band_reaches_over_the_seeds(groups: list[Group]) -> None:
    (axis,) = draw(groups)[0].figure.axes
    test_line = axis.lines[1]
    assert list(test_line.get_xdata()) == [1, 2, 3]
    assert test_line.get_ydata() == pytest.approx([48, 47, 46])  # of 50, 49, 48 and 46, 45, 44
    assert len(axis.collections) == 2  # training and test of the group with two seeds
    heights = axis.collections[1].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((44, 50))


def test_the_legend_names_the_groups_and_the_line_styles(groups: list[Group]) -> None:
    (legend,) = draw(groups)[0].figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["resnet20_cifar", "plain20_cifar", "test", "training"]


def test_the_first_epochs_do_not_flatten_the_rest() -> None:
    falling = [float(value) for value in (90, 60, 30, *range(17, 0, -1))]
    # 15% of 20 points are 3: the axis begins to count at the fourth, 17.
    assert upper_limit([falling, []]) == pytest.approx(1.06 * 17)


def test_a_spike_is_seen_unless_it_would_flatten_the_rest() -> None:
    assert upper_limit([[10.0] * 5 + [25.0] + [10.0] * 14]) == pytest.approx(1.06 * 25)
    assert upper_limit([[10.0] * 5 + [99.0] + [10.0] * 14]) == pytest.approx(1.06 * 3 * 10)


def test_a_curve_that_ends_high_is_seen_to_its_end() -> None:
    assert upper_limit([[1.0, 1.0], [2.0] * 99 + [50.0]]) == pytest.approx(1.06 * 50)
    assert upper_limit([]) == pytest.approx(1.06)


def test_the_learning_rate_of_an_epoch_holds_from_its_beginning(groups: list[Group]) -> None:
    line = draw(groups)[1].figure.axes[1].lines[0]
    assert line.get_drawstyle() == "steps-pre"
    assert list(line.get_xdata()) == [0, 1, 2, 3]


def test_errors_close_together_fill_the_axis(made: Made) -> None:
    (axis,) = draw(group_runs([made("a")]))[0].figure.axes
    low, high = axis.get_ylim()
    assert 30 < low < 38 < 50 < high < 60  # from 38% to 50%


def test_rates_that_fall_by_steps_have_a_logarithmic_axis(made: Made) -> None:
    run = made("a", epochs=9)
    for epoch in range(1, 10):
        run.curves["lr"][epoch] = 10.0 ** -((epoch - 1) // 3)  # 1, 0.1, 0.01, three of each
    assert draw(group_runs([run]))[1].figure.axes[1].get_yscale() == "log"


@pytest.mark.parametrize("slope", [0.0, 0.11], ids=["constant", "falling"])
def test_other_rates_have_a_linear_axis(made: Made, slope: float) -> None:
    run = made("a", epochs=9)
    for epoch in range(1, 10):
        run.curves["lr"][epoch] = 1 - slope * epoch
    assert draw(group_runs([run]))[1].figure.axes[1].get_yscale() == "linear"


def test_pictures_are_960_pixels_wide_and_show_each_groups_colour(groups: list[Group]) -> None:
    for picture in draw(groups):
        shown = pixels(picture)
        assert shown.shape[1] == 960  # 6.4 in × 150 dpi
        for colour in colours(2):
            rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
            assert (shown == rgb).all(axis=2).sum() > 100


def test_the_same_groups_give_the_same_bytes(groups: list[Group]) -> None:
    first, second = draw(groups), draw(groups)
    assert [picture.svg() for picture in first] == [picture.svg() for picture in second]


def test_a_run_that_has_logged_nothing_has_pictures_that_say_so(made: Made) -> None:
    for picture in draw(group_runs([made("a", epochs=0)])):
        for axis in picture.figure.axes:
            assert [text.get_text() for text in axis.texts] == ["nothing logged yet"]
        assert pixels(picture).std() > 1


def test_a_single_epoch_is_drawn_as_a_point(made: Made) -> None:
    (axis,) = draw(group_runs([made("a", epochs=1)]))[0].figure.axes
    assert {line.get_marker() for line in axis.lines} == {"o"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x^$", r"\$x^\$"),
        ("_x", " _x"),
        ("中文", "中文"),
        ("a" * 300, "a" * 81 + "…"),
        ("<b>&", "<b>&"),
    ],
)
def test_a_name_of_any_kind_can_be_drawn(made: Made, name: str, shown: str) -> None:
    for picture in draw(group_runs([made("a", label=name), made("b")])):
        (legend,) = picture.figure.legends
        assert legend.get_texts()[0].get_text() == shown
        assert len(picture.svg()) > 1000


@pytest.mark.parametrize("count", [1, 8, 9, 40])
def test_each_group_has_a_colour_of_its_own(count: int) -> None:
    assert len(set(colours(count))) == len(colours(count)) == count


def test_pyplot_is_not_needed(groups: list[Group]) -> None:
    before = "matplotlib.pyplot" in sys.modules
    draw(groups)[0].png()
    assert ("matplotlib.pyplot" in sys.modules) == before
