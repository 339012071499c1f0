"""A log file for each rank, in real processes: what lands in it, and what on the console."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from resscale.errors import UserInputError
from resscale.training.rank_log import RankLog, Tee, keep_copying, write_to_log
from resscale.training.rundir import RunDir

SPEAK = """
import ctypes, os, sys
print("a line of stdout")
print("a line of stderr", file=sys.stderr)
os.write(2, b"a line of the descriptor\\n")
ctypes.CDLL(None).puts(b"a line of a C library")
ctypes.CDLL(None).fflush(None)
"""


def speak(
    run_dir: Path, rank: int, world_size: int, script: str = SPEAK, more: str = ""
) -> subprocess.CompletedProcess[str]:
    """Open a rank's log in a process and let it run a script."""
    begin = (
        "from resscale.training.rank_log import RankLog; "
        "from resscale.training.rundir import RunDir; "
        f"log = RankLog(RunDir({str(run_dir)!r}), {rank}, {world_size}{more}); log.open()"
    )
    return subprocess.run(
        [sys.executable, "-c", f"{begin}\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lines(run_dir: Path, rank: int) -> list[str]:
    return RunDir(run_dir).log(rank).read_text().splitlines()


def test_another_rank_speaks_in_its_file_alone_and_c_libraries_do_too(tmp_path: Path) -> None:
    done = speak(tmp_path, 3, 8)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert lines(tmp_path, 3)[1:] == [
        "a line of stdout",
        "a line of stderr",
        "a line of the descriptor",
        "a line of a C library",
    ]


def test_rank_0_speaks_on_the_console_and_its_file_has_a_copy(tmp_path: Path) -> None:
    done = speak(tmp_path, 0, 8)
    assert done.returncode == 0
    assert "a line of stdout\n" in done.stdout
    assert "a line of a C library\n" in done.stdout
    assert done.stderr == "a line of stderr\na line of the descriptor\n"
    assert lines(tmp_path, 0)[1:] == ["a line of stdout", "a line of stderr"]


def test_each_start_begins_with_a_line_that_says_who_speaks(tmp_path: Path) -> None:
    speak(tmp_path, 3, 8, more=", 'job17', 0")
    speak(tmp_path, 3, 8, more=", 'job17', 1")
    speak(tmp_path, 3, 8)
    starts = [line for line in lines(tmp_path, 3) if line.startswith("===")]
    host = re.escape(socket.gethostname())
    form = rf"=== \d+-\d\d-\d\dT\S+  rank 3 of 8 on {host}  process \d+"
    for line, job in zip(starts, ("  job17  restart 0", "  job17  restart 1", ""), strict=True):
        assert re.fullmatch(form + job, line)
    assert len(lines(tmp_path, 3)) == 3 * (1 + 4)


def test_one_rank_alone_has_no_file(tmp_path: Path) -> None:
    done = speak(tmp_path, 0, 1)
    assert "a line of stdout" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise SystemExit(75)", 75),
        ("import os; os._exit(70)", 70),
        ("raise OSError('gone')", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_exit_codes_stay_and_last_words_reach_the_file(
    tmp_path: Path, rank: int, end: str, code: int
) -> None:
    done = speak(tmp_path, rank, 8, f"print('last words')\n{end}")
    assert done.returncode == code
    assert lines(tmp_path, rank)[1] == "last words"
    assert (lines(tmp_path, rank)[-1] == "OSError: gone") == (code == 1)
    assert ("OSError: gone" in done.stderr) == (code == 1 and rank == 0)


def test_a_rank_that_nobody_can_speak_for_speaks_up(tmp_path: Path) -> None:
    script = "print('before'); log.speak_up(); log.speak_up(); raise OSError('no route to rank 0')"
    done = speak(tmp_path, 3, 8, script)
    said = done.stderr.splitlines()
    assert re.fullmatch(r"rank 3 of 8 on \S+, process \d+:", said[0])
    assert said[1].startswith("Traceback")
    assert said[-1] == "OSError: no route to rank 0"
    assert lines(tmp_path, 3)[1:] == ["before", *said]


def test_speaking_up_on_the_console_is_nothing_new(tmp_path: Path) -> None:
    done = speak(tmp_path, 0, 8, "log.speak_up(); print('once')")
    assert (done.stdout, done.stderr) == ("once\n", "")


def test_a_file_that_cannot_be_written_is_told_with_the_rank(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(UserInputError, match=r"rank 3 of 8 on .* cannot write its log .*on every"):
        RankLog(RunDir(tmp_path), 3, 8).open()


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError("no space left on device")

    def flush(self) -> None:
        raise OSError("no space left on device")


def test_a_full_disk_does_not_silence_the_console() -> None:
    console = io.StringIO()
    tee = Tee(console, Full())
    print("still here", file=tee, flush=True)  # type: ignore[arg-type]
    assert console.getvalue() == "still here\n"


def test_to_others_a_copied_console_is_the_console() -> None:
    parent, terminal = os.openpty()
    with open(terminal, "w") as console:  # noqa: PTH123 - a descriptor
        tee = Tee(console, io.StringIO())
        assert tee.isatty()
        assert tee.fileno() == terminal
        assert tee.encoding == console.encoding
    os.close(parent)


def test_a_stream_that_a_library_puts_before_the_console_is_copied_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console, between, log = io.StringIO(), io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", Tee(console, log))
    before = (sys.stdout, sys.stderr)
    monkeypatch.setattr(sys, "stderr", between)
    keep_copying(before)
    print("both", file=sys.stderr)
    write_to_log("the file alone")
    assert console.getvalue() == ""
    assert between.getvalue() == "both\n"
    assert log.getvalue() == "both\nthe file alone\n"
    assert sys.stdout is before[0]
