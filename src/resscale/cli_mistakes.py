"""A checkpoint's mistakes on the validation images, for `resscale report --mistakes`.

Measured from a checkpoint rather than by the last evaluation of training: so it costs training
nothing, serves runs of the past and any checkpoint of a run, and needs no agreement of ranks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resscale.cli_lightning import TrainCli
from resscale.cli_quiet import quiet_third_parties
from resscale.cli_weights import check_network
from resscale.data.datamodule import ShardDataModule
from resscale.data.dataset import BadSample
from resscale.errors import UserInputError
from resscale.models import load_weights
from resscale.report.metrics import Row, read_rows
from resscale.report.mistakes import Mistake, MistakeCounts
from resscale.report.mistakes_file import (
    MISTAKES_FILE,
    Measured,
    Shown,
    identify,
    read_measured,
    thumbnail,
    write_measured,
)
from resscale.training.checkpoint import STATE_KEY, find_newest_valid, load_checkpoint
from resscale.training.classifier import ImageClassifier
from resscale.training.ema_checkpoint import EMA_KEY, load_averaged
from resscale.training.precision import PrecisionName, build_precision, precision_name
from resscale.training.rundir import RunDir

# A run on many GPUs may name no smaller batch than all of its global one.
_MOST_IMAGES = 256
_BAD_SHOWN = 20
_SAY_EVERY_S = 10.0


def measure_mistakes(run: Path, asked: str | None = None) -> Path:
    """Count a checkpoint's mistakes on the validation images; write, name and return the file.

    Each image is visited once, with crop, decoder and precision of the run's own evaluation, on the
    first GPU, or on the CPU. Nothing is measured again that the file already holds.

    Args:
        run: the run directory.
        asked: the checkpoint: "best", "auto" (the newest whole one) or a file; None: the best one,
            where there is none the newest.

    Raises:
        UserInputError: no configuration, no such checkpoint or no validation shards; a checkpoint
            of another net.
    """
    files = RunDir(run)
    path = _find_checkpoint(files, asked)
    checkpoint = load_checkpoint(path)
    model, data, precision = _build(files)
    check_network(checkpoint, model, str(path))
    data.check(("val",), model.num_classes, world_size=1)
    data.decoder_before = checkpoint.get(STATE_KEY, {}).get("decoder")
    averaged, why = choose_weights(checkpoint, read_rows(files.metrics))
    identity, fingerprint = identify(path), data.manifest("val").fingerprint
    if _holds(run, identity, fingerprint, averaged, data.eval_crop.size):
        print(f"{run / MISTAKES_FILE} is of {path} already", flush=True)
        return run / MISTAKES_FILE
    if averaged:
        load_averaged(model.model, checkpoint, str(path))
    else:
        load_weights(model.model, path)
    counts, bad = _count(model, data, precision)
    manifest = data.manifest("val")
    measured = Measured(
        checkpoint=str(path.relative_to(run) if path.is_relative_to(run) else path),
        identity=identity,
        global_step=int(checkpoint["global_step"]),
        averaged=averaged,
        why=why,
        images=str(data.locations["val"]),
        fingerprint=fingerprint,
        crop_px=data.eval_crop.size,
        precision=precision,
        samples=tuple(counts.samples.tolist()),
        hits=tuple(counts.hits.tolist()),
        hits_top5=tuple(counts.hits_top5.tolist()),
        pairs=tuple((*divmod(code, model.num_classes), n) for code, n in counts.pairs.items()),
        classes=tuple(manifest.classes),
        confident=tuple(_shown(mistake, data) for mistake in counts.confident()),
        bad=tuple((sample.key, sample.reason) for sample in bad[:_BAD_SHOWN]),
        num_bad=len(bad),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )
    written = write_measured(measured, run)
    print(f"wrote {written}", flush=True)
    return written


def choose_weights(checkpoint: dict[str, Any], rows: Sequence[Row]) -> tuple[bool, str]:
    """Return whether a checkpoint's averaged weights are to be measured, and why.

    Those that scored higher when they were evaluated; where that is not known, those as trained.

    Args:
        checkpoint: as read from the file.
        rows: of the run's metrics.csv.
    """
    if EMA_KEY not in checkpoint:
        return False, ""
    scores = [
        (row["val/ema_top1"], row["val/top1"])
        for row in rows
        if row["step"] == checkpoint["global_step"] and {"val/ema_top1", "val/top1"} <= row.keys()
    ]
    if not scores:
        return False, "how the averaged weights score is not recorded"
    average, trained = scores[-1]
    better = average > trained
    return better, (
        f"they scored {max(average, trained):.2%} at this step, the "
        f"{'weights as trained' if better else 'averaged ones'} {min(average, trained):.2%}"
    )


def likeliest(logits: Tensor, most: int = 5) -> tuple[Tensor, Tensor]:
    """Return the likeliest classes, int64 (N, K), and their probabilities, float32 (N, K).

    Of equal logits the first class comes first, as where accuracy is measured. In bfloat16 they are
    equal often: of 10,000 Fashion-MNIST images, the best two of 11.

    Args:
        logits: (N, C).
        most: classes, K where there are as many.
    """
    # topk promises nothing of equal values.
    order = logits.float().sort(dim=1, descending=True, stable=True).indices
    classes = order[:, :most]
    return classes, logits.float().softmax(dim=1).gather(1, classes)


def _find_checkpoint(files: RunDir, asked: str | None) -> Path:
    if asked not in (None, "best", "auto"):
        path = Path(str(asked))
        if not path.is_file():
            raise UserInputError(f"--ckpt_path {path}: there is no such file.")
        return path
    best = files.checkpoints / "best.ckpt"
    if asked != "auto" and best.exists():
        return best
    newest = find_newest_valid(files) if asked != "best" else None
    if newest is None:
        which = "best.ckpt" if asked == "best" else "whole checkpoint"
        raise UserInputError(
            f"{files.path} has no {which}, and --mistakes measures a trained net: train it first, "
            f"or leave the run out."
        )
    return newest


def _build(files: RunDir) -> tuple[ImageClassifier, ShardDataModule, PrecisionName]:
    """Return the run's own model, data and precision, for one process."""
    if not files.config.is_file():
        raise UserInputError(
            f"{files.path} has no config.yaml, and --mistakes needs it to build the net: leave the "
            f"run out."
        )
    quiet_third_parties()
    cli = TrainCli("validate", ["--config", str(files.config)])
    for name in ("compile", "compile_mode"):
        if name in cli.config.model:
            # One pass over the images does not pay for it.
            cli.config.model[name] = None
    built = cli.parser.instantiate_classes(cli.config)
    data: ShardDataModule = built.data
    if data.eval_batch_size is None:
        data.eval_batch_size = min(_MOST_IMAGES, data.micro_batch_size or data.global_batch_size)
    return built.model, data, precision_name(cli.config.trainer.precision)


