"""The callback notes each phase of a real training and says how it failed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resscale.errors import Preempted, TrainingStopped, UserInputError
from resscale.training import failure_watch
from resscale.training.checkpoint_io import PendingSave
from resscale.training.failure import EVENT, Failure
from resscale.training.failure_watch import FailureWatch
from resscale.training.phase import RankRecord
from resscale.training.rundir import RunDir
from resscale.training.watchdog import Watchdog

STEPS = 2


class Line(LightningModule):
    """A line through one point."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.line(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.line(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Loader(DataLoader[Any]):
    """Says when it is waited for, as our loaders do."""

    before_wait: Callable[[], None]

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            self.before_wait()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch


class Points(LightningDataModule):
    """Two batches to train on, one to evaluate on."""

    before_wait: Callable[[], None]

    def _loader(self, batches: int) -> Loader:
        loader = Loader(torch.ones(batches, 1))  # type: ignore[arg-type]
        loader.before_wait = self.before_wait
        return loader

    def train_dataloader(self) -> Loader:
        return self._loader(STEPS)

    def val_dataloader(self) -> Loader:
        return self._loader(1)


class Act(Callback):
    """Does something in a hook of training, and notes the phase in each."""

    def __init__(self, hook: str = "", act: Callable[[Trainer], None] | None = None) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.hook = hook
        self.act = act

    def _in(self, hook: str, trainer: Trainer) -> None:
        record = trainer.rank_record  # type: ignore[attr-defined]
        self.seen.append((hook, str(record.phase), record.step))
        if self.act is not None and hook == self.hook:
            self.act(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in("train start", trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._in("batch start", trainer)

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        self._in("before backward", trainer)

    def on_after_backward(self, trainer: Trainer, *args: Any) -> None:
        self._in("after backward", trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._in("batch end", trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._in("validation", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._in("epoch end", trainer)


def fit(run: RunDir, act: Act, watch: FailureWatch | None = None) -> FailureWatch:
    watch = watch or FailureWatch(run, hang_timeout_s=0)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[watch, act],
    )
    watch.attach(trainer)
    trainer.fit(Line(), Points())
    return watch


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def raise_(error: BaseException) -> Callable[[Trainer], None]:
    def act(trainer: Trainer) -> None:
        raise error

    return act


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
]


def test_each_part_of_a_step_is_its_phase(run: RunDir) -> None:
    act = Act()
    fit(run, act)
    step = [
        ("batch start", "forward"),
        ("before backward", "backward"),
        ("after backward", "sync"),
        ("batch end", "sync"),
    ]
    assert [(hook, phase) for hook, phase, _ in act.seen] == [
        ("train start", "start"),
        *step * STEPS,
        ("validation", "evaluate"),
        ("epoch end", "sync"),
    ]
    done = [steps for hook, _, steps in act.seen if hook == "batch end"]
    assert done == [1, 2]  # optimizer steps done


def test_a_run_that_ends_well_leaves_no_records(run: RunDir) -> None:
    watch = fit(run, Act())
    assert list(run.path.iterdir()) == []
    assert watch.consequence_of is None


def test_an_exception_is_named_with_its_step_phase_and_line(run: RunDir) -> None:
    act = Act("after backward", raise_(ZeroDivisionError("the injected error")))
    with pytest.raises(ZeroDivisionError) as caught:
        fit(run, act)
    (event,) = run.read_events(EVENT)
    assert (event["rank"], event["step"], event["phase"]) == (0, 0, "sync")
    assert (event["kind"], event["exception"]) == ("exception", "ZeroDivisionError")
    assert event["message"] == "the injected error"
    assert f'File "{__file__}"' in event["traceback"]
    (note,) = caught.value.__notes__
    assert note.startswith("rank 0 of 1 failed first, at step 0 in phase sync (host ")
    assert note.endswith("): ZeroDivisionError: the injected error")


def test_a_process_without_other_ranks_is_left_to_go_on_behind_an_error(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(run, Act("batch start", raise_(ZeroDivisionError())))
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(10)
            assert not thread.is_alive()


def test_an_error_while_waiting_for_a_batch_is_one_of_data(run: RunDir) -> None:
    def spoil(trainer: Trainer) -> None:
        def fail() -> None:
            trainer.rank_record.enter_data()  # type: ignore[attr-defined]
            raise OSError("the disk is gone")

        trainer.train_dataloader.before_wait = fail  # type: ignore[union-attr]

    with pytest.raises(OSError, match="the disk is gone"):
        fit(run, Act("batch end", spoil))
    assert run.read_events(EVENT)[0]["phase"] == "data"


@pytest.mark.parametrize("error", [Preempted("asked to stop"), TrainingStopped("the loss is nan")])
def test_a_run_that_is_stopped_has_not_failed(run: RunDir, error: Exception) -> None:
    with pytest.raises(type(error)):
        fit(run, Act("batch end", raise_(error)))
    assert run.read_events(EVENT) == []


def test_a_fault_of_the_users_before_training_leaves_the_ledger_alone(run: RunDir) -> None:
    with pytest.raises(UserInputError):
        fit(run, Act("train start", raise_(UserInputError("other data"))))
    assert not run.events.exists()


def test_a_fault_of_the_users_in_training_is_named_with_its_exit_code(run: RunDir) -> None:
    with pytest.raises(UserInputError):
        fit(run, Act("batch end", raise_(UserInputError("the disk is full"))))
    (event,) = run.read_events(EVENT)
    assert (event["exit_code"], event["step"]) == (2, 1)


def test_the_failure_of_another_rank_is_told_once_as_the_last_lines(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_summary({"status": "failed", "reason": "Connection closed by peer"})
    watch = FailureWatch(run, hang_timeout_s=0)
    watch.tell()
    assert capsys.readouterr().err == ""  # nothing yet
    watch.consequence_of = Failure(
        "exception", 1, 2, "h", 7, 3, "data", "OSError", "gone", "Traceback ...", 1
    )
    watch.tell()
    watch.tell()
    summary = "rank 1 of 2 failed first, at step 3 in phase data (host h, process 7): OSError: gone"
    assert capsys.readouterr().err == (
        f"Traceback ...\n{summary}\nsee {run.events}; go on from the newest checkpoint with "
        f"--run_dir {run.path} --ckpt_path auto\n"
    )
    assert run.read_summary() == {"status": "failed", "reason": summary}


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in its order; the end of the process is one of it. Nobody is waited for."""
    happened: list[str] = []

    def leave(code: int) -> None:
        happened.append(f"left with {code}")
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(failure_watch, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(failure_watch, "_SPEAKERS_PATIENCE_S", 0.0)
    return happened


def watching(run: RunDir, rank: int) -> FailureWatch:
    """A rank of two, as its watchdog's thread finds it."""
    watch = FailureWatch(run, hang_timeout_s=0, speaks=rank == 0)
    record = RankRecord(run.path, "life", rank)
    watch._watchdog = Watchdog(run.path, "life", record, rank, 2, 0, watch._end)
    watch._world_size = 2
    return watch


OTHER = Failure("exception", 1, 2, "h", 7, 3, "data", "OSError", "the disk", "Traceback ...", 1)


@pytest.mark.parametrize("ends_itself", [False, True])
def test_a_checkpoint_on_its_way_is_not_cut_by_another_ranks_failure(
    run: RunDir, log: list[str], ends_itself: bool
) -> None:
    watch, begun, go_on = watching(run, 0), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        go_on.wait(60)
        log.append("saved")
        if ends_itself:
            watch.release()  # as the main thread does, which waits for the save, too

    threading.Thread(target=PendingSave(lambda: None).run, args=(write,)).start()
    assert begun.wait(60)
    threading.Timer(0.3, go_on.set).start()
    if ends_itself:
        watch._end(OTHER)
        assert log == ["saved"]
    else:
        with pytest.raises(Left):
            watch._end(OTHER)
        assert log == ["saved", "left with 1"]


def test_a_rank_that_loses_its_connection_to_rank_0_tells_that_it_is_gone(run: RunDir) -> None:
    watch = watching(run, 1)
    heard: list[str] = []
    watch.speak_up = lambda: heard.append("speaks up")
    assert watch._watchdog is not None
    watch._watchdog.say_gone(0, 77, -9)
    error = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    watch.on_exception(None, None, error)  # type: ignore[arg-type]
    assert watch.speaks
    assert heard == ["speaks up"]
    assert watch.consequence_of is not None
    assert watch.consequence_of.rank == 0


@pytest.mark.parametrize("is_announcer", [True, False])
def test_of_the_others_one_tells_the_console_that_rank_0_is_gone(
    run: RunDir, log: list[str], capsys: pytest.CaptureFixture[str], is_announcer: bool
) -> None:
    watch = watching(run, 1)
    watch.speak_up = lambda: log.append("speaks up")
    assert watch._watchdog is not None
    first = watch._watchdog.say_gone(0, 77, -9)
    if not is_announcer:
        watch._watchdog.has_announced = False  # another one was faster
    with pytest.raises(Left):
        watch._end(first)
    assert log == (["speaks up"] if is_announcer else []) + ["left with 1"]
    said = "rank 0 of 2 failed first, at step 0 in phase start (host "
    assert (said in capsys.readouterr().err) == is_announcer


def test_a_users_fault_that_one_rank_alone_finds_reaches_rank_0(run: RunDir) -> None:
    here, there = watching(run, 0), watching(run, 1)
    there.on_exception(None, None, UserInputError("no data on this node"))  # type: ignore[arg-type]
    assert not run.events.exists()
    assert here._watchdog is not None
    failure = here._watchdog.look(0.0)
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (1, 2)
    assert failure.message == "no data on this node"


def test_a_users_fault_that_all_ranks_find_is_left_to_each(run: RunDir) -> None:
    here, there = watching(run, 0), watching(run, 1)
    for watch in (there, here):
        watch.on_exception(None, None, UserInputError("other data"))  # type: ignore[arg-type]
    assert here._watchdog is not None
    assert here._watchdog.stopped.is_set()  # so that its thread does not end the process
    assert here.consequence_of is None


def test_a_timeout_below_0_is_refused(run: RunDir) -> None:
    with pytest.raises(UserInputError, match="hang_timeout_s=-1 must be above 0, or 0 to wait"):
        FailureWatch(run, hang_timeout_s=-1)
