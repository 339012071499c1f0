"""How well an order mixes: classes and shards in its batches, against those of a full shuffle.

A few batches of the epoch are looked at, and the labels of at most so many shards, so the cost is
the same for any size of data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resscale.data.locations import local_path
from resscale.data.manifest import Manifest
from resscale.data.order import EpochOrder
from resscale.data.permutation import Int64, mix_key, permute
from resscale.data.samples import ShardSamples

Labels = Callable[[Int64], Int64]
"""Labels of some sample ids."""

MOST_SHARDS = 64
"""Shards whose labels are looked up for one batch."""
MOST_REMOTE_SHARDS = 32
"""The same where each costs a request."""
_MOST_SAMPLES = 20_000  # per remote shard, so that an index has a megabyte at most
_STEPS = 3  # batches looked at, spread over the epoch
_DRAWS = 32
_PICK = 51  # goes into the key, so that no other use shares the permutation
# Fewer bits than this share of a full shuffle's is more than training should bear unasked.
_ENOUGH = 0.95


@dataclass(frozen=True)
class Entropy:
    """Entropy of the labels among samples of a batch.

    Args:
        samples: so many were compared, mean over batches.
        bits: entropy found, mean over batches.
        ideal_bits: what as many samples of a full shuffle have, mean over draws.
        spread_bits: standard deviation of that mean.
    """

    samples: float
    bits: float
    ideal_bits: float
    spread_bits: float

    @property
    def fraction(self) -> float:
        """Entropy found, over that of a full shuffle."""
        return self.bits / self.ideal_bits if self.ideal_bits else 1.0

    @property
    def is_poor(self) -> bool:
        """Whether it is lower than that of a full shuffle, by more than chance and by over 5%."""
        chance = self.ideal_bits - 4 * self.spread_bits
        return self.bits < chance and self.fraction < _ENOUGH


@dataclass(frozen=True)
class ShuffleQuality:
    """How well an order mixes.

    Args:
        batch: classes among the samples of a global batch; None without labels.
        micro_batch: the same of a micro-batch, which BatchNorm and a rank see.
        shards: a batch comes from as many shards as if it were drawn from so many of equal size.
        ideal_shards: the same of a full shuffle.
    """

    batch: Entropy | None
    micro_batch: Entropy | None
    shards: float
    ideal_shards: float


def measure_shuffle(
    order: EpochOrder,
    labels: Labels | None,
    class_counts: Sequence[int],
    micro_batch_size: int | None = None,
    most_shards: int = MOST_SHARDS,
) -> ShuffleQuality:
    """Compare some batches of an epoch with those of a full shuffle.

    Args:
        order: an epoch with at least one step.
        labels: labels of sample ids; None: there are none, or they cost too much.
        class_counts: samples per label of the whole set.
        micro_batch_size: samples of a micro-batch; None: that of the global batch.
        most_shards: shards whose labels are asked for per batch.
    """
    count = min(_STEPS, order.num_steps)
    steps = [(2 * number + 1) * order.num_steps // (2 * count) for number in range(count)]
    batches = [order.global_batch(step) for step in steps]
    shards = [np.searchsorted(np.cumsum(order.shard_sizes), ids, side="right") for ids in batches]
    micro = micro_batch_size or order.global_batch_size
    # One micro-batch of each batch, another one in each.
    parts = [slice(start := number * (len(ids) // micro) // count * micro, start + micro)
             for number, ids in enumerate(batches)]  # fmt: skip

    def entropy(chosen: Sequence[Int64], of: Sequence[Int64]) -> Entropy | None:
        if labels is None:
            return None
        picked = [_pick(*pair, most_shards) for pair in zip(chosen, of, strict=True)]
        return _entropy([labels(ids) for ids in picked], class_counts)

    return ShuffleQuality(
        batch=entropy(batches, shards),
        micro_batch=entropy(
            [ids[part] for ids, part in zip(batches, parts, strict=True)],
            [of[part] for of, part in zip(shards, parts, strict=True)],
        ),
        shards=_effective_shards([_counts(of) for of in shards]),
        ideal_shards=_effective_shards([order.shard_sizes]),
    )


def describe_shuffle(
    order: EpochOrder,
    manifest: Manifest,
    micro_batch_size: int | None = None,
    samples: ShardSamples | None = None,
) -> str | None:
    """Return what a user should know of the mix before training: a line, two where it is poor.

    On a server, indices of fewer shards are read, several at once: at most 6 × 32 over the batches
    and micro-batches; none where they are large.

    Args:
        order: the training order.
        manifest: of the training samples.
        micro_batch_size: samples of a micro-batch.
        samples: reads the labels, through the node's cache for one; None: without a cache.

    Raises:
        DataFormatError: an index is missing or damaged.
        RemoteError: a server does not answer.
    """
    if not order.num_steps:
        return None
    is_remote = local_path(manifest.root) is None
    per_shard = manifest.num_samples / max(1, len(manifest.shards))
    known = bool(manifest.class_counts) and not (is_remote and per_shard > _MOST_SAMPLES)
    labels = (samples or ShardSamples(manifest)).labels if known else None
    most_shards = MOST_REMOTE_SHARDS if is_remote else MOST_SHARDS
    quality = measure_shuffle(order, labels, manifest.class_counts, micro_batch_size, most_shards)
    how = f"window of {order.window:,}" if order.shuffle == "window" else order.shuffle
    parts = f" in {order.partitions:,} partitions" if order.partitions > 1 else ""
    line = (
        f"shuffle: {how}{parts}; a batch draws from {_shards_text(quality.shards)} shards, a "
        f"full shuffle from {_shards_text(quality.ideal_shards)}"
    )
    line += f"; {entropy_text(quality.batch)}" if quality.batch is not None else "; labels unknown"
    poor = _what_is_poor(quality)
    return line if poor is None else f"{line}\nwarning: {poor}. {remedy(order)}"


def entropy_text(entropy: Entropy) -> str:
    """Return bits found and possible, as text."""
    return (
        f"{entropy.bits:.2f} of {entropy.ideal_bits:.2f} bits of label entropy "
        f"({entropy.fraction:.0%})"
    )


def remedy(order: EpochOrder) -> str:
    """Return what to do about an order that mixes poorly, for the user."""
    again = "or pack the data set again (`resscale pack` shuffles)"
    if order.shuffle == "none":
        return "Set --data.shuffle window."
    if order.shuffle == "window" and order.window < order.num_samples // order.partitions:
        return f"Set --data.window {4 * order.window} or more, or --data.shuffle full, {again}."
    if order.partitions > 1:
        return f"Set a lower --data.partitions than {order.partitions}, {again}."
    return "Look at the data: resscale inspect"


def _what_is_poor(quality: ShuffleQuality) -> str | None:
    for entropy, name in ((quality.batch, "batch"), (quality.micro_batch, "micro-batch")):
        if entropy is not None and entropy.is_poor:
            return f"the samples of a {name} are of few classes ({entropy_text(entropy)})"
    return None


def _shards_text(shards: float) -> str:
    return f"{shards:,.0f}" if shards >= 10 else f"{shards:.1f}"


def _pick(ids: Int64, shards: Int64, most_shards: int) -> Int64:
    """Return ids of a batch that lie in few shards, without preferring any of them.

    They are taken at random, until a further one would need the labels of one shard too many.
    """
    turn = permute(np.arange(len(ids)), len(ids), mix_key(_PICK, len(ids)))
    first_seen = np.zeros(len(ids), dtype=bool)
    first_seen[np.unique(shards[turn], return_index=True)[1]] = True
    allowed = np.cumsum(first_seen) <= most_shards
    return ids[turn[allowed]]


def _entropy(labels: Sequence[Int64], class_counts: Sequence[int]) -> Entropy:
    rng = np.random.default_rng(0)
    found = [_bits(_counts(some)) for some in labels]
    drawn = [[_bits(_draw(rng, class_counts, len(some))) for _ in range(_DRAWS)] for some in labels]
    return Entropy(
        samples=float(np.mean([len(some) for some in labels])),
        bits=float(np.mean(found)),
        ideal_bits=float(np.mean(drawn)),
        spread_bits=float(np.std(np.mean(drawn, axis=0))),
    )


def _draw(rng: np.random.Generator, class_counts: Sequence[int], count: int) -> Int64:
    """Return how many of `count` samples drawn at random are of each class."""
    counts = np.asarray(class_counts, dtype=np.int64)
    total = int(counts.sum())
    if count * 20 < total:  # with or without putting back makes no difference
        return rng.multinomial(count, counts / total)
    return rng.multivariate_hypergeometric(counts, count, method="count")


def _counts(values: Int64) -> Int64:
    return np.unique(values, return_counts=True)[1].astype(np.int64)


def _bits(counts: npt.NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _effective_shards(counts: Sequence[Int64]) -> float:
    """Return 1 over the chance that two samples of one batch are of one shard."""
    pairs = sum(float((some * (some - 1.0)).sum()) for some in counts)
    possible = sum(float(some.sum()) * (float(some.sum()) - 1.0) for some in counts)
    return possible / pairs if pairs else possible or 1.0
