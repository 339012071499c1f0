"""fit, validate, test and predict: LightningCLI's parsing, our run directory around it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from resscale.cli_errors import explain_parser_error
from resscale.cluster.environment import RUN_DIR_VARIABLE, Launch, read_launch
from resscale.data.datamodule import ShardDataModule
from resscale.data.manifest import Manifest
from resscale.errors import Preempted, ResscaleError, TrainingStopped, UserInputError
from resscale.training.checkpoint import AtomicCheckpointIO, Checkpointer, find_newest_valid
from resscale.training.classifier import ImageClassifier
from resscale.training.monitor import Monitor
from resscale.training.predictions import PredictionWriter
from resscale.training.preempt import Preemption
from resscale.training.progress import ProgressDisplay
from resscale.training.recorder import MetricsTable, Recorder, SampleLog
from resscale.training.rundir import RunDir
from resscale.training.runid import choose_run_dir, config_digest, refuse_used
from resscale.training.strategy import RankLauncher, register_strategies

Stage = Literal["fit", "validate", "test", "predict"]
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
    except TrainingStopped as stopped:
        # All ranks stop at the same step for the same reason; one tells it.
        if session.trainer.is_global_zero:
            raise
        return stopped.exit_code
    finally:
        code = session.wait_for_ranks()
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
        print(f"weights: {session.ckpt_path}")
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
        self.launch: Launch = read_launch()
        _quiet_third_parties()
        register_strategies()
        try:
            self._prepare(_with_saved_config(stage, list(argv)))
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
        print(
            f"{self.model.num_parameters:,} parameters; {order.num_samples:,} training samples = "
            f"{order.num_steps} steps per epoch"
            + (f", {order.num_dropped} left over (others each epoch)" if order.num_dropped else "")
        )
        if self.ckpt_path:
            print(f"going on from {self.ckpt_path}")
        sys.stdout.flush()

    def summarise(self, status: str) -> None:
        """Print the result, and the next command to try."""
        facts = self.run.read_summary()
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
        cli = _Cli(self.stage, argv)
        self.config = cli.config
        plain = _plain_config(cli)
        name = Path(str(self.config.config[-1])).stem if self.config.config else "run"
        self.run = RunDir(self._choose_run_dir(name, config_digest(plain)))
        self.ckpt_path = self._choose_checkpoint()
        self.monitor = Monitor()
        cli.build(self)
        self.trainer, self.model, self.data = cli.trainer, cli.model, cli.datamodule
        self.trainer.resscale_config = plain  # type: ignore[attr-defined]
        splits = tuple(s for s in _SPLITS[self.stage] if s != "val" or self._wants("val"))
        self.data.check(splits, self.model.num_classes, self.trainer.world_size)
        if self.stage == "fit":
            if self.launch.is_first:
                self.run.path.mkdir(parents=True, exist_ok=True)
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
        if asked in (None, "auto", "best"):
            if not known:
                raise UserInputError(
                    f"{self.stage} needs weights: name a checkpoint with --ckpt_path FILE, or a "
                    f"run with --run_dir DIR."
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


class _Cli(LightningCLI):
    """LightningCLI without its run: it parses, `Session` decides, `build` instantiates."""

    def __init__(self, stage: Stage, argv: list[str]) -> None:
        self.stage: Stage = stage
        self._session: Session | None = None
        try:
            super().__init__(
                ImageClassifier,
                ShardDataModule,
                save_config_callback=None,
                trainer_defaults={"max_epochs": 1},
                seed_everything_default=0,
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "prog": f"resscale {stage}",
                },
                args=argv,
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except jsonargparse.ArgumentError as error:
            options = list(self.parser.get_defaults().keys())
            raise UserInputError(explain_parser_error(str(error), options)) from None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning does not have."""
        parser.add_argument("--help_all", action="help", help="Show every option there is.")
        parser.add_argument("--run_dir", type=str | None, default=None, help="Run directory.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Where runs lie.")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint, 'auto' or 'best'."
        )
        if self.stage == "predict":
            parser.add_argument("--output", type=str, default="predictions.csv", help="File.")
        else:
            parser.add_argument("--output", type=str | None, default=None, help="For predict.")
        parser.add_lightning_class_args(Checkpointer, "checkpoint")
        parser.link_arguments("data.global_batch_size", "model.global_batch_size")
        parser.link_arguments("data.channels", "model.in_channels")
        # One seed names the initial weights, the order, the augmentation and the noise.
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning that sys.argv is not empty."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint's hyper-parameters must not override what the user says."""

    def instantiate_classes(self) -> None:
        """Do nothing yet: the run directory must be known first; see `build`."""

    def build(self, session: Session) -> None:
        """Instantiate model, data and trainer."""
        self._session = session
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's callbacks, loggers and checkpoint writer to what the user configures."""
        session = self._session
        assert session is not None
        fitting = self.stage == "fit"
        checkpointer: Checkpointer = self.config_init.checkpoint
        trainer_config = {**self.config_init.trainer, "enable_progress_bar": False}
        trainer_config["enable_model_summary"] = False
        trainer_config["num_sanity_val_steps"] = 0
        trainer_config["default_root_dir"] = str(session.run.path)
        own = list(trainer_config["callbacks"] or [])
        monitor = session.monitor
        callbacks = [*own]
        if fitting:
            callbacks += [monitor, Recorder(monitor, session.command, session.ckpt_path)]
            callbacks += [ProgressDisplay(monitor)]
            callbacks += [SampleLog()] if self.config.data.log_sample_ids else []
            callbacks += [checkpointer, Preemption(checkpointer)]
        trainer_config["callbacks"] = callbacks
        trainer_config["enable_checkpointing"] = fitting
        trainer_config["plugins"] = [
            *_as_list(trainer_config.get("plugins")),
            AtomicCheckpointIO(),
        ]
        if fitting and trainer_config["logger"] in (None, True):
            board = TensorBoardLogger(session.run.path, name="", version="tensorboard")
            trainer_config["logger"] = [MetricsTable(session.run), board]
        elif not fitting:
            trainer_config["logger"] = False
        try:
            return Trainer(**trainer_config)
        except (ValueError, RuntimeError) as error:
            raise UserInputError(f"trainer: {error}") from error


