"""Object storage: a real S3 server in a process of its own, and libraries that are missing."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from resscale.data import remote
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError, RemoteError, UserInputError

CONTENT = bytes(range(251)) * 4000
QUICK = {"read_timeout_s": 5.0, "give_up_s": 10.0, "first_wait_s": 0.05}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """moto's S3 server."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def of_server(url: str, **more: Any) -> RemoteOptions:
    storage = {"endpoint_url": url, "key": "k", "secret": "s", **more}
    storage["client_kwargs"] = {"region_name": "us-east-1"}
    return RemoteOptions(**QUICK, storage={"s3": storage})


@pytest.fixture(scope="module")
def bucket(s3_url: str) -> Any:
    """s3fs on the server, with `bucket/x/a.tar` and an empty file in it."""
    import s3fs

    system = s3fs.S3FileSystem(**of_server(s3_url).storage["s3"], skip_instance_cache=True)
    system.call_s3("create_bucket", Bucket="bucket")
    system.pipe("bucket/x/a.tar", CONTENT)
    system.pipe("bucket/x/empty", b"")
    return system


def test_objects_are_read_by_range_and_whole(s3_url: str, bucket: Any) -> None:
    options, url = of_server(s3_url), "s3://bucket/x/a.tar"
    about = remote.stat(url, options)
    assert about == remote.RemoteStat(1_004_000, bucket.info("bucket/x/a.tar")["ETag"].strip('"'))
    assert remote.read_range(url, 5, 900_000, about.tag, options) == CONTENT[5:900_000]
    got = bytearray()
    remote.download(url, got.extend, about, options, start=7)
    assert got == CONTENT[7:]
    assert remote.stat("s3://bucket/x/empty", options).size == 0
    assert remote.read_all("s3://bucket/x/empty", options) == b""
    assert remote.list_names("s3://bucket/x", options) == ["a.tar", "empty"]


def test_fsspecs_own_configuration_is_taken(
    s3_url: str, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", dict(of_server(s3_url).storage["s3"]))
    options = RemoteOptions(**QUICK, most_wait_s=7.5)  # file systems are kept by their options
    assert remote.stat("s3://bucket/x/a.tar", options).size == 1_004_000


def test_an_object_that_changes_is_noticed(s3_url: str, bucket: Any) -> None:
    options, url = of_server(s3_url), "s3://bucket/x/changing"
    bucket.pipe("bucket/x/changing", b"before")
    about = remote.stat(url, options)
    bucket.pipe("bucket/x/changing", b"after!")
    with pytest.raises(remote.RemoteChangedError, match=r"of 6 bytes, now \w+ of 6\)"):
        remote.read_range(url, 0, 3, about.tag, options, about.size)
    bucket.rm("bucket/x/changing")


@pytest.mark.parametrize("url", ["s3://bucket/none", "s3://no-such-bucket/a.tar"])
def test_what_does_not_exist_is_told_at_once(s3_url: str, bucket: Any, url: str) -> None:
    with pytest.raises(DataFormatError, match=f"{url} does not exist"):
        remote.stat(url, of_server(s3_url))


def test_missing_credentials_are_named_with_the_remedy(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    storage = {"s3": {"endpoint_url": s3_url}}
    with pytest.raises(UserInputError) as error:
        remote.stat("s3://bucket/x/a.tar", RemoteOptions(**QUICK, storage=storage))
    assert "Unable to locate credentials" in str(error.value)
    assert "data.storage_options '{s3: {anon: true}}' for public data" in str(error.value)


def test_a_server_that_is_gone_is_tried_again_and_then_told() -> None:
    options = of_server(f"http://127.0.0.1:{free_port()}")
    short = RemoteOptions(give_up_s=0.5, first_wait_s=0.05, storage=options.storage)
    with pytest.raises(RemoteError, match=r"[1-9] tries in \d s brought no byte"):
        remote.stat("s3://bucket/a.tar", short)


@pytest.mark.parametrize(
    ("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("http", "aiohttp")]
)
def test_a_missing_library_is_named_with_its_command(
    protocol: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("fsspec")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    loaded = sys.modules["fsspec.registry"]._registry  # type: ignore[attr-defined]
    monkeypatch.delitem(loaded, protocol, raising=False)
    options = RemoteOptions(give_up_s=12.5)  # file systems are kept by their options
    with pytest.raises(UserInputError) as error:
        remote.stat(f"{protocol}://host/a.tar", options)
    assert f"{protocol}:// needs the package {package} (" in str(error.value)
    assert f"pip install 'resscale[{protocol}]'" in str(error.value)


def test_options_that_the_library_does_not_know_are_refused(s3_url: str) -> None:
    with pytest.raises(UserInputError, match=r"data\.storage_options of s3 do not fit: .*'anonn'"):
        remote.stat("s3://bucket/x/a.tar", of_server(s3_url, config_kwargs={"anonn": True}))
