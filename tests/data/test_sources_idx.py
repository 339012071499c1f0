"""MNIST-format files: shapes, labels, gzip, and each kind of damage."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from resscale.data.source_reader import SourceReader
from resscale.data.sources_idx import idx_splits, read_idx
from resscale.errors import DataFormatError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(array: np.ndarray) -> bytes:
    """`00 00 08 <dimensions>`, the shape as big-endian 32-bit integers, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


@pytest.fixture
def source(tmp_path: Path, images: np.ndarray) -> Path:
    labels = np.array([0, 1, 2, 1, 0], np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    for name in ("images-idx3", "labels-idx1"):
        raw = (tmp_path / f"train-{name}-ubyte").read_bytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
    return tmp_path


def test_both_splits_gzipped_or_not_hold_the_same_pixels(source: Path, images: np.ndarray) -> None:
    train, test = idx_splits(source)
    assert (train.name, test.name) == ("train", "test")
    for split in (train, test):
        assert split.classes == ("0", "1", "2")
        assert split.samples.pixel_shape == (4, 3)
        assert split.samples.labels.tolist() == [0, 1, 2, 1, 0]
        with SourceReader() as reader:
            for row, ref in enumerate(split.samples.refs(np.arange(5))):
                assert reader.read(ref) == images[row].tobytes()
    assert train.samples.keys.tolist()[:2] == [b"train-000000", b"train-000001"]


def test_class_names(source: Path) -> None:
    assert idx_splits(source, ("a", "b", "c"))[0].classes == ("a", "b", "c")
    with pytest.raises(DataFormatError, match="labels up to 2, but only 2 class names"):
        idx_splits(source, ("a", "b"))


def test_folder_without_idx_files(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="holds no MNIST-format files"):
        idx_splits(tmp_path)


@pytest.mark.parametrize("missing", ["images-idx3", "labels-idx1"])
def test_images_without_labels_and_labels_without_images(source: Path, missing: str) -> None:
    (source / f"train-{missing}-ubyte").unlink()
    with pytest.raises(DataFormatError, match=f"train-{missing}-ubyte.* is needed beside it"):
        idx_splits(source)


def test_counts_that_differ(source: Path) -> None:
    labels = np.zeros(4, np.uint8)
    (source / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataFormatError, match=r"shape \(5, 4, 3\).*\(4,\)"):
        idx_splits(source)


def test_truncated_file(source: Path, images: np.ndarray) -> None:
    path = source / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(images)[:-1])
    with pytest.raises(DataFormatError, match=r"promises the shape \(5, 4, 3\), 59 bytes follow"):
        read_idx(path)  # 5 × 4 × 3 - 1 = 59


@pytest.mark.parametrize("raw", [b"", b"\x00\x00\x0d\x03", b"\xff\xd8\xff\xe0", b"\0\0\x08\0"])
def test_file_of_another_kind(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(DataFormatError, match="an idx file of unsigned bytes begins with"):
        read_idx(tmp_path / "x")


def test_truncated_gzip(source: Path) -> None:
    path = source / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataFormatError, match=r"idx3-ubyte\.gz cannot be read"):
        idx_splits(source)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is absent")
def test_the_real_fashion_mnist() -> None:
    train, test = idx_splits(FASHION_MNIST)
    assert (len(train.samples), len(test.samples)) == (60_000, 10_000)
    assert train.samples.pixel_shape == (28, 28)
    np.testing.assert_array_equal(np.bincount(test.samples.labels), [1000] * 10)
