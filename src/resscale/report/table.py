"""The results as a Markdown table, for a terminal and for documents."""

from __future__ import annotations

from collections.abc import Sequence

from resscale.report.groups import Group
from resscale.report.results import Statistic, summarise

_TITLES = (
    "group", "done", "test error, %", "training error, %", "parameters", "MMACs", "images/s",
    "data wait, %",
)  # fmt: skip
_UNKNOWN = "-"


def results_table(groups: Sequence[Group]) -> str:
    """Return a row per group: final errors as mean ± sample deviation, size and rate."""
    rows = [list(_TITLES)]
    for group in groups:
        result = summarise(group)
        rows.append(
            [
                result.name,
                f"{result.num_done} of {len(group.runs)}",
                _statistic(result.final_test_error_pct),
                _statistic(result.final_train_error_pct),
                _number(result.num_parameters, ",.0f"),
                _number(None if result.num_macs is None else result.num_macs / 1e6, ",.2f"),
                _number(result.images_per_s, ",.0f"),
                _number(result.data_wait_pct, ".0f"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _statistic(value: Statistic | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value.mean:.2f}" if value.sd is None else f"{value.mean:.2f} ± {value.sd:.2f}"


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)
