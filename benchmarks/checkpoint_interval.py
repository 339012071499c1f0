"""What failures cost against the checkpoint interval: by formula and by simulation. Not measured.

    python benchmarks/checkpoint_interval.py
    python benchmarks/checkpoint_interval.py --failures rsc1_1024 --save_s 1.25 --restart_s 60

A job of n GPUs stops when one of them fails, with failures independent of each other and of age:
the time between two is exponential with mean M = 1 / (n × rate). It works for an interval t, stands
still for d seconds to save, and so on. A failure loses the work since the newest checkpoint, and r
seconds until training goes on; a failure while it saves or restarts is one too.

Young 1974 balances saves against lost work: t = sqrt(2 d M). Daly 2006 adds the terms of higher
order, and the expected time of a whole run, from which the losses here are computed:

    J. W. Young, A first order approximation to the optimum checkpoint interval, Communications of
    the ACM 17(9), 1974. J. T. Daly, A higher order estimate of the optimum checkpoint interval for
    restart dumps, Future Generation Computer Systems 22(3), 2006.

The simulation plays such a job failure by failure, and knows none of these formulas. It also knows
saves in the background (`--write_s`): training goes on at once, and the checkpoint counts when it
is written. To the formulas a write is as if each failure lost so much more.

Neglected: failures that come in bursts, waiting for a free node, slow nodes, and work that a save
in the background slows down.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.report.plan_failures import (
    PUBLISHED,
    SECONDS_PER_DAY,
    Costs,
    Loss,
    daly_s,
    expected_loss,
    interval_text,
    mtbf_s,
    young_s,
)

GPUS = (8, 64, 256, 512, 1024, 2048, 4096)
INTERVALS_MIN = (1, 5, 15, 30, 60, 120)


@dataclass
class Tally:
    """Where the time of a simulated job went, in seconds, and how often it failed."""

    useful: float = 0.0
    saving: float = 0.0
    redone: float = 0.0
    restarting: float = 0.0
    failures: int = 0

    @property
    def total(self) -> float:
        """All of it."""
        return self.useful + self.saving + self.redone + self.restarting

    @property
    def loss(self) -> Loss:
        """What was lost."""
        again = self.redone + self.restarting
        return Loss(1 - self.useful / self.total, again / self.failures)


def simulate(
    interval_s: float,
    costs: Costs,
    mean_s: float,
    failures: int,
    seed: int = 0,
    *,
    leap: bool = True,
) -> Tally:
    """Play a job until it has failed so often.

    Args:
        interval_s: of work between two saves.
        costs: of saves and failures.
        mean_s: between two failures.
        failures: how many.
        seed: of the times of failures.
        leap: pass over cycles that no failure is near at once; False plays each of them.

    Raises:
        ValueError: a checkpoint is not written when the next one is due.
    """
    if costs.write_s > interval_s:
        raise ValueError(f"write_s={costs.write_s} must not be above interval_s={interval_s}.")
    job = _Job(interval_s, costs)
    draw = random.Random(seed)
    fails_at = draw.expovariate(1 / mean_s)
    while job.tally.failures < failures:
        if leap:
            job.leap(fails_at)
        if job.now + job.phase_s > fails_at:
            job.fail(fails_at)
            fails_at += draw.expovariate(1 / mean_s)
        else:
            job.end_phase()
    return job.tally


class _Job:
    """A job that trains, saves and restarts; each phase ends, or is cut by a failure."""

    def __init__(self, interval_s: float, costs: Costs) -> None:
        self.tally = Tally()
        self.now = 0.0
        self._phases_s = {"train": interval_s, "save": costs.save_s, "restart": costs.restart_s}
        self._write_s = costs.write_s
        self._phase = "train"
        self._since_safe = 0.0
        """Work that the newest checkpoint that counts does not hold."""
        self._written: tuple[float, float] | None = None
        """When the newest checkpoint will count, and how much of that work it holds."""

    @property
    def phase_s(self) -> float:
        """How long the phase under way takes."""
        return self._phases_s[self._phase]

    def leap(self, fails_at: float) -> None:
        """Pass over whole cycles, all but the last before the failure."""
        cycle_s = self._phases_s["train"] + self._phases_s["save"]
        cycles = int((fails_at - self.now) // cycle_s) - 1
        if self._phase != "train" or cycles < 1:
            return
        self.tally.useful += self._since_safe + (cycles - 1) * self._phases_s["train"]
        self.tally.saving += cycles * self._phases_s["save"]
        self.now += cycles * cycle_s
        # All written but the last, which may be under way.
        self._since_safe = self._phases_s["train"]
        self._written = (self.now + self._write_s, self._since_safe)

    def end_phase(self) -> None:
        """Let the phase end, and begin the next one."""
        self._spend(self.phase_s)
        if self._phase == "save":
            self._written = (self.now + self._write_s, self._since_safe)
        self._phase = "save" if self._phase == "train" else "train"

    def fail(self, at: float) -> None:
        """Cut the phase short: what no checkpoint holds is lost, and the job restarts."""
        self._spend(at - self.now)
        self.tally.redone += self._since_safe
        self.tally.failures += 1
        self._since_safe, self._written, self._phase = 0.0, None, "restart"

    def _spend(self, seconds: float) -> None:
        self.now += seconds
        if self._phase == "train":
            self._since_safe += seconds
        elif self._phase == "save":
            self.tally.saving += seconds
        else:
            self.tally.restarting += seconds
        if self._written is not None and self._written[0] <= self.now:
            self.tally.useful += self._written[1]
            self._since_safe -= self._written[1]
            self._written = None


def best_table(rate: float, costs: Costs, failures: int, seed: int) -> list[str]:
    """Return a Markdown table: for each number of GPUs the best interval, and what is lost."""
    lines = [
        "| GPUs | between failures | failures/day | Young | Daly | lost, formula | simulation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gpus in GPUS:
        mean = mtbf_s(gpus, rate)
        young, daly = young_s(costs.save_s, mean), daly_s(costs.save_s, mean)
        best = max(daly, costs.write_s)
        expected = expected_loss(best, costs, mean)
        played = simulate(best, costs, mean, failures, seed).loss
        lines.append(
            f"| {gpus:,} | {interval_text(mean)} | {SECONDS_PER_DAY / mean:.3g} "
            f"| {interval_text(young)} | {interval_text(daly)} "
            f"| {expected.minutes_per_day:.2f} min/day ({expected.share:.2%}) "
            f"| {played.minutes_per_day:.2f} min/day |"
        )
    return lines


def interval_tables(rate: float, costs: Costs, failures: int, seed: int) -> list[str]:
    """Return two Markdown tables, of minutes lost per day and per failure, over intervals."""
    heading = " | ".join(f"{minutes} min" for minutes in INTERVALS_MIN)
    tables: dict[str, list[str]] = {
        name: [f"| GPUs | {heading} |", f"|{' --- |' * (1 + len(INTERVALS_MIN))}"]
        for name in ("day", "failure")
    }
    for gpus in GPUS:
        cells: dict[str, list[str]] = {name: [] for name in tables}
        for minutes in INTERVALS_MIN:
            mean, interval = mtbf_s(gpus, rate), 60.0 * minutes
            if costs.write_s > interval:
                cells["day"].append("not written in time")
                cells["failure"].append("not written in time")
                continue
            expected = expected_loss(interval, costs, mean)
            played = simulate(interval, costs, mean, failures, seed).loss
            cells["day"].append(f"{expected.minutes_per_day:.1f} / {played.minutes_per_day:.1f}")
            cells["failure"].append(
                f"{expected.per_failure_s / 60:.1f} / {played.per_failure_s / 60:.1f}"
            )
        for name, row in cells.items():
            tables[name].append(f"| {gpus:,} | {' | '.join(row)} |")
    return [
        "Minutes lost per day, formula / simulation:\n",
        *tables["day"],
        "\nMinutes lost per failure, formula / simulation:\n",
        *tables["failure"],
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description="Failures against the checkpoint interval.")
    parser.add_argument(
        "--failures",
        default="llama3",
        help=f"per GPU and day: a number, or one of {', '.join(PUBLISHED)} (%(default)s)",
    )
    parser.add_argument("--save_s", type=float, default=5.0, help="standing still (%(default)s)")
    parser.add_argument("--restart_s", type=float, default=300.0, help="(%(default)s)")
    parser.add_argument(
        "--write_s", type=float, default=0.0, help="in the background (%(default)s)"
    )
    parser.add_argument("--lives", type=int, default=20_000, help="failures played (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        rate = PUBLISHED.get(options.failures) or float(options.failures)
    except ValueError:
        parser.error(f"--failures {options.failures} must be a number or {', '.join(PUBLISHED)}.")
    for name, value in (("failures", rate), ("save_s", options.save_s), ("lives", options.lives)):
        if value <= 0:
            parser.error(f"--{name} {value} must be above 0.")
    if options.restart_s < 0 or options.write_s < 0:
        parser.error("--restart_s and --write_s must not be below 0.")
    costs = Costs(options.save_s, options.restart_s, options.write_s)
    print(
        f"{rate:.3g} failures per GPU and day; a checkpoint stops training for {costs.save_s:g} s "
        f"and counts {costs.write_s:g} s later, a failure for {costs.restart_s:g} s. "
        f"{options.lives:,} failures played.\n"
    )
    print(*best_table(rate, costs, options.lives, options.seed), sep="\n", end="\n\n")
    print(*interval_tables(rate, costs, options.lives, options.seed), sep="\n")


if __name__ == "__main__":
    main()
