"""The splits that the user names: their manifests, opened once, and their encoded samples."""

from __future__ import annotations

from collections.abc import Mapping

from resscale.data.caching import Caching
from resscale.data.loader import WorkerOptions
from resscale.data.locations import local_path
from resscale.data.manifest import Manifest
from resscale.data.open_shards import names_shards, open_split
from resscale.data.remote import set_default
from resscale.data.samples import FileSamples, Samples, ShardSamples, find_images
from resscale.data.sequential import SequentialSamples, StreamPlace, is_sequential
from resscale.errors import UserInputError


class Splits:
    """Shards by the name of their split.

    Args:
        locations: where "train", "val", "test" and "predict" lie; None: there is no such split.
        caching: how servers are read, and what is kept of them.
        epoch_samples: of a sequential training source.
    """

    def __init__(
        self, locations: Mapping[str, str | None], caching: Caching, epoch_samples: int | None
    ) -> None:
        self.locations = locations
        self.caching = caching
        self.epoch_samples = epoch_samples
        # One rank of a node is enough: a thousand would ask a file system for each shard.
        self.looks_at_shards = True
        self._manifests: dict[str, Manifest] = {}

    @property
    def is_sequential(self) -> bool:
        """The training source can be read in one direction only."""
        location = self.locations["train"]
        return location is not None and is_sequential(location)

    def manifest(self, split: str) -> Manifest:
        """Return the checked manifest of a split.

        Raises:
            UserInputError: no shards are named for it, or they are not what the manifest says.
        """
        if split not in self._manifests:
            location = self.locations[split]
            if location is None:
                raise UserInputError(
                    f"data.{split} is not set: name a folder of shards with --data.{split} FOLDER."
                )
            set_default(self.caching.remote)
            self._manifests[split] = open_split(
                split,
                location,
                self.epoch_samples,
                looks_at_shards=self.looks_at_shards,
                # A cache is for what lies on servers; without need its folder is not made.
                cache=self.caching.cache if local_path(location) is None else None,
            )
        return self._manifests[split]

    def samples(
        self, split: str, workers: WorkerOptions, place: StreamPlace, num_classes: int | None
    ) -> Samples:
        """Return the encoded samples of a split; for "predict" they may be plain image files.

        Args:
            split: its name.
            workers: that will read them.
            place: this rank's, in a sequential source.
            num_classes: of the model, where it is known; a sequential source checks labels by it.
        """
        location = self.locations[split]
        if split == "predict" and location is not None and not names_shards(location):
            return FileSamples(find_images(location))
        if split == "train" and self.is_sequential:
            manifest = self.manifest("train")
            return SequentialSamples(manifest.table.names, manifest.num_samples, place, num_classes)
        return self.shard_samples(split, workers)

    def shard_samples(self, split: str, workers: WorkerOptions) -> ShardSamples:
        """Return the samples of a split of shards.

        Args:
            split: its name.
            workers: that will read them.
        """
        store = self.caching.store(workers.num_workers, threads=workers.kind == "threads")
        return ShardSamples(self.manifest(split), store)
