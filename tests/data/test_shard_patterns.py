"""Which shards are meant: paths, folders, patterns, and addresses of a real server."""

import shutil
from pathlib import Path

import pytest
from fault_server import serve

from resscale.data.shard_patterns import expand_shards, is_pattern
from resscale.errors import DataFormatError, UserInputError

THREE = ["part-0000.tar", "part-0001.tar", "part-0002.tar"]


@pytest.mark.parametrize(
    "patterns",
    [
        ["{}"],
        ["{}/part-000{{0..2}}.tar"],
        ["{}/*.tar"],
        ["file://{}/*.tar"],
        ["{}/part-0000.tar", "{}/part-000[12].tar", "{}/part-0001.tar"],
    ],
)
def test_local_patterns(foreign_shards: Path, patterns: list[str]) -> None:
    found = expand_shards([pattern.format(foreign_shards) for pattern in patterns])
    assert found == [str(foreign_shards / name) for name in THREE]


def test_patterns_are_told_from_folders_and_manifests() -> None:
    shards = ["a/t.tar", "s3://b/t-{0..9}.tar", "s3://b/*", "http://h/t.tar?key=1", "a/t.tar.gz"]
    assert all(map(is_pattern, shards))
    assert not any(map(is_pattern, ["a/b", "s3://b", "http://h/a?k={1}", "a/manifest.json"]))


@pytest.mark.parametrize(
    "pattern",
    ["{}", "{}/", "{}/*.tar", "{}/part-000[0-2].tar", "{}/part-000{{0..2}}.tar"],
)
def test_addresses_are_listed_or_counted(foreign_shards: Path, pattern: str) -> None:
    (foreign_shards / "readme.txt").touch()
    with serve(foreign_shards.parent) as server:
        folder = f"{server.url}/{foreign_shards.name}"
        assert expand_shards([pattern.format(folder)]) == [f"{folder}/{name}" for name in THREE]


def test_a_count_asks_no_server() -> None:
    found = expand_shards(["s3://bucket/train-{08..11}.tar"])
    assert found == [f"s3://bucket/train-{number}.tar" for number in ("08", "09", "10", "11")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("pipe:cat a.tar", "is a command.*data.train takes it"),
        ("{}/none.tar", r"none\.tar is missing"),
        ("{}/part-000{{0..3}}.tar", r"part-0003\.tar is missing"),
        ("{}/part-000{{0..2.tar", "its braces do not pair up"),
        ("{}/empty", "No shards fit"),
        ("{}/a.tar.gz", r"is no \.tar file.*gunzip a\.tar\.gz"),
        ("s3://bucket/a.tgz", r"is no \.tar file.*gunzip a\.tgz"),
        ("s3://bucket/*/a-*.tar", "a . may stand in the name of shards"),
        ("s3://bucket/{{a,b}}/a.tar", "lie in 2 folders .s3://bucket/a, s3://bucket/b."),
    ],
)
def test_patterns_that_fit_nothing(foreign_shards: Path, pattern: str, message: str) -> None:
    (foreign_shards / "empty").mkdir()
    (foreign_shards / "a.tar.gz").touch()
    with pytest.raises(UserInputError, match=message):
        expand_shards([pattern.format(foreign_shards)])


def test_addresses_where_nothing_lies(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serve(tmp_path) as server:
        with pytest.raises(UserInputError, match="none is listed there"):
            expand_shards([f"{server.url}/empty"])
        with pytest.raises(DataFormatError, match="does not exist"):
            expand_shards([f"{server.url}/none/*.tar"])


def test_shards_of_two_folders(foreign_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(foreign_shards, tmp_path / "other")
    with pytest.raises(UserInputError, match="lie in 2 folders"):
        expand_shards([str(foreign_shards), str(tmp_path / "other")])
