"""The command line: its table of commands, its help, and errors that become exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from resscale import __version__, cli
from resscale.cli import COMMANDS, main
from resscale.errors import Preempted, ResscaleError, TrainingStopped, UserInputError

Run = Callable[..., subprocess.CompletedProcess[str]]

# Asks every command for its help in one process, and says what was imported for it.
ASK_FOR_HELP = """
import contextlib, io, json, sys
from resscale.cli import COMMANDS, main
texts, codes = {}, {}
for name in ["", *COMMANDS]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        codes[name] = main([name, "--help"] if name else ["--help"])
    texts[name] = out.getvalue()
heavy = sorted({"torch", "lightning", "torchvision", "jsonargparse"} & set(sys.modules))
print(json.dumps({"texts": texts, "codes": codes, "heavy": heavy}))
"""

# A command that writes far more than a pipe holds.
WRITE_A_LOT = """
import sys, types
from resscale import cli
def run(arguments):
    for _ in range(10_000):
        print("x" * 80)
    return 0
sys.modules["chatty"] = types.ModuleType("chatty")
sys.modules["chatty"].run = run
cli.COMMANDS["chatty"] = ("write", "chatty:run")
sys.exit(cli.main(["chatty"]))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP], capture_output=True, text=True, check=True
    )
    answered: dict[str, dict[str, str]] = json.loads(done.stdout)
    return answered


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """A function that adds the command `pretend`, which raises the given error."""

    def add(error: BaseException) -> None:
        module = ModuleType("pretended")

        def run(arguments: list[str]) -> int:
            raise error

        module.run = run
        monkeypatch.setitem(sys.modules, "pretended", module)
        monkeypatch.setitem(cli.COMMANDS, "pretend", ("raise", "pretended:run"))

    return add


def test_the_commands_are_the_documented_ones() -> None:
    expected = [
        "fit",
        "validate",
        "test",
        "predict",
        "submit",
        "runs",
        "doctor",
        "plan",
        "bench",
        "pack",
        "index",
        "inspect",
        "models",
        "report",
        "export",
    ]
    assert list(COMMANDS) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example_of_it(
    answers: dict[str, dict[str, str]], command: str
) -> None:
    text = answers["texts"][command]
    assert answers["codes"][command] == 0
    assert text.startswith(f"usage: resscale {command}")
    _, _, examples = text.partition("example")
    assert f"resscale {command} " in examples


def test_help_imports_neither_torch_nor_lightning(answers: dict[str, dict[str, str]]) -> None:
    assert answers["heavy"] == []


def test_the_overview_lists_each_command_and_an_example(
    answers: dict[str, dict[str, str]],
) -> None:
    text = answers["texts"][""]
    for name, (what, _) in COMMANDS.items():
        assert f"{name:<10} {what}" in text
    assert "resscale fit --config configs/demo.yaml" in text


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_no_command_gives_the_overview(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert "usage: resscale <command>" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vaildate"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "resscale: 'vaildate' is not a command; there are fit, validate, test, predict, "
        "submit, runs, doctor, plan, bench, pack, index, inspect, models, report, export. "
        "Did you mean 'validate'?\n"
    )


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resscale {__version__}\n"


def test_python_m_resscale_is_the_same_command(resscale: Run) -> None:
    version, wrong = resscale("--version"), resscale("fti")
    assert (version.returncode, version.stdout) == (0, f"resscale {__version__}\n")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserInputError("no"), 2), (TrainingStopped("no"), 70), (Preempted("no"), 75)],
)
def test_an_error_of_ours_is_one_line_on_stderr(
    pretend: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: ResscaleError,
    code: int,
) -> None:
    pretend(error)
    assert main(["pretend"]) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "resscale: no\n")


def test_a_bug_keeps_its_traceback(pretend: Callable[[BaseException], None]) -> None:
    pretend(ResscaleError("cannot be"))
    with pytest.raises(ResscaleError, match="cannot be"):
        main(["pretend"])


def test_ctrl_c_ends_with_130_and_no_traceback(
    pretend: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(KeyboardInterrupt())
    assert main(["pretend"]) == 130  # 128 + SIGINT (2), as shells say it
    assert capsys.readouterr().err == "resscale: interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_A_LOT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    said = writer.stderr.read()
    writer.stderr.close()
    assert (writer.wait(60), said) == (0, b"")


def test_without_arguments_the_process_s_own_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resscale", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("resscale ")