def _with_saved_config(stage: Stage, argv: list[str]) -> list[str]:
    """Use the run directory's own configuration where the user names a run but no config."""
    named = any(a == "-c" or a == "--config" or a.startswith("--config=") for a in argv)
    if named:
        return argv
    for position, argument in enumerate(argv):
        value = None
        if argument == "--run_dir" and position + 1 < len(argv):
            value = argv[position + 1]
        elif argument.startswith("--run_dir="):
            value = argument.partition("=")[2]
        if value is not None:
            saved = RunDir(value).config
            if not saved.is_file():
                if stage == "fit":
                    return argv
                raise UserInputError(
                    f"{value} holds no config.yaml, so it is no run directory; name one that "
                    f"`resscale fit` made, or give --config FILE too."
                )
            return ["--config", str(saved), *argv]
    return argv


def _plain_config(cli: _Cli) -> dict[str, Any]:
    """Return the effective configuration as plain values, without what is linked or of one call."""
    text = cli.parser.dump(cli.config, skip_none=False, format="json")
    plain: dict[str, Any] = json.loads(text)
    for name in ("config", "run_dir", "runs_dir", "ckpt_path", "output"):
        plain.pop(name, None)
    return plain


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _quiet_third_parties() -> None:
    """Keep Lightning's advertisements and advice out of the user's way; warnings stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("lightning.fabric.utilities.seed", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # torch 2.13 deprecates what Lightning 2.6 still calls.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    # Our loader reads in processes of its own and says how many.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
