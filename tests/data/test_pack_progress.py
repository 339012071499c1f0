"""Progress: lines where there is no terminal, a bar where there is one."""

import os
import pty
import subprocess
import sys

import pytest

from resscale.data.pack_progress import PackProgress


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with PackProgress("pack", 3000, done=1000, interval_s=0.0) as progress:
        progress.advance(500)
        progress.advance(1500)  # the last needs no line: the summary follows
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pack: 1,500 of 3,000 samples, ")
    assert lines[0].endswith("/s")


def test_no_line_before_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with PackProgress("pack", 10) as progress:
        progress.advance(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("unit", ["samples", "bytes"])
def test_bar_in_a_terminal(unit: str) -> None:
    code = (
        "from resscale.data.pack_progress import PackProgress\n"
        f"with PackProgress('pack train', 20, unit={unit!r}) as progress:\n"
        "    progress.advance(20)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "pack train" in shown
    assert "20/20" in shown
