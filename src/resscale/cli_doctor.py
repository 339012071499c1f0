"""The command `resscale doctor`: each fault in one line with its remedy, before it costs anything.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resscale.cli_data_arguments import Parser
from resscale.errors import UserInputError

if TYPE_CHECKING:
    from resscale.cluster.doctor.finding import Finding, Held
    from resscale.cluster.doctor.local_checks import Surroundings
    from resscale.cluster.doctor.prepared import Prepared
    from resscale.cluster.environment import Launch

# name -> what it looks at
CHECKS = {
    "config": "the options, parsed as fit does",
    "versions": "installed versions, and those that are known to be bad",
    "placement": "nodes, tasks, ranks and GPUs; a forgotten srun",
    "gpus": "GPUs, their driver, CUDA and NCCL",
    "address": "this machine's name, and a free port",
    "cpus": "CPUs of a rank against its reading processes",
    "shared_memory": "/dev/shm against the batches in it",
    "open_files": "the limit of open files",
    "storage": "room, quota and rights where checkpoints go",
    "data": "shards and manifests, and whether they fit the ranks",
    "meeting": "whether all ranks find each other",
    "alike": "versions, GPUs and data of all ranks compared",
    "clock": "clocks of the nodes compared",
    "links": "an all-reduce between each two nodes",
    "rates": "the loader's images/s against the step's",
}
FAILED = 2
_EXAMPLES = """examples:
  resscale doctor
  resscale doctor --config configs/demo.yaml
  resscale doctor --config configs/imagenet/resnet50.yaml --skip rates --json

Under srun (`srun resscale doctor --config FILE`) all ranks look, and rank 0 speaks. Options of
`resscale fit` may follow, such as --trainer.devices 8.

exit code: 0 where nothing has failed, 2 where something has.

