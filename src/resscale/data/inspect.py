"""What shards hold: counts, classes, sizes, how well they are mixed, and samples that are bad."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from resscale.data.locations import join, local_path, name_of, shown
from resscale.data.manifest import Manifest
from resscale.data.open_shards import open_manifest
from resscale.data.order import DEFAULT_WINDOW, EpochOrder, Shuffle
from resscale.data.pack_pool import run_tasks
from resscale.data.pack_progress import PackProgress
from resscale.data.read_ahead import ReadAhead
from resscale.data.shard_index import ShardIndex
from resscale.data.shuffle_quality import Entropy, measure_shuffle
from resscale.data.store import ShardStore
from resscale.errors import DataFormatError

Int64 = npt.NDArray[np.int64]

_BYTES_PER_MB = 1_000_000
_RUN = 256  # neighbours whose labels are compared: about what a shuffle window mixes
_MOST_RUNS = 256
_SHUFFLES = 12
_MOST_BAD = 20
_BATCH = 256  # samples of the batches that orders are judged by


@dataclass(frozen=True)
class Decoded:
    """Facts of decoded images.

    Args:
        widths: pixels, int64 (n,).
        heights: pixels, int64 (n,).
        kinds: number of images by "format mode", such as "JPEG RGB".
        bad: (shard name, key, reason) of those that cannot be decoded.
    """

    widths: Int64
    heights: Int64
    kinds: Counter[str]
    bad: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Mixing:
    """How mixed the labels of neighbours are.

    Args:
        run: neighbours whose labels are compared.
        bits: entropy of the labels in a run, mean over runs.
        ideal_bits: the same of these labels shuffled, mean over shuffles.
        spread_bits: standard deviation of that over shuffles.
    """

    run: int
    bits: float
    ideal_bits: float
    spread_bits: float

    @property
    def fraction(self) -> float:
        """Entropy found, over that of a perfect shuffle."""
        return self.bits / self.ideal_bits if self.ideal_bits else 1.0

    @property
    def is_shuffled(self) -> bool:
        """Whether the order cannot be told from a shuffle, or is within 2% of it."""
        tolerance = max(0.02 * self.ideal_bits, 4 * self.spread_bits)
        return self.bits >= self.ideal_bits - tolerance


@dataclass(frozen=True)
class Report:
    """All that `resscale inspect` tells of a folder of shards."""

    manifest: Manifest
    sizes: Int64
    decoded: Decoded
    mixing: Mixing | None
    batches: tuple[tuple[str, Entropy], ...] = ()  # by order, where there are labels

    @property
    def bad(self) -> tuple[tuple[str, str, str], ...]:
        """Samples that cannot be decoded, among those that were tried."""
        return self.decoded.bad


def inspect_shards(
    location: str, check: bool = False, processes: int = 1, images: int = 256, seed: int = 0
) -> Report:
    """Read the manifest and the offset indices, and decode a sample of the images.

    Args:
        location: folder or address of shards, its manifest, or a pattern of shards.
        check: decode all images.
        processes: worker processes for that.
        images: number of images decoded otherwise.
        seed: of the choice among them.

    Raises:
        DataFormatError: no shards, no manifest, or a manifest that does not fit them.
    """
    manifest = open_manifest(location)
    manifest.check_sizes()
    sizes, labels = _sizes_and_labels(manifest)
    count = manifest.num_samples
    rng = np.random.default_rng(seed)
    chosen = np.arange(count) if check else np.sort(rng.permutation(count)[:images])
    labelled = len(labels) > 1 and labels.min() >= 0
    return Report(
        manifest=manifest,
        sizes=sizes,
        decoded=_decode_all(manifest, chosen, processes if check else 1),
        mixing=label_mixing(labels, seed) if labelled else None,
        batches=batch_mixing(manifest, labels) if labelled else (),
    )


def _sizes_and_labels(manifest: Manifest) -> tuple[Int64, Int64]:
    """Return bytes and labels of all samples; of the indices a few are in memory at a time."""
    sizes, labels = (np.empty(manifest.num_samples, np.int64) for _ in range(2))
    stop = 0
    locations = map(manifest.index_location, range(len(manifest.shards)))
    is_remote = local_path(manifest.root) is None
    indices = (ReadAhead().map if is_remote else map)(ShardIndex.load, locations)
    for count, index in zip(manifest.shard_sizes.tolist(), indices, strict=True):
        start, stop = stop, stop + count
        if len(index) != count:
            raise DataFormatError(
                f"{shown(manifest.root)}: an index lists {len(index)} samples, the manifest "
                f"{count}. Make both anew: resscale index "
                f"'{shown(join(manifest.shards_root or manifest.root, '*.tar'))}'"
            )
        sizes[start:stop], labels[start:stop] = index.sizes, index.labels
    return sizes, labels


def batch_mixing(manifest: Manifest, labels: Int64) -> tuple[tuple[str, Entropy], ...]:
    """Measure the label entropy of training batches, with the shuffles that `fit` offers.

    Args:
        manifest: the shards.
        labels: class of each sample in the order of the shards, int64 (n,).
    """
    found = []
    kinds: tuple[tuple[str, Shuffle], ...] = (
        (f"window {DEFAULT_WINDOW:,}", "window"),
        ("full", "full"),
        ("none", "none"),
    )
    for name, shuffle in kinds:
        order = EpochOrder(
            manifest.shard_sizes, global_batch_size=min(_BATCH, len(labels)), shuffle=shuffle
        )
        counts = np.bincount(labels).tolist()
        quality = measure_shuffle(order, labels.__getitem__, counts, most_shards=len(labels))
        assert quality.batch is not None
        found.append((name, quality.batch))
    return tuple(found)


def label_mixing(labels: Int64, seed: int = 0) -> Mixing:
    """Measure the entropy of labels among neighbours, and of the same labels shuffled.

    In small sets a shuffle's own chance matters, hence several.

    Args:
        labels: class of each sample in the order of the shards, int64 (n,), n > 1.
        seed: of the shuffles.
    """
    run = max(2, min(_RUN, len(labels) // 8))
    rng = np.random.default_rng(seed)
    ideal = [_entropy_per_run(rng.permutation(labels), run) for _ in range(_SHUFFLES)]
    bits = _entropy_per_run(labels, run)
    return Mixing(run, bits, float(np.mean(ideal)), float(np.std(ideal)))


def describe(report: Report) -> str:
    """Return the report as text, a line per fact."""
    rows = [
        ("samples", _shard_text(report.manifest)),
        ("classes", _class_text(report.manifest)),
        ("bytes", _bytes_text(report)),
        *_image_texts(report.decoded),
        ("order", _order_text(report.mixing)),
        *_batch_texts(report.batches),
        ("source", _source_text(report.manifest)),
        ("bad", _bad_text(report)),
    ]
    lines = [f"{name:<9}{text}" for name, text in rows]
    lines += [f"  {shard}: {key}: {reason}" for shard, key, reason in report.bad[:_MOST_BAD]]
    if len(report.bad) > _MOST_BAD:
        lines.append(f"  and {len(report.bad) - _MOST_BAD} more")
    return "\n".join([shown(report.manifest.shards_root or report.manifest.root), *lines])


def decode_shard(task: tuple[str, str, Int64]) -> Decoded:
    """Decode rows of one shard; the task is (location of the shard, of its index, rows)."""
    location, index_location, rows = task
    index, store = ShardIndex.load(index_location), ShardStore()
    widths, heights, kinds, bad = [], [], Counter[str](), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and very large images are no damage
        for row in rows.tolist():
            raw = store.read(location, int(index.offsets[row]), int(index.sizes[row]))
            try:
                with Image.open(io.BytesIO(raw)) as image:
                    image.load()
                    kinds[f"{image.format} {image.mode}"] += 1
                    widths.append(image.width)
                    heights.append(image.height)
            except Exception as error:  # Pillow raises whatever the damage leads it into
                reason = "not an image" if "identify" in str(error) else str(error)
                bad.append((name_of(location), index.keys[row].decode(), reason))
    return Decoded(np.array(widths, np.int64), np.array(heights, np.int64), kinds, tuple(bad))


def _decode_all(manifest: Manifest, chosen: Int64, processes: int) -> Decoded:
    starts = np.concatenate([[0], np.cumsum(manifest.shard_sizes)])
    cuts = np.searchsorted(chosen, starts)
    tasks = [
        (
            manifest.shard_location(n),
            manifest.index_location(n),
            chosen[cuts[n] : cuts[n + 1]] - starts[n],
        )
        for n in range(len(manifest.shards))
        if cuts[n + 1] > cuts[n]
    ]
    parts = []
    with (
        PackProgress("decode", len(chosen)) as progress,
        closing(run_tasks(decode_shard, tasks, max(1, min(processes, len(tasks))))) as done,
    ):
        for part in done:
            parts.append(part)
            progress.advance(len(part.widths) + len(part.bad))
    return Decoded(
        widths=np.concatenate([part.widths for part in parts]) if parts else np.zeros(0, np.int64),
        heights=np.concatenate([part.heights for part in parts])
        if parts
        else np.zeros(0, np.int64),
        kinds=sum((part.kinds for part in parts), Counter[str]()),
        bad=tuple(sorted(bad for part in parts for bad in part.bad)),
    )


def _entropy_per_run(labels: Int64, run: int) -> float:
    starts = np.arange(len(labels) // run) * run
    if len(starts) > _MOST_RUNS:
        starts = starts[np.linspace(0, len(starts) - 1, _MOST_RUNS).astype(np.int64)]
    entropies = []
    for start in starts:
        counts = np.unique(labels[start : start + run], return_counts=True)[1]
        shares = counts / run
        entropies.append(-float((shares * np.log2(shares)).sum()))
    return float(np.mean(entropies))


def _shard_text(manifest: Manifest) -> str:
    sizes = manifest.shard_sizes
    shards = f"{len(sizes):,} shard{'' if len(sizes) == 1 else 's'}"
    return f"{manifest.num_samples:,} in {shards} of {sizes.min():,} to {sizes.max():,}"


def _class_text(manifest: Manifest) -> str:
    counts = np.array(manifest.class_counts, np.int64)
    if not counts.sum():
        return "no labels"
    names = dict(enumerate(manifest.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    text = (
        f"{manifest.num_classes:,}; samples per class: min {counts[low]:,} "
        f"({names.get(low, low)}), median {np.median(counts):,.0f}, max {counts[high]:,} "
        f"({names.get(high, high)})"
    )
    if missing := manifest.num_classes - int((counts > 0).sum()):
        return f"{text}; {missing:,} without any"
    return f"{text}; imbalance {counts[high] / counts[low]:.2f}"


def _bytes_text(report: Report) -> str:
    low, middle, high = np.quantile(report.sizes, [0, 0.5, 1])
    return (
        f"{report.manifest.num_bytes / _BYTES_PER_MB:,.1f} MB; per image: min {low:,.0f}, "
        f"median {middle:,.0f}, max {high:,.0f}"
    )


def _image_texts(decoded: Decoded) -> list[tuple[str, str]]:
    if not len(decoded.widths):
        return []
    rows = []
    for name, pixels in (("width", decoded.widths), ("height", decoded.heights)):
        low, five, middle, most, high = np.quantile(pixels, [0, 0.05, 0.5, 0.95, 1])
        text = f"{low:.0f} | {five:.0f} | {middle:.0f} | {most:.0f} | {high:.0f}"
        rows.append((name, f"{text}  pixels: min | 5% | median | 95% | max"))
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in decoded.kinds.most_common())
    return [*rows, ("images", f"{kinds}, of {len(decoded.widths):,} decoded")]


def _order_text(mixing: Mixing | None) -> str:
    if mixing is None:
        return "no labels to judge by"
    verdict = "shuffled" if mixing.is_shuffled else "partly sorted by class"
    if mixing.fraction < 0.5:
        verdict = "sorted by class: pack again, or train with a full shuffle"
    return (
        f"{mixing.bits:.2f} of {mixing.ideal_bits:.2f} bits of label entropy in runs of "
        f"{mixing.run} neighbours ({mixing.fraction:.0%}): {verdict}"
    )


def _batch_texts(batches: tuple[tuple[str, Entropy], ...]) -> list[tuple[str, str]]:
    if not batches:
        return []
    each = ", ".join(
        f"{name} {entropy.fraction:.0%}{' (poor)' if entropy.is_poor else ''}"
        for name, entropy in batches
    )
    size = batches[0][1].samples
    return [("shuffle", f"label entropy of batches of {size:,.0f}, of what is possible: {each}")]


def _source_text(manifest: Manifest) -> str:
    text = str(manifest.source.get("command", "unknown"))
    if left_out := manifest.source.get("left_out"):
        text += f"; left out {left_out:,}, see left_out.jsonl"
    return text


def _bad_text(report: Report) -> str:
    tried = len(report.decoded.widths) + len(report.bad)
    text = f"{len(report.bad) or 'none'} of {tried:,} decoded"
    return text if tried == report.manifest.num_samples else f"{text} (--check decodes all)"
