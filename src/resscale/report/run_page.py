"""The page of one run: its facts, its course, and the mistakes of its net."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from resscale import __version__
from resscale.report.elements import NOT_RECORDED, picture_of, section_of
from resscale.report.mistakes_section import mistakes_sections
from resscale.report.run_curves import draw_run
from resscale.report.run_series import Course, SeriesName, read_course
from resscale.report.runs import Run
from resscale.report.style import PAGE, STYLE


def page_names(runs: Sequence[Run], out: Path) -> dict[Path, str]:
    """Return the file name of each run's page, by the run's path: `<stem of out>-<run>.html`.

    Args:
        runs: each with a directory of its own; of equal names the later ones are numbered.
        out: the report that they belong to.
    """
    names: dict[Path, str] = {}
    for run in runs:
        stem = f"{out.stem}-{run.path.resolve().name}"
        name, number = f"{stem}.html", 2
        while name in names.values():
            name, number = f"{stem}-{number}.html", number + 1
        names[run.path] = name
    return names


def render_run(run: Run, group: str, report: str, date: str) -> str:
    """Return a run's page.

    Args:
        run: the run.
        group: name of the group that it is compared in.
        report: file name of the report that links here, in the same folder.
        date: of the report, in words.

    Raises:
        DataFormatError: a file of the run is damaged.
    """
    name = run.path.resolve().name
    course = read_course(run)
    sections = [
        _facts(run, course),
        '<div class="pictures">',
        *(picture_of(picture, [name]) for picture in draw_run(course)),
        "</div>",
        mistakes_sections(run),
        _command(run),
    ]
    return PAGE.substitute(
        title=escape(name),
        style=STYLE,
        facts=f"{escape(group)}. Drawn {escape(date)} by resscale {__version__}. "
        f'<a href="{link(report)}">To the report</a>',
        sections="\n".join(sections),
    )


def link(name: str) -> str:
    """Return the address of a page in the same folder, for an attribute."""
    # A colon in the first part would make it a scheme.
    return escape(f"./{quote(name)}", quote=True)


def _facts(run: Run, course: Course) -> str:
    summary = run.summary
    state = escape(run.state) if run.is_done else f'<span class="warn">{escape(run.state)}</span>'
    if reason := summary.get("reason"):
        state += f"<br>{escape(str(reason))}"
    macs = summary.get("num_macs")
    facts = [
        ("status", state),
        ("net", escape(str(run.config.get("model.model", "not recorded")))),
        ("parameters", _number(summary.get("num_parameters"))),
        ("GMACs per image", NOT_RECORDED if macs is None else f"{macs / 1e9:.3g}"),
        ("best top-1", _top1(run, best=True)),
        ("last top-1", _top1(run, best=False)),
        *_averaged(course),
        ("images seen", _number(summary.get("samples_seen"))),
        ("images/s", _number(run.images_per_s)),
        ("data wait", NOT_RECORDED if run.data_wait_pct is None else f"{run.data_wait_pct:.1f}%"),
        ("most memory", _largest(course, "memory_gib", "GiB")),
        ("ranks", _number(summary.get("world_size"))),
        ("seed", escape(run.seed)),
        ("last written", escape(run.last_written)),
    ]
    items = "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>\n" for title, value in facts)
    return section_of("Run", f'<dl class="tiles">\n{items}</dl>')


def _top1(run: Run, *, best: bool) -> str:
    """Return a top-1 in percent and its epoch."""
    errors = run.curves["test_error_pct"]
    if not errors:
        return NOT_RECORDED
    epoch = min(errors, key=lambda e: (errors[e], e)) if best else max(errors)
    return f"{100 - errors[epoch]:.2f}%<br>epoch {epoch:,}"


def _averaged(course: Course) -> list[tuple[str, str]]:
    top1 = course.series["ema_top1_pct"]
    return [("last top-1, averaged weights", f"{top1.mean[-1]:.2f}%")] if top1.at else []


def _largest(course: Course, name: SeriesName, unit: str) -> str:
    values = course.series[name].high
    return f"{max(values):.3g} {unit}" if values else NOT_RECORDED


def _number(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else NOT_RECORDED


def _command(run: Run) -> str:
    command = run.summary.get("command")
    shown = f"<code>{escape(str(command))}</code>" if command else NOT_RECORDED
    return section_of("Command", f"<p>{shown}</p>")
