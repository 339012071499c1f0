"""The command report, called with the arguments that a user types, on real runs too."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resscale.cli_report import run_report
from resscale.errors import UserInputError
from resscale.training.rundir import RunDir

REAL_RUNS = """
import sys
from resscale.cli import main
for seed in "01":
    code = main(["fit", "--config", sys.argv[1], "--run_dir", f"runs/s{seed}",
        "--seed_everything", seed, "--trainer.max_epochs", "2",
        "--trainer.limit_train_batches", "4", "--trainer.log_every_n_steps", "2",
        "--data.num_workers", "0"])
    assert code == 0
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small runs in `runs/` of the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", 0), ("two", 1)):
        run = RunDir(tmp_path / "runs" / name)
        run.append_metrics({"epoch": 0, "step": 1, "train/loss": 1.0, "train/top1": 0.5})
        run.append_metrics({"epoch": 0, "step": 1, "val/loss": 1.0, "val/top1": 0.25 + seed / 4})
        config = {"seed_everything": seed, "model": {"model": "resnet20_cifar"}}
        run.config.write_text(yaml.safe_dump(config))
        run.write_summary({"status": "done", "epoch": 1})
    return tmp_path / "runs"


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report(["--help"]) == 0
    assert "examples:\n  resscale report runs/demo\n" in capsys.readouterr().out


def test_help_imports_nothing_heavy_and_the_report_no_torch(runs: Path) -> None:
    code = (
        "import sys; from resscale.cli_report import run_report; run_report(['--help']);"
        "heavy = {'numpy', 'torch', 'matplotlib', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy; run_report(['runs']);"
        "assert not {'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_report_of_one_run_lies_in_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report(["runs/one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| resnet20_cifar | 1 of 1 | 75.00 ")
    assert lines[3:] == [
        "wrote runs/one/report.html",
        "wrote runs/one/report-error.png",
        "wrote runs/one/report-loss.png",
        "wrote runs/one/report-throughput.png",
        "wrote runs/one/report-one.html",
    ]
    assert "75.00" in (runs / "one" / "report.html").read_text()  # 100 × (1 - 0.25)


@pytest.mark.parametrize("arguments", [["runs"], ["runs/one", "runs/two"]])
def test_the_report_of_several_lies_here(
    runs: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_report(arguments) == 0
    table, _, files = capsys.readouterr().out.partition("wrote ")
    assert "| resnet20_cifar | 2 of 2 | 62.50 ± 17.68 " in table
    assert files.startswith("report.html\n")
    # 75% and 50%: mean 62.5, sample deviation 12.5 × √2
    assert "62.50 ± 17.68" in (runs.parent / "report.html").read_text()


def test_labels_and_the_name_of_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report(["a=runs/one", "b=runs/two", "--out", "ab.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["a", "b"]
    assert lines[4] == "wrote ab.html"
    assert (runs.parent / "ab-loss.png").is_file()
    assert (runs.parent / "ab-two.html").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: RUN"),
        ("runs --ot x.html", r"unrecognized arguments: --ot x.html\. Did you mean '--out'\?"),
        ("runs/on", r"there is no run runs/on; .*Did you mean 'runs/one'\?"),
        ("runs --out x.pdf", r"--out x.pdf must end in \.html"),
        # Before anything is measured: these runs have no checkpoint, which would be said then.
        ("runs --layer_responses --out x.pdf", r"--out x.pdf must end in \.html"),
        ("runs --layer_responses --out no/x.html", r"lies in no, and there is no such folder"),
        ("runs --mistakes", r"runs/one has no whole checkpoint, and --mistakes measures"),
        ("runs/one --ckpt_path best", r"--ckpt_path best says what --mistakes measures, .* add"),
        ("runs --mistakes --ckpt_path a.ckpt", r"a\.ckpt is of one run, and there are 2: name one"),
    ],
)
def test_what_cannot_be_done_is_said(runs: Path, line: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        run_report(line.split())


def test_two_real_runs_become_one_group(repository: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", REAL_RUNS, str(repository / "configs/demo.yaml")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    out = tmp_path / "report.html"
    assert run_report([str(tmp_path / "runs"), "--out", str(out)]) == 0
    last = []
    for name in ("s0", "s1"):
        with (tmp_path / "runs" / name / "metrics.csv").open(newline="") as file:
            top1 = [float(row["val/top1"]) for row in csv.DictReader(file) if row["val/top1"]]
        assert len(top1) == 2
        last.append(100 * (1 - top1[-1]))
    html = out.read_text()
    assert f"<span>{sum(last) / 2:.2f} ± {abs(last[0] - last[1]) / 2**0.5:.2f}</span>" in html
    assert ">2 (0, 1)</span>" in html
    assert "<span>269,434</span>" in html
