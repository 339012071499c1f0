"""What errors of servers and libraries mean: to be tried again, or to be told at once."""

from __future__ import annotations

from typing import Any

from resscale.data.locations import shown, without_secrets
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError, UserInputError, nearest

PROTOCOLS = ("http", "https", "s3", "gs")
_AGAIN_STATUS = (408, 425, 429, 500, 502, 503, 504)


class TryAgainError(Exception):
    """A request went wrong in a way that another one may mend; `after_s`: the server's wish."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


def protocol_of(url: str) -> str:
    """Return the protocol of an address: "http", "https", "s3" or "gs".

    Raises:
        UserInputError: another one, or none.
    """
    protocol = url.partition(":")[0].lower()
    if protocol not in PROTOCOLS or "://" not in url:
        raise UserInputError(
            f"{shown(url)} is no address that shards are read from: it must begin with "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)} or be a local path."
            f"{nearest(protocol, PROTOCOLS)}"
        )
    return protocol


def check_status(status: int, headers: Any, url: str) -> None:
    """Raise what an HTTP status means, unless it brings bytes (or says that there are none).

    Raises:
        TryAgainError: the server is overloaded, or not well.
        DataFormatError: it refuses.
    """
    if status in (200, 206) or (status == 416 and headers.get("Content-Range")):
        return
    if status in _AGAIN_STATUS:
        asked = headers.get("Retry-After", "")
        raise TryAgainError(f"the server said {status}", float(asked) if asked.isdigit() else 0.0)
    raise _refusal(status, url)


def _refusal(status: int, url: str) -> DataFormatError:
    if status in (404, 410):
        return DataFormatError(
            f"{shown(url)} does not exist (the server said {status}); correct the address."
        )
    if status in (401, 403):
        remedy = "Some servers say so of what does not exist, too: check address and credentials"
        if protocol_of(url) != "http":
            remedy += f" (data.storage_options.{protocol_of(url)}, or the environment)"
        return DataFormatError(
            f"{shown(url)} may not be read (the server said {status}). {remedy}."
        )
    return DataFormatError(f"{shown(url)} cannot be read: the server said {status}.")


def translated(error: Exception, url: str, options: RemoteOptions) -> Exception:
    """Return what an error of the libraries means; errors of programming stay what they are."""
    import aiohttp

    if isinstance(error, TimeoutError):
        return TryAgainError(f"no byte came for {options.read_timeout_s:g} seconds")
    status = status_of(error)
    if status in _AGAIN_STATUS:
        return TryAgainError(f"the server said {status}")
    if status is not None and status >= 400:
        return _refusal(status, url)
    if isinstance(error, FileNotFoundError):
        return _refusal(404, url)
    if isinstance(error, PermissionError):
        return _refusal(403, url)
    kind, said = type(error).__name__, without_secrets(str(error))
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError)):
        return UserInputError(f"{shown(url)} cannot be read: {said}. Correct the address.")
    if "Credentials" in kind:
        public = "{gs: {token: anon}}" if protocol_of(url) == "gs" else "{s3: {anon: true}}"
        return UserInputError(
            f"{shown(url)} cannot be read: {said}. Give credentials by the environment, or "
            f"data.storage_options '{public}' for public data."
        )
    if isinstance(error, (OSError, aiohttp.ClientError)) or _is_of_a_client(error):
        return TryAgainError(f"the connection broke ({kind}{f': {said}' if said else ''})")
    return error


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an error of aiohttp, gcsfs or (as its cause) botocore tells."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict) and "ResponseMetadata" in response:
            return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)) or None
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _is_of_a_client(error: Exception) -> bool:
    home = type(error).__module__.partition(".")[0]
    return home in ("botocore", "aiobotocore", "google", "gcsfs")
