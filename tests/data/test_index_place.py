"""Where indices are written: folders, and an S3 server that is found by the environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import environment, serve_s3

from resscale.data.index_place import check_place, make_folder, save_index, save_manifest
from resscale.data.index_shards import index_shards
from resscale.data.manifest import Manifest
from resscale.data.open_shards import open_manifest
from resscale.data.samples import ShardSamples
from resscale.data.shard_index import ShardIndex, build_shard_index
from resscale.data.shard_patterns import expand_shards
from resscale.data.verify_shards import verify_shards
from resscale.errors import UserInputError


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, foreign_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server's file system, with three shards in `s3://photos/train`."""
    import s3fs

    for name, value in environment(s3_url).items():
        monkeypatch.setenv(name, value)
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    if not system.exists("photos"):
        system.mkdir("photos")
        for path in foreign_shards.glob("*.tar"):
            system.pipe(f"photos/train/{path.name}", path.read_bytes())
    return system


def test_shards_of_a_bucket_are_indexed_in_it(
    bucket: Any, foreign_shards: Path, jpegs: tuple[bytes, ...]
) -> None:
    shards = expand_shards(["s3://photos/train/part-*.tar"])
    assert shards == [f"s3://photos/train/part-000{number}.tar" for number in range(3)]
    index_shards(shards, ("cat", "dog", "newt"))
    manifest = open_manifest("s3://photos/train")
    assert manifest.root == "s3://photos/train"
    assert manifest.shards_root is None
    local = index_shards(expand_shards([str(foreign_shards)]), ("cat", "dog", "newt"))
    assert manifest.fingerprint == local.fingerprint
    verify_shards("s3://photos/train")
    samples = ShardSamples(manifest)
    assert [samples.read(number) for number in (0, 11)] == [(jpegs[0], 0), (jpegs[11], 2)]
    assert sorted(bucket.ls("photos/train", detail=False)) == sorted(
        [
            "photos/train/manifest.json",
            *(f"photos/train/part-000{n}.{end}" for n in range(3) for end in ("tar", "index.npz")),
        ]
    )


def test_a_bucket_that_is_not_there_cannot_be_written(bucket: Any, foreign_shards: Path) -> None:
    index = build_shard_index(foreign_shards / "part-0000.tar")
    with pytest.raises(UserInputError, match=r"none/a\.npz cannot be written .* --out DIR"):
        save_index("s3://none", "a.npz", index)


def test_folders(tmp_path: Path, foreign_shards: Path) -> None:
    root = f"file://{tmp_path}/some/where"
    make_folder(root)
    index = build_shard_index(foreign_shards / "part-0000.tar")
    save_index(root, "a.npz", index)
    save_manifest(root, manifest := Manifest(("a",), (), ()))
    assert len(ShardIndex.load(tmp_path / "some" / "where" / "a.npz")) == 4
    assert Manifest.load(root).classes == manifest.classes


def test_a_web_server_is_refused_and_others_are_not() -> None:
    for root in ("s3://bucket/a", "gs://bucket", "folder", "file:///folder"):
        check_place(root)
    with pytest.raises(UserInputError, match=r"https://host/a cannot be written to.*--out DIR"):
        check_place("https://host/a")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserInputError, match="file"):
        make_folder(f"{tmp_path}/file/folder")
