"""fit, validate, test and predict: LightningCLI's parsing, our run directory around it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml

from resscale.cli_lightning import Stage, TrainCli, plain_config, with_saved_config
from resscale.cli_quiet import quiet_third_parties
from resscale.cli_resume import check_resume, explain_giving_up
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
from resscale.training.checkpoint import find_newest_valid, load_checkpoint
from resscale.training.ema_checkpoint import explain_average, load_averaged
from resscale.training.ema_decay import EmaConfig
from resscale.training.failure_watch import FailureWatch
from resscale.training.launcher import RankLauncher, end_with_launcher
from resscale.training.predictions import PredictionWriter
from resscale.training.rundir import RunDir
from resscale.training.runid import choose_run_dir, config_digest, refuse_used
from resscale.training.strategy import register_strategies

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
            raise
        # The other ranks' words first: the last lines name the rank that failed first.
        session.wait_for_ranks()
        if session.launch.is_first:
            session.watch.tell()
        return failure.exit_code
    finally:
        code = session.wait_for_ranks()
        session.watch.release()
        session.run.leave()
    if code:
        raise ResscaleError(f"another rank ended with code {code}; see its message above.")
    if session.trainer.is_global_zero:
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
    if session.trainer.is_global_zero:
        prefix = "val" if stage == "validate" else "test"
        metrics = session.trainer.callback_metrics
        values = {name.partition("/")[2]: float(value) for name, value in metrics.items()}
        total = len(session.data.samples(prefix))
        print(
            f"{prefix}: top-1 {values['top1']:.2%}  top-5 {values['top5']:.2%}  "
            f"loss {values['loss']:.4f}  {values['samples']:,.0f} of {total:,} unique"
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
        if self.launch.run_dir is not None and self.launch.job_id is None:
            end_with_launcher()
        elif self.launch.job_id is None:
            # What the ranks that this process starts would take for its own run.
            os.environ.pop(RUN_DIR_VARIABLE, None)
        quiet_third_parties()
        register_strategies()
        try:
            self._prepare(with_saved_config(stage, list(argv)))
        except UserInputError as error:
            # Every rank finds the same fault; one tells it.
            if self.launch.is_first:
                raise
            raise SystemExit(error.exit_code) from None

    def announce(self) -> None:
        """Print where the run is written to and what its numbers come to."""
        if not self.launch.is_first:
            return
        plan = self.data.plan(self.trainer.world_size)
        order = self.data.order()
        optimizer = self.model.optimizer_config
        print(f"run directory: {self.run.path}")
        print(f"{plan}; {optimizer.explain_lr(self.data.global_batch_size)}")
        size = self.data.train_crop.size
        macs = self.model.num_macs(size)
        cost = f", {macs / 1e9:.3g} GMACs at {size}x{size}" if macs is not None else ""
        steps = f"{order.num_steps} {'step' if order.num_steps == 1 else 'steps'} per epoch"
        print(
            f"{self.model.num_parameters:,} parameters{cost}; "
            f"{order.num_samples:,} training samples = {steps}"
            + (f", {order.num_dropped} left over (others each epoch)" if order.num_dropped else "")
        )
        if self.ckpt_path:
            print(f"going on from {self.ckpt_path}")
        if self.loaded:
            skipped = f", without {', '.join(self.loaded.skipped)}" if self.loaded.skipped else ""
            print(f"weights: {self.loaded.num_tensors} tensors of {self.loaded.source}{skipped}")
        if self.average:
            print(self.average)
        sys.stdout.flush()

    def summarise(self, status: str) -> None:
        """Print the result, and the next command to try."""
        facts = self.run.read_summary()
        if not facts:
            print(f"{status}: nothing was left to train from {self.ckpt_path} on.")
            return
        top1 = facts.get("val_top1")
        accuracy = f"val top-1 {top1:.2%}, " if top1 is not None else ""
        print(
            f"{status}: {accuracy}{facts['samples_seen']:,} images seen, "
            f"{facts['images_per_s']:,.0f} images/s"
            + (f", {facts['bad_samples']} damaged" if facts["bad_samples"] else "")
        )
        print(f"run directory: {self.run.path}")
        folder = shlex.quote(str(self.run.path))
        if top1 is None:
            print(f"next:  resscale predict --run_dir {folder} --data.predict IMAGES")
        else:
            print(f"next:  resscale validate --run_dir {folder} --ckpt_path best")

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
        name = Path(str(self.config.config[-1])).stem if self.config.config else "run"
        self.run = RunDir(self._choose_run_dir(name, config_digest(plain)))
        self.ckpt_path = self._choose_checkpoint()
        if self.config.num_threads is not None:
            torch.set_num_threads(self.config.num_threads)
        self.watch = FailureWatch(self.run, self.config.hang_timeout_s, self.launch.is_first)
        cli.build(self)
        self.trainer, self.model, self.data = cli.trainer, cli.model, cli.datamodule
        self.watch.attach(self.trainer)
        self.trainer.resscale_config = plain  # type: ignore[attr-defined]
        splits = tuple(s for s in _SPLITS[self.stage] if s != "val" or self._wants("val"))
        self.data.check(splits, self.model.num_classes, self.trainer.world_size)
        for crop in (self.data.train_crop, self.data.eval_crop):
            self.model.check_image_size(crop.size)
        self.loaded = load_first_weights(self.stage, self.config, self.model, self.ckpt_path)
        checkpoint = None
        if self.ckpt_path is not None:
            checkpoint = load_checkpoint(self.ckpt_path)
            check_network(checkpoint, self.model, str(self.ckpt_path))
            if self.stage == "fit":
                # Before anything of the run is touched: a refused resume must leave it as it was.
                check_resume(checkpoint, plain, self.data, self.trainer)
        if self.stage != "fit" and self.config.use_ema:
            self.loaded = load_averaged(self.model.model, checkpoint, str(self.ckpt_path))
            self.ckpt_path = None  # all is loaded
        if self.stage == "fit":
            self.average = explain_average(EmaConfig(**self.config.ema), checkpoint)
            if self.launch.is_first:
                self.run.take()
                self.run.config.write_text(yaml.safe_dump(plain, sort_keys=False))
            os.environ[RUN_DIR_VARIABLE] = str(self.run.path.resolve())

    def _wants(self, split: str) -> bool:
        return self.stage != "fit" or self.config.data[split] is not None

    def _choose_run_dir(self, name: str, digest: str) -> Path:
        resume = self.config.ckpt_path == "auto"
        if self.launch.run_dir is not None:
            return Path(self.launch.run_dir)
        if self.config.run_dir is None:
            if self.stage != "fit":
                return Path(os.devnull)
            return choose_run_dir(
                Path(self.config.runs_dir), name, digest, job_id=self.launch.job_id, resume=resume
            )
        run_dir = Path(self.config.run_dir)
        if self.stage == "fit" and not resume and self.launch.is_first:
            refuse_used(run_dir)
        return run_dir

    def _choose_checkpoint(self) -> Path | None:
        asked = self.config.ckpt_path
        if asked is None and self.stage == "fit":
            return None
        known = self.run.path != Path(os.devnull)
        if self.stage != "fit" and self._asks_for_weights and (known or asked is not None):
            other = "--run_dir" if asked is None else "--ckpt_path"
            raise UserInputError(
                f"--weights and {other} both say what {self.stage} measures: leave one out. "
                f"The setting of a run alone is --config RUN/config.yaml."
            )
        if asked in (None, "auto", "best"):
            if not known and self.config.weights is not None:
                return None
            if not known:
                raise UserInputError(
                    f"{self.stage} needs weights: name a checkpoint with --ckpt_path FILE, a run "
                    f"with --run_dir DIR, or a file of weights with --weights FILE."
                )
            best = self.run.checkpoints / "best.ckpt"
            if asked != "auto" and best.exists():
                return best
            newest = find_newest_valid(self.run)
            if newest is None and (self.stage != "fit" or asked == "best"):
                raise UserInputError(
                    f"{self.run.checkpoints} holds no whole checkpoint; correct --run_dir, or "
                    f"train first with `resscale fit`."
                )
            return newest
        path = Path(asked)
        if not path.is_file():
            raise UserInputError(f"--ckpt_path {path}: there is no such file.")
        return path
