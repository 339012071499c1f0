"""The figures: error, loss with the learning rate, and throughput, over epochs.

Drawn as in Fig. 6 of He et al. 2015: training dashed, test solid, one colour per group; a band from
the least to the greatest value of a group's runs. matplotlib's global state is left as it is.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resscale.report.groups import Group, Spread
from resscale.report.metrics import CurveName

PNG_DPI = 150
_WIDTH_IN = 6.4
_INK, _GRID = "#1d2430", "#d9dce2"
# Told apart with the common colour blindnesses and in grey, in this order.
_COLOURS = (
    "#0b62a4", "#d1590b", "#14866d", "#a8306f", "#6a4fbf", "#8a6d0b", "#3f9bd4", "#7a7f87",
)  # fmt: skip
_BEGINNING = 0.15  # of a curve: the first epochs would flatten the rest
_SPIKE = 3.0
_NAME_CHARACTERS = 82
_LEGEND_CHARACTERS = 94  # fit side by side at its size, each entry's line counting as nine

_LineStyle = Literal["solid"] | tuple[float, tuple[float, float]]
_DrawStyle = Literal["default", "steps-pre"]
_DASHED: _LineStyle = (0, (4, 2))


@dataclass(frozen=True)
class Picture:
    """A figure and what is said about it.

    Args:
        name: ending of its file's stem, such as `error`.
        title: heading.
        caption: how to read it, one sentence or two.
        figure: the drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """Return it as PNG, 960 pixels wide."""
        return self._saved("png")

    def svg(self) -> bytes:
        """Return it as SVG, its text as outlines, so that it looks the same everywhere."""
        return self._saved("svg")

    def _saved(self, form: str) -> bytes:
        buffer = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": self.name}):
            # A label in a script that the font lacks shows as boxes; the page has it as text.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=metadata)
        return buffer.getvalue()


def draw(groups: Sequence[Group]) -> list[Picture]:
    """Return the three pictures of a report."""
    return [_error(groups), _loss(groups), _throughput(groups)]


