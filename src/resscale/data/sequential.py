"""Samples that come in one direction only: out of commands (`pipe:`) and compressed tars.

Nobody knows how many there are, and none can be read before those in front of it. So an epoch is
a number that the user states, and the promises are few: see `PROMISE`.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from resscale.data.checked_stream import open_stream
from resscale.data.locations import is_pipe, local_path, name_of, shown
from resscale.data.manifest import Manifest, ShardInfo
from resscale.data.shard_index import IMAGE_EXTENSIONS, NO_LABEL, read_label
from resscale.data.shard_patterns import expand_braces, expand_local
from resscale.errors import DataFormatError, UserInputError

BUFFER_SAMPLES = 1000
"""Encoded samples that each reader keeps and draws from."""
PROMISE = (
    "sequential source: each epoch is {samples:,} samples of whatever comes next; not promised: "
    "each sample once, the same order on other ranks, going on with the very next sample (a "
    "resumed run begins anew with the shards in another order)"
)
_GZIPPED = (".tar.gz", ".tgz")
_KEPT_NAMES = 1 << 16


def is_sequential(location: str) -> bool:
    """Return whether a location is a command or a compressed tar, which have no index."""
    return is_pipe(location) or name_of(location).endswith(_GZIPPED)


def expand_sequential(location: str) -> list[str]:
    """Return the shards that a sequential source means: commands, or paths.

    Raises:
        UserInputError: no such file, or an address that a command must read.
    """
    if is_pipe(location):
        return expand_braces(location)
    if local_path(location) is None:
        raise UserInputError(
            f"{shown(location)} is a compressed tar on a server: a command reads it, as "
            f"'pipe:curl -sf --retry 5 {shown(location)}'. An uncompressed .tar can be indexed."
        )
    return [str(path) for path in expand_local(location)]


def sequential_manifest(location: str, epoch_samples: int | None) -> Manifest:
    """Return a manifest in place of that which the shards cannot have: only its numbers are true.

    Args:
        location: of the user's.
        epoch_samples: what the user calls an epoch, over all ranks.

    Raises:
        UserInputError: no such file, or no number of samples.
    """
    if epoch_samples is None:
        raise UserInputError(
            f"{shown(location)} is read in one direction, so its samples cannot be counted "
            f"beforehand. "
            f"Say how many make up an epoch: --data.epoch_samples N."
        )
    shards = expand_sequential(location)
    ends = [number * epoch_samples // len(shards) for number in range(len(shards) + 1)]
    return Manifest(
        classes=(),
        shards=[
            ShardInfo(shard, stop - start, 0, "")
            for shard, start, stop in zip(shards, ends[:-1], ends[1:], strict=True)
        ],
        class_counts=(),
        source={"command": "none: a sequential source"},
        root=location,
    )


@dataclass(frozen=True)
class StreamPlace:
    """Which of all readers a reader is, and what its order is drawn from.

    Args:
        rank: number of the rank.
        world_size: number of ranks.
        seed: of the run.
        samples_seen: where the run goes on: names the order, too.
        shuffle: permute the shards of each pass, and draw samples from a buffer.
    """

    rank: int = 0
    world_size: int = 1
    seed: int = 0
    samples_seen: int = 0
    shuffle: bool = True


def shards_of_reader(
    num_shards: int, reader: int, num_readers: int, place: StreamPlace
) -> Iterator[int]:
    """Yield the numbers of the shards that a reader reads, without end.

    All shards, pass after pass, are one sequence; readers take turns in it. So no reader is ever
    without a shard, however few there are, and each shard is read about equally often.

    Args:
        num_shards: of the source.
        reader: number of the reader, over all ranks.
        num_readers: of all ranks.
        place: seed and shuffling; rank and world size do not count here.
    """
    turn = reader
    while True:
        number, position = divmod(turn, num_shards)
        order = list(range(num_shards))
        if place.shuffle:
            random.Random(f"{place.seed} {place.samples_seen} {number}").shuffle(order)
        while position < num_shards:
            yield order[position]
            position += num_readers
        turn = number * num_shards + position


class SequentialSamples:
    """Encoded images that come as they come; ids are running numbers, given by who asks.

    Each rank or reading process opens a stream of its own when it is first asked.

    Args:
        shards: commands and paths.
        epoch_samples: samples of an epoch.
        place: of this rank.
        num_classes: labels from there on are refused; None: any is taken.
    """

    def __init__(
        self,
        shards: Sequence[str],
        epoch_samples: int,
        place: StreamPlace,
        num_classes: int | None = None,
    ) -> None:
        self.shards = list(shards)
        self.epoch_samples = epoch_samples
        self.place = place
        self.num_classes = num_classes
        self._names: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._stream: Iterator[dict[str, Any]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.epoch_samples

    def read(self, sample: int) -> tuple[bytes, int]:
        """Return the next image of this reader's stream, and its label; call it `sample`.

        Raises:
            DataFormatError: a sample without image or label, or a shard that is no whole tar.
            RemoteError: a command that failed.
        """
        with self._lock:
            if self._stream is None:
                self._stream = self._open()
            found = next(self._stream)
            self._names[sample] = (found["__key__"], found["__url__"])
            if len(self._names) > _KEPT_NAMES:
                self._names.popitem(last=False)
        return self._image(found), self._label(found)

    def key(self, sample: int) -> str:
        """Return the WebDataset key; a running number where another process has read it."""
        return self._names.get(sample, (f"sample {sample} of its epoch", ""))[0]

    def origin(self, sample: int) -> str:
        """Return the shard; nothing where another process has read it."""
        return self._names.get(sample, ("", ""))[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_lock": None, "_names": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _open(self) -> Iterator[dict[str, Any]]:
        import webdataset

        reader, num_readers = self._reader()
        place = self.place
        numbers = shards_of_reader(len(self.shards), reader, num_readers, place)
        stages: list[Any] = [partial(_samples, self.shards, numbers)]
        if place.shuffle:
            rng = random.Random(f"{place.seed} {place.samples_seen} reader {reader}")
            stages.append(webdataset.shuffle(BUFFER_SAMPLES, initial=BUFFER_SAMPLES // 4, rng=rng))
        return iter(webdataset.DataPipeline(*stages))

    def _reader(self) -> tuple[int, int]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return self.place.rank * workers + worker, self.place.world_size * workers

    def _image(self, found: dict[str, Any]) -> bytes:
        for extension in IMAGE_EXTENSIONS:
            if extension in found:
                return bytes(found[extension])
        files = sorted(name for name in found if not name.startswith("__"))
        raise DataFormatError(
            f"{shown(found['__url__'])}: sample {found['__key__']!r} has no image, only {files}; "
            f"one of "
            f"{', '.join(IMAGE_EXTENSIONS)} is needed."
        )

    def _label(self, found: dict[str, Any]) -> int:
        where = f"{shown(found['__url__'])}: sample {found['__key__']!r}"
        try:
            label = read_label(found)
        except ValueError as error:
            raise DataFormatError(f"{where} {error}") from None
        if label == NO_LABEL:
            raise DataFormatError(f"{where} has no .cls label, so it cannot be trained on.")
        if self.num_classes is not None and label >= self.num_classes:
            raise DataFormatError(
                f"{where} has the label {label}, the model has num_classes={self.num_classes} "
                f"(labels 0 to {self.num_classes - 1}). Set --model.num_classes higher."
            )
        return label


def _samples(shards: Sequence[str], numbers: Iterator[int]) -> Iterator[dict[str, Any]]:
    """Yield webdataset's samples of one shard after the other."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    empty = 0
    for number in numbers:
        shard, count = shards[number], 0
        with open_stream(shard) as stream:
            opened = iter([{"url": shard, "stream": stream}])
            for sample in group_by_keys(tar_file_expander(opened)):
                count += 1
                yield sample
        empty = 0 if count else empty + 1
        # One shard may be empty; where all are, nobody would ever get a sample.
        if empty >= len(shards):
            raise DataFormatError(
                f"{shown(shard)} holds no samples, nor do the {empty - 1} shards before it: "
                f"nothing can "
                f"be trained on. Correct data.train."
            )
