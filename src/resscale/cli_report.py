"""The command `resscale report`.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from resscale.cli_data_arguments import Parser, parse
from resscale.errors import UserInputError

_EXAMPLES = """examples:
  resscale report runs/demo
  resscale report runs/paper --out paper.html
  resscale report runs/demo --mistakes
  resscale report plain=runs/plain20 residual=runs/resnet20-s0 residual=runs/resnet20-s1

Runs whose configurations differ in nothing but the seed become one curve with a band; so do runs
with the same label. Each run has a page of its own too, linked from the report's table of runs."""


def report_parser() -> Parser:
    """Return the parser of `resscale report`."""
    parser = Parser(
        prog="resscale report",
        description="Draw runs together on one HTML page: curves, results, differences.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, finished or running, or a folder of them; LABEL=RUN names its curve",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page; its pictures, as PNG, and a page per run are written beside it "
        "(report.html in the run directory of a single run, otherwise here)",
    )
    parser.add_argument(
        "--layer_responses",
        action="store_true",
        help="measure how strongly each layer of each run's newest checkpoint responds to "
        "validation images, and draw it (He et al. 2015, figure 7); takes seconds a run",
    )
    parser.add_argument(
        "--mistakes",
        action="store_true",
        help="measure each run's best checkpoint on all its validation images, for its page: the "
        "worst-classified classes, the most confident mistakes as pictures, the confusion",
    )
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="what --mistakes measures: 'best' (default), 'auto' (the newest), or, of a single "
        "run, a checkpoint",
    )
    return parser


def run_report(argv: list[str]) -> int:
    """Run `resscale report` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, no runs there, or a page that cannot be written.
    """
    arguments = parse(report_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.report import find_runs, group_runs, load_run, write_report
    from resscale.report.page import check_page
    from resscale.report.table import results_table

    found = find_runs(arguments.runs)
    folder = found[0][1] if len(found) == 1 else Path()
    out = Path(arguments.out) if arguments.out else folder / "report.html"
    check_page(out)
    _check_checkpoint(arguments, len(found))
    groups = group_runs([load_run(path, label) for label, path in found])
    if arguments.layer_responses:
        from resscale.cli_responses import measure_responses

        for _, path in found:
            print(f"wrote {measure_responses(path)}", flush=True)
    if arguments.mistakes:
        from resscale.cli_mistakes import measure_mistakes

        for _, path in found:
            measure_mistakes(path, arguments.ckpt_path)
    written = write_report(groups, out, time.strftime("%Y-%m-%d %H:%M"))
    print(results_table(groups))
    for path in written:
        print(f"wrote {path}")
    return 0


def _check_checkpoint(arguments: argparse.Namespace, num_runs: int) -> None:
    """Find a checkpoint that nothing would measure, or that cannot be of all runs."""
    asked = arguments.ckpt_path
    if asked is None:
        return
    if not arguments.mistakes:
        raise UserInputError(
            f"--ckpt_path {asked} says what --mistakes measures, and that is not asked for: add "
            f"--mistakes, or leave it out."
        )
    if asked not in ("best", "auto") and num_runs > 1:
        raise UserInputError(
            f"--ckpt_path {asked} is of one run, and there are {num_runs}: name one run, or choose "
            f"'best' or 'auto'."
        )
