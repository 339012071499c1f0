"""LightningCLI without its run: options in, model, data module and trainer out."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from resscale.cli_errors import explain_parser_error, explain_refusal
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.checkpoint import Checkpointer
from resscale.training.classifier import ImageClassifier
from resscale.training.device_prefetch import DevicePrefetch
from resscale.training.ema import WeightAverage
from resscale.training.ema_decay import EmaConfig
from resscale.training.expected_curve import CurveWatch, ExpectedCurve
from resscale.training.float_precision import choose_benchmark, set_float32_precision
from resscale.training.guard import NonFiniteGuard
from resscale.training.image_size import ImageSizeReport
from resscale.training.monitor import Monitor
from resscale.training.precision import build_precision, precision_name
from resscale.training.preempt import PreemptConfig
from resscale.training.profile import ProfileConfig, StepProfiler, profile_config
from resscale.training.progress import ProgressDisplay
from resscale.training.reading import ReadingReport
from resscale.training.recorder import MetricsTable, Recorder, SampleLog
from resscale.training.rundir import RunDir
from resscale.training.strategy import (
    check_legal,
    choose_strategy,
    device_type,
    uses_deepspeed,
)
from resscale.training.zero_options import check_accelerator

if TYPE_CHECKING:
    from resscale.cli_train import Session

Stage = Literal["fit", "validate", "test", "predict"]


class TrainCli(LightningCLI):
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
        parser.add_argument(
            "--weights",
            type=str | None,
            default=None,
            help="File or URL of weights to begin with; a checkpoint comes before it.",
        )
        parser.add_argument(
            "--skip_classifier",
            type=bool,
            default=False,
            help="Take all of --weights but the last layer, as for other classes.",
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="CPU threads of each rank; None: torch's own choice.",
        )
        parser.add_argument(
            "--hang_timeout_s",
            type=float,
            default=1800.0,
            help="End with code 70 when a rank makes no progress for so long; 0: never.",
        )
        parser.add_argument(
            "--float32_precision",
            type=str,
            default="high",
            help="Of products of float32 numbers on a GPU: highest, high (TF32) or medium.",
        )
        # Of fit alone, but a run's config.yaml has them, and other commands read that.
        parser.add_argument(
            "--device_prefetch",
            type=bool,
            default=True,
            help="Copy the next batch to the GPU while it trains on this one.",
        )
        parser.add_argument(
            "--profile",
            type=bool | ProfileConfig,
            nargs="?",
            const=True,
            default=False,
            help="Record steps into <run_dir>/profile/; with options: profile.steps and so on.",
        )
        if self.stage == "predict":
            parser.add_argument("--output", type=str, default="predictions.csv", help="File.")
        else:
            parser.add_argument("--output", type=str | None, default=None, help="For predict.")
        if self.stage != "fit":
            parser.add_argument(
                "--use_ema",
                type=bool,
                default=False,
                help="Take the checkpoint's averaged weights (ema.decay) in place of its weights.",
            )
        parser.add_lightning_class_args(Checkpointer, "checkpoint")
        parser.add_lightning_class_args(Monitor, "monitor")
        parser.add_class_arguments(NonFiniteGuard, "guard")
        parser.add_class_arguments(EmaConfig, "ema")
        parser.add_class_arguments(PreemptConfig, "preempt")
        parser.add_class_arguments(ExpectedCurve, "expected")
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
        try:
            super().instantiate_classes()
        except ValueError as error:
            # The parser keeps of a class's own error only the text.
            refusal = explain_refusal(str(error))
            if refusal is None:
                raise
            raise UserInputError(refusal) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's callbacks, loggers and checkpoint writer to what the user configures."""
        session = self._session
        assert session is not None
        fitting = self.stage == "fit"
        max_epochs = self.config_init.trainer.max_epochs
        if fitting and (max_epochs is None or max_epochs < 1):
            raise UserInputError(
                f"trainer.max_epochs={max_epochs} must be at least 1: the learning rate's course "
                f"is stretched over it."
            )
        checkpointer: Checkpointer = self.config_init.checkpoint
        trainer_config = {**self.config_init.trainer, "enable_progress_bar": False}
        trainer_config["enable_model_summary"] = False
        trainer_config["num_sanity_val_steps"] = 0
        trainer_config["default_root_dir"] = str(session.run.path)
        own = _as_list(trainer_config["callbacks"])
        monitor: Monitor = self.config_init.monitor
        monitor.guard = self.config_init.guard
        # The monitor is first: what the others do then counts as a step's time.
        # Only the watch is before it: it is the first to hear of an exception, and knows the phase.
        callbacks = [session.watch, monitor, *own] if fitting else [*own]
        if fitting:
            callbacks += [Recorder(monitor, session.command, session.ckpt_path)]
            callbacks += [ProgressDisplay(monitor), ImageSizeReport(), ReadingReport()]
            callbacks += [SampleLog()] if self.config.data.log_sample_ids else []
            ema: EmaConfig = self.config_init.ema
            callbacks += [WeightAverage(ema)] if ema.decay is not None else []
            callbacks += [DevicePrefetch()] if self.config.device_prefetch else []
            profiled = profile_config(self.config_init.profile)
            callbacks += [] if profiled is None else [StepProfiler(profiled)]
            # Behind the average, whose evaluation counts too.
            curve: ExpectedCurve = self.config_init.expected
            callbacks += [CurveWatch(curve)] if curve.top1 else []
            callbacks += [
                checkpointer,
                session.start.preemption(checkpointer, self.config_init.preempt),
            ]
        trainer_config["callbacks"] = callbacks
        session.start.fit_to_job(trainer_config)
        _choose_strategy(trainer_config)
        device = device_type(trainer_config["accelerator"])
        set_float32_precision(self.config.float32_precision, device)
        trainer_config["benchmark"] = choose_benchmark(
            trainer_config["benchmark"], trainer_config["deterministic"], device
        )
        trainer_config["enable_checkpointing"] = fitting
        trainer_config["plugins"] = [
            *_as_list(trainer_config.get("plugins")),
            *_as_list(trainer_config.pop("precision_plugin")),
            *_environment(trainer_config.get("plugins"), session),
            checkpointer.checkpoint_io(),
        ]
        if fitting and trainer_config["logger"] in (None, True):
            board = TensorBoardLogger(session.run.path, name="", version="tensorboard")
            trainer_config["logger"] = [MetricsTable(session.run), board]
        elif not fitting:
            trainer_config["logger"] = False
        try:
            return Trainer(**trainer_config)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise UserInputError(f"trainer: {' '.join(str(error).split())}") from error


