"""A request to stop that comes before training ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from resscale.training.startup import Startup

BEGIN = """
import sys
from resscale.training.startup import STARTUP
STARTUP.watch(float(sys.argv[1]))
STARTUP.before_end = lambda: print("ranks ended", flush=True)
"""
# Locks a mutex that it holds: the main thread waits in C, where no handler of Python's runs.
STUCK = """
import ctypes
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
libc.pthread_mutex_lock(mutex)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)
"""
SLEEPS = """
import time
print("ready", flush=True)
time.sleep(60)
"""
TRAINS = """
import signal, sys, time
signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(9))
STARTUP.over()
print("ready", flush=True)
time.sleep(60)
"""
# Knows only later whom to tell.
LEARNS = """
import time
STARTUP.before_end = None
print("ready", flush=True)
time.sleep(1)
STARTUP.before_end = lambda: print("ranks told", flush=True)
time.sleep(60)
"""
GIVES_BACK = """
import signal, time
before = signal.signal(signal.SIGTERM, lambda number, frame: None)
STARTUP.over()
signal.signal(signal.SIGTERM, before)
print("ready", flush=True)
time.sleep(60)
"""


def start(program: str, patience_s: float = 0.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, str(patience_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("program", [STUCK, SLEEPS], ids=["waits in a library", "waits in Python"])
def test_a_signal_before_training_ends_the_process_with_75(
    program: str, number: signal.Signals
) -> None:
    process = start(program)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert f"{number.name}: stopped before training; nothing to save" in err
    assert out == "ranks ended\n"


@pytest.mark.parametrize(("patience_s", "told"), [(30.0, "ranks told\n"), (0.0, "")])
def test_who_has_just_begun_ends_when_it_can_tell_the_others(patience_s: float, told: str) -> None:
    process = start(LEARNS, patience_s)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, told)


def test_nobody_waits_longer_than_stated_for_somebody_to_tell() -> None:
    process = start("STARTUP.before_end = None\n" + SLEEPS, patience_s=0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_ctrl_c_before_training_is_python_s_own() -> None:
    process = start(SLEEPS)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_once_training_has_the_signals_they_are_its_own() -> None:
    process = start(TRAINS)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=30)
    assert process.returncode == 9


def test_what_nobody_has_taken_is_as_it_was_before() -> None:
    process = start(TRAINS)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_what_training_gives_back_afterwards_ends_the_process_again() -> None:
    process = start(GIVES_BACK)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_a_thread_leaves_the_signals_as_they_are() -> None:
    startup, before = Startup(), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=startup.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    startup.over()


def test_it_can_begin_again() -> None:
    startup, before = Startup(), signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        startup.watch()
        assert signal.getsignal(signal.SIGTERM) is not before
        startup.over()
        assert signal.getsignal(signal.SIGTERM) is before
