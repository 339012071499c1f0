"""Recipes × clusters: hours and GPU-hours by `resscale plan`, the table of docs/plan.md.

    python benchmarks/plan_table.py
    python benchmarks/plan_table.py --configs configs/imagenet/resnet50.yaml

Computed from published rates, not measured. A recipe keeps its own global batch wherever each GPU
then has a whole micro-batch. On more GPUs the batch grows to one micro-batch for each, and the cell
names it: that is another training, whose learning rate and accuracy are not those of the recipe.
Where a micro-batch does not fit a GPU's memory, the largest that does is taken, and named.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resscale.cli_plan_config import read_config
from resscale.errors import UserInputError
from resscale.report.plan import Plan, build_plan
from resscale.report.plan_gpus import find_gpu
from resscale.report.plan_memory import fitting_micro_batches
from resscale.report.plan_network import parse_network
from resscale.report.plan_request import Machines, Training

RECIPES = Path("configs/imagenet")


@dataclass(frozen=True)
class Cluster:
    """A column: its title, and the machines."""

    title: str
    machines: Machines


_NDR = parse_network("8x400Gb")
CLUSTERS = (
    Cluster("1 × RTX 4090", Machines(find_gpu("rtx4090"))),
    Cluster("8 × A100", Machines(find_gpu("a100"), 1, 8)),
    Cluster("8 × H100", Machines(find_gpu("h100"), 1, 8)),
    Cluster("4 nodes × 8 H100", Machines(find_gpu("h100"), 4, 8, network=_NDR)),
    Cluster("32 nodes × 8 H100", Machines(find_gpu("h100"), 32, 8, network=_NDR)),
)


def fitted(training: Training, num_ranks: int) -> Training:
    """Return a recipe for so many GPUs: its own batch, or one micro-batch on each.

    Args:
        training: the recipe.
        num_ranks: GPUs.
    """
    batch = training.global_batch_size
    micro = training.micro_batch_size or batch
    if batch % (micro * num_ranks) == 0:
        return training
    if training.micro_batch_size is None and batch % num_ranks == 0 and batch // num_ranks >= 16:
        return training
    micro = micro if training.micro_batch_size is not None else 32
    return replace(training, global_batch_size=micro * num_ranks, micro_batch_size=micro)


def plan_that_fits(training: Training, machines: Machines) -> Plan:
    """Return a plan with the recipe's micro-batch, or the largest that a GPU's memory holds.

    Args:
        training: a recipe for these machines.
        machines: the GPUs.
    """
    plan = build_plan(training, machines)
    if plan.memory.fits or not plan.memory.largest_micro_batch:
        return plan
    share = training.global_batch_size // machines.num_ranks
    micro = fitting_micro_batches(share, plan.memory.largest_micro_batch)[0]
    return build_plan(replace(training, micro_batch_size=micro), machines)


def cell(plan: Plan, recipe: Training) -> str:
    """Return hours and GPU-hours, with what differs from the recipe.

    Args:
        plan: of one cluster.
        recipe: as its file has it.
    """
    text = f"{plan.hours:.1f} h / {plan.gpu_hours:,.0f}"
    if plan.hours < 1:
        text = f"{plan.hours * 60:.2g} min / {plan.gpu_hours:,.0f}"
    if plan.training.global_batch_size != recipe.global_batch_size:
        text += f", batch {plan.training.global_batch_size:,}"
    elif plan.batches.micro_batch_size < (recipe.micro_batch_size or 0):
        text += f", passes of {plan.batches.micro_batch_size}"
    if plan.phases[0].step.is_host_bound:
        text += " *"
    return text if plan.memory.fits else "not one image fits"


def recipe_row(path: Path) -> str:
    """Return a recipe's row of the table.

    Args:
        path: of its file.
    """
    recipe = read_config(["--config", str(path)]).training
    cells = []
    for cluster in CLUSTERS:
        training = fitted(recipe, cluster.machines.num_ranks)
        cells.append(cell(plan_that_fits(training, cluster.machines), recipe))
    epochs = len(recipe.sizes)
    return f"| {path.stem} | {epochs} | {recipe.global_batch_size:,} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="Hours of recipes on clusters, computed.")
    parser.add_argument("--configs", nargs="+", type=Path, help=f"(those in {RECIPES})")
    options = parser.parse_args(arguments)
    paths = options.configs or sorted(RECIPES.glob("*.yaml"))
    titles = ["recipe", "epochs", "batch", *(cluster.title for cluster in CLUSTERS)]
    print(f"| {' | '.join(titles)} |")
    print(f"|{' --- |' * len(titles)}")
    for path in paths:
        try:
            print(recipe_row(path), flush=True)
        except UserInputError as error:
            raise SystemExit(f"{path}: {error}") from error
    print("\n*: the GPU waits for the host, which launches kernels one by one.")


if __name__ == "__main__":
    main()
