"""The results as a Markdown table."""

from collections.abc import Callable
from pathlib import Path

from resscale.report import group_runs, load_run
from resscale.report.table import results_table

MakeRun = Callable[..., Path]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_holds_final_errors_over_seeds_size_and_rate(make_run: MakeRun) -> None:
    facts = {"num_parameters": 1_234_567, "num_macs": 12_340_000}
    runs = [make_run("a", summary=facts), make_run("b", seed=1, summary=facts)]
    header, rule, row = results_table(group_runs([load_run(run) for run in runs])).splitlines()
    assert cells(header)[:4] == ["group", "done", "test error, %", "training error, %"]
    assert set(rule) == {"|", "-", " "}
    # Seed 0 ends at 100 - 52 = 48% and 100 - 62 = 38%, seed 1 one lower: sd = 1/√2 = 0.71.
    assert cells(row) == [
        "resnet20_cifar", "2 of 2", "47.50 ± 0.71", "37.50 ± 0.71", "1,234,567", "12.34", "100",
        "25",
    ]  # fmt: skip


def test_a_single_run_has_no_deviation_and_what_is_not_recorded_is_a_dash(
    make_run: MakeRun,
) -> None:
    run = make_run(summary={"status": "running"})
    row = results_table(group_runs([load_run(run)])).splitlines()[2]
    assert cells(row)[1:6] == ["0 of 1", "48.00", "38.00", "269,434", "-"]


def test_the_columns_of_all_rows_are_aligned(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", options={"model.model": "resnet29_bottleneck_cifar"})]
    lines = results_table(group_runs([load_run(run) for run in runs])).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) == 1
