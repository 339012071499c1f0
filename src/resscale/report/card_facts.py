"""What a model card says of a run: only what a configuration, a checkpoint or a table recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from resscale.data.builtin import resolve
from resscale.data.locations import shown, without_secrets
from resscale.data.manifest import Manifest
from resscale.errors import UserInputError
from resscale.report.export_source import Source
from resscale.report.metrics import read_rows
from resscale.report.runs import flatten
from resscale.training.optim import OptimizerConfig
from resscale.training.rundir import RunDir

Rows = list[tuple[str, str]]
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers on the validation set, 0 to 1; None: not measured."""

    top1: float | None = None
    top5: float | None = None


def measured_accuracy(source: Source) -> dict[str, Accuracy]:
    """Return what validation measured of exactly these weights, under "raw" and "EMA".

    The row of the run's metrics.csv with the checkpoint's step counts and no other: a run's last or
    best accuracy may be that of other weights.
    """
    step = source.state.get("global_step")
    found: dict[str, Accuracy] = {"raw": Accuracy(), "EMA": Accuracy()}
    if source.run is None or step is None:
        return found
    for row in read_rows(source.run.metrics):
        if int(row["step"]) == step and "val/top1" in row:
            found["raw"] = Accuracy(row["val/top1"], row.get("val/top5"))
            found["EMA"] = Accuracy(row.get("val/ema_top1"), row.get("val/ema_top5"))
    return found


def training_rows(source: Source) -> Rows:
    """Return the recipe: command, optimizer, schedule, epochs, batch, precision, strategy, EMA."""
    config = flatten(source.config)
    command = _training_command(source.run)
    return [
        ("recipe", _recipe(command)),
        ("command", f"`{command}`" if command else UNKNOWN),
        ("optimizer", _options(config, "model.optimizer")),
        ("learning rate", _learning_rate(source.config, source.state)),
        ("schedule", _options(config, "model.schedule")),
        ("label smoothing", _value(config, "model.label_smoothing")),
        ("epochs", _epochs(config, source.state)),
        ("global batch", _value(config, "data.global_batch_size")),
        ("micro-batch", _value(config, "data.micro_batch_size", none="the rank's whole share")),
        ("training crop", _training_crop(config)),
        ("precision", _value(config, "trainer.precision", none="32-true")),
        ("strategy", _strategy(config)),
        ("EMA", _ema(config, source)),
        ("seed", _value(config, "seed_everything")),
        ("begun from weights", _value(config, "weights", none="none" if config else UNKNOWN)),
    ]


def data_rows(source: Source) -> Rows:
    """Return which data the net was trained on and measured on."""
    config = flatten(source.config)
    samples = source.state.get("num_samples")
    fingerprint = source.state.get("manifest")
    return [
        ("training data", shown(_value(config, "data.train"))),
        ("training samples", UNKNOWN if samples is None else f"{samples:,}"),
        ("fingerprint of the manifest", UNKNOWN if fingerprint is None else f"`{fingerprint}`"),
        ("validation data", shown(_value(config, "data.val", none="none"))),
    ]


def class_names(source: Source) -> tuple[str, ...]:
    """Return the names by class, where the training data still lies where it was; else nothing.

    The manifest must have the fingerprint that the checkpoint recorded.
    """
    location = (source.config.get("data") or {}).get("train")
    if not isinstance(location, str) or "://" in location:
        return ()
    try:
        manifest = Manifest.load(resolve(location))
    except UserInputError:
        return ()
    return manifest.classes if manifest.fingerprint == source.state.get("manifest") else ()


def _training_command(run: RunDir | None) -> str | None:
    summary: object = run.read_summary() if run is not None else None
    command = summary.get("command") if isinstance(summary, Mapping) else None
    # A card is for others: addresses of data stand there without their keys.
    return without_secrets(command) if isinstance(command, str) else None


def _recipe(command: str | None) -> str:
    """Return the configuration files that a command names."""
    words = shlex.split(command) if command else []
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [after for word, after in pairwise(words) if word in ("--config", "-c")]
    return ", ".join(f"`{file}`" for file in files) or UNKNOWN


def _options(config: Mapping[str, Any], prefix: str) -> str:
    """Return a group of options in a line, its name first: `sgd: lr 0.1, momentum 0.9`."""
    start = f"{prefix}."
    group = {k.removeprefix(start): v for k, v in config.items() if k.startswith(start)}
    name = group.pop("name", None)
    listed = ", ".join(f"{key} {_text(value)}" for key, value in group.items())
    return f"{name}: {listed}" if name and listed else (name or listed or UNKNOWN)


def _learning_rate(config: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    optimizer = (config.get("model") or {}).get("optimizer") or {}
    batch = state.get("global_batch_size")
    if "lr" not in optimizer or batch is None:
        return UNKNOWN
    stated = OptimizerConfig(
        lr=optimizer["lr"],
        lr_batch_size=optimizer.get("lr_batch_size"),
        lr_scaling=optimizer.get("lr_scaling", "linear"),
    )
    return stated.explain_lr(batch).removeprefix("lr ")


def _epochs(config: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    step, batch, samples = (
        state.get(name) for name in ("global_step", "global_batch_size", "num_samples")
    )
    if step is None or batch is None or samples is None:
        return UNKNOWN
    steps = f"{step:,} optimizer steps, {step * batch:,} images"
    if config.get("trainer.limit_train_batches") is not None or samples < batch:
        return steps
    planned = config.get("trainer.max_epochs")
    of = f" of {planned} planned" if isinstance(planned, int) and planned > 0 else ""
    return f"{step / (samples // batch):.4g}{of}: {steps}"


def _training_crop(config: Mapping[str, Any]) -> str:
    if "data.train_crop" not in config:
        return UNKNOWN
    flip = ", mirrored by half" if config.get("data.flip") else ""
    small = config.get("data.progressive.from_size")
    grows = f"{small} growing to " if small is not None else ""
    repeats = config.get("data.repeats", 1)
    copies = f", {repeats} copies of each in a batch" if repeats > 1 else ""
    return (
        f"{config['data.train_crop']}, {grows}{config.get('data.image_size')} pixels{flip}{copies}"
    )


def _strategy(config: Mapping[str, Any]) -> str:
    if not config:
        return UNKNOWN
    named = config.get("trainer.strategy")
    name = _options(config, "trainer.strategy") if named is None else _text(named)
    devices, nodes = (_value(config, f"trainer.{key}") for key in ("devices", "num_nodes"))
    return f"{name}, devices {devices}, nodes {nodes}"


def _ema(config: Mapping[str, Any], source: Source) -> str:
    options = {
        key: value
        for key, value in config.items()
        if key.startswith(("ema.", "model.ema.", "trainer.ema.")) and value is not None
    }
    listed = ", ".join(f"{key.rpartition('.')[2]} {_text(value)}" for key, value in options.items())
    if source.averaged is not None:
        return listed or "yes"
    return "none" if config else UNKNOWN


def _value(config: Mapping[str, Any], key: str, none: str = UNKNOWN) -> str:
    """Return a value as text; `none` where the run set none."""
    value = config.get(key)
    return _text(value) if value is not None else (none if config else UNKNOWN)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
