"""The contact sheet: its size, what it shows, and a file that cannot be written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resscale.data.contact_sheet import choose_samples, sheet_size, write_contact_sheet
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.manifest import Manifest
from resscale.errors import UserInputError


@pytest.fixture
def manifest(foreign_shards: Path) -> Manifest:
    return index_shards(expand_shards([str(foreign_shards)]), ("cat", "dog", "newt" * 20))


def test_sheet_is_a_png_of_the_expected_size(manifest: Manifest, tmp_path: Path) -> None:
    size = write_contact_sheet(manifest, tmp_path / "sheet.png")
    # 2 × 24 margin + 10 × 112 images + 9 × 10 gaps; 56 header + 2 rows × (112 + 22 + 10) + 24.
    assert size == (1258, 368)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == size
        first_tile = np.asarray(sheet.convert("RGB"))[56 : 56 + 112, 24 : 24 + 112]
    assert first_tile.std() > 10  # a photograph, no plain tile


def test_same_seed_same_sheet(manifest: Manifest, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0)):
        write_contact_sheet(manifest, tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_each_of_few_classes_has_a_row() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    chosen = labels[choose_samples(labels)]
    assert chosen.tolist() == [label for label in range(5) for _ in range(10)]


def test_many_classes_have_one_image_each() -> None:
    labels = np.repeat(np.arange(1000), 3)
    chosen = labels[choose_samples(labels)]
    assert len(chosen) == 60
    assert len(set(chosen.tolist())) == 60
    assert chosen.max() > 500  # from all over the list


def test_unlabelled_and_few_samples() -> None:
    assert len(choose_samples(np.full(100, -1))) == 60
    assert sorted(choose_samples(np.array([0, 1, 0])).tolist()) == [0, 1, 2]
    assert sheet_size(1)[1] < sheet_size(11)[1]


def test_odd_images_have_their_place(write_tar, tmp_path: Path, jpegs: tuple[bytes, ...]) -> None:
    image = Image.new("RGBA", (8, 300), (200, 0, 0, 120))
    image.save(tmp_path / "thin.png")
    members = [("a.png", (tmp_path / "thin.png").read_bytes()), ("b.jpg", b"broken")]
    manifest = index_shards([write_tar(tmp_path / "a.tar", members)])
    assert write_contact_sheet(manifest, tmp_path / "sheet.png") == sheet_size(2)


def test_file_that_cannot_be_written(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"Cannot write the contact sheet .*--out FILE"):
        write_contact_sheet(manifest, tmp_path / "none" / "sheet.png")
