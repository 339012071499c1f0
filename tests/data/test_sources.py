"""Class-per-folder trees: their splits, classes, keys, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from resscale.data.sources import folder_split, imagefolder_splits, list_images, require_folder
from resscale.errors import DataFormatError


def test_tree_without_splits_is_one(photo_tree: Path) -> None:
    (split,) = imagefolder_splits(photo_tree, "everything")
    assert split.name == "everything"
    assert split.classes == ("cat", "dog", "newt")
    assert split.samples.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert split.samples.keys.tolist()[:3] == [b"cat_0", b"cat_1", b"cat_2"]
    for ref in split.samples.refs(np.arange(12)):
        assert Path(ref.path).stat().st_size == ref.size


def test_train_and_val_folders_are_splits_with_the_same_classes(
    photo_tree: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(photo_tree, source / "train")
    shutil.copytree(photo_tree / "newt", source / "val" / "newt")
    train, val = imagefolder_splits(source)
    assert (train.name, val.name) == ("train", "val")
    assert val.classes == train.classes
    assert set(val.samples.labels.tolist()) == {2}  # newt, as in train


def test_class_that_training_lacks(photo_tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(photo_tree / "cat", source / "train" / "cat")
    shutil.copytree(photo_tree / "dog", source / "val" / "dog")
    with pytest.raises(DataFormatError, match="that the training split has not, such as 'dog'"):
        imagefolder_splits(source)


def test_folders_below_a_class_belong_to_it(photo_tree: Path) -> None:
    (photo_tree / "cat" / "2024").mkdir()
    shutil.copy(photo_tree / "cat" / "0.jpg", photo_tree / "cat" / "2024" / "0.jpg")
    (split,) = imagefolder_splits(photo_tree)
    assert b"cat_2024_0" in split.samples.keys.tolist()
    assert len(split.samples) == 13


def test_hidden_files_and_other_files_are_no_samples(photo_tree: Path) -> None:
    (photo_tree / "cat" / "._0.jpg").write_bytes(b"resource fork")
    (photo_tree / "cat" / "notes.txt").write_bytes(b"notes")
    (photo_tree / ".cache").mkdir()
    (photo_tree / "empty").mkdir()
    (split,) = imagefolder_splits(photo_tree)
    assert len(split.samples) == 12
    assert split.classes == ("cat", "dog", "empty", "newt")
    assert split.notes == (
        "class folders without images: 1, such as 'empty'",
        "ignored files that are not images: 1",
    )


def test_dangling_link_is_listed_with_no_bytes(photo_tree: Path) -> None:
    (photo_tree / "cat" / "zz.jpg").symlink_to("nowhere.jpg")
    files, others = list_images(photo_tree / "cat")
    assert files[-1] == ("zz.jpg", 0)
    assert others == 0


def test_folder_of_images_without_class_folders(photo_tree: Path) -> None:
    with pytest.raises(DataFormatError, match="holds no folders; one folder per class is needed"):
        imagefolder_splits(photo_tree / "cat")


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataFormatError, match="none of its 1 folders holds an image"):
        folder_split("train", tmp_path)


def test_source_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="is not there; name the folder"):
        imagefolder_splits(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(DataFormatError, match="is a file, not a folder"):
        require_folder(tmp_path / "file")


def test_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="cannot be listed"):
        list_images(tmp_path / "gone")
