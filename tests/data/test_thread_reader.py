"""Threads give the batches that one thread gives, in their order, and end with their iteration."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from resscale.data import ShardDataset
from resscale.data.augment import RandomResizedCrop
from resscale.data.dataset import Batch, BatchRequest
from resscale.data.decode import DecodeError
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.loader import raise_errors
from resscale.data.samples import FileSamples
from resscale.data.thread_reader import THREAD_NAME, ThreadReader
from resscale.errors import DataFormatError


@pytest.fixture
def files(tmp_path: Path, jpegs: tuple[bytes, ...]) -> FileSamples:
    paths = [tmp_path / f"{number:02d}.jpg" for number in range(len(jpegs))]
    for path, raw in zip(paths, jpegs, strict=True):
        path.write_bytes(raw)
    return FileSamples(paths)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


def dataset_of(files: FileSamples, **options: bool) -> ShardDataset:
    return ShardDataset(files, RandomResizedCrop(16), flip=True, **options)


def requests(count: int, rows: int, total: int) -> list[BatchRequest]:
    rng = np.random.default_rng(0)
    return [BatchRequest(rng.integers(0, total, rows), epoch=1, step=n) for n in range(count)]


def equal(first: Batch, second: Batch) -> bool:
    tensors = ("image", "label", "flip", "id")
    return all(torch.equal(first[name], second[name]) for name in tensors) and (  # type: ignore[literal-required]
        (first["epoch"], first["step"], first["bad"])
        == (second["epoch"], second["step"], second["bad"])
    )


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_what_one_reader_gives(files: FileSamples, rows: int, threads: int) -> None:
    dataset, asked = dataset_of(files), requests(9, rows, len(files))
    found = [raise_errors(batch) for batch in ThreadReader(dataset, asked, threads)]
    assert len(found) == len(asked)
    for batch, request in zip(found, asked, strict=True):
        assert equal(batch, dataset.read_batch(request))


def test_rows_beyond_the_samples_are_black_in_memory_that_was_used_before(
    files: FileSamples,
) -> None:
    asked = [BatchRequest(np.arange(n, dtype=np.int64), size=8) for n in (8, 8, 8, 8, 8, 3, 0)]
    for batch, request in zip(
        ThreadReader(dataset_of(files), asked, 2, prefetch_factor=1), asked, strict=True
    ):
        images = raise_errors(batch)["image"]
        assert images[len(request.ids) :].count_nonzero() == 0
        assert raise_errors(batch)["id"].tolist()[len(request.ids) :] == [-1] * (
            8 - len(request.ids)
        )


def test_what_stands_in_for_damage_is_what_one_reader_chooses(
    files: FileSamples, jpegs: tuple[bytes, ...]
) -> None:
    for number in (1, 4, 7):
        files.paths[number].write_bytes(jpegs[number][:100])
    dataset, asked = dataset_of(files, replace_bad=True), requests(4, 40, len(files))
    for batch, request in zip(ThreadReader(dataset, asked, 3), asked, strict=True):
        assert raise_errors(batch)["bad"]
        assert equal(raise_errors(batch), dataset.read_batch(request))


def test_our_errors_arrive_as_values_in_their_place(files: FileSamples) -> None:
    files.paths[2].unlink()
    asked = [BatchRequest(np.array([n])) for n in range(4)]
    found = list(ThreadReader(dataset_of(files), asked, 2))
    assert [isinstance(one, DataFormatError) for one in found] == [False, False, True, False]


def test_a_batch_of_damage_alone_is_an_error(files: FileSamples) -> None:
    files.paths[2].write_bytes(b"nothing")
    asked = [BatchRequest(np.array([2]))]
    (found,) = ThreadReader(dataset_of(files, replace_bad=True), asked, 2)
    with pytest.raises(DataFormatError, match="none of the 1 samples"):
        raise_errors(found)


class _Broken(PillowDecoder):
    def decode(self, *arguments: object) -> None:
        raise ZeroDivisionError("a bug")


def test_a_bug_is_raised_as_it_is(files: FileSamples) -> None:
    dataset = ShardDataset(files, RandomResizedCrop(16), _Broken())
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(ThreadReader(dataset, requests(2, 4, len(files)), 2))


class _Waits(PillowDecoder):
    """Lets nothing through before it is told; counts how many images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        self.go = threading.Event()

    def decode(self, *arguments: object) -> None:
        self.given += 1
        self.go.wait(60)
        raise DecodeError("not wanted")


def test_no_more_is_read_ahead_than_stated(files: FileSamples) -> None:
    decoder, drawn = _Waits(), []
    dataset = ShardDataset(files, RandomResizedCrop(16), decoder)

    def asked() -> Iterator[BatchRequest]:
        for request in requests(50, 4, len(files)):
            drawn.append(request)
            yield request

    class Asked:
        def __iter__(self) -> Iterator[BatchRequest]:
            return asked()

    batches = iter(ThreadReader(dataset, Asked(), 2, prefetch_factor=3))
    threading.Timer(0.2, decoder.go.set).start()
    next(batches)
    # A batch of 4 is one piece of work: two for each thread are 4 batches, more than 3.
    assert len(drawn) == 4
    batches.close()  # type: ignore[attr-defined]


def test_an_iteration_left_early_ends_its_threads(files: FileSamples) -> None:
    batches = iter(ThreadReader(dataset_of(files), requests(50, 4, len(files)), 3))
    next(batches)
    assert len([t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]) == 3
    batches.close()  # type: ignore[attr-defined]


def test_each_iteration_begins_anew(files: FileSamples) -> None:
    reader = ThreadReader(dataset_of(files), requests(3, 4, len(files)), 2)
    first, second = ([raise_errors(b)["id"].tolist() for b in reader] for _ in range(2))
    assert first == second
    assert len(first) == 3


LEAVES_EARLY = """
import atexit, sys, threading
# Registered first, so called last: behind it the interpreter unwinds what still runs.
atexit.register(lambda: print([t.name for t in threading.enumerate() if t.daemon]))
from pathlib import Path
import numpy as np
from resscale.data.augment import CenterCrop
from resscale.data.dataset import BatchRequest, ShardDataset
from resscale.data.samples import FileSamples
from resscale.data.thread_reader import ThreadReader

dataset = ShardDataset(FileSamples([Path(sys.argv[1])]), CenterCrop(16, 16))
asked = [BatchRequest(np.zeros(4, dtype=np.int64)) for _ in range(50)]
batches = iter(ThreadReader(dataset, asked, 3))
next(batches)
raise SystemExit(75)
"""


def test_a_process_that_leaves_in_the_middle_ends_its_threads_and_keeps_its_exit_code(
    files: FileSamples,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES_EARLY, str(files.paths[0])], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "[]\n", "")
