"""What bounds training: the loader, the step, or what they do to each other. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Rates that differ by less are the same: medians of short rounds are no better than that.
_ALIKE = 0.03


@dataclass(frozen=True)
class TrainRates:
    """Images per second, medians over interleaved rounds.

    Args:
        loader: alone.
        step: alone, on batches that are there already.
        both: training as `fit` does it.
        data_wait: share of the training's time that it waited for batches, 0 to 1.
    """

    loader: float
    step: float
    both: float
    data_wait: float


def judge(rates: TrainRates) -> str:
    """Return in one sentence what bounds training, and what would help.

    Args:
        rates: measured.
    """
    slower = min(rates.loader, rates.step)
    share = rates.both / slower
    lost = (
        f" Together they reach {share:.0%} of the slower one: they share CPUs."
        if share < 1 - _ALIKE
        else ""
    )
    if rates.loader < rates.step * (1 - _ALIKE):
        return (
            f"Bound by the loader: it reads {rates.loader / rates.step:.0%} of what the step could "
            f"take. More readers, smaller stored images or a faster decoder would help.{lost}"
        )
    if rates.step < rates.loader * (1 - _ALIKE):
        return (
            f"Bound by the step: it takes {rates.step / rates.loader:.0%} of what the loader could "
            f"read. See `resscale bench step` for its parts.{lost}"
        )
    return f"Loader and step are equally fast.{lost}"


def render_train(rates: TrainRates) -> str:
    """Return the table and the sentence.

    Args:
        rates: measured.
    """
    lines = [f"{'':<18} {'images/s':>12}"]
    for name, rate in (
        ("loader alone", rates.loader),
        ("step alone", rates.step),
        ("both: training", rates.both),
    ):
        lines.append(f"{name:<18} {rate:>12,.1f}")
    return "\n".join([*lines, f"data wait {rates.data_wait:.0%}", judge(rates)])
