"""What `fit` says before its first step and behind its last."""

from __future__ import annotations

import shlex
from pathlib import Path

from resscale.data.datamodule import ShardDataModule
from resscale.data.decoders import describe_decoder, warn_of_other_decoder
from resscale.data.progressive import describe_sizes
from resscale.data.repeats import describe_repeats, distinct_order
from resscale.data.samples import ShardSamples
from resscale.data.shuffle_quality import describe_shuffle
from resscale.models.weights import LoadedWeights
from resscale.training.classifier import ImageClassifier
from resscale.training.rundir import RunDir


def start_lines(
    run: RunDir,
    data: ShardDataModule,
    model: ImageClassifier,
    world_size: int,
    max_epochs: int | None = None,
) -> list[str]:
    """Return where the run is written to and what its numbers come to, the directory first.

    Args:
        run: the run directory.
        data: the data.
        model: the model.
        world_size: number of ranks.
        max_epochs: where training ends; None: unknown.
    """
    order, size = data.order(), data.train_crop.size
    macs = model.num_macs(size)
    cost = f", {macs / 1e9:.3g} GMACs at {size}x{size}" if macs is not None else ""
    steps = f"{order.num_steps} {'step' if order.num_steps == 1 else 'steps'} per epoch"
    others = "others each epoch" if data.repeats == 1 else f"others each {data.repeats} epochs"
    left = f", {order.num_dropped} left over ({others})" if order.num_dropped else ""
    rate = model.optimizer_config.explain_lr(data.global_batch_size)
    warning = model.optimizer_config.warn_of_lr(data.global_batch_size)
    return [
        f"run directory: {run.path}",
        f"{data.plan(world_size)}; {rate}",
        *([warning] if warning else []),
        f"{model.num_parameters:,} parameters{cost}; "
        f"{order.num_samples:,} training samples = {steps}{left}",
        *describe_repeats(order),
        *describe_sizes(data.train_sizes, max_epochs),
        *model.augment.describe(),
        *decoder_lines(data),
        *shuffle_lines(data, world_size),
    ]


def decoder_lines(data: ShardDataModule) -> list[str]:
    """Return what images are decoded with, and a warning where that is another than before."""
    now = data.decoder_name
    warning = warn_of_other_decoder(data.decoder_before, now)
    return [f"decoder: {describe_decoder(now)}", *([warning] if warning else [])]


def shuffle_lines(data: ShardDataModule, world_size: int) -> list[str]:
    """Return how well the order mixes the shards, and a warning where it does not."""
    samples = data.samples("train")
    if not isinstance(samples, ShardSamples):
        return []  # a sequential source says its own
    micro_batch_size = data.plan(world_size).micro_batch_size
    # Copies say nothing of how the shards are mixed.
    order = distinct_order(data.order())
    micro_batch_size = min(micro_batch_size, order.global_batch_size)
    found = describe_shuffle(order, samples.manifest, micro_batch_size, samples)
    return found.splitlines() if found else []


def weights_line(loaded: LoadedWeights) -> str:
    """Return what the run begins with, where it does not begin at random."""
    skipped = f", without {', '.join(loaded.skipped)}" if loaded.skipped else ""
    return f"weights: {loaded.num_tensors} tensors of {loaded.source}{skipped}"


def result_lines(run: RunDir, status: str, ckpt_path: Path | None) -> list[str]:
    """Return the result, and the next command to try.

    Args:
        run: the run directory.
        status: how training ended.
        ckpt_path: what it went on from.
    """
    facts = run.read_summary()
    if not facts:
        return [f"{status}: nothing was left to train from {ckpt_path} on."]
    top1 = facts.get("val_top1")
    accuracy = f"val top-1 {top1:.2%}, " if top1 is not None else ""
    bad = f", {facts['bad_samples']} damaged" if facts["bad_samples"] else ""
    folder = shlex.quote(str(run.path))
    if top1 is None:
        following = f"resscale predict --run_dir {folder} --data.predict IMAGES"
    else:
        following = f"resscale validate --run_dir {folder} --ckpt_path best"
    return [
        f"{status}: {accuracy}{facts['samples_seen']:,} images seen, "
        f"{facts['images_per_s']:,.0f} images/s{bad}",
        f"run directory: {run.path}",
        f"next:  {following}",
    ]