def colours(count: int) -> list[str]:
    """Return so many colours as `#rrggbb`: the chosen ones, or more of a colour map."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    colour_map = mpl.colormaps["turbo"].resampled(count)
    return [mpl.colors.to_hex(colour_map(number)) for number in range(count)]


def upper_limit(curves: Sequence[Sequence[float]]) -> float:
    """Return where a vertical axis ends: only the first epochs, and wild spikes, lie above.

    Every curve shows all behind its first 15% of points, as far as that is no more than three times
    what 85% of its points stay below, and its end.

    Args:
        curves: values over time; empty ones do not count.
    """
    tops = []
    for curve in filter(None, curves):
        usual = sorted(curve)[math.ceil((1 - _BEGINNING) * len(curve)) - 1]
        settled = max(curve[math.floor(_BEGINNING * len(curve)) :])
        tops.append(max(curve[-1], min(settled, _SPIKE * usual)))
    return 1.06 * max(tops, default=1.0)


def _error(groups: Sequence[Group]) -> Picture:
    figure, (axis,) = _figure([4.0], groups, styles=True)
    shown = _draw_both(axis, groups, "train_error_pct", "test_error_pct")
    axis.set(ylabel="error, %", xlabel="epoch")
    _limit(axis, shown)
    return Picture(
        "error",
        "Error",
        "Top-1 error in percent. Training error is the mean over each epoch's augmented batches, "
        "while the weights change; test error is measured on the validation images at the end of "
        "an epoch.",
        figure,
    )


def _loss(groups: Sequence[Group]) -> Picture:
    figure, (upper, lower) = _figure([3.4, 1.3], groups, styles=True)
    shown = _draw_both(upper, groups, "train_loss", "test_loss")
    upper.set(ylabel="loss")
    _limit(upper, shown)
    # An epoch's mean holds from the end of the epoch before it to its own end.
    rates = _draw_each(lower, groups, "lr", drawstyle="steps-pre")
    lower.set(ylabel="learning rate", xlabel="epoch")
    if _is_stepped(rates):
        lower.set_yscale("log")
    elif any(curve.mean for curve in rates):
        lower.set_ylim(0, None)
    return Picture(
        "loss",
        "Loss and learning rate",
        "Cross-entropy, with label smoothing in training where the configuration sets it; below, "
        "the learning rate as the mean of each epoch.",
        figure,
    )


def _throughput(groups: Sequence[Group]) -> Picture:
    figure, (upper, lower) = _figure([2.5, 2.2], groups, styles=False)
    panels: list[tuple[Axes, CurveName, str]] = [
        (upper, "images_per_s", "images/s"),
        (lower, "data_wait_pct", "waiting for data, %"),
    ]
    for axis, name, label in panels:
        spreads = _draw_each(axis, groups, name)
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.12 * max((max(s.high) for s in spreads if s.high), default=1.0) or 1.0)
    lower.set_xlabel("epoch")
    return Picture(
        "throughput",
        "Throughput and data wait",
        "Training images per second over all ranks, and the share of the time in which training "
        "waited for data: each epoch's mean, without validation.",
        figure,
    )


def _figure(
    heights_in: Sequence[float], groups: Sequence[Group], *, styles: bool
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels over one epoch axis, with a legend below that covers no curve."""
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours(len(groups))]
    names = [legend_name(group.name) for group in groups]
    if styles:
        handles += [
            Line2D([], [], color=_INK, linewidth=1.6),
            Line2D([], [], color=_INK, linewidth=1.2, linestyle=_DASHED),
        ]
        names += ["test", "training"]
    columns = max(1, min(len(names), 4, _LEGEND_CHARACTERS // (max(map(len, names)) + 9)))
    legend_in = 0.25 + 0.19 * -(-len(names) // columns)
    figure = Figure(figsize=(_WIDTH_IN, sum(heights_in) + legend_in), layout="constrained")
    last = max((e for g in groups for run in g.runs for e in run.curves["train_loss"]), default=1)
    panels = figure.subplots(
        len(heights_in), 1, sharex=True, squeeze=False, height_ratios=heights_in
    )[:, 0]
    for axis in panels:
        axis.grid(color=_GRID, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlim(0, last * 1.02)
        axis.set_axisbelow(True)
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return figure, list(panels)


def _draw_both(
    axis: Axes, groups: Sequence[Group], training: CurveName, test: CurveName
) -> list[Spread]:
    """Draw training values dashed and test values solid; return what was drawn."""
    shown = []
    for colour, group in zip(colours(len(groups)), groups, strict=True):
        for name, width, style in ((training, 1.2, _DASHED), (test, 1.9, "solid")):
            shown.append(group.spread(name))
            _line(axis, shown[-1], colour, width, style)
    _say_if_empty(axis, shown)
    return shown


def _draw_each(
    axis: Axes, groups: Sequence[Group], name: CurveName, drawstyle: _DrawStyle = "default"
) -> list[Spread]:
    """Draw one curve per group; return what was drawn."""
    spreads = [group.spread(name) for group in groups]
    for colour, spread in zip(colours(len(groups)), spreads, strict=True):
        _line(axis, spread, colour, 1.6, "solid", drawstyle)
    _say_if_empty(axis, spreads)
    return spreads


def _line(
    axis: Axes,
    spread: Spread,
    colour: str,
    width: float,
    style: _LineStyle,
    drawstyle: _DrawStyle = "default",
) -> None:
    # A line needs two points to be seen.
    marker = "o" if len(spread.epochs) < 3 else None
    epochs, mean = spread.epochs, spread.mean
    if drawstyle == "steps-pre" and epochs:
        epochs, mean = [epochs[0] - 1, *epochs], [mean[0], *mean]
    axis.plot(
        epochs,
        mean,
        color=colour,
        linewidth=width,
        linestyle=style,
        drawstyle=drawstyle,
        marker=marker,
        markersize=4,
    )
    if spread.low != spread.high:
        axis.fill_between(
            spread.epochs, spread.low, spread.high, color=colour, alpha=0.16, linewidth=0
        )


def _say_if_empty(axis: Axes, spreads: Sequence[Spread]) -> None:
    if not any(spread.epochs for spread in spreads):
        axis.text(
            0.5, 0.5, "nothing logged yet", transform=axis.transAxes, ha="center", va="center"
        )
        axis.set(xticks=[], yticks=[])


def _limit(axis: Axes, spreads: Sequence[Spread]) -> None:
    """Set the vertical limits: the course of the training fills the axis."""
    shown = [spread.mean for spread in spreads if spread.mean]
    if not shown:
        return
    upper = upper_limit(shown)
    lower = min(min(spread.low) for spread in spreads if spread.low)
    # From zero where that costs little; 20% to 60%, say, where it would cost half the picture.
    room = 0.0 if lower < 0.35 * upper else lower - 0.06 * (upper - lower)
    axis.set_ylim(room, upper or 1.0)


def _is_stepped(spreads: Sequence[Spread]) -> bool:
    """Say whether the rates fall by steps: only a logarithmic axis shows the last ones."""
    values = [value for spread in spreads for value in spread.mean]
    if not values or min(values) <= 0:
        return False
    return max(values) > 20 * min(values) and 3 * len({f"{v:.3g}" for v in values}) <= len(values)


def legend_name(name: str) -> str:
    """Return a name as matplotlib shows it literally, cut to what a line of the legend holds."""
    short = name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"
    escaped = short.replace("$", r"\$")  # no formula
    return f" {escaped}" if escaped.startswith("_") else escaped  # left out before 3.10
