"""The callback that notes what this rank does, and names the rank that fails first."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resscale.data.loader import kill_workers
from resscale.errors import Preempted, ResscaleError, TrainingStopped, UserInputError
from resscale.training.checkpoint_io import wait_for_saves
from resscale.training.failure import (
    EVENT,
    Failure,
    announce,
    claim,
    is_consequence,
    read_failure,
)
from resscale.training.launcher import SAVE_PATIENCE_S, RankLauncher
from resscale.training.phase import (
    Phase,
    RankRecord,
    State,
    enter_phase,
    read_record,
    remove_record,
)
from resscale.training.rundir import RunDir
from resscale.training.watchdog import Watchdog, gone

# How long a rank whose connections break waits to hear which rank failed.
_HEAR_S = 8.0
# How long a rank may take to end by itself; the one that speaks waits for the others first.
_PATIENCE_S = 5.0
_SPEAKERS_PATIENCE_S = 10.0
_PRINT_S = 5.0


class FailureWatch(Callback):
    """Notes the phases of training, and ends this rank when any rank fails. The first callback.

    Args:
        run: the run directory.
        hang_timeout_s: how long a rank may stay in one phase; 0: for ever.
        speaks: this process tells the console what failed.

    Raises:
        UserInputError: the time is below 0.
    """

    def __init__(self, run: RunDir, hang_timeout_s: float, speaks: bool = True) -> None:
        if hang_timeout_s < 0:
            raise UserInputError(
                f"hang_timeout_s={hang_timeout_s:g} must be above 0, or 0 to wait for ever."
            )
        self.run = run
        self.hang_timeout_s = hang_timeout_s
        self.speaks = speaks
        self.consequence_of: Failure | None = None
        # Called where this rank must be heard on the console, and does not speak there.
        self.speak_up: Callable[[], None] = _nothing
        self._launcher: RankLauncher | None = None
        self._watchdog: Watchdog | None = None
        self._world_size = 1
        self._told = threading.Lock()

    @property
    def has_begun(self) -> bool:
        """The ranks have met: they hear of each other's failures."""
        return self._watchdog is not None

    def attach(self, trainer: Trainer) -> None:
        """Hear of ranks that end from whoever starts them, if that is this process."""
        self._world_size = trainer.world_size
        launcher = trainer.strategy.launcher
        if isinstance(launcher, RankLauncher):
            self._launcher = launcher
            launcher.on_death = self._rank_ended

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to note and to watch; all ranks together."""
        if stage != "fit":
            return
        # Agreed on, so that what an earlier start of this run has left is not taken for news.
        life: str = trainer.strategy.broadcast(secrets.token_hex(8))
        rank, self._world_size = trainer.global_rank, trainer.world_size
        record = RankRecord(self.run.path, life, rank)
        trainer.rank_record = record  # type: ignore[attr-defined]
        trainer.datamodule.before_wait = record.enter_data  # type: ignore[attr-defined]
        self._watchdog = Watchdog(
            self.run.path,
            life,
            record,
            rank,
            self._world_size,
            self.hang_timeout_s,
            self._end,
            # One rank of each machine looks: when it ends, so do the others there. A machine whose
            # network is cut hears of nothing else.
            self._give_way if trainer.local_rank == 0 else None,
        )
        self._watchdog.start()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The strategy is set up."""
        enter_phase(trainer, Phase.START)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins, perhaps in the middle."""
        enter_phase(trainer, Phase.START)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        enter_phase(trainer, Phase.FORWARD)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The loss is there."""
        self._enter(Phase.BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there; the optimizer and the ranks' votes come next."""
        self._enter(Phase.SYNC)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The step is done; the other callbacks come next."""
        enter_phase(trainer, Phase.SYNC)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An evaluation begins."""
        self._enter(Phase.EVALUATE)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of the evaluation is there."""
        self._enter(Phase.EVALUATE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The evaluation is done."""
        enter_phase(trainer, Phase.SYNC)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All is well: nobody waits for this rank any more."""
        self._close(State.ENDED)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Name the first failure: this one, or the one that it follows from."""
        watchdog = self._watchdog
        if watchdog is None:
            return
        if isinstance(exception, Preempted | KeyboardInterrupt):
            self._close(State.ENDED)
            return
        record = watchdog.record
        if isinstance(exception, UserInputError) and record.phase == Phase.START:
            # Most often all ranks find the same fault; the ledger is left as it was. Where this
            # rank alone finds it, rank 0 tells it.
            if watchdog.rank != 0:
                claim(self.run.path, watchdog.life, self._failure_of(exception, record))
            watchdog.stopped.set()
            self._close(State.FAILED)
            return
        first: Failure | None = None
        # Our own messages are most often found by all ranks at the same step; rank 0 says them.
        is_agreed = isinstance(exception, ResscaleError) and exception.exit_code != 1
        if self._world_size > 1 and is_consequence(exception):
            first = self.consequence_of = self._hear()
            self._stand_in(first)
        elif is_agreed and watchdog.rank != 0:
            first = self._hear()
        if first is None:
            own = self._failure_of(exception, record)
            # A guard that stops all ranks is no failure of a rank: the others hear of it all the
            # same, but the ledger has the guard's own line.
            is_guard = isinstance(exception, TrainingStopped) and watchdog.rank == 0
            say = claim if is_guard else announce
            first = say(self.run.path, watchdog.life, own)
        exception.add_note(first.summary())
        if self._world_size == 1:
            # No other rank can keep this process from ending; it may have more to do.
            watchdog.stopped.set()
        self._close(State.FAILED)

    def release(self) -> None:
        """Training has ended in this process, well or not: the watchdog need not end it."""
        if self._watchdog is not None:
            self._watchdog.stopped.set()

    def tell(self) -> None:
        """Print what failed first, once. The one that speaks keeps it in the run's summary."""
        failure = self.consequence_of
        if failure is None or not self._told.acquire(blocking=False):
            return
        before = self.run.read_summary()
        if before and self.speaks:
            status = "stopped" if failure.exception == TrainingStopped.__name__ else "failed"
            self.run.write_summary({**before, "status": status, "reason": failure.summary()})
        print(
            f"{failure.report()}\nsee {self.run.events}; go on from the newest checkpoint with "
            f"--run_dir {self.run.path} --ckpt_path auto"
            if self.speaks
            else failure.summary(),
            file=sys.stderr,
            flush=True,
        )

    def _enter(self, phase: Phase) -> None:
        """Note a phase of the same step; asking the trainer for the step takes longer than this."""
        if self._watchdog is not None:
            self._watchdog.record.enter(phase)

    def _hear(self) -> Failure | None:
        """Wait for another rank's failure to become known."""
        assert self._watchdog is not None
        deadline = time.monotonic() + _HEAR_S
        while time.monotonic() < deadline:
            failure = read_failure(self.run.path, self._watchdog.life)
            if failure is not None:
                return failure
            time.sleep(0.1)
        return None

    def _failure_of(self, exception: BaseException, record: RankRecord) -> Failure:
        assert self._watchdog is not None
        return Failure(
            kind="exception",
            rank=self._watchdog.rank,
            world_size=self._world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=record.step,
            phase=str(record.phase),
            exception=type(exception).__name__,
            message=str(exception),
            traceback="".join(traceback.format_exception(exception)),
            exit_code=exception.exit_code if isinstance(exception, ResscaleError) else 1,
        )

    def _rank_ended(self, local_rank: int, pid: int, code: int) -> None:
        """Name a rank that was killed; called by the launcher's thread."""
        watchdog = self._watchdog
        if watchdog is None:
            # Before the ranks have met there is nothing but its number. A rank that ended with a
            # code of the user's has said why, and leaves the run as it was.
            failure = gone(local_rank, self._world_size, pid, code, None)
            if code < 0 or code == ResscaleError.exit_code:
                self.run.append_event(EVENT, **asdict(failure))
            return
        rank = watchdog.rank + local_rank
        record = read_record(self.run.path, watchdog.life, rank)
        if record is not None and record.state == State.RUNNING:
            watchdog.say_gone(rank, pid, code)

    def _end(self, failure: Failure) -> None:
        """End this process, unless its main thread does; called by the watchdog's thread."""
        watchdog = self._watchdog
        assert watchdog is not None
        is_own_hang = failure.kind == "hang" and failure.rank == watchdog.rank
        patience_s = _SPEAKERS_PATIENCE_S if self.speaks else _PATIENCE_S
        if not is_own_hang and watchdog.stopped.wait(patience_s):
            return
        # A checkpoint on its way is what the run goes on from. A disk that hangs is no reason to
        # wait for longer than a rank may stand still.
        save_patience_s = min(SAVE_PATIENCE_S, self.hang_timeout_s or SAVE_PATIENCE_S)
        is_hung_save = is_own_hang and failure.phase == str(Phase.SAVE)
        if (
            not is_hung_save
            and wait_for_saves(save_patience_s)
            and watchdog.stopped.wait(patience_s)
        ):
            return
        kill_workers()
        if self._launcher is not None:
            self._launcher.kill(signal.SIGKILL)
            remove_record(self.run.path, watchdog.life, failure.rank)
        self._stand_in(failure)
        if self.speaks or is_own_hang:
            self.consequence_of = failure
            # In a thread: a console that takes no more text must not keep the process alive.
            printer = threading.Thread(target=self.tell, daemon=True)
            printer.start()
            printer.join(_PRINT_S)
        watchdog.record.close(State.FAILED)
        os._exit(failure.exit_code)

    def _stand_in(self, failure: Failure | None) -> None:
        """Speak on the console from here on, if rank 0, which would, is what has failed."""
        watchdog = self._watchdog
        assert watchdog is not None
        if failure is None or self.speaks or not watchdog.has_announced:
            return
        if failure.rank == 0 and failure.kind == "gone":
            self.speaks = True
            self.speak_up()

    def _give_way(self) -> None:
        """End this process if SLURM has given its job to other nodes; by the watchdog's thread."""
        owner = self.run.lost_to()
        if owner is None:
            return
        kill_workers()
        if self._launcher is not None:
            self._launcher.kill(signal.SIGKILL)
        print(
            f"job {owner.job_id} was started again on {owner.host}: this start, number "
            f"{owner.restart_count - 1} or earlier, ends without saving",
            file=sys.stderr,
            flush=True,
        )
        os._exit(Preempted.exit_code)

    def _close(self, state: State) -> None:
        if self._watchdog is not None:
            self._watchdog.record.close(state)
            if state == State.ENDED:
                self._watchdog.stopped.set()


def _nothing() -> None:
    return
