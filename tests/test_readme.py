"""What README, CONTRIBUTING and docs say is true: links, commands, exit codes, columns, the tour.

The README's two main commands themselves are run by `.ci/run`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

import resscale
from resscale import (
    cli_bench,
    cli_data_arguments,
    cli_doctor,
    cli_export,
    cli_models,
    cli_plan,
    cli_report,
    cli_runs,
    cli_submit_arguments,
)
from resscale.cli import COMMANDS
from resscale.data.manifest import Manifest, ShardInfo
from resscale.errors import ResscaleError
from resscale.models import ResNetOptions, list_models
from resscale.training.rundir import METRIC_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(resscale.__file__).parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "slurm" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = PAGES[0].read_text()
TRAINING = ("fit", "validate", "test", "predict")
PARSERS = {
    "pack": cli_data_arguments.pack_parser,
    "index": cli_data_arguments.index_parser,
    "inspect": cli_data_arguments.inspect_parser,
    "models": cli_models.models_parser,
    "report": cli_report.report_parser,
    "export": cli_export.export_parser,
    "runs": cli_runs.runs_parser,
    "doctor": cli_doctor.doctor_parser,
}
WITH_TRAINING = {"plan": cli_plan.plan_parser, "bench": cli_bench.bench_parser}


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"there is no section {title!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """The first column of the tables in a text, without their headings."""
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    rules = [number for number, cell in enumerate(rows) if set(cell) <= set("-: ")]
    headings = {number - 1 for number in rules}
    return [
        cell.strip("`")
        for number, cell in enumerate(rows)
        if number not in headings and number not in rules
    ]


def commands_of(text: str) -> Iterator[list[str]]:
    """The arguments of each `resscale ...` in fenced bash blocks and in tables."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["resscale"]:
                    yield words[1:]
    for line in text.splitlines():
        if line.startswith("|"):
            for quoted in re.findall(r"`(resscale [^`]+)`", line):
                yield shlex.split(quoted)[1:]


EXAMPLES = {
    shlex.join(words): words
    for page in PAGES
    if page.name != "faults.md"  # its commands are wrong on purpose
    for words in commands_of(page.read_text())
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_picture_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?://|mailto:", target):
            file, _, anchor = target.partition("#")
            assert (page.parent / file).exists(), f"{page.name} links to {target}"
            assert not anchor, f"{page.name}: link to the page, not into it: {target}"


@pytest.mark.parametrize("words", EXAMPLES.values(), ids=EXAMPLES)
def test_every_command_that_is_shown_parses(words: list[str]) -> None:
    name, arguments = words[0], words[1:]
    assert name in COMMANDS
    if name in PARSERS:
        PARSERS[name]().parse_args(arguments)
        return
    if name in WITH_TRAINING:
        # What is not the command's own is `fit`'s.
        own, rest = WITH_TRAINING[name]().parse_known_args(arguments)
        configs = [word for config in own.config for word in ("--config", config)]
        name, arguments = "fit", [*configs, *rest]
    if name == "submit":
        # What is not the job's is `fit`'s.
        split = cli_submit_arguments.split_arguments(arguments)
        assert not isinstance(split, int), "it would have shown the help"
        name, arguments = "fit", split[1]
    assert name in TRAINING
    for option, value in pairwise(arguments):
        if option == "--config":
            assert (ROOT / value).is_file(), f"there is no {value}"
    parse_training(name, arguments)


def parse_training(stage: str, arguments: list[str]) -> None:
    """Parse with the real parser; a run that only the reader has stands for the demo's."""
    from resscale.cli_lightning import TrainCli

    absolute = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    if "--config" not in absolute:
        absolute = ["--config", str(ROOT / "configs/demo.yaml"), *absolute]
    TrainCli(stage, absolute)  # type: ignore[arg-type]


def test_the_table_of_commands_is_the_command_lines() -> None:
    table = section(README, "Commands")
    assert first_cells(table) == list(COMMANDS)
    for name, (what, _) in COMMANDS.items():
        assert f"| `{name}` | {what} | `resscale {name} " in table


def test_the_tour_has_a_line_for_each_module_and_no_other() -> None:
    block = re.search(r"src/resscale/\n(.*?)```", section(README, "A tour of the code"), re.S)
    assert block
    listed = [line.split()[0] for line in block[1].splitlines() if line.strip()]
    assert sorted(listed) == sorted(str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py"))


def test_the_named_nets_are_as_many_as_the_readme_says_and_stand_in_the_docs() -> None:
    assert f"`resscale models` lists {len(list_models())} nets" in README
    table = section((ROOT / "docs/models.md").read_text(), "The names")
    rows = re.search(r"^```text\n(.*?)^```", table, re.M | re.S)
    assert rows
    assert [row.split()[0] for row in rows[1].splitlines()[1:]] == list_models()


def test_the_table_of_nets_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/models.md").read_text()
    # A part of it: all nets take half a minute.
    assert cli_models.run_models(["*resnet[25]0*"]) == 0
    for row in capsys.readouterr().out.splitlines():
        assert f"\n{row}\n" in page


def test_the_options_of_nets_are_all_described() -> None:
    table = section((ROOT / "docs/models.md").read_text(), "The options")
    listed = {name for cell in first_cells(table) for name in re.findall(r"\w+", cell)}
    assert listed == {field.name for field in fields(ResNetOptions)}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/faults.md"], ids=["README", "faults"]
)
def test_the_exit_codes_are_those_of_the_errors(page: Path) -> None:
    def codes(error: type[ResscaleError]) -> set[int]:
        return {error.exit_code}.union(*(codes(child) for child in error.__subclasses__()))

    listed = first_cells(section(page.read_text(), "Exit codes"))
    assert {int(code) for code in listed} == {0, *codes(ResscaleError)}


def test_the_columns_of_metrics_csv_are_all_described() -> None:
    page = (ROOT / "docs/training.md").read_text()
    assert tuple(first_cells(section(page, "metrics.csv"))) == METRIC_COLUMNS


def test_the_fields_of_the_manifest_are_all_described(tmp_path: Path) -> None:
    shard = ShardInfo("a.tar", 1, 1, "")
    fields = json.loads(Manifest(("a",), (shard,), (1,)).save(tmp_path).read_text())
    page = (ROOT / "docs/data.md").read_text()
    assert sorted(first_cells(section(page, "manifest.json"))) == sorted(fields)


def test_the_worked_example_of_the_order_prints_its_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = section((ROOT / "docs/data.md").read_text(), "The order")
    program = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert program
    exec(program[1], {})
    printed = [re.findall(r"\d+", line) for line in capsys.readouterr().out.splitlines()]
    rows = re.findall(r"^\| \d+ \|(.*)\|$", text, re.M)
    assert printed == [re.findall(r"\d+", row) for row in rows]


def test_the_options_of_pack_are_all_described() -> None:
    choices = next(a.choices for a in PARSERS["pack"]()._actions if a.dest == "kind")
    options = {o for parser in choices.values() for o in parser._options() if o.startswith("--")}
    page = (ROOT / "docs/data.md").read_text()
    assert set(first_cells(section(page, "Packing"))) == options - {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    assert not re.search(r"/(tmp|work|root|home)/", page.read_text())


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 150_000
