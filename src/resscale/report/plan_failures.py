"""How often to save a checkpoint: failures of GPUs against the time that a save takes.

A job of n GPUs stops when one of them fails, with failures independent of each other and of age:
the time between two is exponential with mean M = 1 / (n × rate). It works for an interval t, stands
still for d seconds to save, and so on. A failure loses the work since the newest checkpoint, and r
seconds until training goes on; a failure while it saves or restarts is one too.

Young 1974 balances saves against lost work: t = sqrt(2 d M). Daly 2006 adds the terms of higher
order, and the expected time of a whole run, from which the losses here are computed:

    J. W. Young, A first order approximation to the optimum checkpoint interval, Communications of
    the ACM 17(9), 1974. J. T. Daly, A higher order estimate of the optimum checkpoint interval for
    restart dumps, Future Generation Computer Systems 22(3), 2006.

`benchmarks/checkpoint_interval.py` plays such a job failure by failure, and agrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_PER_DAY = 86_400

# Failures per GPU and day, and where they were published.
PUBLISHED = {
    # The Llama 3 Herd of Models, 2024, section 3.3.4: unexpected interruptions, days, H100s.
    "llama3": 419 / 54 / 16_384,
    # Kokolis et al., Revisiting Reliability in Large-Scale Machine Learning Research Clusters,
    # HPCA 2025: hardware failures per node and day of two clusters of A100s, 8 per node; and what
    # jobs of 1,024 GPUs on the first were seen to have, a failure each 7.9 hours.
    "rsc1": 6.50e-3 / 8,
    "rsc2": 2.34e-3 / 8,
    "rsc1_1024": 24 / 7.9 / 1024,
}


@dataclass(frozen=True)
class Costs:
    """What saving and failing cost.

    Args:
        save_s: seconds that training stands still for a checkpoint.
        restart_s: seconds from a failure until training goes on.
        write_s: seconds from there until the checkpoint counts; less than the interval.
    """

    save_s: float
    restart_s: float
    write_s: float = 0.0


def mtbf_s(gpus: int, failures_per_gpu_day: float) -> float:
    """Return the mean seconds between two failures of a job of so many GPUs."""
    return SECONDS_PER_DAY / (gpus * failures_per_gpu_day)


def young_s(save_s: float, mean_s: float) -> float:
    """Return Young's interval of work between two saves, in seconds."""
    return math.sqrt(2 * save_s * mean_s)


def daly_s(save_s: float, mean_s: float) -> float:
    """Return Daly's interval of work between two saves, in seconds."""
    if save_s >= 2 * mean_s:
        return mean_s
    ratio = save_s / (2 * mean_s)
    return young_s(save_s, mean_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


@dataclass(frozen=True)
class Loss:
    """What is lost.

    Args:
        share: of all time that is not new work: saves, work done again, restarts.
        per_failure_s: work done again and restarts.
    """

    share: float
    per_failure_s: float

    @property
    def minutes_per_day(self) -> float:
        """Minutes of each day that are lost."""
        return self.share * SECONDS_PER_DAY / 60


def expected_loss(interval_s: float, costs: Costs, mean_s: float) -> Loss:
    """Return what is lost by Daly's expected time of a run."""
    restart_s, cycle_s = costs.restart_s + costs.write_s, interval_s + costs.save_s
    # The time that a cycle takes on average, with all that its failures cost.
    wall_s = mean_s * math.exp(restart_s / mean_s) * math.expm1(cycle_s / mean_s)
    return Loss(1 - interval_s / wall_s, mean_s * (1 - cycle_s / wall_s))


def interval_text(seconds: float) -> str:
    """Return a time as people say it: seconds, minutes, hours or days."""
    for unit, size in (("d", SECONDS_PER_DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
