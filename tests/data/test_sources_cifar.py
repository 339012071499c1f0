"""CIFAR-10 and CIFAR-100: imitations of a few images in the official formats, and their damage."""

import itertools
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resscale.data import Manifest, ShardDataset
from resscale.data.augment import CenterCrop
from resscale.data.cifar_files import LAYOUTS
from resscale.data.pack import pack_splits
from resscale.data.pack_plan import PackOptions
from resscale.data.pack_samples import Split
from resscale.data.source_reader import SourceReader
from resscale.data.sources_cifar import cifar_splits
from resscale.errors import DataFormatError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES100 = tuple(f"fine{number:02d}" for number in range(100))
ROWS = 4  # images in a batch; the official ones have 10,000
Batches = dict[str, tuple[np.ndarray, list[int]]]


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle writes with protocol 2, text being bytes and put into its memo."""
    numbers = itertools.count(1)

    def put() -> bytes:
        number = next(numbers)
        return b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number)

    def write(value: Any) -> bytes:
        if isinstance(value, int):
            return b"K%c" % value if 0 <= value < 256 else b"J" + struct.pack("<i", value)
        if isinstance(value, bytes):
            size = b"U%c" % len(value) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
            return size + value + put()
        if isinstance(value, list):
            return b"]" + put() + b"(" + b"".join(map(write, value)) + b"e"
        if isinstance(value, dict):
            items = b"".join(write(part) for item in value.items() for part in item)
            return b"}" + put() + b"(" + items + b"u"
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
            + b"".join(map(write, value.shape))
            + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            + b"J\xff\xff\xff\xffK\x00tb"
            + (b"\x88" if fortran else b"\x89")
            + write(value.tobytes("A"))
            + b"tb"
        )

    return b"\x80\x02" + write(value) + b"."


@pytest.fixture
def batches() -> Batches:
    """By file: pixels, uint8 (4, 3, 32, 32), and labels."""
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {
        name: (
            random.integers(0, 256, (ROWS, 3, 32, 32), np.uint8),
            random.integers(0, 10, ROWS).tolist(),
        )
        for name in names
    }


@pytest.fixture
def python_folder(tmp_path: Path, batches: Batches) -> Path:
    folder = tmp_path / "py" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        content = {
            b"batch_label": b"training batch 1 of 5",
            b"labels": labels,
            b"data": pixels.reshape(ROWS, 3072),
            b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * ROWS,
        }
        (folder / name).write_bytes(python2_pickle(content))
    names = [name.encode() for name in NAMES]
    meta = {b"num_cases_per_batch": 10_000, b"label_names": names, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


@pytest.fixture
def binary_folder(tmp_path: Path, batches: Batches) -> Path:
    folder = tmp_path / "bin" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        records = [
            bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


@pytest.fixture(params=["python", "binary"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two folders in turn."""
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


