"""Labels of ImageNet's validation images: lists of each form, devkits whole and damaged."""

import tarfile
from pathlib import Path

import pytest

from resscale.data.imagenet_labels import find_devkit, labels_from_devkit, labels_from_file
from resscale.errors import DataFormatError

WNID_OF_ID = {1: "n02119789", 2: "n01440764", 3: "n01443537"}
VAL_WNIDS = tuple(WNID_OF_ID[number] for number in (3, 1, 2, 2, 1, 3))


def test_devkit_gives_each_image_its_class(devkit: Path) -> None:
    labels = labels_from_devkit(devkit)
    assert labels.wnids == ("n01440764", "n01443537", "n02119789")  # without inner nodes
    assert labels.wnid_of("ILSVRC2012_val_00000002.JPEG") == "n02119789"
    for name in ("ILSVRC2012_val_00000007.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"):
        with pytest.raises(DataFormatError, match=rf"no label for {name}.*to ILSVRC2012_val_0+6\."):
            labels.wnid_of(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no labels"),
        ("n01440764\ncat\n", "the line 'cat'"),
        ("n01440764\na.JPEG n01440764\n", "holds both kinds of lines"),
    ],
)
def test_list_of_another_form(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(DataFormatError, match=message):
        labels_from_file(tmp_path / "labels")


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"--val_labels .* cannot be read"):
        labels_from_file(tmp_path / "none")


def test_devkit_found_in_any_form(tmp_path: Path, devkit: Path) -> None:
    archive_path = tmp_path / "downloads" / "ILSVRC2012_devkit_t12.tar.gz"
    archive_path.parent.mkdir()
    with tarfile.open(archive_path, "w:gz") as archive:
        archive.add(devkit, devkit.name)
    assert find_devkit(archive_path.parent) == archive_path
    assert find_devkit(devkit.parent) == devkit
    assert find_devkit(devkit) == devkit
    assert find_devkit(devkit / "data") is None
    from_archive = labels_from_devkit(archive_path)
    assert from_archive.by_number == labels_from_devkit(devkit).by_number == VAL_WNIDS


def test_damaged_devkits(devkit: Path, tmp_path: Path) -> None:
    (tmp_path / "d.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataFormatError, match="is damaged"):
        labels_from_devkit(tmp_path / "d.tar.gz")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DataFormatError, match=r"lacks data/meta\.mat. Download it again"):
        labels_from_devkit(tmp_path / "empty.tar")
    truth = devkit / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n4\n")  # 4 is an inner node
    with pytest.raises(DataFormatError, match="has a line that is no ILSVRC2012_ID of a class"):
        labels_from_devkit(devkit)
    truth.unlink()
    with pytest.raises(DataFormatError, match="lacks data/ILSVRC2012_validation_ground_truth"):
        labels_from_devkit(devkit)
    (devkit / "data" / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(DataFormatError, match=r"meta.mat is not the devkit's"):
        labels_from_devkit(devkit)
