"""The seal: no changed byte of a checkpoint passes unseen, and other readers do not mind it."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resscale.training.checkpoint_io import write_checkpoint
from resscale.training.checkpoint_seal import is_whole, read_seal, seal_holds

CONTENT = {"state_dict": {"w": torch.arange(20.0), "n": torch.ones(3, dtype=torch.int64)}, "s": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "epoch-0001-step-00000003.ckpt"
    write_checkpoint(CONTENT, path)
    return path


def same(loaded: dict[str, Any]) -> bool:
    mine, other = CONTENT["state_dict"], loaded["state_dict"]
    return loaded["s"] == 3 and all(torch.equal(mine[name], other[name]) for name in mine)


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_a_sealed_file_is_whole_and_read_by_torch_and_zipfile_as_ever(saved: Path) -> None:
    assert seal_holds(saved) is True
    assert is_whole(saved)
    for mmap in (True, False):
        assert same(torch.load(saved, weights_only=True, mmap=mmap))
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"resscale sha256 ")


def test_a_flipped_bit_is_found_wherever_it_is(saved: Path) -> None:
    # Header, records, padding, directory, seal: each byte once, each bit of a byte in turn.
    for place in range(saved.stat().st_size):
        flip(saved, place, 1 << place % 8)
        assert not is_whole(saved), place
        flip(saved, place, 1 << place % 8)
    assert is_whole(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_not_whole(saved: Path, share: float) -> None:
    os.truncate(saved, int(saved.stat().st_size * share))
    assert not is_whole(saved)


@pytest.mark.parametrize("lost", [1, 64, 80, 82])
def test_a_file_that_lost_its_last_bytes_is_not_whole(saved: Path, lost: int) -> None:
    os.truncate(saved, saved.stat().st_size - lost)
    assert not is_whole(saved)


def test_a_file_with_bytes_behind_its_seal_is_not_whole(saved: Path) -> None:
    with saved.open("ab") as file:
        file.write(b"x")
    assert not is_whole(saved)


def test_a_file_that_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "no.ckpt")


def test_a_file_without_a_seal_is_judged_by_its_records(tmp_path: Path) -> None:
    # As this program wrote them before it sealed them.
    path = tmp_path / "old.ckpt"
    torch.save({"weights": torch.arange(1000.0)}, path)
    assert seal_holds(path) is None
    assert is_whole(path)
    # In the middle of the weights: 1000 floats of 4 bytes are most of the file.
    flip(path, path.stat().st_size // 2, 1)
    assert not is_whole(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 200], ids=["empty", "short", "no archive"])
def test_what_is_no_archive_is_not_whole(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert seal_holds(path) is None
    assert not is_whole(path)


def test_the_seal_of_a_file_larger_than_a_block_is_compared_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    write_checkpoint({"weights": torch.zeros(700_000)}, path)  # 2.8 MB, blocks of 1 MiB
    assert seal_holds(path) is True
    flip(path, 2_700_000, 1)
    assert seal_holds(path) is False


def test_the_seal_can_be_read_off_without_reading_the_file(saved: Path, tmp_path: Path) -> None:
    seal = read_seal(saved)
    assert seal is not None
    assert saved.read_bytes().endswith(seal.encode())
    assert len(seal) == 64
    other = tmp_path / "other.ckpt"
    for unsealed in (b"", b"PK", b"x" * 200):
        other.write_bytes(unsealed)
        assert read_seal(other) is None
