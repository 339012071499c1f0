"""Splits by name: opened once, refused where they are not named."""

import shutil
from pathlib import Path

import pytest
from fault_server import serve

from resscale.data.builtin import resolve
from resscale.data.caching import Caching
from resscale.data.loader import WorkerOptions
from resscale.data.samples import FileSamples, ShardSamples
from resscale.data.sequential import SequentialSamples, StreamPlace
from resscale.data.splits import Splits
from resscale.errors import DataFormatError, UserInputError

PLACE = StreamPlace(0, 1, 0, 0, False)


def splits(epoch_samples: int | None = None, **locations: str) -> Splits:
    named: dict[str, str | None] = dict.fromkeys(("train", "val", "test", "predict"))
    return Splits({**named, **locations}, Caching(), epoch_samples)


def test_a_manifest_is_opened_once() -> None:
    found = splits(train="builtin:digits/train")
    assert found.manifest("train") is found.manifest("train")
    assert found.manifest("train").num_samples == 1437


def test_a_split_without_a_name_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"data\.test is not set: name a folder of shards"):
        splits().manifest("test")


def test_what_samples_come_from_follows_from_the_name(photo_tree: Path) -> None:
    found = splits(100, train="pipe:cat a.tar", val="builtin:digits/test", predict=str(photo_tree))
    kinds = [
        type(found.samples(split, WorkerOptions(), PLACE, 10))
        for split in ("train", "val", "predict")
    ]
    assert kinds == [SequentialSamples, ShardSamples, FileSamples]
    assert found.is_sequential


def test_shards_are_looked_at_by_who_is_told_to(tmp_path: Path) -> None:
    shutil.copytree(resolve("builtin:digits/test"), tmp_path / "digits")
    next((tmp_path / "digits").glob("*.tar")).unlink()
    with pytest.raises(DataFormatError, match="is missing"):
        splits(train=str(tmp_path / "digits")).manifest("train")
    other = splits(train=str(tmp_path / "digits"))
    other.looks_at_shards = False
    assert other.manifest("train").num_samples == 360


def test_shards_are_not_sequential() -> None:
    assert not splits(train="builtin:digits/train").is_sequential
    assert not splits().is_sequential


def test_only_what_lies_on_a_server_needs_the_cache(tmp_path: Path) -> None:
    folder = Path(resolve("builtin:digits/test"))
    named: dict[str, str | None] = dict.fromkeys(("train", "test", "predict"))
    with serve(folder) as server:
        locations = {**named, "train": str(folder), "val": server.url}
        found = Splits(locations, Caching(str(tmp_path / "cache"), 0.1), None)
        found.manifest("train")
        assert not (tmp_path / "cache").exists()
        assert found.manifest("val").num_samples == 360
        assert len(list((tmp_path / "cache").glob("*-manifest.json"))) == 1
