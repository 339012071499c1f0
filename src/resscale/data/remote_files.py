"""Opens byte ranges of remote files over fsspec's file systems: one request each, never repeated.

fsspec knows protocols, credentials, proxies and connections. Its own reading returns whole
buffers or nothing; here bytes are handed on as they come, so that a broken body can be continued.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from resscale.data.locations import shown, without_secrets
from resscale.data.remote_errors import (
    TryAgainError,
    check_status,
    protocol_of,
    status_of,
    translated,
)
from resscale.data.remote_options import RemoteOptions
from resscale.errors import UserInputError

_INSTALL = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "http": ("aiohttp", "http")}
_CHUNK_BYTES = 1 << 18


@dataclass
class Body:
    """An answer under way.

    Args:
        start: the first byte's place in the file; before the asked one where ranges are ignored.
        size: bytes of the whole file.
        tag: names the file's content: its ETag, or the time of its last change; "" if unknown.
        ranges: the server answered with the range that was asked for.
        chunks: yields the bytes.
    """

    start: int
    size: int
    tag: str
    ranges: bool
    chunks: Callable[[], AsyncIterator[bytes]]

    def __post_init__(self) -> None:
        # Versions are hashed and written down: a header whose bytes are no text must not stop that.
        self.tag = self.tag.encode("ascii", "backslashreplace").decode()


class FileSystems:
    """fsspec's file systems of this process, one per protocol and options.

    A forked process must not touch its parent's: their event loop has no thread here, and closing
    it would take the parent's sockets out of an epoll that both share. They are kept, unused.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, str, str], Any] = {}
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def get(self, url: str, options: RemoteOptions) -> Any:
        """Return the file system of an address.

        Raises:
            UserInputError: its protocol is unknown, or its library is not installed.
        """
        protocol = "http" if protocol_of(url) in ("http", "https") else protocol_of(url)
        key = (os.getpid(), protocol, repr(options))
        with self._lock:
            if key not in self._made:
                self._made[key] = _make(protocol, options)
            return self._made[key]

    def _after_fork(self) -> None:
        # Another thread of the parent may have held it.
        self._lock = threading.Lock()


FILE_SYSTEMS = FileSystems()


def _make(protocol: str, options: RemoteOptions) -> Any:
    import fsspec

    # What is added below must not hide fsspec's own configuration.
    chosen = {**fsspec.config.conf.get(protocol, {}), **options.storage.get(protocol, {})}
    if protocol == "http":
        chosen.update(options.storage.get("https", {}))
        # Proxies of the environment (HTTPS_PROXY, NO_PROXY), which compute nodes often need.
        chosen["client_kwargs"] = {"trust_env": True, **chosen.get("client_kwargs", {})}
    if protocol == "s3":
        timeouts = {
            "connect_timeout": options.connect_timeout_s,
            "read_timeout": options.read_timeout_s,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 64,
        }
        chosen["config_kwargs"] = {**timeouts, **chosen.get("config_kwargs", {})}
    try:
        made = fsspec.filesystem(protocol, skip_instance_cache=True, **chosen)
    except ImportError as error:
        package, extra = _INSTALL[protocol]
        raise UserInputError(
            f"{protocol}:// needs the package {package} ({error}): pip install 'resscale[{extra}]'"
        ) from error
    except TypeError as error:
        raise _unknown_option(protocol, error) from error
    if protocol == "s3":
        made.retries = 1  # tries are counted and repeated by `remote`, not behind its back
    return made


def _unknown_option(protocol: str, error: TypeError) -> UserInputError:
    return UserInputError(
        f"data.storage_options of {protocol} do not fit: {error}. The documentation of "
        f"{_INSTALL[protocol][0]} lists them."
    )


@asynccontextmanager
async def open_range(
    system: Any, url: str, start: int, stop: int | None, options: RemoteOptions
) -> AsyncIterator[Body]:
    """Send one request for the bytes from `start` on, up to and without `stop`.

    Raises:
        TryAgainError: the server was overloaded, or the connection broke.
        DataFormatError: there is no such file, or no right to read it.
        UserInputError: the request can never succeed.
    """
    opened = _open_s3 if protocol_of(url) == "s3" else _open_http
    try:
        async with opened(system, url, start, stop, options) as body:
            yield body
    except (TryAgainError, UserInputError):
        raise
    except Exception as error:
        meant = translated(error, url, options)
        if meant is error:
            raise
        raise meant from error


