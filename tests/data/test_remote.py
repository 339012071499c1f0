"""Remote files over a real HTTP server that fails on purpose: the right bytes, or a clear error."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import Fault, FaultServer, serve

from resscale.data import remote
from resscale.data.remote_counts import counts
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError, RemoteError, UserInputError

CONTENT = bytes(range(251)) * 8000  # 2,008,000 bytes; no two neighbouring ranges are alike
QUICK = RemoteOptions(read_timeout_s=0.3, connect_timeout_s=5, give_up_s=10, first_wait_s=0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "empty").write_bytes(b"")
    with serve(folder) as running:
        yield running


def test_size_and_version_come_from_one_request(server: FaultServer) -> None:
    about = remote.stat(f"{server.url}/a.tar", QUICK)
    assert (about.size, about.ranges, len(server.asked)) == (2_008_000, True, 1)
    facts = (server.folder / "a.tar").stat()
    assert about.tag == f"{facts.st_mtime_ns:x}-{facts.st_size:x}"
    assert remote.stat(f"{server.url}/empty", QUICK).size == 0
    assert remote.read_all(f"{server.url}/empty", QUICK) == b""


def test_any_range_is_read(server: FaultServer) -> None:
    url = f"{server.url}/a.tar"
    assert remote.read_range(url, 0, 3, options=QUICK) == bytes([0, 1, 2])
    assert remote.read_range(url, 2_007_999, 2_008_000, options=QUICK) == bytes([250])
    assert remote.read_range(url, 7, 7, options=QUICK) == b""
    assert remote.read_all(url, QUICK) == CONTENT


FAULTS: list[Fault] = ["drop", "truncate", "stall", "reset", "busy", "slow_down", "whole"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_read_survives_each_fault(server: FaultServer, fault: Fault) -> None:
    remote.stat(f"{server.url}/empty", QUICK)  # the connection is kept
    server.asked.clear()
    server.next_faults = [fault]
    before = counts()
    data = remote.read_range(f"{server.url}/a.tar", 10, 1_500_000, options=QUICK)
    assert data == CONTENT[10:1_500_000]
    assert server.faults() == [fault]
    # A server that ignores the range has sent all: what is too much is thrown away.
    tries = 1 if fault == "whole" else 2
    assert len(server.asked) == tries
    # A kept connection that is reset before a byte is opened again by aiohttp itself.
    seen = 1 if fault == "reset" else tries
    assert (counts() - before).requests == seen
    assert (counts() - before).retries == seen - 1


def test_a_broken_body_goes_on_at_the_byte_where_it_broke(server: FaultServer) -> None:
    server.next_faults = ["truncate", "stall", "truncate"]
    got = bytearray()
    about = remote.RemoteStat(len(CONTENT), "")
    before = counts()
    remote.download(f"{server.url}/a.tar", got.extend, about, QUICK)
    assert got == CONTENT
    # Each fault lets half of what is missing through: 1/2, 3/4, 7/8 of 2,008,000.
    assert server.starts("a.tar") == [0, 1_004_000, 1_506_000, 1_757_000]
    assert (counts() - before).bytes == 2_008_000  # no byte came twice


def test_many_faults_in_a_row_do_not_end_a_transfer_that_gets_on(server: FaultServer) -> None:
    # Ten breaks of up to 0.3 s and ten waits: more than give_up_s, but each time bytes have come.
    server.next_faults = ["stall", "truncate"] * 4
    short = RemoteOptions(read_timeout_s=0.2, give_up_s=0.6, first_wait_s=0.01)
    assert remote.read_all(f"{server.url}/a.tar", short) == CONTENT


def test_a_file_that_changes_in_between_is_noticed_not_spliced(server: FaultServer) -> None:
    url = f"{server.url}/a.tar"
    about = remote.stat(url, QUICK)

    def change(chunk: bytes) -> None:
        if not changed:
            changed.append(True)
            (server.folder / "a.tar").write_bytes(bytes(len(CONTENT)))

    changed: list[bool] = []
    server.next_faults = ["truncate"]
    with pytest.raises(remote.RemoteChangedError, match=r"a\.tar has changed while it was read"):
        remote.download(url, change, about, QUICK)
    with pytest.raises(remote.RemoteChangedError, match=r"2008000 bytes, now .* of 2008000"):
        remote.read_range(url, 0, 9, about.tag, QUICK, about.size)
    assert remote.read_range(url, 0, 9, None, QUICK) == bytes(9)


def test_a_range_of_no_certain_version_is_read_anew_where_a_mirror_goes_on_with_another(
    server: FaultServer,
) -> None:
    server.mirrors, server.next_faults = 3, ["truncate"]
    data = remote.read_range(f"{server.url}/a.tar", 100, 1_000_100, options=QUICK)
    assert data == CONTENT[100:1_000_100]
    # Half has come of one version; the next answers with another, the third with one more.
    assert server.starts("a.tar") == [100, 500_100, 100]
    with pytest.raises(remote.RemoteChangedError):
        remote.read_range(f"{server.url}/a.tar", 0, 9, "of none of them", QUICK)
    with pytest.raises(remote.RemoteChangedError):
        remote.read_range(f"{server.url}/a.tar", 0, 9, None, QUICK, size=7)


def test_a_server_that_takes_a_connection_and_is_silent_is_said_not_to_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes the connection
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar"
        mute = RemoteOptions(connect_timeout_s=0.1, read_timeout_s=7, give_up_s=0.1)
        with pytest.raises(RemoteError, match=r"because it did not answer for 0\.1 seconds"):
            remote.read_all(url, mute)


def test_without_etags_the_time_of_the_last_change_names_the_version(server: FaultServer) -> None:
    server.etags = False
    about = remote.stat(f"{server.url}/a.tar", QUICK)
    os.utime(server.folder / "a.tar", (1e9, 1e9))
    assert "2001" in remote.stat(f"{server.url}/a.tar", QUICK).tag  # 1e9 s is in September 2001
    with pytest.raises(remote.RemoteChangedError, match=r"now .*2001"):
        remote.read_range(f"{server.url}/a.tar", 0, 9, about.tag, QUICK)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "does not exist (the server said 404); correct the address."),
        (403, "may not be read (the server said 403). Some servers say so of what does not exist"),
        (401, "check address and credentials"),
        (400, "cannot be read: the server said 400."),
    ],
)
def test_what_cannot_pass_is_told_at_once(server: FaultServer, status: int, said: str) -> None:
    server.answers["/a.tar"] = status
    with pytest.raises(DataFormatError) as error:
        remote.stat(f"{server.url}/a.tar?token=secret", QUICK)
    assert said in str(error.value)
    assert "secret" not in str(error.value)
    assert len(server.asked) == 1


def test_a_server_that_stays_down_is_an_error_with_tries_reason_and_remedy(
    server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.rates = {"busy": 1.0}
    with pytest.raises(RemoteError) as error:
        remote.read_all(f"{server.url}/a.tar", RemoteOptions(give_up_s=0.3, first_wait_s=0.05))
    text = str(error.value)
    assert f"{len(server.asked)} tries in 0 s brought no byte, the last because the server" in text
    assert "said 503" in text
    assert "See whether the server is up and reachable from this node" in text
    assert error.value.exit_code == 69
    assert len(server.asked) >= 2


def test_a_file_that_is_shorter_than_its_index_says(server: FaultServer) -> None:
    with pytest.raises(DataFormatError, match="ends at byte 2008000, its index says 2008001"):
        remote.read_range(f"{server.url}/a.tar", 5, 2_008_001, options=QUICK)
    assert len(server.asked) == 1


def test_a_server_without_ranges_is_known_after_the_first_read(server: FaultServer) -> None:
    url = f"{server.url}/a.tar"
    assert remote.reads_ranges(url)
    server.ranges = False
    assert not remote.stat(url, QUICK).ranges
    assert not remote.reads_ranges(url)
    assert remote.read_range(url, 1_000_000, 1_000_010, options=QUICK) == CONTENT[1_000_000:][:10]


def test_what_takes_the_bytes_may_fail_in_its_own_way(server: FaultServer) -> None:
    def full(chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        remote.download(f"{server.url}/a.tar", full, remote.RemoteStat(2_008_000, ""), QUICK)
    assert len(server.asked) == 1


def test_names_of_a_folder(server: FaultServer, tmp_path: Path) -> None:
    server.next_faults = ["busy"]
    (server.folder / "b.tar").write_bytes(b"b")
    assert remote.list_names(server.url, QUICK) == ["a.tar", "b.tar", "empty"]
    assert remote.list_names(str(server.folder)) == ["a.tar", "b.tar", "empty"]


def test_local_files_are_read_by_path_and_by_file_address(tmp_path: Path) -> None:
    path = tmp_path / "a b.tar"
    path.write_bytes(CONTENT)
    for location in (str(path), f"file://{tmp_path}/a%20b.tar"):
        assert remote.stat(location).size == 2_008_000
        assert remote.read_range(location, 250, 252) == bytes([250, 0])
        got = bytearray()
        remote.download(location, got.extend, remote.stat(location), start=5)
        assert got == CONTENT[5:]
    with pytest.raises(DataFormatError, match="ends at byte 2008000, its index says 2008001"):
        remote.read_range(str(path), 0, 2_008_001)
    with pytest.raises(DataFormatError, match="No such file"):
        remote.stat(str(tmp_path / "none"))


def test_another_protocol_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserInputError, match=r"htp://host/a\.tar is no address .* mean 'http'\?"):
        remote.stat("htp://host/a.tar")


def test_many_threads_read_at_once(server: FaultServer) -> None:
    server.rates = {"drop": 0.1, "busy": 0.1}
    wrong: list[int] = []

    def read(number: int) -> None:
        for start in range(number * 1000, number * 1000 + 200_000, 40_000):
            data = remote.read_range(f"{server.url}/a.tar", start, start + 5000, options=QUICK)
            if data != CONTENT[start : start + 5000]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert server.faults()


def read_in_child(url: str, results: Any) -> None:
    before = counts().requests
    data = remote.read_range(url, 3, 9, options=QUICK)
    results.put((data, before, counts().requests))


# Forking is what this test is about.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_reads_with_connections_and_counts_of_its_own(
    server: FaultServer, method: str
) -> None:
    url = f"{server.url}/a.tar"
    remote.stat(url, QUICK)  # the parent's event loop runs, and its connection is kept open
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=read_in_child, args=(url, results))
    child.start()
    assert results.get(timeout=120) == (bytes([3, 4, 5, 6, 7, 8]), 0, 1)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert remote.read_range(url, 0, 2, options=QUICK) == bytes([0, 1])  # the parent's still work
