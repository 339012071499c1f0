"""The signal handler sets a flag and does nothing else; whole runs are in test_resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Checkpoint

from resscale.errors import UserInputError
from resscale.training.checkpoint import Checkpointer
from resscale.training.preempt import SIGNALS, PreemptConfig, Preemption, margin_s_of


@pytest.fixture
def preemption():
    """A Preemption that has taken the signals over, as at the start of training."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    callback = Preemption(Checkpointer())
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))
    callback.on_train_start(trainer, None)
    yield callback
    for number, handler in before.items():
        signal.signal(number, handler)


def test_usr1_is_left_to_nccl_and_lightning() -> None:
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_a_flag(
    preemption: Preemption, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    assert preemption.requested is None
    os.kill(os.getpid(), number)
    assert preemption.requested == number.name
    assert "stopping at the next step boundary" in capfd.readouterr().err


def test_a_second_ctrl_c_gives_up_at_once(preemption: Preemption) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_term_changes_nothing(
    preemption: Preemption, capfd: pytest.CaptureFixture[str]
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.requested == "SIGTERM"
    assert capfd.readouterr().err.count("stopping") == 1


def test_the_signals_are_given_back_when_training_ends(preemption: Preemption) -> None:
    assert signal.getsignal(signal.SIGTERM) == preemption._note
    preemption.on_train_end(None, None)
    assert all(signal.getsignal(number) != preemption._note for number in SIGNALS)


def test_it_is_called_among_the_checkpoint_callbacks_that_lightning_calls_last() -> None:
    assert issubclass(Preemption, Checkpoint)
    assert issubclass(Checkpointer, Checkpoint)


def test_the_margin_follows_from_what_a_save_and_a_step_have_taken() -> None:
    # 60 + 2 × (20 + 3)
    assert margin_s_of(PreemptConfig(), longest_save_s=20.0, longest_step_s=3.0) == 106.0
    assert margin_s_of(PreemptConfig(15.0), longest_save_s=20.0, longest_step_s=3.0) == 15.0


def test_a_margin_below_nothing_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"preempt.margin_s=-1 must be 0 or more; leave it"):
        PreemptConfig(-1.0)


def test_a_signal_in_the_middle_of_a_print_does_no_harm() -> None:
    # Python's own buffers refuse to be written to from a handler that has interrupted a write.
    program = """
import os, signal, sys
from types import SimpleNamespace
from resscale.training.checkpoint import Checkpointer
from resscale.training.preempt import Preemption
callback = Preemption(Checkpointer())
callback.on_train_start(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=object())), None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def again(number, frame):
    callback.requested = None
    callback._note(signal.SIGUSR2, frame)
signal.signal(signal.SIGALRM, again)
for _ in range(20_000):
    print("x" * 200, file=sys.stderr, flush=True)
print("well")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert "reentrant" not in ended.stderr
    assert ended.stdout == "well\n"


@pytest.mark.parametrize("near", [True, False])
def test_the_end_of_the_job_s_time_is_a_request(
    near: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    margins: list[float] = []

    def is_near(margin_s: float) -> bool:
        margins.append(margin_s)
        return near

    callback = Preemption(Checkpointer(), PreemptConfig(90.0), is_near)
    assert callback._is_asked() is near
    assert margins == [90.0]
    assert ("the time limit is near" in capsys.readouterr().err) is near