checks:
""" + "\n".join(f"  {name:<14} {what}" for name, what in CHECKS.items())


def doctor_parser() -> Parser:
    """Return the parser of `resscale doctor`."""
    parser = Parser(
        prog="resscale doctor",
        description="Look for what would end a run or slow it down: a line for each finding.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", action="append", help="of the run; repeatable, later ones win"
    )
    parser.add_argument(
        "--only", metavar="CHECK", action="append", choices=CHECKS, help="this one; repeatable"
    )
    parser.add_argument(
        "--skip", metavar="CHECK", action="append", choices=CHECKS, help="not this; repeatable"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=5.0,
        help="for which the loader, and then the step, are measured (default: 5)",
    )
    parser.add_argument(
        "--timeout_s",
        metavar="S",
        type=float,
        default=120.0,
        help="for which ranks wait for each other (default: 120)",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    return parser


def run_doctor(argv: Sequence[str]) -> int:
    """Run `resscale doctor` with these arguments; return the exit status: 2 where a check failed.

    Raises:
        UserInputError: wrong arguments of the command's own; those of `fit` become a finding.
    """
    try:
        arguments, rest = doctor_parser().parse_known_args(list(argv))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    for name in ("seconds", "timeout_s"):
        if not getattr(arguments, name) > 0:
            raise UserInputError(f"--{name} {getattr(arguments, name):g} must be above 0.")
    from resscale.cli_quiet import quiet_third_parties
    from resscale.cluster.doctor.finding import as_json, render, worst
    from resscale.cluster.environment import read_launch

    quiet_third_parties()
    launch = read_launch()
    held = _examine(launch, arguments, rest, ["resscale", "doctor", *argv])
    if held is None:
        return 0
    world_size = _world_size(launch)
    if arguments.json:
        print(json.dumps(as_json(held, world_size), indent=1))
    else:
        print("\n".join(render(held, world_size)))
    return FAILED if worst(one.finding for one in held) == "fail" else 0


def _examine(
    launch: Launch, arguments: argparse.Namespace, rest: list[str], command: list[str]
) -> list[Held] | None:
    from resscale.cluster.doctor.examination import Options, examine_alone, examine_together
    from resscale.cluster.doctor.finding import Held, Rank
    from resscale.cluster.doctor.local_checks import Surroundings

    prepared, findings = _prepare(arguments.config or [], rest)
    folder = prepared.folder if prepared is not None else Path("runs")
    name = _name(launch)
    world_size = _world_size(launch)
    here = Surroundings(launch, world_size, name, command, folder, prepared)
    options = Options(_selection(arguments), arguments.seconds, arguments.timeout_s)
    host = launch.slurm.node_name if launch.slurm is not None else ""
    me = Rank(launch.rank, host or socket.gethostname())
    if launch.launcher is None:
        held = examine_alone(here, me, options)
    else:
        found = examine_together(here, _meeting(here, me, options.timeout_s), me, options)
        if found is None:
            return None
        held = found
    every = tuple(range(world_size))
    told = [Held(one, every, (me.host,)) for one in findings if options.is_wanted(one.name)]
    return told + held


def _prepare(configs: list[str], rest: list[str]) -> tuple[Prepared | None, list[Finding]]:
    """Parse the options of `fit`, without taking a run directory; what is wrong is a finding."""
    from resscale.cluster.doctor.finding import Finding, of_error

    words = [word for config in configs for word in ("--config", config)] + rest
    if not words:
        return None, []
    try:
        prepared = _build(words)
    except UserInputError as error:
        return None, [of_error("config", error)]
    return prepared, [Finding("config", "ok", " ".join(configs) or "options alone")]


def _build(words: list[str]) -> Prepared:
    import torch

    from resscale.cli_errors import explain_refusal
    from resscale.cli_lightning import TrainCli, plain_config, with_saved_config
    from resscale.cluster.doctor.prepared import Prepared
    from resscale.training.precision import autocast_dtype, precision_name
    from resscale.training.runid import config_digest
    from resscale.training.strategy import register_strategies

    register_strategies()
    cli = TrainCli("fit", with_saved_config("fit", words))
    try:
        # The parts alone: a trainer would want ranks, and a run its directory.
        parts: Any = cli.parser.instantiate_classes(cli.config)
    except ValueError as error:
        refusal = explain_refusal(str(error))
        if refusal is None:
            raise
        raise UserInputError(refusal) from error
    if cli.config.num_threads is not None:
        torch.set_num_threads(cli.config.num_threads)
    trainer = cli.config.trainer
    return Prepared(
        module=parts.model,
        data=parts.data,
        folder=Path(cli.config.run_dir or cli.config.runs_dir),
        accelerator=str(trainer.accelerator),
        num_nodes=trainer.num_nodes,
        devices=trainer.devices,
        dtype=autocast_dtype(precision_name(trainer.precision)),
        keep_last=parts.checkpoint.keep_last,
        is_averaged=cli.config.ema.decay is not None,
        digest=config_digest(plain_config(cli)),
    )


def _meeting(here: Surroundings, me: Any, timeout_s: float) -> Callable[[], Any]:
    from resscale.cluster.doctor.gathering import gather_srun, gather_torchrun

    job = here.launch.srun
    if job is not None:
        return lambda: gather_srun(job, here.folder, timeout_s)
    return lambda: gather_torchrun(me, here.world_size, timeout_s)


def _world_size(launch: Launch) -> int:
    if launch.srun is not None:
        return launch.srun.num_tasks
    if launch.launcher == "torchrun":
        from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        return TorchElasticEnvironment().world_size()
    return 1


def _name(launch: Launch) -> str:
    """Return what other nodes would call this one."""
    if launch.slurm is not None:
        from resscale.cluster.ranks import main_address

        return main_address(launch.slurm)
    return socket.gethostname()


def _selection(arguments: argparse.Namespace) -> Callable[[str], bool]:
    only, skip = arguments.only or list(CHECKS), arguments.skip or []
    return lambda name: name in only and name not in skip