def _holds(run: Path, identity: str, fingerprint: str, averaged: bool, crop_px: int) -> bool:
    """Tell whether the run's file is of these weights on these images."""
    try:
        found = read_measured(run)
    except UserInputError:
        return False  # damaged: it is written anew
    return found is not None and (
        (found.identity, found.fingerprint, found.averaged, found.crop_px)
        == (identity, fingerprint, averaged, crop_px)
    )


def _count(
    model: ImageClassifier, data: ShardDataModule, precision: PrecisionName
) -> tuple[MistakeCounts, list[BadSample]]:
    """Score each validation image once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    total = len(data.samples("val"))
    counts, bad = MistakeCounts(model.num_classes, total), list[BadSample]()
    loader = data.val_dataloader()
    assert not isinstance(loader, list), "the caller has found validation shards"
    said, done = time.monotonic(), 0
    # Autocast as in the run: else a few images would fall on the other side of a close decision.
    plugin = build_precision(precision, device.type, deepspeed=False)
    try:
        with torch.no_grad(), plugin.forward_context():
            for batch in loader:
                images = batch["image"]
                moved = data.transfer_batch_to_device(batch, device, 0)
                classes, probabilities = likeliest(model.score(moved["image"]))
                counts.add(
                    batch["id"].numpy(),
                    batch["label"].numpy(),
                    classes.cpu().numpy(),
                    probabilities.cpu().numpy(),
                    images.permute(0, 2, 3, 1).numpy(),
                )
                bad += batch["bad"]
                done += int((batch["id"] >= 0).sum())
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    print(f"{done:,} of {total:,} images measured", file=sys.stderr, flush=True)
    finally:
        data.teardown("validate")
    counts.check_complete()
    return counts, bad


def _shown(mistake: Mistake, data: ShardDataModule) -> Shown:
    url, is_tiny = thumbnail(mistake.image)
    return Shown(
        key=data.samples("val").key(mistake.id),
        label=mistake.label,
        predicted=mistake.predicted,
        probability=mistake.probability,
        label_probability=mistake.label_probability,
        thumbnail=url,
        is_tiny=is_tiny,
    )
