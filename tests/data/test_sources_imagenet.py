"""ImageNet as it is downloaded, in small: 3 classes of 4 images in a tar of tars, 6 to validate."""

import io
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from resscale.data.pack import pack_splits
from resscale.data.pack_plan import PackOptions
from resscale.data.pack_samples import Split
from resscale.data.source_reader import SourceReader
from resscale.data.sources_imagenet import TRAIN_TAR, VAL_TAR, imagenet_splits
from resscale.errors import DataFormatError, UserInputError

WriteTar = Callable[[Path, list[tuple[str, bytes]]], Path]
WNIDS = ("n01440764", "n01443537", "n02119789")  # sorted: the labels are 0, 1, 2
# In the order of the images' numbers, as the devkit of conftest.py has it.
VAL_WNIDS = ("n01443537", "n02119789", "n01440764", "n01440764", "n02119789", "n01443537")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def train_name(number: int) -> str:
    return f"{WNIDS[number // 4]}_{1000 - number}.JPEG"


@pytest.fixture
def downloads(tmp_path: Path, write_tar: WriteTar, jpegs: tuple[bytes, ...], devkit: Path) -> Path:
    """A folder of the two tars and the devkit's archive."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    inner = []
    for number, wnid in enumerate(WNIDS):
        images = [(train_name(n), jpegs[n]) for n in range(4 * number, 4 * number + 4)]
        inner.append((f"{wnid}.tar", write_tar(tmp_path / "inner.tar", images).read_bytes()))
    write_tar(folder / TRAIN_TAR, inner)
    write_tar(folder / VAL_TAR, [(val_name(n + 1), jpegs[n]) for n in (3, 0, 1, 2, 5, 4)])
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(devkit, "ILSVRC2012_devkit_t12")
    return folder


@pytest.fixture
def extracted(tmp_path: Path, jpegs: tuple[bytes, ...]) -> Path:
    """A folder of `train/<wnid>/` and a flat `val/`."""
    root = tmp_path / "extracted"
    for number in range(12):
        folder = root / "train" / WNIDS[number // 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / train_name(number)).write_bytes(jpegs[number])
    (root / "val").mkdir()
    for number in range(6):
        (root / "val" / val_name(number + 1)).write_bytes(jpegs[number])
    return root


def read_all(split: Split) -> dict[str, tuple[str, bytes]]:
    """Return {key: (wnid, bytes)}."""
    with SourceReader() as reader:
        refs = split.samples.refs(np.arange(len(split.samples)))
        return {ref.key: (split.classes[ref.label], reader.read(ref)) for ref in refs}


def expected_train(jpegs: tuple[bytes, ...]) -> dict[str, tuple[str, bytes]]:
    return {train_name(n).removesuffix(".JPEG"): (WNIDS[n // 4], jpegs[n]) for n in range(12)}


def expected_val(jpegs: tuple[bytes, ...]) -> dict[str, tuple[str, bytes]]:
    return {val_name(n + 1).removesuffix(".JPEG"): (VAL_WNIDS[n], jpegs[n]) for n in range(6)}


def test_tars_are_read_in_place(downloads: Path, jpegs: tuple[bytes, ...]) -> None:
    train, val = imagenet_splits(downloads)
    assert train.classes == val.classes == WNIDS
    assert read_all(train) == expected_train(jpegs)
    assert read_all(val) == expected_val(jpegs)
    assert set(train.samples.containers) == {str(downloads / TRAIN_TAR)}


def test_extracted_folders_give_the_same(
    extracted: Path, devkit: Path, jpegs: tuple[bytes, ...]
) -> None:
    shutil.copytree(devkit, extracted / devkit.name)
    train, val = imagenet_splits(extracted)
    assert read_all(train) == expected_train(jpegs)
    assert read_all(val) == expected_val(jpegs)
    for number in range(6):  # as the usual script sorts them
        folder = extracted / "val" / VAL_WNIDS[number]
        folder.mkdir(exist_ok=True)
        (extracted / "val" / val_name(number + 1)).rename(folder / val_name(number + 1))
    by_class = read_all(imagenet_splits(extracted)[1])
    assert {wnid + "_" + key for key, (wnid, _) in expected_val(jpegs).items()} == set(by_class)


def test_packed_from_tars_and_read_by_webdataset(
    downloads: Path, tmp_path: Path, jpegs: tuple[bytes, ...]
) -> None:
    packed = pack_splits(imagenet_splits(downloads), tmp_path / "out", PackOptions(), "test")
    assert [str(split.folder.relative_to(tmp_path)) for split in packed] == ["out/train", "out/val"]
    for split, expected in zip(packed, (expected_train(jpegs), expected_val(jpegs)), strict=True):
        with (split.folder / split.manifest.shards[0].name).open("rb") as file:
            files = webdataset.tariterators.tar_file_expander([{"url": "x", "stream": file}])
            samples = list(webdataset.tariterators.group_by_keys(files))
        found = {s["__key__"]: (WNIDS[int(s["cls"])], s["jpg"]) for s in samples}
        assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{wnid}\n" for wnid in VAL_WNIDS),
        "".join(f"{val_name(n + 1)} {wnid}\n" for n, wnid in reversed([*enumerate(VAL_WNIDS)])),
        "ImageId,PredictionString\n"
        + "".join(
            f"{Path(val_name(n + 1)).stem},{wnid} 1 2 3 4\n" for n, wnid in enumerate(VAL_WNIDS)
        ),
    ],
    ids=["wnids", "names", "kaggle"],
)
def test_labels_from_a_list(
    extracted: Path, tmp_path: Path, jpegs: tuple[bytes, ...], text: str
) -> None:
    (tmp_path / "labels.txt").write_text(text)
    val = imagenet_splits(extracted, tmp_path / "labels.txt")[1]
    assert read_all(val) == expected_val(jpegs)


def test_validation_part_alone_has_the_devkits_classes(
    downloads: Path, jpegs: tuple[bytes, ...]
) -> None:
    (downloads / TRAIN_TAR).unlink()
    (val,) = imagenet_splits(downloads)
    assert val.classes == WNIDS  # sorted, without the inner node n00001740
    assert read_all(val) == expected_val(jpegs)


def test_training_part_alone_needs_no_labels(extracted: Path) -> None:
    shutil.rmtree(extracted / "val")
    (train,) = imagenet_splits(extracted)
    assert train.name == "train"


def test_validation_images_without_labels(extracted: Path) -> None:
    with pytest.raises(UserInputError, match=r"put ILSVRC2012_devkit_t12.tar.gz beside them, or"):
        imagenet_splits(extracted)


def test_missing_scipy_quotes_the_command(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserInputError, match=r'pip install -e "\.\[imagenet\]"'):
        imagenet_splits(downloads)


def test_image_that_the_labels_do_not_cover(extracted: Path, devkit: Path) -> None:
    shutil.copytree(devkit, extracted / devkit.name)
    (extracted / "val" / val_name(7)).touch()
    with pytest.raises(DataFormatError, match=r"no label for ILSVRC2012_val_00000007.JPEG"):
        imagenet_splits(extracted)


def test_image_that_the_list_does_not_name(extracted: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(f"{val_name(1)} {WNIDS[0]}\n")
    with pytest.raises(DataFormatError, match="it covers 1 names, such as ILSVRC2012_val_00000001"):
        imagenet_splits(extracted, tmp_path / "labels")


def test_labels_of_another_imagenet(extracted: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("n09999999\n" * 6)
    with pytest.raises(DataFormatError, match=r"training part has not, such as n09999999 \(1 in"):
        imagenet_splits(extracted, tmp_path / "labels")


def test_folder_without_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="resscale pack imagefolder"):
        imagenet_splits(tmp_path)


def test_other_trees_are_sent_to_imagefolder(photo_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(photo_tree, tmp_path / "source" / "train")
    with pytest.raises(DataFormatError, match=r"holds 'cat' instead of a wnid.*pack imagefolder"):
        imagenet_splits(tmp_path / "source")


def test_tar_of_other_things(tmp_path: Path, write_tar: WriteTar) -> None:
    write_tar(tmp_path / TRAIN_TAR, [("cat.tar", b"1")])
    with pytest.raises(DataFormatError, match="instead of a wnid"):
        imagenet_splits(tmp_path)
    write_tar(tmp_path / TRAIN_TAR, [])
    with pytest.raises(DataFormatError, match="holds no classes"):
        imagenet_splits(tmp_path)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_broken_download(downloads: Path, share: float) -> None:
    path = downloads / TRAIN_TAR
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataFormatError, match="is truncated"):
        imagenet_splits(downloads)


def test_damaged_inner_tar(tmp_path: Path, write_tar: WriteTar, jpegs: tuple[bytes, ...]) -> None:
    images = [(train_name(n), jpegs[n]) for n in range(4)]
    whole = write_tar(tmp_path / "inner.tar", images).read_bytes()
    last = whole.rindex(jpegs[3][:100])
    in_an_image, between_images = whole[: last + 100], whole[: last - tarfile.BLOCKSIZE]
    for inner in (in_an_image, between_images, b"no tar" * 1000, b""):
        for place in (0, 1):
            members = [("n01443537.tar", whole)]
            members.insert(place, ("n01440764.tar", inner))
            write_tar(tmp_path / TRAIN_TAR, members)
            with pytest.raises(DataFormatError, match=r"n01440764\.tar in it is not a whole tar"):
                imagenet_splits(tmp_path)


def test_png_in_disguise_is_stored_as_png(
    tmp_path: Path, write_tar: WriteTar, jpegs: tuple[bytes, ...]
) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpegs[0])).save(buffer, "PNG")
    folder = tmp_path / "source" / "train" / "n02105855"
    folder.mkdir(parents=True)
    (folder / "n02105855_2933.JPEG").write_bytes(buffer.getvalue())  # as in the real one
    (packed,) = pack_splits(
        imagenet_splits(tmp_path / "source"), tmp_path / "out", PackOptions(), "test"
    )
    with tarfile.open(packed.manifest.shard_path(0)) as archive:
        assert archive.getnames() == ["n02105855_2933.cls", "n02105855_2933.png"]