@pytest.fixture
def folder100(tmp_path: Path) -> Callable[[str], tuple[Path, np.ndarray]]:
    """A function that writes CIFAR-100 in one version and returns its folder and pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3072), np.uint8)
    fine, coarse = [99, 7], [19, 1]

    def write(version: str) -> tuple[Path, np.ndarray]:
        folder = tmp_path / f"cifar-100-{version}"
        folder.mkdir()
        for name in ("train", "test"):
            content = {b"data": pixels, b"fine_labels": fine, b"coarse_labels": coarse}
            records = b"".join(
                bytes([coarse[row], fine[row]]) + pixels[row].tobytes() for row in (0, 1)
            )
            if version == "python":
                (folder / name).write_bytes(python2_pickle(content))
            else:
                (folder / f"{name}.bin").write_bytes(records)
        names = [name.encode() for name in NAMES100]
        if version == "python":
            meta = {b"coarse_label_names": [b"fish"], b"fine_label_names": names}
            (folder / "meta").write_bytes(python2_pickle(meta))
        else:
            (folder / "fine_label_names.txt").write_text("\n".join(NAMES100))
            (folder / "coarse_label_names.txt").write_text("fish\n")
        return folder, pixels

    return write


def archived(folder: Path) -> Path:
    """The archive that the folder would have been extracted from."""
    name = {"cifar-10-batches-py": "python", "cifar-10-batches-bin": "binary"}[folder.name]
    path = folder.parent / f"cifar-10-{name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def pixels_of(split: Split) -> list[bytes]:
    with SourceReader() as reader:
        return [reader.read(ref) for ref in split.samples.refs(np.arange(len(split.samples)))]


def replace_pickled(path: Path, **changes: Any) -> None:
    """Write a batch again with other values, as Python 3 writes protocol 2."""
    content = pickle.loads(path.read_bytes(), encoding="bytes")
    content.update({key.encode(): value for key, value in changes.items()})
    path.write_bytes(pickle.dumps(content, 2))


def test_folder_and_archive_of_both_versions_hold_the_same(folder: Path, batches: Batches) -> None:
    train_pixels = np.concatenate([batches[f"data_batch_{n}"][0] for n in range(1, 6)])
    train_labels = [label for n in range(1, 6) for label in batches[f"data_batch_{n}"][1]]
    for source in (folder, folder.parent, archived(folder)):
        train, test = cifar_splits(source)
        assert (train.name, test.name) == ("train", "test")
        assert (len(train.samples), len(test.samples)) == (20, 4)  # 5 batches of 4, one of 4
        assert train.classes == test.classes == NAMES
        assert train.samples.pixel_shape == (3, 32, 32)
        assert train.samples.labels.tolist() == train_labels
        assert test.samples.labels.tolist() == batches["test_batch"][1]
        assert pixels_of(train) == [image.tobytes() for image in train_pixels]
        assert pixels_of(test) == [image.tobytes() for image in batches["test_batch"][0]]
        assert train.samples.keys.tolist()[::19] == [b"train-000000", b"train-000019"]
        assert train.samples.sizes.tolist() == [3072] * 20


def test_a_number_of_images_that_is_not_the_official_one_is_said(folder: Path) -> None:
    train, test = cifar_splits(folder)
    assert train.notes == ("CIFAR-10's train has 50,000 images, this one 20",)
    assert test.notes == ("CIFAR-10's test has 10,000 images, this one 4",)


def test_nothing_is_said_of_the_official_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(LAYOUTS["cifar10"], num_official={"train": 20, "test": 4})
    monkeypatch.setitem(LAYOUTS, "cifar10", small)
    assert [split.notes for split in cifar_splits(folder)] == [(), ()]


@pytest.mark.parametrize("write", [python2_pickle, lambda content: pickle.dumps(content, 2)])
def test_pixels_stored_in_fortran_order(
    python_folder: Path, batches: Batches, write: Callable[[Any], bytes]
) -> None:
    pixels, labels = batches["test_batch"]
    data = np.asfortranarray(pixels.reshape(ROWS, 3072))
    (python_folder / "test_batch").write_bytes(write({b"data": data, b"labels": labels}))
    _, test = cifar_splits(python_folder)
    assert pixels_of(test) == [image.tobytes() for image in pixels]


def test_both_versions_become_the_same_shards_and_read_back_exactly(
    python_folder: Path, binary_folder: Path, tmp_path: Path, batches: Batches
) -> None:
    options = PackOptions(format="png", samples_per_shard=8)
    for source, out in ((archived(python_folder), "a"), (binary_folder, "b")):
        pack_splits(cifar_splits(source), tmp_path / out, options, "test")
    for split, shards in (("train", 3), ("test", 1)):  # 20 and 4 images, 8 to a shard
        one, other = (Manifest.load(tmp_path / out / split) for out in "ab")
        assert one.shards == other.shards
        assert len(one.shards) == shards
        assert one.classes == other.classes == NAMES
    dataset = ShardDataset(Manifest.load(tmp_path / "a" / "test"), CenterCrop(32, 32))
    pixels, labels = batches["test_batch"]
    for sample in (dataset[number] for number in range(ROWS)):
        row = int(sample["key"].removeprefix("test-"))
        assert sample["label"] == labels[row]
        np.testing.assert_array_equal(sample["image"].numpy(), pixels[row])


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_has_its_fine_labels(
    folder100: Callable[[str], tuple[Path, np.ndarray]], version: str
) -> None:
    folder, pixels = folder100(version)
    for source in (folder, folder.parent):
        train, test = cifar_splits(source, "cifar100")
        assert train.classes == NAMES100
        assert train.samples.labels.tolist() == test.samples.labels.tolist() == [99, 7]
        assert pixels_of(test) == [row.tobytes() for row in pixels]
        assert test.notes == ("CIFAR-100's test has 10,000 images, this one 2",)


# What is not there


def end_of(folder: Path) -> str:
    return ".bin" if folder.name.endswith("bin") else ""


def test_missing_batches_are_named(folder: Path) -> None:
    end = end_of(folder)
    for number in (2, 4):
        (folder / f"data_batch_{number}{end}").unlink()
    message = (
        rf"lacks data_batch_2{end}, data_batch_4{end}: the split train needs all of "
        rf"data_batch_1{end} to data_batch_5{end}\. Download"
    )
    for source in (folder, archived(folder)):
        with pytest.raises(DataFormatError, match=message):
            cifar_splits(source)


def test_a_split_that_is_wholly_absent_is_left_out(folder: Path) -> None:
    (folder / f"test_batch{end_of(folder)}").rename(folder.parent / "elsewhere")
    assert [split.name for split in cifar_splits(folder)] == ["train"]
    for path in folder.glob("data_batch_*"):
        path.unlink()
    (folder.parent / "elsewhere").rename(folder / f"test_batch{end_of(folder)}")
    assert [split.name for split in cifar_splits(folder)] == ["test"]


def test_class_names_must_be_there(folder: Path) -> None:
    meta = "batches.meta" + (".txt" if end_of(folder) else "")
    (folder / meta).unlink()
    with pytest.raises(DataFormatError, match=rf"lacks {meta}, which holds the class names"):
        cifar_splits(folder)


# What is damaged


@pytest.mark.parametrize("names", [NAMES[:9], (*NAMES[:9], "bird"), ()])
def test_wrong_number_of_class_names(
    python_folder: Path, binary_folder: Path, names: tuple[str, ...]
) -> None:
    (binary_folder / "batches.meta.txt").write_text("\n".join(names))
    meta = {"label_names": list(names)}
    (python_folder / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    for folder in (python_folder, binary_folder):
        expected = rf"meta(\.txt)? holds {len(set(names))} different class names; CIFAR-10 has 10"
        with pytest.raises(DataFormatError, match=expected):
            cifar_splits(folder)


def test_meta_without_class_names(python_folder: Path) -> None:
    (python_folder / "batches.meta").write_bytes(python2_pickle({b"num_vis": 3072}))
    with pytest.raises(DataFormatError, match="meta holds 0 different class names"):
        cifar_splits(python_folder)


def test_class_names_that_are_no_text(python_folder: Path, binary_folder: Path) -> None:
    (binary_folder / "batches.meta.txt").write_bytes(b"\xff\xfe")
    (python_folder / "batches.meta").write_bytes(python2_pickle({b"label_names": [7]}))
    for folder in (python_folder, binary_folder):
        with pytest.raises(DataFormatError, match=r"meta(\.txt)? is damaged"):
            cifar_splits(folder)


@pytest.mark.parametrize("size", [0, 1, 3072, 4 * 3073 - 1, 4 * 3073 + 1])
def test_binary_batch_of_a_wrong_size(binary_folder: Path, size: int) -> None:
    (binary_folder / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(DataFormatError, match=rf"3\.bin has {size:,} bytes, .* take 3,073 each"):
        cifar_splits(binary_folder)


@pytest.mark.parametrize("size", [0, 100, -100, -1])
def test_python_batch_that_is_cut(python_folder: Path, size: int) -> None:
    path = python_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:size])
    # A name that is cut reads as one that may not be asked for.
    with pytest.raises(DataFormatError, match=r"data_batch_3 (is damaged|asks for).*Download it"):
        cifar_splits(python_folder)


@pytest.mark.parametrize("label", [10, 200])
def test_label_out_of_range(python_folder: Path, binary_folder: Path, label: int) -> None:
    replace_pickled(python_folder / "data_batch_2", labels=[0, 9, label, 0])
    path = binary_folder / "data_batch_2.bin"
    raw = bytearray(path.read_bytes())
    raw[2 * 3073] = label  # the third record's first byte
    path.write_bytes(raw)
    for folder in (python_folder, binary_folder):
        expected = rf"data_batch_2(\.bin)? has the label {label} at image 2; CIFAR-10's are 0 to 9"
        with pytest.raises(DataFormatError, match=expected):
            cifar_splits(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2]}, r"data of the shape \(4, 3072\) and 3 labels"),
        ({"labels": [0, 1, 2, b"3"]}, r"and 4 labels; .* n whole numbers are needed"),
        ({"labels": [0, 1, 2, -1]}, "has the label -1 at image 3"),
        ({"labels": [0, 1, 2, 10**30]}, f"has the label {10**30} at image 3"),
        ({"labels": b"0123"}, "an array `data` and a list `labels` are needed"),
        ({"data": b"pixels"}, "holds batch_label, labels, data, filenames; an array"),
        ({"data": np.zeros((4, 3071), np.uint8)}, r"data of the shape \(4, 3071\) and 4 labels"),
        ({"data": np.zeros(4 * 3072, np.uint8)}, r"data of the shape \(12288,\)"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, r"shape \(0, 3072\) and 0 labels"),
        ({"data": np.zeros((4, 3072))}, "array of type 'f8', not of unsigned bytes"),
    ],
)
def test_python_batch_of_other_contents(
    python_folder: Path, changes: dict[str, Any], message: str
) -> None:
    replace_pickled(python_folder / "data_batch_5", **changes)
    with pytest.raises(DataFormatError, match=f"data_batch_5 .*{message}"):
        cifar_splits(python_folder)


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["data_batch_4", "batches.meta"])
def test_a_malicious_batch_does_not_run(python_folder: Path, tmp_path: Path, name: str) -> None:
    content = {b"data": Payload(tmp_path / "it-ran"), b"label_names": list(NAMES)}
    (python_folder / name).write_bytes(pickle.dumps(content, 2))
    for source in (python_folder, archived(python_folder)):
        with pytest.raises(DataFormatError, match=rf"{name} asks for posix\.mkdir, .*Nothing"):
            cifar_splits(source)
    assert not (tmp_path / "it-ran").exists()
    pickle.loads((python_folder / name).read_bytes())  # what a trusting reader would have done
    assert (tmp_path / "it-ran").exists()
