"""The arguments of `resscale submit`; argparse only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from resscale.cli_data_arguments import Parser
from resscale.cluster.site import Site, load_site, make_site
from resscale.errors import UserInputError

_EXAMPLES = """examples:
  resscale submit --nodes 4 --gpus-per-node 8 --time 12:00:00 --cluster configs/cluster/gpu.yaml \\
      --config configs/imagenet/resnet50.yaml
  resscale submit --nodes 2 --tasks-per-node 4 --config configs/demo.yaml --dry-run
  resscale submit --gpus-per-node 1 --config configs/demo.yaml --sweep seed_everything=0,1,2

All other options are those of `resscale fit`. How many ranks there are follows from nodes and GPUs;
trainer.num_nodes and trainer.devices are not given. Options may be written with - or _."""

# What of a site is an option, too, and what it is for.
_SITE_OPTIONS = {
    "partition": "where the job goes",
    "account": "who pays",
    "qos": "quality of service",
    "constraint": "features that nodes must have",
    "reservation": "nodes set aside",
    "gpu_type": "sort of the GPUs, such as a100",
    "cpus_per_task": "CPUs of each rank (a fair share of the node)",
    "modules": "for `module load`, separated by commas",
    "setup": "a shell command before python, such as 'source .venv/bin/activate'",
    "python": "the interpreter on the nodes (this one)",
    "container": "an image that the ranks run in",
    "container_tool": "apptainer or pyxis (apptainer)",
    "network_interface": "what NCCL and gloo connect over, such as ib0",
    "scratch": "a folder on each node's own disk, for copies of data",
}
_DERIVED = {
    "num_nodes": "--nodes",
    "devices": "--gpus-per-node (or --tasks-per-node, on CPUs)",
}


def submit_parser() -> Parser:
    """Return the parser of `resscale submit`, without the options of `resscale fit`."""
    parser = Parser(
        prog="resscale submit",
        usage="resscale submit [--nodes N] [--gpus-per-node N] --config FILE [--OPTION VALUE ...]",
        description="Write and send the SLURM job that trains a configuration.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    job = parser.add_argument_group("the job")
    _add(job, "nodes", type=_positive, default=1, metavar="N", help="nodes (%(default)s)")
    _add(job, "gpus_per_node", type=_positive, metavar="N", help="GPUs on each, a rank for each")
    _add(job, "tasks_per_node", type=_positive, metavar="N", help="ranks on each node, on CPUs (1)")
    _add(job, "time", metavar="LIMIT", help="such as 12:00:00 or 2-00:00:00 (the partition's)")
    _add(job, "sweep", action="append", default=[], metavar="KEY=A,B", help=(
        "a run for each value, as one job array; repeated: each combination"
    ))  # fmt: skip
    _add(job, "max_running", type=_positive, metavar="N", help="runs of a sweep at a time (all)")
    how = parser.add_argument_group("what happens")
    _add(how, "dry_run", action="store_true", help="check and show everything, submit nothing")
    _add(how, "watch", action="store_true", help="follow state, log and progress until the end")
    _add(how, "no_data_check", action="store_true", help="the shards lie where only nodes see them")
    _add(how, "print_environment", action="store_true", help=(
        "show the site's settings as lines for a shell, for who calls sbatch by hand"
    ))  # fmt: skip
    site = parser.add_argument_group("the cluster")
    _add(site, "cluster", metavar="FILE", help="its settings (configs/cluster); options come first")
    for name, text in _SITE_OPTIONS.items():
        sort = _positive if name == "cpus_per_task" else str
        _add(site, name, type=sort, metavar="N" if sort is _positive else "TEXT", help=text)
    _add(site, "exclusive", action="store_true", help="no other job on the nodes")
    return parser


def split_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]] | int:
    """Return submit's own options and those of `resscale fit`, or the exit status of `--help`.

    Raises:
        UserInputError: wrong options, or a number of ranks that is said a second time.
    """
    parser = submit_parser()
    words = [_with_dashes(word, parser._options()) for word in argv]
    try:
        options, rest = parser.parse_known_args(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    for word in rest:
        key = word.partition("=")[0].removeprefix("--trainer.")
        if word.startswith("--trainer.") and key in _DERIVED:
            raise UserInputError(
                f"--trainer.{key} is not given: it follows from {_DERIVED[key]}, and two numbers "
                f"for one thing may differ. Leave it out."
            )
    if rest and not rest[0].startswith("-"):
        raise UserInputError(
            f"{rest[0]!r} is no option; all that submit takes begins with --, such as --config "
            f"{rest[0]}."
        )
    return options, rest


def site_of(options: argparse.Namespace) -> Site:
    """Return the site: its file, with the options before it.

    Raises:
        UserInputError: the file is wrong, or an option.
    """
    site = Site() if options.cluster is None else load_site(options.cluster)
    given = {name: getattr(options, name) for name in _SITE_OPTIONS}
    if given["modules"] is not None:
        given["modules"] = given["modules"].split(",")
    entries = {name: value for name, value in given.items() if value is not None}
    if options.exclusive:
        entries["exclusive"] = True
    checked = make_site(entries, "options")
    return replace(site, **{name: getattr(checked, name) for name in entries})


def _add(group: argparse._ArgumentGroup, name: str, **how: object) -> None:
    group.add_argument(f"--{name.replace('_', '-')}", dest=name, **how)  # type: ignore[arg-type]


def _with_dashes(word: str, options: Sequence[str]) -> str:
    """Return `--gpus_per_node=8` as `--gpus-per-node=8`; words of `resscale fit` as they are."""
    name, equals, value = word.partition("=")
    dashed = name.replace("_", "-")
    return f"{dashed}{equals}{value}" if dashed in options else word


def _positive(text: str) -> int:
    if (number := int(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


_positive.__name__ = "int"  # what argparse calls a value that is no number
