"""No message shows what an address is signed with: its query, and its user and password."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_server import FaultServer, serve

from resscale.cli import main
from resscale.data import remote
from resscale.data.augment import CenterCrop
from resscale.data.batching import check_batch_fits
from resscale.data.cache import ShardCache
from resscale.data.dataset import BatchRequest, ShardDataset
from resscale.data.index_shards import index_shards
from resscale.data.locations import join
from resscale.data.manifest import Manifest
from resscale.data.open_shards import open_split
from resscale.data.remote_options import RemoteOptions
from resscale.data.samples import ShardSamples
from resscale.data.sequential import SequentialSamples, StreamPlace, expand_sequential
from resscale.data.shard_index import ShardIndex
from resscale.data.shard_patterns import expand_shards
from resscale.data.store import ShardStore
from resscale.data.verify_shards import verify_shards
from resscale.errors import ResscaleError

SECRET = "s3cr3t"
QUICK = RemoteOptions(read_timeout_s=0.3, connect_timeout_s=0.3, give_up_s=0.2, first_wait_s=0.01)


class Signed:
    """A folder of shards behind an address with a password and a signature."""

    def __init__(self, server: FaultServer, folder: Path, own: Path) -> None:
        self.server, self.folder, self.own = server, folder, own
        bare = server.url.removeprefix("http://")
        self.url = f"http://me:{SECRET}@{bare}/{folder.name}?sig={SECRET}"
        self.manifest = Manifest.load(folder)

    def remote(self, **changes: object) -> Manifest:
        """The manifest as loaded from there, with some fields changed."""
        return dataclasses.replace(self.manifest, root=self.url, **changes)  # type: ignore[arg-type]

    def samples(self, manifest: Manifest | None = None) -> ShardSamples:
        cache = ShardCache(self.own / "cache", 10**8, QUICK)
        return ShardSamples(manifest or self.remote(), ShardStore(cache=cache, remote=QUICK))

    def rewrite(self, **facts: object) -> None:
        raw = json.loads((self.folder / "manifest.json").read_text())
        (self.folder / "manifest.json").write_text(json.dumps(raw | facts))

    def shard(self, number: int = 0) -> Path:
        return self.folder / self.manifest.shards[number].name


@pytest.fixture
def signed(foreign_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    index_shards(expand_shards([str(foreign_shards)]))
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "own"))
    before = remote.get_default()
    remote.set_default(QUICK)
    with serve(foreign_shards.parent) as server:
        yield Signed(server, foreign_shards, tmp_path)
    remote.set_default(before)


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def read_with(signed: Signed, change: Callable[[Path], object], manifest: Manifest) -> None:
    change(signed.shard())
    samples = signed.samples(manifest)
    assert samples.store.cache is not None
    samples.store.cache.fetch(samples.source(0))


def no_image(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b".jpg\0", b".txt\0"))


def read_a_batch_of_garbage(signed: Signed) -> None:
    index = ShardIndex.load(signed.manifest.index_path(0))
    raw = bytearray(signed.shard().read_bytes())
    for start, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
        raw[start : start + size] = bytes(size)
    signed.shard().write_bytes(raw)
    dataset = ShardDataset(signed.samples(), CenterCrop(8, 8), replace_bad=True)
    dataset.read_batch(BatchRequest(np.arange(4)))


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://me:{SECRET}@127.0.0.1:{taken.getsockname()[1]}/a.tar?sig={SECRET}"


def unchecked(signed: Signed, **more: object) -> Manifest:
    rows = [dataclasses.replace(row, sha256="", **more) for row in signed.manifest.shards]
    return signed.remote(shards=rows)


FAILURES: dict[str, Callable[[Signed], object]] = {
    "no manifest": lambda s: Manifest.load(join(s.url, "none")),
    "no right": lambda s: (
        s.server.answers.update({f"/{s.folder.name}/manifest.json": 403}),
        Manifest.load(s.url),
    ),
    "a damaged manifest": lambda s: (s.rewrite(shards=5), Manifest.load(s.url)),
    "a manifest of another version": lambda s: (s.rewrite(format_version=9), Manifest.load(s.url)),
    "a missing shard": lambda s: (s.shard().unlink(), s.remote().check_sizes()),
    "a shorter shard": lambda s: (broken(s.shard()), s.remote().check_sizes()),
    "no samples": lambda s: s.remote(shards=()).check_sizes(),
    "labels": lambda s: s.remote().check_labels(1),
    "a batch too large": lambda s: check_batch_fits(99, 12, s.url),
    "no labels": lambda s: (
        s.rewrite(class_counts=[]),
        open_split("train", s.url, None),
    ),
    "epoch_samples": lambda s: open_split("train", s.url, 7),
    "sequential validation": lambda s: open_split("val", f"pipe:cat {s.url}", None),
    "sequential without a count": lambda s: open_split("train", f"pipe:cat {s.url}", None),
    "compressed": lambda s: expand_sequential(join(s.url, "a.tar.gz")),
    "a command that fails": lambda s: SequentialSamples(
        [f"pipe:false '{s.url}'"], 9, StreamPlace(0, 1, 0, 0, False)
    ).read(0),
    "an index of another length": lambda s: s.samples(
        s.remote(shards=[dataclasses.replace(row, samples=5) for row in s.manifest.shards])
    ).key(0),
    "a damaged index": lambda s: (
        s.manifest.index_path(0).write_bytes(b"x"),
        s.samples().key(0),
    ),
    "a missing index": lambda s: (s.manifest.index_path(0).unlink(), s.samples().key(0)),
    "a sample behind the end": lambda s: remote.read_range(
        join(s.url, s.shard().name), 0, 10**9, options=QUICK
    ),
    "another size": lambda s: s.samples(unchecked(s, bytes=9)).source(0),
    "another version": lambda s: s.samples().store.read(
        join(s.url, s.shard().name),
        0,
        9,
        dataclasses.replace(s.samples(unchecked(s)).source(0), version="old"),
    ),
    "a wrong checksum": lambda s: read_with(
        s, lambda path: path.write_bytes(bytes(path.stat().st_size)), s.remote()
    ),
    "a batch of garbage": read_a_batch_of_garbage,
    "verify": lambda s: (broken(s.shard()), verify_shards(s.url)),
    "an index that cannot be written": lambda s: index_shards([join(s.url, s.shard().name)]),
    "a tar that is cut": lambda s: (
        broken(s.shard()),
        index_shards([join(s.url, s.shard().name)], out=str(s.own / "out")),
    ),
    "samples without an image": lambda s: (
        no_image(s.folder),
        index_shards([join(s.url, s.shard().name)], out=str(s.own / "out")),
    ),
    "no shard of that name": lambda s: expand_shards([join(s.url, "none-*.tar")]),
    "no braces": lambda s: expand_shards([join(s.url, "{0..1.tar")]),
    "a pattern in a folder": lambda s: expand_shards([join(join(s.url, "a*"), "*.tar")]),
    "no tar": lambda s: expand_shards([join(s.url, "{a,b}.zip")]),
    "several folders": lambda s: expand_shards(
        [join(s.url, "a.tar"), join(join(s.url, "b"), "b.tar")]
    ),
    "a command to be indexed": lambda s: expand_shards([f"pipe:cat '{s.url}'"]),
    "a server that is down": lambda s: remote.read_all(closed_port(), QUICK),
    "a server that fails": lambda s: (
        setattr(s.server, "rates", {"busy": 1.0}),
        remote.read_all(join(s.url, "manifest.json"), QUICK),
    ),
    "an address that is none": lambda s: remote.stat(
        f"http://me:{SECRET}@:bad:/?sig={SECRET}", QUICK
    ),
    "an unknown protocol": lambda s: remote.stat(f"ftp://me:{SECRET}@h/a?sig={SECRET}", QUICK),
    "not a path": lambda s: s.remote().shard_path(0),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_error_shows_a_secret(
    signed: Signed, failure: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ResscaleError) as error:
        FAILURES[failure](signed)
    said = capfd.readouterr()
    assert SECRET not in f"{error.value} {said.out} {said.err}"
    assert len(str(error.value)) > 20


@pytest.mark.parametrize(
    "command", ["inspect URL", "index --verify URL", "index SHARDS --out OUT", "inspect SHARDS"]
)
def test_no_command_shows_a_secret(
    signed: Signed, command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(signed.own)
    if command == "inspect SHARDS":  # indexed on the fly, which is said
        (signed.folder / "manifest.json").unlink()
    words = {
        "URL": signed.url,
        "OUT": str(signed.own / "out"),
        "SHARDS": join(signed.url, "part-000{0..2}.tar"),
    }
    assert main([words.get(word, word) for word in command.split()]) == 0
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert signed.server.url.removeprefix("http://") in said.out + said.err


def test_a_sample_that_cannot_be_read_is_reported_by_the_name_of_its_shard(signed: Signed) -> None:
    index = ShardIndex.load(signed.manifest.index_path(0))
    raw = bytearray(signed.shard().read_bytes())
    raw[int(index.offsets[0]) : int(index.offsets[0]) + 9] = bytes(9)
    signed.shard().write_bytes(raw)
    batch = ShardDataset(signed.samples(), CenterCrop(8, 8)).read_batch(BatchRequest(np.arange(2)))
    assert [bad.shard for bad in batch["bad"]] == [signed.shard().name]
