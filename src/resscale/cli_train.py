"""fit, validate, test and predict: LightningCLI's parsing, our run directory around it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from resscale.cli_announce import result_lines, start_lines, weights_line
from resscale.cli_lightning import Stage, TrainCli, plain_config, with_saved_config
from resscale.cli_quiet import quiet_third_parties
from resscale.cli_resume import check_resume, explain_giving_up
from resscale.cli_start import Start
from resscale.cli_weights import check_network, load_first_weights
from resscale.cluster.environment import RUN_DIR_VARIABLE, Launch, read_launch
from resscale.data.manifest import Manifest
from resscale.errors import (
    CheckpointError,
    Preempted,
    ResscaleError,
    TrainingStopped,
    UserInputError,
)
from resscale.training.checkpoint import STATE_KEY, load_checkpoint, tidy_finished
from resscale.training.compiling import check_graphs
from resscale.training.ema_checkpoint import explain_average, load_averaged
from resscale.training.ema_decay import EmaConfig
from resscale.training.failure_watch import FailureWatch
from resscale.training.launcher import RankLauncher, end_with_launcher
from resscale.training.predictions import PredictionWriter
from resscale.training.rank_log import RankLog
from resscale.training.runid import config_digest
from resscale.training.startup import STARTUP
from resscale.training.strategy import device_type, register_strategies, uses_deepspeed

# What shells give a command that Ctrl-C has ended.
INTERRUPTED = 130

_SPLITS: dict[Stage, tuple[str, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


def run_fit(argv: Sequence[str]) -> int:
    """Train; return the exit code."""
    session = Session("fit", argv)
    log = session.open_log()
    session.announce()
    status = "done"
    try:
        session.trainer.fit(
            session.model, session.data, ckpt_path=session.ckpt_path, weights_only=True
        )
    except Preempted as stopped:
        status = "preempted"
        if session.launch.is_first and session.trainer.is_global_zero:
            print(f"{stopped}\ngo on with:  {session.resume_command()}", flush=True)
        return stopped.exit_code
    except (TrainingStopped, CheckpointError) as stopped:
        # All ranks stop at the same step for the same reason; one tells it.
        if session.trainer.is_global_zero:
            raise
        return stopped.exit_code
    except SystemExit as end:
        # Lightning's answer to the second Ctrl-C; a bug's code is no answer to a user's wish.
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        if session.launch.is_first:
            print(
                explain_giving_up(session.run, session.resume_command()),
                file=sys.stderr,
                flush=True,
            )
        return INTERRUPTED
    except Exception:
        failure = session.watch.consequence_of
        if failure is None:
            if not session.watch.has_begun:
                # No other rank can tell of it yet.
                log.speak_up()
            raise
        # The other ranks' words first: the last lines name the rank that failed first.
        session.wait_for_ranks()
        if session.watch.speaks:
            session.watch.tell()
        return failure.exit_code
    finally:
        code = session.wait_for_ranks()
        session.watch.release()
        session.run.leave()
        session.start.forget()
    if code:
        raise ResscaleError(f"another rank ended with code {code}; see its message above.")
    if session.trainer.is_global_zero:
        tidy_finished(session.run, session.trainer)
        session.summarise(status)
    return 0


def run_validate(argv: Sequence[str]) -> int:
    """Measure on the validation shards; return the exit code."""
    return _evaluate("validate", argv)


def run_test(argv: Sequence[str]) -> int:
    """Measure on the test shards; return the exit code."""
    return _evaluate("test", argv)


def run_predict(argv: Sequence[str]) -> int:
    """Write predictions; return the exit code."""
    session = Session("predict", argv)
    classes = session.class_names()
    writer = PredictionWriter(Path(session.config.output), session.data.samples("predict"), classes)
    session.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        session.trainer.predict(
            session.model,
            session.data,
            ckpt_path=session.ckpt_path,
            return_predictions=False,
            weights_only=True,
        )
    finally:
        code = session.wait_for_ranks()
        session.start.forget()
    if session.trainer.is_global_zero:
        print(f"{writer.count} predictions in {writer.path}")
    return code


def _evaluate(stage: Literal["validate", "test"], argv: Sequence[str]) -> int:
    session = Session(stage, argv)
    run = getattr(session.trainer, stage)
    try:
        run(
            session.model,
            session.data,
            ckpt_path=session.ckpt_path,
            verbose=False,
            weights_only=True,
        )
    finally:
        code = session.wait_for_ranks()
        session.start.forget()
    if session.trainer.is_global_zero:
        prefix = "val" if stage == "validate" else "test"
        metrics = session.trainer.callback_metrics
        values = {name.partition("/")[2]: float(value) for name, value in metrics.items()}
        total = len(session.data.samples(prefix))
        print(
            f"{prefix}: top-1 {values['top1']:.2%}  top-5 {values['top5']:.2%}  "
            f"loss {values['loss']:.4f}  {values['masked']:.0f} rows of padding masked  "
            f"{values['samples']:,.0f} of {total:,} unique"
            + (f"  {values['bad']:.0f} damaged" if values["bad"] else "")
        )
        print(f"weights: {session.loaded.source if session.loaded else session.ckpt_path}")
    return code


class Session:
    """One call of fit, validate, test or predict, parsed, checked and ready to run.

    Args:
        stage: which.
        argv: the arguments behind the command.

    Raises:
        UserInputError: anything wrong with the options, the run directory or the data.
    """

    def __init__(self, stage: Stage, argv: Sequence[str]) -> None:
        self.stage: Stage = stage
        self.command = shlex.join(["resscale", stage, *argv])
        # Those of a run's saved configuration are what it began with, and not asked for.
        self._asks_for_weights = any(word.partition("=")[0] == "--weights" for word in argv)
        self.launch: Launch = read_launch()
        if stage == "fit":
            self.launch.check_started(["resscale", stage, *argv])
        if self.launch.run_dir is not None and self.launch.launcher is None:
            end_with_launcher()
        elif self.launch.launcher is None:
            # What the ranks that this process starts would take for its own run.
            os.environ.pop(RUN_DIR_VARIABLE, None)
        # Our own launcher starts the others behind rank 0's checks, and srun's ranks wait for them.
        self._rank_0_is_well = self.launch.launcher is None
        quiet_third_parties()
        register_strategies()
        try:
            self._prepare(with_saved_config(stage, list(argv)))
        except UserInputError as error:
            if self.launch.is_first:
                raise
            if self._rank_0_is_well:
                where = f"rank {self.launch.rank} on {socket.gethostname()}"
                raise UserInputError(f"{where}: {error}") from error
            # Every rank finds the same fault; one tells it.
            raise SystemExit(error.exit_code) from None

    def open_log(self) -> RankLog:
        """Let this rank speak in a file of its own, where there are several."""
        launch, slurm = self.launch, self.launch.slurm
        restart = 0 if slurm is None else slurm.restart_count
        log = RankLog(self.run, launch.rank, self.trainer.world_size, launch.job_id, restart)
        log.open()
        self.watch.speak_up = log.speak_up
        return log

    def announce(self) -> None:
        """Print where the run is written to and what its numbers come to."""
        if not self.launch.is_first:
            return
        trainer = self.trainer
        lines = start_lines(self.run, self.data, self.model, trainer.world_size, trainer.max_epochs)
        if self.ckpt_path:
            lines.append(f"going on from {self.ckpt_path}")
        if self.loaded:
            lines.append(weights_line(self.loaded))
        if self.average:
            lines.append(self.average)
        print("\n".join(lines), flush=True)

    def summarise(self, status: str) -> None:
        """Print the result, and the next command to try."""
        print("\n".join(result_lines(self.run, status, self.ckpt_path)))

    def resume_command(self) -> str:
        """Return the command that goes on with this run."""
        return f"resscale fit --run_dir {shlex.quote(str(self.run.path))} --ckpt_path auto"

    def class_names(self) -> tuple[str, ...]:
        """Return the class names of whichever split's manifest is at hand."""
        for split in ("predict", "train", "val", "test"):
            try:
                if self.data.locations[split] is not None:
                    manifest: Manifest = self.data.manifest(split)
                    return manifest.classes
            except UserInputError:
                continue
        return ()

    def wait_for_ranks(self) -> int:
        """Wait for the ranks that this process started; return the first bad exit code."""
        launcher = self.trainer.strategy.launcher
        return launcher.wait() if isinstance(launcher, RankLauncher) else 0

    def _prepare(self, argv: list[str]) -> None:
        cli = TrainCli(self.stage, argv)
        self.config = cli.config
        self.launch.check_nodes(self.config.trainer.num_nodes)
        plain = plain_config(cli)
        digest = config_digest(plain)
        self._rank_0_is_well = self.launch.launcher != "torchrun"
        self.start = Start(self.stage, cli.config, self.launch, digest, self._asks_for_weights)
        self.run, self.ckpt_path = self.start.run, self.start.ckpt_path
        try:
            self._build(cli, plain)
        except BaseException as error:
            self.start.refuse(getattr(error, "exit_code", ResscaleError.exit_code))
            raise
        self.start.tell()

    def _build(self, cli: TrainCli, plain: dict[str, Any]) -> None:
        if self.config.num_threads is not None:
            torch.set_num_threads(self.config.num_threads)
        self.watch = FailureWatch(self.run, self.config.hang_timeout_s, self.launch.is_first)
        cli.build(self)
        self.trainer, self.model, self.data = cli.trainer, cli.model, cli.datamodule
        STARTUP.before_end = self._kill_ranks
        self.data.splits.looks_at_shards = self.launch.is_first_on_node
        self.data.cpus_per_rank = self.start.cpus_per_rank(self.trainer.num_devices)
        self.watch.attach(self.trainer)
        self.trainer.resscale_config = plain  # type: ignore[attr-defined]
        splits = tuple(s for s in _SPLITS[self.stage] if s != "val" or self._wants("val"))
        self.data.check(splits, self.model.num_classes, self.trainer.world_size)
        if self.stage == "fit":
            check_graphs(
                self.config.model.compile,
                self.config.model.compile_mode,
                device=device_type(self.config.trainer.accelerator),
                deepspeed=uses_deepspeed(self.trainer.strategy),
                accumulate=self.data.plan(self.trainer.world_size).accumulate,
            )
        for size in self.data.image_sizes:
            self.model.check_image_size(size)
        self.loaded = load_first_weights(self.stage, self.config, self.model, self.ckpt_path)
        checkpoint = None
        if self.ckpt_path is not None:
            checkpoint = load_checkpoint(self.ckpt_path)
            check_network(checkpoint, self.model, str(self.ckpt_path))
            # Also for what is measured: else its pixels would depend on the machine.
            self.data.decoder_before = checkpoint.get(STATE_KEY, {}).get("decoder")
            if self.stage == "fit":
                # Before anything of the run is touched: a refused resume must leave it as it was.
                check_resume(checkpoint, plain, self.data, self.trainer)
        if self.stage != "fit" and self.config.use_ema:
            self.loaded = load_averaged(self.model.model, checkpoint, str(self.ckpt_path))
            self.ckpt_path = None  # all is loaded
        if self.stage == "fit":
            self.average = explain_average(EmaConfig(**self.config.ema), checkpoint)
            self.run.belong_to(self.start.owner())
            if self.launch.is_first:
                self.run.take(self.start.owner())
                text = yaml.safe_dump(plain, sort_keys=False)
                # Slower ranks may be reading it just now.
                if self.run.config.read_text() != text:
                    self.run.config.write_text(text)
            os.environ[RUN_DIR_VARIABLE] = str(self.run.path.resolve())

    def _kill_ranks(self) -> None:
        self.start.refuse(Preempted.exit_code)
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, RankLauncher):
            launcher.kill(signal.SIGKILL)

    def _wants(self, split: str) -> bool:
        return self.stage != "fit" or self.config.data[split] is not None