@asynccontextmanager
async def _open_http(
    system: Any, url: str, start: int, stop: int | None, options: RemoteOptions
) -> AsyncIterator[Body]:
    import aiohttp

    headers = {"Accept-Encoding": "identity", "Range": _range(start, stop)}
    timeout = aiohttp.ClientTimeout(total=None)
    if protocol_of(url) == "gs":
        await system._set_session()
        session, where = system.session, system.url(url)
        keywords: dict[str, Any] = {"params": system._get_params({})}
        headers = system._get_headers(headers)
    else:
        session, where = await system.set_session(), _encoded(system, url)
        keywords = {name: value for name, value in system.kwargs.items() if name != "headers"}
        headers = {**system.kwargs.get("headers", {}), **headers}
    async with _answered_within(options.connect_timeout_s):
        answer = await session.get(where, headers=headers, timeout=timeout, **keywords)
    async with answer:
        check_status(answer.status, answer.headers, url)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise UserInputError(
                f"{shown(url)} comes compressed ({answer.headers['Content-Encoding']}), so its "
                f"bytes cannot be counted: switch that off for .tar files in the server."
            )
        yield _http_body(answer, start, options)


def _encoded(system: Any, url: str) -> Any:
    try:
        return system.encode_url(url)
    except ValueError as error:
        said = without_secrets(str(error))
        raise UserInputError(f"{shown(url)} is no address ({said}). Correct it.") from error


@asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    """Give a request so long to be answered; the body has a limit of its own.

    Raises:
        TryAgainError: it was not.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TryAgainError(f"it did not answer for {seconds:g} seconds") from error


def _http_body(answer: Any, start: int, options: RemoteOptions) -> Body:
    headers = answer.headers
    tag = _etag(headers.get("ETag", "")) or headers.get("Last-Modified", "")

    def chunks() -> AsyncIterator[bytes]:
        return _timed(lambda: answer.content.read(_CHUNK_BYTES), options)

    if answer.status == 200:
        size = headers.get("Content-Length")
        if size is None:
            raise UserInputError(
                f"{shown(str(answer.url))} comes without its length (no Content-Length): serve it "
                f"from a server that tells it."
            )
        return Body(0, int(size), tag, False, chunks)
    first, size = _content_range(headers.get("Content-Range", ""))
    # 416: no such bytes, as in an empty file.
    return Body(start if answer.status == 416 else first, size, tag, True, chunks)


@asynccontextmanager
async def _open_s3(
    system: Any, url: str, start: int, stop: int | None, options: RemoteOptions
) -> AsyncIterator[Body]:
    bucket, key, version = system.split_path(url)
    more = {"VersionId": version} if version else {}
    try:
        await system.set_session()
    except TypeError as error:
        raise _unknown_option("s3", error) from error
    async with _answered_within(options.connect_timeout_s + options.read_timeout_s):
        try:
            answer = await system._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=_range(start, stop), **more
            )
        except OSError as error:
            if status_of(error) != 416:
                raise
            # No such bytes, as in an empty file.
            facts = await system._call_s3("head_object", Bucket=bucket, Key=key, **more)
            answer = None
    if answer is None:
        yield Body(start, int(facts["ContentLength"]), _etag(facts.get("ETag", "")), True, _nothing)
        return
    body = answer["Body"]

    def chunks() -> AsyncIterator[bytes]:
        return _timed(lambda: body.read(_CHUNK_BYTES), options)

    try:
        if "ContentRange" in answer:
            first, size = _content_range(answer["ContentRange"])
        else:
            first, size = 0, int(answer["ContentLength"])
        yield Body(first, size, _etag(answer.get("ETag", "")), "ContentRange" in answer, chunks)
    finally:
        body.close()


async def _timed(read: Callable[[], Any], options: RemoteOptions) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(options.read_timeout_s):
            chunk = await read()
        if not chunk:
            return
        yield chunk


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""  # makes it a generator


def _range(start: int, stop: int | None) -> str:
    return f"bytes={start}-{'' if stop is None else stop - 1}"


def _etag(value: str) -> str:
    return value.removeprefix("W/").strip('"')


def _content_range(value: str) -> tuple[int, int]:
    """Return the first byte and the size of the file of "bytes 5-9/100" or "bytes */100"."""
    span, _, size = value.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not size.isdigit() or not (first.isdigit() or span == "*"):
        raise TryAgainError(f"an answer that cannot be read (Content-Range: {value!r})")
    return int(first) if first.isdigit() else 0, int(size)


async def list_folder(system: Any, url: str, options: RemoteOptions) -> list[dict[str, Any]]:
    """Return fsspec's entries of a folder, in one try.

    Raises:
        TryAgainError: the server was overloaded, or the connection broke.
        DataFormatError: there is no such folder, or no right to list it.
    """
    more = {} if protocol_of(url) in ("http", "https") else {"refresh": True}
    try:
        async with asyncio.timeout(options.give_up_s):
            entries: list[dict[str, Any]] = await system._ls(url, detail=True, **more)
            return entries
    except Exception as error:
        raise translated(error, url, options) from error
