"""What `resscale bench` runs: real training with everything that `fit` has, in this process."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from resscale.bench.measured import measured_step
from resscale.bench.reader_rate import ReaderRound, read_for, render_readers, summarise
from resscale.bench.step_report import render_step, step_as_json
from resscale.bench.synthetic import SyntheticLoader, synthetic_batches
from resscale.bench.timed_fit import TimedFit
from resscale.bench.turns import PlainLoop, Turns
from resscale.bench.verdict import TrainRates, judge, render_train
from resscale.cli_errors import explain_refusal
from resscale.cli_lightning import TrainCli, with_saved_config
from resscale.cli_train import Session
from resscale.cluster.doctor.cpus import cpus_per_rank, probe_cpus
from resscale.cluster.doctor.rate_probe import Share, build_probe_loader
from resscale.cluster.environment import RUN_DIR_VARIABLE
from resscale.data.batching import plan_batches
from resscale.data.datamodule import ShardDataModule
from resscale.data.loader import TrainLoader
from resscale.data.locations import shown
from resscale.errors import UserInputError
from resscale.training.compiling import compile_network
from resscale.training.precision import autocast_dtype, precision_name
from resscale.training.strategy import device_type, register_strategies

# A CPU takes seconds for an image of resnet50.
_MOST_ROWS_ON_CPU = 16
# Steps that a run may take at most; those that are timed by the clock stop themselves.
_MOST_STEPS = 100_000

Measured = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """A configuration as it is measured: on one device, whatever it was written for.

    Args:
        words: of `fit`.
        config: parsed.
        data: its data module.
        device: "cuda", "mps" or "cpu".
        rows: images of a step.
    """

    words: list[str]
    config: Any
    data: ShardDataModule
    device: str
    rows: int

    @property
    def what(self) -> str:
        """Network and setting, for people."""
        model, trainer = self.config.model, self.config.trainer
        size = self.data.train_crop.size
        compiled = f", {model.compile}" if model.compile else ""
        mode = f" ({model.compile_mode})" if model.compile_mode else ""
        return (
            f"{model.model}, {size}x{size}, {self.rows} images a step, "
            f"{precision_name(trainer.precision)}{compiled}{mode}"
        )


def bench_step(words: Sequence[str], arguments: argparse.Namespace) -> Measured:
    """Measure a training step on random pixels; return the table, and the same as plain values.

    Args:
        words: options of `fit`.
        arguments: of `bench`.
    """
    asked = _ask(words, arguments.batch_size)
    turns: list[Turns] = []

    def prepare(session: Session) -> None:
        batches = _feed(session, asked)
        # Before a trainer has it; a copy is eager.
        twin = copy.deepcopy(session.model)
        model = session.config.model
        compile_network(twin.model, model.compile, model.compile_mode)
        dtype = autocast_dtype(precision_name(session.config.trainer.precision))
        turns.append(
            Turns(
                lambda device: PlainLoop(twin, batches, device, dtype),
                arguments.rounds,
                arguments.seconds,
                arguments.steps,
            )
        )
        session.trainer.callbacks.append(turns[0])  # type: ignore[attr-defined]

    _train([*asked.words, *_synthetic(asked.rows)], prepare)
    result = measured_step(turns[0], asked.what, asked.data.train_crop.size)
    return render_step(result), step_as_json(result)


def bench_loader(words: Sequence[str], arguments: argparse.Namespace) -> Measured:
    """Measure the loader by number of readers; return the table, and the same as plain values.

    Args:
        words: options of `fit`.
        arguments: of `bench`.
    """
    asked = _ask(words, arguments.batch_size, trains=False)
    cpus = cpus_per_rank(probe_cpus(), 1, None)
    counts = arguments.readers or [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cpus]
    loaders = {count: _loader(asked, count) for count in counts}
    rounds: dict[int, list[ReaderRound]] = {count: [] for count in counts}
    for _ in range(arguments.rounds):
        for count, loader in loaders.items():
            rounds[count].append(read_for(loader, count, arguments.seconds))
    rates = summarise(rounds)
    kind = asked.data.worker_options(max(counts), on_gpu=False).kind
    head = (
        f"{shown(str(asked.data.locations['train']))}, {asked.data.train_crop.size} pixels, "
        f"batches of {asked.rows}, decoder {asked.data.decoder_name}, {cpus} CPUs; medians of "
        f"{arguments.rounds} rounds\n\n"
    )
    values = {"decoder": asked.data.decoder_name, "kind": kind, "cpus": cpus, "rows": asked.rows}
    return (
        head + render_readers(rates, kind),
        {**values, "readers": [asdict(rate) for rate in rates]},
    )


def bench_train(words: Sequence[str], arguments: argparse.Namespace) -> Measured:
    """Measure loader, step and both in turns; return the table, and the same as plain values.

    Args:
        words: options of `fit`.
        arguments: of `bench`.
    """
    asked = _ask(words, arguments.batch_size)
    readers = asked.data.num_workers
    if readers is None:
        readers = max(0, cpus_per_rank(probe_cpus(), 1, None) - 1)
    loader = _loader(asked, readers)
    found: dict[str, list[float]] = {name: [] for name in ("loader", "step", "both", "data_wait")}
    for _ in range(arguments.rounds):
        read = read_for(loader, readers, arguments.seconds)
        found["loader"].append(read.images / read.wall_s)
        step = _timed(asked, _synthetic(asked.rows), arguments.seconds, is_fed=True)
        found["step"].append(step.images_per_s)
        both = _timed(asked, [], arguments.seconds, is_fed=False)
        found["both"].append(both.images_per_s)
        found["data_wait"].append(both.data_wait)
    rates = TrainRates(**{name: statistics.median(values) for name, values in found.items()})
    reading = "1 reader" if readers == 1 else f"{readers} readers"
    head = f"{asked.what}, {reading}; medians of {arguments.rounds} rounds\n\n"
    return (
        head + render_train(rates),
        {"what": asked.what, "readers": readers, **asdict(rates), "verdict": judge(rates)},
    )


def _ask(words: Sequence[str], batch_size: int | None, *, trains: bool = True) -> Asked:
    """Parse the configuration, and bring it onto one device.

    Args:
        words: options of `fit`.
        batch_size: that the user asks for.
        trains: a CPU is to train, so that without a word of the user's a batch is a small one.
    """
    register_strategies()
    cli = TrainCli("fit", with_saved_config("fit", list(words)))
    trainer, data = cli.config.trainer, cli.config.data
    device = device_type(trainer.accelerator)
    if batch_size is None:
        ranks = trainer.num_nodes * _devices(trainer.devices, device)
        batch_size = plan_batches(
            data.global_batch_size, data.micro_batch_size, ranks
        ).micro_batch_size
        if trains and device == "cpu":
            batch_size = min(batch_size, _MOST_ROWS_ON_CPU)
    options = {
        "data.global_batch_size": batch_size,
        "data.micro_batch_size": batch_size,
        "data.val": "null",
        "data.test": "null",
        # At the full size: that is what most of the time goes to.
        "data.progressive.from_size": "null",
        "data.progressive.until_epoch": "null",
        # Random pixels are learnt at no rate: a small one keeps the numbers finite.
        "model.optimizer.lr": 1e-4,
        "weights": "null",
        "trainer.devices": 1,
        "trainer.num_nodes": 1,
        "trainer.strategy": "auto",
        "trainer.limit_train_batches": 1.0,
        "trainer.max_steps": -1,
        "trainer.min_epochs": "null",
    }
    added = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    changed = TrainCli("fit", [*with_saved_config("fit", list(words)), *added])
    if changed.config.num_threads is not None:
        torch.set_num_threads(changed.config.num_threads)
    return Asked(
        [*words, *added],
        changed.config,
        _data_of(changed),
        device,
        changed.config.data.global_batch_size,
    )


def _data_of(cli: TrainCli) -> ShardDataModule:
    try:
        parts: Any = cli.parser.instantiate_classes(cli.config)
    except ValueError as error:
        refusal = explain_refusal(str(error))
        if refusal is None:
            raise
        raise UserInputError(refusal) from error
    data: ShardDataModule = parts.data
    return data


def _devices(asked: Any, device: str) -> int:
    """Return how many devices of a node `trainer.devices` means."""
    if isinstance(asked, list | tuple):
        return len(asked)
    if str(asked) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    return int(asked)


def _synthetic(rows: int) -> list[str]:
    """Return the options of data that is not there: its loader is put in its place."""
    options = {
        "data.train": "pipe:true",
        "data.epoch_samples": rows * _MOST_STEPS,
        "data.partitions": 1,
        "data.num_workers": 0,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _feed(session: Session, asked: Asked) -> list[Any]:
    """Put random pixels in the place of a session's data; return the batches."""
    module = session.model
    batches = synthetic_batches(
        asked.rows,
        asked.data.train_crop.size,
        module.in_channels,
        module.num_classes,
        pinned=asked.device == "cuda",
    )
    loader: Any = SyntheticLoader(batches, _MOST_STEPS)
    data: Any = session.data
    data.train_dataloader = lambda: loader
    data._train_loader = loader
    return batches


def _loader(asked: Asked, readers: int) -> TrainLoader:
    asked.data.check(("train",), asked.config.model.num_classes, 1)
    return build_probe_loader(asked.data, Share(0, 1, readers), on_gpu=asked.device == "cuda")


def _timed(asked: Asked, more: Sequence[str], seconds: float, *, is_fed: bool) -> TimedFit:
    timed = TimedFit(asked.rows, seconds)

    def prepare(session: Session) -> None:
        if is_fed:
            _feed(session, asked)
        session.trainer.callbacks.append(timed)  # type: ignore[attr-defined]

    _train([*asked.words, *more], prepare)
    return timed


def _train(words: Sequence[str], prepare: Callable[[Session], None]) -> None:
    """Train as `fit` does, in a run directory that is thrown away, without a word."""
    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        session = Session("fit", [*words, "--run_dir", f"{folder}/run"])
        prepare(session)
        try:
            session.trainer.fit(session.model, session.data)
        finally:
            session.wait_for_ranks()
            session.watch.release()
            session.run.leave()
            session.start.forget()
            os.environ.pop(RUN_DIR_VARIABLE, None)
