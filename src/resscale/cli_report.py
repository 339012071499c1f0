"""The command `resscale report`.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from resscale.cli_data_arguments import Parser, parse

_EXAMPLES = """examples:
  resscale report runs/demo
  resscale report runs/paper --out paper.html
  resscale report plain=runs/plain20 residual=runs/resnet20-s0 residual=runs/resnet20-s1

Runs whose configurations differ in nothing but the seed become one curve with a band; so do runs
with the same label."""


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
        help="the page; its pictures are written beside it, as PNG (report.html in the run "
        "directory of a single run, otherwise here)",
    )
    parser.add_argument(
        "--layer_responses",
        action="store_true",
        help="measure how strongly each layer of each run's newest checkpoint responds to "
        "validation images, and draw it (He et al. 2015, figure 7); takes seconds a run",
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
    groups = group_runs([load_run(path, label) for label, path in found])
    if arguments.layer_responses:
        from resscale.cli_responses import measure_responses

        for _, path in found:
            print(f"wrote {measure_responses(path)}", flush=True)
    written = write_report(groups, out, time.strftime("%Y-%m-%d %H:%M"))
    print(results_table(groups))
    for path in written:
        print(f"wrote {path}")
    return 0
