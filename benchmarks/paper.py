"""Train the nets of the paper's experiments, several at a time, and go on where it was stopped.

    python benchmarks/paper.py --jobs 2 --seeds 0 1 2
    python benchmarks/paper.py --only degradation --overlay configs/paper/data/cifar10.yaml

Each net and seed is one `resscale fit` in `runs/paper/<net>-s<seed>`; an overlay has a folder of
its own, such as `runs/paper-cifar10`. What is done is passed over; what was stopped goes on from
its checkpoint. Ctrl-C stops the runs at a step boundary. The order is seed by seed, so that a queue
that is cut short has every net rather than every seed.

How it is drawn afterwards stands in docs/paper.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from run_queue import work_off


@dataclass(frozen=True)
class Net:
    """A net of an experiment: the config and what is given on top of it."""

    experiment: str
    options: tuple[str, ...]


def net(experiment: str, model: str, *more: str, **options: str) -> Net:
    """Return the net `model` with model options, trained by the experiment's config."""
    chosen = [f"--model.model_options.{key}={value}" for key, value in options.items()]
    return Net(experiment, (f"--model.model={model}", *chosen, *more))


# Three times the steps: what the depth of residual nets brings, training has to be long to show.
LONGER = ("--trainer.max_epochs=120", "--model.schedule.step_at_epochs=[60,90]")


# A net that several experiments use is trained once, under the first: the configs say the same.
NETS = {
    "plain20": net("degradation", "plain20_cifar"),
    "resnet20": net("degradation", "resnet20_cifar"),
    "plain56": net("degradation", "plain56_cifar"),
    "resnet56": net("degradation", "resnet56_cifar"),
    "plain32": net("degradation", "plain32_cifar"),
    "plain44": net("degradation", "plain44_cifar"),
    "resnet20-B": net("shortcuts", "resnet20_cifar", shortcut="B"),
    "resnet20-C": net("shortcuts", "resnet20_cifar", shortcut="C"),
    "bottleneck29": net("bottleneck", "resnet29_bottleneck_cifar"),
    "resnet32": net("depths", "resnet32_cifar"),
    "resnet44": net("depths", "resnet44_cifar"),
    "resnet110": net("depths", "resnet110_cifar"),
    "resnet20-longer": net("degradation", "resnet20_cifar", *LONGER),
    "resnet56-longer": net("degradation", "resnet56_cifar", *LONGER),
}


def arguments(name: str, overlay: list[str]) -> list[str]:
    """Return what `resscale fit` is given for a net."""
    chosen = NETS[name]
    configs = [f"configs/paper/{chosen.experiment}.yaml", *overlay]
    return [*(part for config in configs for part in ("--config", config)), *chosen.options]


def runs_folder(overlay: list[str]) -> Path:
    """Return where runs go by default: what is done with other data must not be passed over."""
    return Path("runs") / "-".join(["paper", *(Path(config).stem for config in overlay)])


def main() -> int:
    """Read the command line and work the queue off."""
    parser = argparse.ArgumentParser(description="Train the paper's experiments.")
    parser.add_argument("--jobs", type=int, default=2, help="nets at a time (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument(
        "--only", nargs="+", choices=sorted({n.experiment for n in NETS.values()} | set(NETS))
    )
    parser.add_argument("--overlay", nargs="+", default=[], help="configs laid over, such as data")
    parser.add_argument("--runs_dir", type=Path, help="(runs/paper, or runs/paper-OVERLAY)")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    chosen = [
        name
        for name, entry in NETS.items()
        if options.only is None or {name, entry.experiment} & set(options.only)
    ]
    if options.overlay:
        # Other data bring a length of their own.
        chosen = [name for name in chosen if not set(LONGER) & set(NETS[name].options)]
    folder = options.runs_dir or runs_folder(options.overlay)
    runs = [
        (arguments(name, options.overlay), seed, folder / f"{name}-s{seed}")
        for seed in options.seeds
        for name in chosen
    ]
    return work_off(runs, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
