"""`benchmarks/rendezvous.py`: real ranks meet at a real store, once each."""

import subprocess
import sys
from pathlib import Path

import pytest
from rendezvous import main

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "rendezvous.py"


def test_all_ranks_meet_with_and_without_gloo() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--ranks",
            "6",
            "--gloo",
            "4",
            "--rounds",
            "2",
            "--processes",
            "1",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("A look-up of ::ffff:127.0.0.1 takes ")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[4:]]
    assert rows == [["6", "store"], ["4", "store and gloo's connections"]]


def test_a_single_round_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rounds", "1"])
    assert "--rounds 1 must be 2 or more" in capsys.readouterr().err
