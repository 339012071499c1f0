"""The manifest: written and read back, and each way in which shards can differ from it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from resscale.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, index_name, sha256_of
from resscale.errors import DataFormatError, UserInputError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    shards = []
    for number, samples in enumerate((3, 2)):
        path = tmp_path / f"t-{number}.tar"
        path.write_bytes(bytes([number]) * 100)
        (tmp_path / index_name(path.name)).write_bytes(b"index")
        shards.append(ShardInfo(path.name, samples, 100, sha256_of(path)))
    made = Manifest(("a", "b"), tuple(shards), (4, 1), {"command": "test"}, str(tmp_path))
    made.save(tmp_path)
    return made


def test_what_is_saved_is_loaded(manifest: Manifest, tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(tmp_path / MANIFEST_NAME) == manifest
    assert not list(tmp_path.glob("*.tmp"))


def test_derived_numbers(manifest: Manifest, tmp_path: Path) -> None:
    assert manifest.num_samples == 5  # 3 + 2
    assert manifest.num_bytes == 200  # 2 shards of 100
    assert manifest.num_classes == 2
    np.testing.assert_array_equal(manifest.shard_sizes, [3, 2])
    assert manifest.shard_path(1) == tmp_path / "t-1.tar"
    assert manifest.index_path(1) == tmp_path / "t-1.index.npz"


def test_unnamed_labels_count_as_classes() -> None:
    assert Manifest(("a",), (), (1, 0, 2)).num_classes == 3


def test_fingerprint_changes_with_the_shards_only(manifest: Manifest) -> None:
    same = Manifest(manifest.classes, manifest.shards, manifest.class_counts, {}, "/elsewhere")
    fewer = Manifest(manifest.classes, manifest.shards[:1], manifest.class_counts)
    assert same.fingerprint == manifest.fingerprint
    assert fewer.fingerprint != manifest.fingerprint


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="there is no such folder"):
        Manifest.load(tmp_path / "nothing")


def test_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"it holds no \.tar file"):
        Manifest.load(tmp_path)


def test_shards_without_manifest_name_the_command_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataFormatError, match=r"no manifest\.json\. Make it: resscale index"):
        Manifest.load(tmp_path)


def test_the_file_is_plain_indented_json(manifest: Manifest, tmp_path: Path) -> None:
    text = (tmp_path / MANIFEST_NAME).read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"
    assert json.loads(text)["shards"][1] == {
        "name": "t-1.tar",
        "samples": 2,
        "bytes": 100,
        "sha256": sha256_of(tmp_path / "t-1.tar"),
    }


def test_shards_may_lie_elsewhere(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    moved = dataclasses.replace(manifest, root=str(folder), shards_root="s3://bucket/train")
    moved.save(folder)
    loaded = Manifest.load(folder)
    assert loaded == moved
    assert loaded.fingerprint == manifest.fingerprint
    assert loaded.shard_location(1) == "s3://bucket/train/t-1.tar"
    assert loaded.index_location(1) == str(folder / "t-1.index.npz")
    with pytest.raises(UserInputError, match=r"s3://bucket/train/t-1\.tar is no file here"):
        loaded.shard_path(1)


def test_where_shards_lie_may_begin_at_the_manifest(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    dataclasses.replace(manifest, shards_root="..").save(folder)
    assert Manifest.load(folder).shard_path(0).samefile(tmp_path / "t-0.tar")


def test_an_address_of_a_file_is_a_path(manifest: Manifest, tmp_path: Path) -> None:
    assert Manifest.load(f"file://{tmp_path}") == manifest
    assert Manifest.load(f"file:{tmp_path}/{MANIFEST_NAME}").shard_path(0).is_file()


def test_a_checksum_that_nobody_took_is_not_compared(manifest: Manifest) -> None:
    shards = [dataclasses.replace(shard, sha256="") for shard in manifest.shards]
    manifest.shard_path(1).write_bytes(bytes(100))
    assert dataclasses.replace(manifest, shards=shards).wrong_checksums() == []


def test_a_fingerprint_is_the_digest_of_one_json_text(manifest: Manifest) -> None:
    shards = [ShardInfo(f"t-{n}.tar", n, 2 * n, f"{n:064x}") for n in range(20_001)]
    many = dataclasses.replace(manifest, shards=shards)
    rows = [[s.name, s.samples, s.bytes, s.sha256] for s in shards]
    text = json.dumps([["a", "b"], rows])
    assert many.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert Manifest((), (), ()).fingerprint == hashlib.sha256(b"[[], []]").hexdigest()[:16]


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', "\xff"])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataFormatError, match="is not a resscale manifest"):
        Manifest.load(tmp_path)


def test_manifest_of_another_version(manifest: Manifest, tmp_path: Path) -> None:
    raw = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(raw | {"format_version": 9}))
    with pytest.raises(DataFormatError, match="format_version 9; this resscale reads 1"):
        Manifest.load(tmp_path)


def test_sizes_that_agree_pass(manifest: Manifest) -> None:
    manifest.check_sizes()


@pytest.mark.parametrize(("size", "word"), [(99, "truncated"), (101, "changed")])
def test_shard_of_another_size(manifest: Manifest, size: int, word: str) -> None:
    manifest.shard_path(1).write_bytes(bytes(size))
    with pytest.raises(DataFormatError, match=f"has {size} bytes, its manifest says 100: {word}"):
        manifest.check_sizes()


def test_missing_shard_and_missing_index(manifest: Manifest) -> None:
    manifest.index_path(0).unlink()
    with pytest.raises(DataFormatError, match=r"t-0\.index\.npz is missing"):
        manifest.check_sizes()
    manifest.shard_path(0).unlink()
    with pytest.raises(DataFormatError, match=r"t-0\.tar is missing, the manifest lists it"):
        manifest.check_sizes()


def test_manifest_without_samples() -> None:
    with pytest.raises(DataFormatError, match="lists no samples"):
        Manifest((), (), ()).check_sizes()


def test_labels_outside_the_model(manifest: Manifest) -> None:
    manifest.check_labels(2)
    with pytest.raises(DataFormatError, match=r"1 samples have labels from 1 to 1.*num_classes 2"):
        manifest.check_labels(1)


def test_checksums(manifest: Manifest) -> None:
    assert manifest.wrong_checksums() == []
    manifest.shard_path(1).write_bytes(bytes(100))  # the same size, other bytes
    assert manifest.wrong_checksums() == ["t-1.tar"]
    assert manifest.wrong_checksums([0]) == []
