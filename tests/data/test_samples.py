"""Samples by id: across shards of any size, with plain errors where an index and a shard differ."""

import dataclasses
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.manifest import Manifest
from resscale.data.samples import FileSamples, ShardSamples, find_images
from resscale.data.store import ShardStore
from resscale.errors import DataFormatError, UserInputError


@pytest.fixture
def manifest(foreign_shards: Path) -> Manifest:
    """Three shards of four: sample n is `sample00n`, its class n // 4."""
    return index_shards(expand_shards([str(foreign_shards)]))


def test_each_id_is_its_image_label_key_and_shard(
    manifest: Manifest, jpegs: tuple[bytes, ...]
) -> None:
    samples = ShardSamples(manifest)
    assert len(samples) == 12
    for sample in (0, 3, 4, 11, 7, 8):  # the first and last of shards, and back again
        assert samples.read(sample) == (jpegs[sample], sample // 4)
        assert samples.key(sample) == f"sample{sample:03d}"
        assert samples.origin(sample) == f"{manifest.root}/part-{sample // 4:04d}.tar"


def test_labels_are_found_without_the_images(manifest: Manifest) -> None:
    for path in Path(manifest.root).glob("*.tar"):
        path.unlink()
    found = ShardSamples(manifest).labels(np.array([11, 0, 5, 4]))
    assert found.tolist() == [2, 0, 1, 1]
    assert found.dtype == np.int64


@pytest.mark.parametrize("sample", [-1, 12])
def test_an_id_outside_the_data_is_an_index_error(manifest: Manifest, sample: int) -> None:
    with pytest.raises(IndexError, match=f"sample {sample} is outside 0 to 11"):
        ShardSamples(manifest).read(sample)


def test_a_copy_reads_with_descriptors_of_its_own(
    manifest: Manifest, jpegs: tuple[bytes, ...]
) -> None:
    samples = ShardSamples(manifest, ShardStore(max_open_files=1))
    samples.read(0)
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.read(9)[0] == samples.read(9)[0] == jpegs[9]
    assert copy.store.max_open_files == 1


def test_an_index_that_differs_from_the_manifest_is_refused_with_the_remedy(
    manifest: Manifest,
) -> None:
    root = Path(manifest.root)
    shards = [dataclasses.replace(shard, samples=3) for shard in manifest.shards]
    with pytest.raises(DataFormatError) as error:
        ShardSamples(dataclasses.replace(manifest, shards=shards)).read(0)
    assert str(error.value) == (
        f"{root}/part-0000.index.npz lists 4 samples, the manifest 3. "
        f"Make both anew: resscale index '{root}/*.tar'"
    )


def test_a_missing_index_is_named(manifest: Manifest) -> None:
    manifest.index_path(1).unlink()
    samples = ShardSamples(manifest)
    samples.read(0)  # the other shards are not affected
    with pytest.raises(DataFormatError, match=r"part-0001\.index\.npz .*resscale index"):
        samples.read(4)


def test_indices_in_memory_are_bounded_and_the_longest_unused_goes(manifest: Manifest) -> None:
    # An index of 4 samples: 4 × (24 + 9 bytes of "sample000") and 1,024; two fit, three do not.
    samples = ShardSamples(manifest, index_bytes=int(2.5 * (4 * 33 + 1024)))
    for sample in (0, 4, 0):
        samples.read(sample)
    samples.read(8)  # the third: that of shard 1 goes, as shard 0 was used since
    for number in range(3):
        manifest.index_path(number).unlink()
    assert [samples.read(sample)[1] for sample in (1, 9)] == [0, 2]
    with pytest.raises(DataFormatError, match=r"part-0001\.index\.npz"):
        samples.read(5)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_reads_though_a_thread_of_the_parent_was_in_the_middle_of_it(
    manifest: Manifest,
) -> None:
    samples = ShardSamples(manifest)
    child = multiprocessing.get_context("fork").Process(target=samples.read, args=(4,))
    with samples._indices._lock, samples._loading[1], samples.store._lock:  # as that thread has
        child.start()
        child.join(20)
    ended_as = child.exitcode
    child.kill()
    assert ended_as == 0


# Plain files


def test_image_files_are_samples_without_labels(photo_tree: Path, jpegs: tuple[bytes, ...]) -> None:
    paths = find_images(str(photo_tree))
    samples = FileSamples(paths)
    assert len(samples) == 12
    assert paths == sorted(paths)
    dog = paths.index(photo_tree / "dog" / "5.jpg")
    assert samples.read(dog) == (jpegs[5], -1)
    assert samples.key(dog) == str(photo_tree / "dog" / "5.jpg")
    assert samples.origin(dog) == str(photo_tree / "dog")


def test_one_image_or_a_folder_without_its_other_files(photo_tree: Path) -> None:
    one = photo_tree / "cat" / "0.jpg"
    (photo_tree / "notes.txt").write_text("no image")
    (photo_tree / "folder.jpg").mkdir()
    one.rename(one.with_suffix(".JPEG"))
    assert find_images(str(one.with_suffix(".JPEG"))) == [one.with_suffix(".JPEG")]
    assert len(find_images(str(photo_tree))) == 12


def test_a_place_without_images_says_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for location in (tmp_path, tmp_path / "notes.txt", tmp_path / "none"):
        with pytest.raises(UserInputError) as error:
            find_images(str(location))
        assert str(error.value).startswith(
            f"{location} holds neither shards with a manifest nor images (.bmp, .jpeg, .jpg, "
        )
        assert str(error.value).endswith("; name a folder or a file that does.")


def test_an_image_removed_since_is_named(photo_tree: Path) -> None:
    samples = FileSamples(find_images(str(photo_tree)))
    samples.paths[2].unlink()
    with pytest.raises(DataFormatError, match=r"2\.jpg cannot be read \(No such file"):
        samples.read(2)
