"""The command `resscale plan`: what a run needs and how long it takes, before a job is queued.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resscale.cli_data_arguments import Parser
from resscale.errors import UserInputError

if TYPE_CHECKING:
    from resscale.report.plan_request import Known, Machines, Training

_EXAMPLES = """examples:
  resscale plan --config configs/imagenet/resnet50.yaml --gpu a100 --gpus-per-node 8
  resscale plan --config configs/imagenet/resnet50.yaml --gpu h100 --nodes 16 --gpus-per-node 8 \\
      --network 8x400Gb --data.global_batch_size 8192 --usd-per-gpu-hour 2.50
  resscale plan --config configs/imagenet/resnet50.yaml --gpu h100 --images-per-s 2950 --json

Options of `resscale fit` may follow, such as --model.model resnet101 --data.micro_batch_size 64.
No GPU and no data are needed: without a manifest, ImageNet's 1,281,167 images are assumed, and
said. Rates of GPUs are published ones, not measured here; docs/plan.md has their sources."""


def plan_parser() -> Parser:
    """Return the parser of `resscale plan`, without the options of `resscale fit`."""
    parser = Parser(
        prog="resscale plan",
        usage="resscale plan --config FILE [--gpu NAME] [--nodes N] [--OPTION VALUE ...]",
        description="Memory, images/s, communication, data, hours and cost of a run, computed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", action="append", help="of the run; repeatable, later ones win")
    add("--gpu", metavar="NAME", default="h100", help="such as a100, h100-pcie, 4090 (%(default)s)")
    add("--nodes", metavar="N", type=int, help="nodes (trainer.num_nodes, else 1)")
    add("--gpus-per-node", metavar="N", type=int, help="GPUs of each (trainer.devices, else 1)")
    add("--network", metavar="RATE", help="of a node: 400Gb, 8x400Gb, ib-ndr, 100GbE ...")
    add("--nics-per-node", metavar="N", type=int, help="adapters of that rate in each node (1)")
    add("--gpu-link", metavar="LINK", help="inside a node: nvlink4, pcie4 ... (the GPU's own)")
    add("--images-per-s", metavar="R", type=float, help="measured on one GPU with this micro-batch")
    add(
        "--loader-images-per-s-per-core",
        metavar="R",
        type=float,
        help="measured: what one CPU core reads and decodes",
    )
    add("--train-images", metavar="N", type=int, help="of an epoch, where no manifest is at hand")
    add("--usd-per-gpu-hour", metavar="USD", type=float, help="price; without it no cost is shown")
    add(
        "--failures-per-gpu-day",
        metavar="F",
        type=float,
        help="of your cluster (0.00047: Llama 3's H100s)",
    )
    add("--save-s", metavar="S", type=float, help="a checkpoint stops training for so long (2)")
    add("--restart-s", metavar="S", type=float, help="from a failure until training goes on (300)")
    add("--json", action="store_true", help="everything as JSON, bytes and seconds")
    return parser


def run_plan(argv: Sequence[str]) -> int:
    """Run `resscale plan` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, or a configuration that `fit` would refuse.
    """
    parser = plan_parser()
    try:
        options, rest = parser.parse_known_args([_with_dashes(word, parser) for word in argv])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    if rest and not rest[0].startswith("-"):
        raise UserInputError(
            f"{rest[0]!r} is no option; all that plan takes begins with --, such as --config "
            f"{rest[0]}."
        )
    words = [word for config in options.config or [] for word in ("--config", config)] + rest
    if not words:
        raise UserInputError("resscale plan needs --config: a file such as configs/demo.yaml.")
    from resscale.cli_plan_config import read_config

    config = read_config(words, options.train_images)
    text = plan_text(config.training, machines_of(options, config.nodes, config.devices), options)
    print(text)
    return 0


def plan_text(training: Training, machines: Machines, options: argparse.Namespace) -> str:
    """Return what the command prints.

    Args:
        training: of the configuration.
        machines: of options and configuration.
        options: of the command line.
    """
    from resscale.report.plan import build_plan, render_plan
    from resscale.report.plan_text import plain_plan

    plan = build_plan(training, machines, known_of(options))
    return json.dumps(plain_plan(plan), indent=1) if options.json else render_plan(plan)


def machines_of(options: argparse.Namespace, nodes: int, devices: int) -> Machines:
    """Return where the run is planned for.

    Args:
        options: of the command line.
        nodes: `trainer.num_nodes`.
        devices: `trainer.devices` where it is a number, else 1.

    Raises:
        UserInputError: no such GPU, link or network.
    """
    from resscale.report.plan_gpus import find_gpu, find_link
    from resscale.report.plan_network import parse_network
    from resscale.report.plan_request import Machines

    if options.nics_per_node is not None and options.network is None:
        raise UserInputError(
            f"--nics-per-node {options.nics_per_node} counts adapters: say their rate by "
            f"--network, such as 400Gb."
        )
    network = None
    if options.network is not None:
        network = parse_network(options.network, options.nics_per_node)
    if options.gpu_link is not None:
        find_link(options.gpu_link)
    return Machines(
        gpu=find_gpu(options.gpu),
        nodes=nodes if options.nodes is None else options.nodes,
        gpus_per_node=devices if options.gpus_per_node is None else options.gpus_per_node,
        link=options.gpu_link,
        network=network,
    )


def known_of(options: argparse.Namespace) -> Known:
    """Return what the user has measured or pays; what he does not say keeps its default."""
    from dataclasses import fields

    from resscale.report.plan_request import Known

    names = [field.name for field in fields(Known)]
    given = {name: getattr(options, name) for name in names}
    return Known(**{name: value for name, value in given.items() if value is not None})


def _with_dashes(word: str, parser: Parser) -> str:
    """Return `--gpus_per_node=8` as `--gpus-per-node=8`; words of `resscale fit` as they are."""
    name, equals, value = word.partition("=")
    dashed = name.replace("_", "-")
    return f"{dashed}{equals}{value}" if dashed in parser._options() else word
