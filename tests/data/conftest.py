"""Real photographs as JPEG bytes, and trees and shards made of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import webdataset
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_sample_images

# A machine at work takes longer for an example than it did a moment ago; that is no failure.
settings.register_profile("resscale", deadline=None)
settings.load_profile("resscale")

# The devkit counts the classes in an order of its own, and has the inner nodes behind them.
DEVKIT_IDS = {"n02119789": 1, "n01440764": 2, "n01443537": 3}
DEVKIT_TRUTH = (3, 1, 2, 2, 1, 3)  # ID of validation image 1, 2, ...
CLASSES = ("cat", "dog", "newt")


@pytest.fixture(scope="session")
def jpegs() -> tuple[bytes, ...]:
    """Twelve different JPEGs, 96 to 140 pixels wide, cut from scikit-learn's two photographs."""
    images = []
    for number in range(12):
        photo = Image.fromarray(load_sample_images().images[number % 2])
        left, width, height = 30 * number, 96 + 4 * number, 80 + 2 * number
        buffer = io.BytesIO()
        photo.crop((left, 100, left + width, 100 + height)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    return tuple(images)


@pytest.fixture
def photo_tree(tmp_path: Path, jpegs: tuple[bytes, ...]) -> Path:
    """`photos/<class>/<number>.jpg`: 3 classes of 4 images."""
    root = tmp_path / "photos"
    for number, raw in enumerate(jpegs):
        folder = root / CLASSES[number // 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(raw)
    return root


@pytest.fixture
def write_tar() -> Callable[[Path, list[tuple[str, bytes]]], Path]:
    """A function that writes a tar of these (name, bytes) with the standard library."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, raw in members:
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        return path

    return write


@pytest.fixture
def foreign_shards(tmp_path: Path, jpegs: tuple[bytes, ...]) -> Path:
    """A folder of three shards of four samples, written by webdataset's own ShardWriter."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    pattern = str(folder / "part-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number, raw in enumerate(jpegs):
            writer.write({"__key__": f"sample{number:03d}", "jpg": raw, "cls": number // 4})
    return folder


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """A function that returns all files of a folder, hidden ones too: {relative path: bytes}."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """The extracted devkit of a small ImageNet, `meta.mat` in the real one's structure."""
    fields = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    rows = [(i, w, f"words of {w}", "gloss", 0, [], 0, 4) for w, i in DEVKIT_IDS.items()]
    rows.append((4, "n00001740", "entity", "the root", 3, [1, 2, 3], 19, 0))
    synsets = np.array(rows, dtype=fields).reshape(-1, 1)
    folder = tmp_path / "ILSVRC2012_devkit_t12"
    (folder / "data").mkdir(parents=True)
    scipy.io.savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in DEVKIT_TRUTH)
    (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return folder
