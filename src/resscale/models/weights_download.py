"""Files of weights from the web, each downloaded once into the cache folder and checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

import platformdirs

from resscale import __version__
from resscale.errors import UserInputError

# The same variable as for the built-in data, which models may not import.
_CACHE_VARIABLE = "RESSCALE_CACHE"
_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 20
_STALE_AFTER_S = 3600.0
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
# Public files end in the first digits of their SHA-256, as resnet50-0676ba61.pth does.
_HASH_IN_NAME = re.compile(r".*-([0-9a-f]{8,64})\.\w+")


class _Broken(Exception):
    """A transfer went wrong in a way that another attempt may mend."""


def download(
    url: str,
    *,
    timeout_s: float = 30.0,
    check_hash: bool = True,
    folder: Path | None = None,
    retry_wait_s: float = 1.0,
) -> Path:
    """Return the local copy of an http(s) URL; it is downloaded if the cache has none.

    The copy appears whole or not at all (temporary file, then rename), so processes may ask at
    once. A transfer that ends early, stalls, or has another hash than its name says is begun again
    from the start, three times in all.

    Args:
        url: `http://...` or `https://...`.
        timeout_s: seconds without a byte from the server after which an attempt is given up.
        check_hash: compare the SHA-256 with the digits that end the name, where it has them.
        folder: where copies are kept; None: `weights` in the cache folder (RESSCALE_CACHE).
        retry_wait_s: seconds before the second attempt; twice as many before the third.

    Raises:
        UserInputError: no URL, no such file there, no whole copy after three attempts, no place
            for it, or a `timeout_s` that is not above 0.
    """
    if not timeout_s > 0:
        raise UserInputError(f"timeout_s={timeout_s} must be above 0; the default is 30.")
    _check_url(url)
    folder = folder or _cache_folder()
    target = folder / cache_name(url)
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    temporary = Path(name)
    try:
        os.close(handle)
        with temporary.open("wb") as file:
            _download_into(file, url, timeout_s, check_hash, retry_wait_s)
        temporary.chmod(0o644)  # mkstemp's are for the owner only; a cache may be shared
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        host, has_credentials = parts.hostname, "@" in parts.netloc
    except ValueError:
        host, has_credentials = None, False
    if not host or not url.isascii():
        raise UserInputError(
            f"{url!r} is no URL: it must be as https://host/folder/name, with %-codes for spaces "
            f"and letters beyond ASCII. Correct it."
        )
    if has_credentials:  # urllib takes them for a part of the host, and shows them in its errors
        raise UserInputError(
            f"{shown(url)} is given with a user name or password before its host, which is not "
            f"supported: download the file by other means and give its path."
        )


def cache_name(url: str) -> str:
    """Return the name of a URL's copy: the SHA-256 of the whole URL, and the file's own name."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', _file_name(url))[-100:]}"


def shown(url: str) -> str:
    """Return a URL without its query and credentials, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def _file_name(url: str) -> str:
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    return path.rpartition("/")[2] or "weights"


def _cache_folder() -> Path:
    chosen = os.environ.get(_CACHE_VARIABLE)
    root = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("resscale")
    return root / "weights"


def _download_into(
    file: IO[bytes], url: str, timeout_s: float, check_hash: bool, retry_wait_s: float
) -> None:
    named = _HASH_IN_NAME.fullmatch(_file_name(url)) if check_hash else None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            digest = _transfer(file, url, timeout_s)
            if named and not digest.startswith(named[1]):
                raise _Broken(
                    f"its SHA-256 begins with {digest[: len(named[1])]}, its name says {named[1]}; "
                    f"if these digits are no hash, pass check_hash=False"
                )
            return
        except _Broken as error:
            if attempt == _ATTEMPTS:
                raise UserInputError(
                    f"{shown(url)} cannot be downloaded: {_ATTEMPTS} attempts failed, the last "
                    f"because {error}. Try again later, or download it by other means and give "
                    f"its path."
                ) from error
            time.sleep(retry_wait_s * attempt)


def _transfer(file: IO[bytes], url: str, timeout_s: float) -> str:
    """Write the URL's bytes to an emptied `file`; return their SHA-256."""
    request = urllib.request.Request(
        url, headers={"User-Agent": f"resscale/{__version__}", "Accept-Encoding": "identity"}
    )
    digest = hashlib.sha256()
    num_bytes = 0
    file.seek(0)
    file.truncate()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(_CHUNK_BYTES):
                _write(file, chunk)
                digest.update(chunk)
                num_bytes += len(chunk)
    except urllib.error.HTTPError as error:
        if error.code in _RETRIED_STATUS:
            raise _Broken(f"the server said {error.code} {error.reason}") from error
        raise UserInputError(
            f"{shown(url)} cannot be downloaded: the server said {error.code} {error.reason}. "
            f"Correct the URL, or download the file by other means and give its path."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # OSError: refused, reset, timed out, no such host; ValueError: a URL that is none.
        reason = getattr(error, "reason", None) or error
        raise _Broken(f"the connection failed ({str(reason) or type(error).__name__})") from error
    if expected is not None and str(num_bytes) != expected.strip():
        raise _Broken(f"it ended after {num_bytes} of {expected} bytes")
    return digest.hexdigest()


def _write(file: IO[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()  # here, where a full disk is still told from a broken connection
    except OSError as error:
        raise _cannot_write(Path(file.name).parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> UserInputError:
    return UserInputError(
        f"Cannot write the downloaded weights into {folder} ({error.strerror}). Free space, or set "
        f"{_CACHE_VARIABLE} to a folder that you can write."
    )


def _remove_stale(folder: Path) -> None:
    """Remove what processes killed in the middle have left, an hour ago or longer."""
    for leftover in folder.glob(".*.part"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
                leftover.unlink()
        except OSError:
            continue  # its owner has just removed it
