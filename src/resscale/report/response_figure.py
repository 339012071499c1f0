"""The figure of layer responses (He et al. 2015, fig. 7), from what runs have measured."""

from __future__ import annotations

import json
from collections.abc import Sequence

from matplotlib.figure import Figure

from resscale.errors import DataFormatError
from resscale.report.curves import Picture, colours, legend_name
from resscale.report.groups import Group
from resscale.report.runs import Run

RESPONSES_FILE = "layer_responses.json"
_WIDTH_IN, _HEIGHT_IN = 6.4, 5.4


def read_responses(run: Run) -> list[float]:
    """Return the standard deviations that a run has measured, by layer.

    Empty where it has measured none, or has trained on to its end since.
    """
    try:
        facts = json.loads((run.path / RESPONSES_FILE).read_text())
        if run.is_done and facts["global_step"] != run.summary.get("global_step"):
            return []
        return [float(layer["std"]) for layer in facts["layers"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def draw_responses(groups: Sequence[Group]) -> Picture | None:
    """Return the picture, the mean over each group's runs; None where no run has measured any."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    drawn = False
    for colour, group in zip(colours(len(groups)), groups, strict=True):
        stds = mean_responses(group)
        if not stds:
            continue
        drawn = True
        layers = range(1, len(stds) + 1)
        # Plain nets dashed, residual ones solid, as in the paper.
        style = "dashed" if _is_plain(group) else "solid"
        upper.plot(layers, stds, color=colour, linewidth=1.3, linestyle=style)
        falling = sorted(stds, reverse=True)
        name = legend_name(group.name)
        lower.plot(layers, falling, color=colour, linewidth=1.3, linestyle=style, label=name)
    if not drawn:
        return None
    for axis, label in ((upper, "in the net's order"), (lower, "by magnitude")):
        axis.set(ylabel=f"std, {label}", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel("layer")
    figure.legend(
        *lower.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return Picture(
        "responses",
        "Layer responses",
        "Standard deviation of each layer's output behind its BN, before ReLU and addition, on "
        "validation images: the mean over a group's runs. Plain nets are dashed. Above in the "
        "net's order, below sorted.",
        figure,
    )


def mean_responses(group: Group) -> list[float]:
    """Return the mean over the group's runs, by layer.

    Raises:
        DataFormatError: two runs have measured different numbers of layers.
    """
    measured = {run.path: stds for run in group.runs if (stds := read_responses(run))}
    counts = {len(stds): path for path, stds in measured.items()}
    if len(counts) > 1:
        (few, one), (many, other) = sorted(counts.items())[:2]
        raise DataFormatError(
            f"{one / RESPONSES_FILE} has {few} layers and {other / RESPONSES_FILE} {many}, though "
            f"the runs are of one net: one is of an older run. Measure anew: --layer_responses"
        )
    return [sum(layer) / len(measured) for layer in zip(*measured.values(), strict=True)]


def _is_plain(group: Group) -> bool:
    config = group.runs[0].config
    named = str(config.get("model.model", "")).startswith("plain")
    return bool(config.get("model.model_options.shortcut", "none" if named else "") == "none")
