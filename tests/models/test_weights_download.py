"""Downloads from a real server on this machine, which at times breaks off, stalls or lies."""

from __future__ import annotations

import hashlib
import http.server
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resscale.errors import DataFormatError, UserInputError
from resscale.models import ResNet
from resscale.models.weights import load_weights
from resscale.models.weights_download import cache_name, download, shown

BODY = bytes(range(256)) * 8192  # 2 MiB: more than one chunk
DIGEST = hashlib.sha256(BODY).hexdigest()
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """Answers each request by the next of `answers`, the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [whole]
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                answers = server.answers
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            def log_message(self, *arguments: object) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.done = threading.Event()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


def reply(body: bytes, *, length: int | None, sent: int | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if length is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(body[:sent])  # the connection is closed behind it

    return answer


def status(code: int) -> Answer:
    return lambda request: request.send_error(code)


def stall(request: http.server.BaseHTTPRequestHandler) -> None:
    reply(BODY, length=len(BODY), sent=1000)(request)
    request.wfile.flush()
    request.server.done.wait()  # until the test has ended


whole = reply(BODY, length=len(BODY))
half = reply(BODY, length=len(BODY), sent=len(BODY) // 2)
damaged = reply(BODY[::-1], length=len(BODY))
longer = reply(BODY + BODY, length=2 * len(BODY))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.done.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def fetch(url: str, folder: Path, **arguments) -> Path:
    return download(url, folder=folder, retry_wait_s=0.0, **arguments)


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/a/net.pth"

    path = fetch(url, tmp_path / "new")

    assert path.read_bytes() == BODY
    assert fetch(url, tmp_path / "new") == path
    assert server.requests == ["/a/net.pth"]
    assert list((tmp_path / "new").iterdir()) == [path]  # no temporary file is left
    assert path.stat().st_mode & 0o777 == 0o644  # others may share the cache


def test_the_copy_is_named_by_the_hash_of_the_whole_url_and_the_files_name() -> None:
    url = "https://example.org/v1/net%20a.pth?token=1"

    assert cache_name(url) == hashlib.sha256(url.encode()).hexdigest() + "-net_a.pth"
    assert cache_name(url) != cache_name(url.replace("v1", "v2"))
    assert cache_name(url) != cache_name(url.replace("token=1", "token=2"))
    assert cache_name("https://example.org").endswith("-weights")
    assert "/" not in cache_name("https://example.org/..%2F..%2Fetc%2Fx")


def test_the_cache_folder_is_that_of_the_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))

    assert download(f"{server.url}/net.pth").parent == tmp_path / "cache" / "weights"


def test_a_query_or_password_is_not_shown() -> None:
    assert shown("https://me:pw@example.org/net.pth?sig=secret#x") == "https://example.org/net.pth"


@pytest.mark.parametrize(
    "fault", [half, damaged, longer, status(503), status(429), reply(b"", length=len(BODY))]
)
def test_a_broken_transfer_is_begun_again(server: Server, tmp_path: Path, fault: Answer) -> None:
    server.answers = [fault, fault, whole]

    path = fetch(f"{server.url}/net-{DIGEST[:8]}.pth", tmp_path)

    assert path.read_bytes() == BODY  # nothing of the broken attempts is in it
    assert len(server.requests) == 3


def test_a_server_that_stalls_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [stall, whole]

    assert fetch(f"{server.url}/net.pth", tmp_path, timeout_s=0.2).read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (half, "it ended after 1048576 of 2097152 bytes"),
        (damaged, rf"its SHA-256 begins with \w{{8}}, its name says {DIGEST[:8]}; if these digits"),
        (status(500), "the server said 500 Internal Server Error"),
        (stall, r"the connection failed \(timed out\)"),
    ],
)
def test_after_three_attempts_one_error_says_why(
    server: Server, tmp_path: Path, fault: Answer, reason: str
) -> None:
    server.answers = [fault]

    with pytest.raises(
        UserInputError,
        match=rf"/net-{DIGEST[:8]}\.pth cannot be downloaded: 3 attempts failed, the last because "
        rf"{reason}.*Try again later, or download it by other means and give its path\.$",
    ):
        fetch(f"{server.url}/net-{DIGEST[:8]}.pth?token=x", tmp_path, timeout_s=0.5)

    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    server.answers = [status(404)]

    with pytest.raises(UserInputError, match=r"the server said 404 Not Found\. Correct the URL"):
        fetch(f"{server.url}/net.pth", tmp_path)

    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_said(server: Server, tmp_path: Path) -> None:
    server.http.socket.close()

    with pytest.raises(UserInputError, match=r"3 attempts failed.*\(.*Connection refused\)"):
        fetch(f"{server.url}/net.pth", tmp_path)


def test_digits_that_are_no_hash_are_accepted_on_request(server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/net-20240131.pth"  # eight digits, and a date

    with pytest.raises(UserInputError, match=r"name says 20240131; .*pass check_hash=False"):
        fetch(url, tmp_path)

    assert fetch(url, tmp_path, check_hash=False).read_bytes() == BODY


def test_a_length_that_is_not_said_is_not_compared(server: Server, tmp_path: Path) -> None:
    server.answers = [reply(BODY, length=None)]

    assert fetch(f"{server.url}/net.pth", tmp_path).read_bytes() == BODY


def test_a_cache_that_cannot_be_written_names_the_variable(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UserInputError, match=r"Cannot write .*set RESSCALE_CACHE to a folder"):
        fetch(f"{server.url}/net.pth", tmp_path / "file" / "cache")


def test_a_full_disk_is_no_broken_connection(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(BODY) // 2, hard))
    try:
        with pytest.raises(
            UserInputError, match=r"Cannot write .* \(File too large\)\. Free space"
        ):
            fetch(f"{server.url}/net.pth", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://", "https://[1/net.pth", "http:///net.pth", "http://a/ä"])
def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserInputError, match=r"is no URL: it must be as https://host/folder/name"):
        fetch(url, tmp_path)


@pytest.mark.parametrize("user", ["me:secret@", "me@"])
def test_a_password_in_a_url_is_refused_and_not_shown(tmp_path: Path, user: str) -> None:
    with pytest.raises(UserInputError, match=r"^https://host/net.pth is given with a") as error:
        fetch(f"https://{user}host/net.pth", tmp_path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["net-0123456.pth", "net-01234567-x.pth", "net-01234567.tar.pth", "net"]
)
def test_other_names_hold_no_hash(server: Server, tmp_path: Path, name: str) -> None:
    assert fetch(f"{server.url}/{name}", tmp_path).read_bytes() == BODY


def test_leftovers_of_killed_processes_are_removed_when_old(server: Server, tmp_path: Path) -> None:
    old, recent = tmp_path / ".old.part", tmp_path / ".new.part"
    for leftover in (old, recent):
        leftover.touch()
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))

    fetch(f"{server.url}/net.pth", tmp_path)

    assert not old.exists()
    assert recent.exists()  # its owner may be at work


def test_processes_that_ask_at_once_agree(server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/net-{DIGEST[:8]}.pth"
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(url, tmp_path))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(paths) == 3
    assert set(paths) == set(tmp_path.iterdir())
    assert paths[0].read_bytes() == BODY


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_timeout_must_be_a_time(tmp_path: Path, timeout_s: float) -> None:
    with pytest.raises(UserInputError, match=r"timeout_s=.* must be above 0"):
        fetch("http://127.0.0.1:9/net.pth", tmp_path, timeout_s=timeout_s)


def tiny() -> ResNet:
    return ResNet("basic", (1,), (4,), num_classes=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def test_weights_are_loaded_from_a_url(server: Server, cache: Path, tmp_path: Path) -> None:
    source, model = tiny(), tiny()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    body = (tmp_path / "w.pth").read_bytes()
    server.answers = [reply(body, length=len(body))]
    name = f"w-{hashlib.sha256(body).hexdigest()[:8]}.pth"

    loaded = load_weights(model, f"{server.url}/{name}?token=x")

    assert torch.equal(model.fc.weight, source.fc.weight)
    assert loaded.source == f"{server.url}/{name}"
    assert [path.name for path in cache.iterdir()] == [cache_name(f"{server.url}/{name}?token=x")]


def test_the_options_of_a_download_are_handed_on(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    body = (tmp_path / "w.pth").read_bytes()
    server.answers = [reply(body, length=len(body))]

    load_weights(tiny(), f"{server.url}/net-20240131.pth", check_hash=False)
    with pytest.raises(UserInputError, match=r"timeout_s=-1 must be above 0"):
        load_weights(tiny(), f"{server.url}/other.pth", timeout_s=-1)

    assert server.requests == ["/net-20240131.pth"]


def test_a_download_that_cannot_be_read_does_not_stay(server: Server, cache: Path) -> None:
    page = b"<html>please log in</html>"
    server.answers = [reply(page, length=len(page))]

    for attempts in (1, 2):  # asked for anew, where a copy that stayed would be read again
        with pytest.raises(DataFormatError, match="damaged or no file of weights"):
            load_weights(tiny(), f"{server.url}/net.pth")
        assert len(server.requests) == attempts

    assert list(cache.iterdir()) == []
