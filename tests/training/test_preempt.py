"""The signal handler sets a flag and does nothing else; whole runs are in test_resume."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Checkpoint

from resscale.training.checkpoint import Checkpointer
from resscale.training.preempt import SIGNALS, Preemption


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
    preemption: Preemption, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preemption.requested is None
    os.kill(os.getpid(), number)
    assert preemption.requested == number.name
    assert "stopping at the next step boundary" in capsys.readouterr().err


def test_a_second_ctrl_c_gives_up_at_once(preemption: Preemption) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_term_changes_nothing(
    preemption: Preemption, capsys: pytest.CaptureFixture[str]
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.requested == "SIGTERM"
    assert capsys.readouterr().err.count("stopping") == 1


def test_the_signals_are_given_back_when_training_ends(preemption: Preemption) -> None:
    assert signal.getsignal(signal.SIGTERM) == preemption._note
    preemption.on_train_end(None, None)
    assert all(signal.getsignal(number) != preemption._note for number in SIGNALS)


def test_it_is_called_among_the_checkpoint_callbacks_that_lightning_calls_last() -> None:
    assert issubclass(Preemption, Checkpoint)
    assert issubclass(Checkpointer, Checkpoint)
