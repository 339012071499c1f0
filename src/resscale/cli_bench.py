"""The command `resscale bench`: measures this machine, and says what bounds it.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from resscale.cli_data_arguments import Parser
from resscale.errors import UserInputError

_WHAT = {
    "step": "a training step on random pixels: its parts, each beside the least it could take",
    "loader": "images/s and CPU time per image of the loader, by number of readers",
    "train": "the step alone, the loader alone, and both: which of them bounds training",
}
_EXAMPLES = """examples:
  resscale bench step --config configs/demo.yaml
  resscale bench step --config configs/imagenet/resnet50.yaml --batch_size 16 --rounds 3 --steps 1
  resscale bench loader --config configs/demo.yaml --readers 0 1 2
  resscale bench train --config configs/demo.yaml --json

One process, one device. Options of `resscale fit` may follow, such as --trainer.precision
bf16-mixed or --num_threads 1. `bench step` needs no data.

what is measured:
""" + "\n".join(f"  {name:<8} {what}" for name, what in _WHAT.items())


def bench_parser() -> Parser:
    """Return the parser of `resscale bench`."""
    parser = Parser(
        prog="resscale bench",
        description="Measure this machine in rounds that take turns; medians are told.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=_WHAT, help="see below")
    parser.add_argument(
        "--config", metavar="FILE", action="append", help="of a run; repeatable, later ones win"
    )
    parser.add_argument(
        "--batch_size",
        metavar="N",
        type=int,
        help="images of a step (default: the configuration's micro-batch; to train on a CPU, 16)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--steps",
        metavar="N",
        type=int,
        help="of a round of `step` (default: as many as fit --seconds)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=3.0,
        help="of a round, of each that takes turns in it (default: %(default)g)",
    )
    parser.add_argument(
        "--readers",
        metavar="N",
        type=int,
        nargs="+",
        help="numbers of readers for `loader` (default: 1, 2, 4 and so on up to the CPUs)",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    return parser


def run_bench(argv: Sequence[str]) -> int:
    """Run `resscale bench` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, of the command's own or of `fit`'s.
    """
    try:
        arguments, rest = bench_parser().parse_known_args(list(argv))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    check_arguments(arguments)
    words = [word for config in arguments.config for word in ("--config", config)] + rest
    from resscale.cli_bench_runs import bench_loader, bench_step, bench_train
    from resscale.cli_quiet import quiet_third_parties

    quiet_third_parties()
    measure = {"step": bench_step, "loader": bench_loader, "train": bench_train}[arguments.what]
    text, plain = measure(words, arguments)
    print(_as_json(plain) if arguments.json else text)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse numbers that measure nothing.

    Raises:
        UserInputError: the first of them.
    """
    if not arguments.config:
        raise UserInputError(
            "bench measures a configuration: name one, as --config configs/demo.yaml."
        )
    for name in ("batch_size", "rounds", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserInputError(f"--{name} {value} must be at least 1.")
    if not arguments.seconds > 0:
        raise UserInputError(f"--seconds {arguments.seconds:g} must be above 0.")
    for readers in arguments.readers or ():
        if readers < 0:
            raise UserInputError(f"--readers {readers} must be 0 (the rank itself) or more.")


def _as_json(plain: dict[str, Any]) -> str:
    return json.dumps(plain, indent=1)