def _environment(plugins: Any, session: Session) -> list[ClusterEnvironment]:
    """Return how ranks find each other, unless the user has a way of his own."""
    if any(isinstance(plugin, ClusterEnvironment) for plugin in _as_list(plugins)):
        return []
    return [session.start.environment()]


def _choose_strategy(trainer_config: dict[str, Any]) -> None:
    """Replace the names of strategy and precision by ours, or refuse them."""
    device = device_type(trainer_config["accelerator"])
    if device == "cpu":
        # DeepSpeed looks for GPUs when it is imported.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    strategy = choose_strategy(trainer_config["strategy"])
    check_legal(strategy, device, trainer_config)
    if uses_deepspeed(strategy):
        check_accelerator(device)
    precision = precision_name(trainer_config["precision"])
    trainer_config["strategy"], trainer_config["precision"] = strategy, None
    trainer_config["precision_plugin"] = build_precision(
        precision, device, deepspeed=uses_deepspeed(strategy)
    )


def with_saved_config(stage: Stage, argv: list[str]) -> list[str]:
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


def plain_config(cli: TrainCli) -> dict[str, Any]:
    """Return the effective configuration as plain values, without what is linked or of one call."""
    text = cli.parser.dump(cli.config, skip_unset=False, format="json")
    plain: dict[str, Any] = json.loads(text)
    for name in ("config", "run_dir", "runs_dir", "ckpt_path", "output", "profile"):
        plain.pop(name, None)
    return plain


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
