"""An archive from the web as a stream: http and https, nothing else."""

from __future__ import annotations

import io
from typing import BinaryIO, Protocol, cast

from dockpy.errors import RequestError
from dockpy.model import VERSION

TIMEOUT = 60.0
"""Seconds a server may be silent."""


class _Response(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


def is_url(source: str) -> bool:
    """Whether `source` is meant as a URL and not as a file name."""
    return source.lower().startswith(("http://", "https://"))


def open_url(url: str, *, timeout: float = TIMEOUT) -> BinaryIO:
    """The body of `url`, to be read once and closed by the caller.

    Blocks until the server answers. Follows redirections, to http and https only, and the proxy
    settings of the environment. Raises RequestError in one line, also from reading, when the
    server fails, is silent for `timeout` seconds or ends before the length it promised.
    """
    # Slow to import, and most starts need none of it.
    import http.client
    import urllib.error
    import urllib.request

    if not is_url(url):
        raise RequestError(f"{url}: only http and https can be downloaded")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"dockpy/{VERSION}")]
    try:
        response = opener.open(url, timeout=timeout)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        reason = " ".join(str(refusal.reason).split())
        if refusal.code in (301, 302, 303, 307, 308):
            reason = "it redirects in circles, or to what is not http or https"
        raise RequestError(f"{url}: the server answers {refusal.code}: {reason}") from refusal
    except urllib.error.URLError as refusal:
        raise RequestError(f"{url}: {_why(refusal.reason)}") from refusal
    except (OSError, http.client.HTTPException, ValueError) as refusal:
        raise RequestError(f"{url}: {_why(refusal)}") from refusal
    length = response.headers.get("Content-Length", "")
    expected = int(length) if length.isascii() and length.isdigit() else None
    return cast(BinaryIO, _Body(url, cast(_Response, response), expected))


def _why(failure: object) -> str:
    """What failed, for people: without the numbers and places that Python tells."""
    import ssl

    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {failure.verify_message}"
    if isinstance(failure, ssl.SSLError) and failure.reason:
        return f"no TLS with it: {failure.reason.replace('_', ' ').lower()}"
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    return str(failure)


class _Body(io.RawIOBase):
    """A response that says so when it ends too early; http.client's `readinto` does not."""

    def __init__(self, url: str, response: _Response, expected: int | None) -> None:
        self._url = url
        self._response = response
        self._left = expected

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        import http.client

        try:
            count = self._response.readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError) as refusal:
            raise RequestError(f"{self._url}: {refusal}") from refusal
        if self._left is not None:
            self._left -= count
            if count == 0 and len(buffer) and self._left > 0:
                raise RequestError(f"{self._url}: the download ended {self._left} bytes too early")
        return count

    def close(self) -> None:
        if not self.closed:
            self._response.close()
        super().close()
