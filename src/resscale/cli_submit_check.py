"""What `resscale fit` would refuse on the nodes, found before the job is submitted.

The same parser, network, data set and arithmetic; no trainer, no GPU and no ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resscale.cli_errors import explain_refusal
from resscale.cli_lightning import TrainCli, plain_config, with_saved_config
from resscale.cli_quiet import quiet_third_parties
from resscale.cli_weights import load_first_weights
from resscale.cluster.submission import Shape
from resscale.errors import UserInputError
from resscale.training.precision import precision_name
from resscale.training.rundir import RunDir
from resscale.training.runid import config_digest
from resscale.training.strategy import check_legal, choose_strategy, register_strategies


@dataclass(frozen=True)
class Checked:
    """A training that may begin.

    Args:
        name: of its configuration.
        digest: of everything in it that decides what is trained.
        run_dir: what the user says.
        runs_dir: where runs lie.
        resumes: it goes on with a run.
        lines: what it comes to, for people.
    """

    name: str
    digest: str
    run_dir: Path | None
    runs_dir: Path
    resumes: bool
    lines: tuple[str, ...]


def check_training(arguments: Sequence[str], shape: Shape, *, check_data: bool) -> Checked:
    """Check the arguments of `resscale fit` for so many ranks.

    Args:
        arguments: those behind `resscale fit`.
        shape: of the job.
        check_data: look at shards and weights, too; they may lie where only the nodes see them.

    Raises:
        UserInputError: what `fit` would refuse.
    """
    quiet_third_parties()
    register_strategies()
    cli = TrainCli("fit", with_saved_config("fit", list(arguments)))
    config = cli.config
    built = _instantiate(cli)
    check_trainer({**built.trainer}, shape)
    model, data = built.model, built.data
    plan = data.plan(shape.num_ranks)
    for size in data.image_sizes:
        model.check_image_size(size)
    lines = [f"{plan}; {model.optimizer_config.explain_lr(data.global_batch_size)}"]
    if shape.gpus_per_node and str(config.trainer.accelerator) == "cpu":
        lines.append("note: trainer.accelerator=cpu leaves the job's GPUs idle")
    if check_data:
        splits = ("train", "val") if config.data.val is not None else ("train",)
        data.check(splits, model.num_classes, shape.num_ranks)
        order = data.order()
        lines.append(
            f"{order.num_samples:,} training samples = {order.num_steps} steps per epoch, "
            f"{config.trainer.max_epochs} epochs"
        )
        if config.ckpt_path is None:
            load_first_weights("fit", config, model, None)
    run_dir = None if config.run_dir is None else Path(config.run_dir)
    return Checked(
        name=_name(Path(str(config.config[-1])) if config.config else None, run_dir),
        digest=config_digest(plain_config(cli)),
        run_dir=run_dir,
        runs_dir=Path(config.runs_dir),
        resumes=config.ckpt_path == "auto",
        lines=tuple(lines),
    )


def check_trainer(trainer: Mapping[str, Any], shape: Shape) -> None:
    """Refuse what the nodes would refuse, and what says the number of ranks twice.

    Args:
        trainer: its options.
        shape: of the job.

    Raises:
        UserInputError: the two do not fit.
    """
    has = {"num_nodes": shape.nodes, "devices": shape.tasks_per_node}
    unsaid = {"num_nodes": (1,), "devices": ("auto", -1, "-1")}
    follows = "--gpus-per-node" if shape.gpus_per_node else "--tasks-per-node"
    for name, option in (("num_nodes", "--nodes"), ("devices", follows)):
        said = trainer[name]
        if said not in (*unsaid[name], has[name], str(has[name])):
            raise UserInputError(
                f"the configuration says trainer.{name}={said}, and the job has {has[name]}: "
                f"leave it out of the file; it follows from {option}."
            )
    accelerator = str(trainer["accelerator"])
    if not shape.gpus_per_node and accelerator in ("gpu", "cuda"):
        raise UserInputError(
            f"trainer.accelerator={accelerator} needs GPUs, and the job has none: add "
            f"--gpus-per-node."
        )
    strategy = choose_strategy(trainer["strategy"])
    check_legal(strategy, "cuda" if shape.gpus_per_node else "cpu", trainer)
    precision_name(trainer["precision"])


def _name(config: Path | None, run_dir: Path | None) -> str:
    """Return the configuration's name; a run's own is called as the run."""
    if run_dir is not None and config in (None, RunDir(run_dir).config):
        return run_dir.name
    return "run" if config is None else config.stem


def _instantiate(cli: TrainCli) -> Any:
    try:
        return cli.parser.instantiate_classes(cli.config)
    except ValueError as error:
        # The parser keeps of a class's own error only the text.
        refusal = explain_refusal(str(error))
        if refusal is None:
            raise
        raise UserInputError(refusal) from error
