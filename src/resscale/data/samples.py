"""Where encoded samples come from: the shards of a manifest, or plain image files."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resscale.data.cache_entry import CacheSource
from resscale.data.fork_locks import renew_in_children
from resscale.data.kept_indices import KEPT_BYTES, KeptIndices
from resscale.data.locations import join, local_path, shown
from resscale.data.manifest import Manifest
from resscale.data.permutation import Int64
from resscale.data.shard_index import IMAGE_EXTENSIONS, NO_LABEL, ShardIndex
from resscale.data.store import ShardStore
from resscale.errors import DataFormatError, UserInputError

_KEPT_LOCATIONS = 65536
_LOADED_AT_ONCE = 16


class Samples(Protocol):
    """Encoded images by id, from 0 up."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, sample: int) -> tuple[bytes, int]:
        """Return the encoded image and its label (-1 where it has none)."""
        ...

    def key(self, sample: int) -> str:
        """Return the sample's name."""
        ...

    def origin(self, sample: int) -> str:
        """Return the shard or folder that the sample lies in."""
        ...


class ShardSamples:
    """The samples of a manifest, read at random by offset.

    Args:
        manifest: the shards.
        store: reads byte ranges of them.
        index_bytes: most bytes of offset indices that are kept in memory.
    """

    def __init__(
        self, manifest: Manifest, store: ShardStore | None = None, index_bytes: int = KEPT_BYTES
    ) -> None:
        self.manifest = manifest
        self.store = store or ShardStore()
        self._ends = np.cumsum(manifest.shard_sizes)
        self._indices = KeptIndices(index_bytes)
        self._locations: dict[int, str] = {}
        renew_in_children(self)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def read(self, sample: int) -> tuple[bytes, int]:
        """Return the encoded image and its label.

        Raises:
            DataFormatError: the shard or its index is damaged.
        """
        shard, index, position = self._locate(sample)
        location = self._location(shard)
        source = self.source(shard) if self.store.is_remote(location) else None
        offset, size = int(index.offsets[position]), int(index.sizes[position])
        return self.store.read(location, offset, size, source), int(index.labels[position])

    def read_each(self, samples: Sequence[int]) -> Iterator[tuple[bytes, int]]:
        """Yield what `read` returns for some ids; requests to servers wait side by side."""
        if not self.manifest.shards or not self.store.is_remote(self.manifest.shard_location(0)):
            return map(self.read, samples)
        return self.store.read_ahead.map(self.read, samples)

    def source(self, shard: int) -> CacheSource:
        """Return how a cache knows a shard."""
        table = self.manifest.table
        sha256 = table.sha256[shard].decode()
        return self.store.source(
            self.manifest.shard_location(shard), int(table.bytes[shard]), sha256
        )

    def known_source(self, shard: int) -> CacheSource | None:
        """Return the same if no server need be asked for it, else None."""
        table = self.manifest.table
        location = self.manifest.shard_location(shard)
        known = table.sha256[shard] or self.store.knows_version(location)
        return self.source(shard) if known else None

    def shards_of(self, ids: Int64) -> Int64:
        """Return the numbers of the shards that some ids lie in: int64 (n,)."""
        return np.searchsorted(self._ends, ids, side="right").astype(np.int64)

    def labels(self, ids: Int64) -> Int64:
        """Return the labels of some ids without reading the images: int64 (n,).

        Indices that lie on a server are read side by side.
        """
        if local_path(self.manifest.root) is None:
            shards = np.unique(self.shards_of(ids)).tolist()
            for _ in self.store.read_ahead.map(self._index, shards):
                pass
        found = np.empty(len(ids), dtype=np.int64)
        for row, sample in enumerate(ids.tolist()):
            _, index, position = self._locate(sample)
            found[row] = index.labels[position]
        return found

    def key(self, sample: int) -> str:
        """Return the WebDataset key."""
        _, index, position = self._locate(sample)
        return bytes(index.keys[position]).decode()

    def origin(self, sample: int) -> str:
        """Return the shard's location."""
        return self.manifest.shard_location(self._locate(sample)[0])

    def _locate(self, sample: int) -> tuple[int, ShardIndex, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is outside 0 to {len(self) - 1}")
        shard = int(self._ends.searchsorted(sample, side="right"))
        index = self._indices.get(shard)
        if index is None:
            index = self._index(shard)
        return shard, index, sample - int(self._ends[shard] - len(index))

    def _location(self, shard: int) -> str:
        # Putting a path together takes as long as reading a small image.
        location = self._locations.get(shard)
        if location is None:
            if len(self._locations) >= _KEPT_LOCATIONS:
                self._locations.clear()
            location = self._locations[shard] = self.manifest.shard_location(shard)
        return location

    def __getstate__(self) -> dict[str, Any]:
        gone = {"_indices": self._indices.most_bytes, "_locations": {}, "_loading": None}
        return {**self.__dict__, **gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _indices=KeptIndices(state["_indices"]))
        renew_in_children(self)

    def make_locks(self) -> None:
        """Take free locks; see `fork_locks`."""
        self._indices.make_lock()
        self._loading = [threading.Lock() for _ in range(_LOADED_AT_ONCE)]

    def _index(self, shard: int) -> ShardIndex:
        # Threads that miss the same index load it once; other indices load beside it.
        with self._loading[shard % len(self._loading)]:
            index = self._indices.get(shard)
            if index is None:
                index = self._load_index(shard)
                self._indices.add(shard, index)
        return index

    def _load_index(self, shard: int) -> ShardIndex:
        location = self.manifest.index_location(shard)
        path = local_path(location)
        if path is not None:
            index = ShardIndex.load(path)
        else:
            index = self._load_remote_index(location, shard)
        if len(index) != self.manifest.shards[shard].samples:
            raise DataFormatError(
                f"{shown(location)} lists {len(index)} samples, the manifest "
                f"{self.manifest.shards[shard].samples}. "
                f"Make both anew: resscale index '{shown(join(self.manifest.root, '*.tar'))}'"
            )
        return index

    def _load_remote_index(self, location: str, shard: int) -> ShardIndex:
        # An index belongs to the bytes of its shard: with a SHA-256 it needs no request of its own.
        version = self.manifest.shards[shard].sha256
        if not version and self.store.cache is not None:
            version = self.source(shard).version
        try:
            return ShardIndex.from_bytes(self.store.read_small(location, version), location)
        except DataFormatError:
            if not self.store.forget_small(location, version):
                raise
        # What the cache had was torn, as by a power failure.
        return ShardIndex.from_bytes(self.store.read_small(location, version), location)


def read_each(samples: Samples, ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yield the encoded image and label of each id, in order; remote ones are read ahead."""
    if isinstance(samples, ShardSamples):
        return samples.read_each(ids)
    return map(samples.read, ids)


class FileSamples:
    """Plain image files, without labels; the key is the path.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, sample: int) -> tuple[bytes, int]:
        """Return the file's bytes and -1."""
        try:
            return self.paths[sample].read_bytes(), NO_LABEL
        except OSError as error:
            raise DataFormatError(
                f"{self.paths[sample]} cannot be read ({error.strerror})."
            ) from error

    def key(self, sample: int) -> str:
        """Return the path."""
        return str(self.paths[sample])

    def origin(self, sample: int) -> str:
        """Return the folder."""
        return str(self.paths[sample].parent)


def find_images(location: str) -> list[Path]:
    """Return an image file, or the image files below a folder, sorted.

    Raises:
        UserInputError: there is none.
    """
    path = Path(location).expanduser()
    endings = {f".{extension}" for extension in IMAGE_EXTENSIONS}
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [file for file in files if file.suffix.lower() in endings and file.is_file()]
    if not found:
        raise UserInputError(
            f"{location} holds neither shards with a manifest nor images "
            f"({', '.join(sorted(endings))}); name a folder or a file that does."
        )
    return found
