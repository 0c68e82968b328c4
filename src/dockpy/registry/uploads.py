"""Blobs to a registry: mounted from another repository, or sent, going on after a drop.

Source: OCI distribution specification 1.1, "Pushing blobs". A blob whose digest is known goes in
one request; one that is still being made is streamed while it grows, and named at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from dockpy.errors import NotInRegistry, RegistryError, Unauthorized
from dockpy.registry.client import RegistryClient
from dockpy.registry.connecting import Broken
from dockpy.registry.growing import GrowingFile, GrowingReader
from dockpy.registry.transport import Response

_RANGE = re.compile(r"(?:bytes[= ])?0-(\d+)")
_STREAM = "application/octet-stream"


def exists(client: RegistryClient, digest: str) -> bool:
    """Whether the repository has a blob."""
    url = client.url("blobs", digest)
    try:
        client.repeat(lambda: client.send("HEAD", url, {})).close()
    except NotInRegistry:
        return False
    return True


def mount(client: RegistryClient, digest: str, source: str) -> bool:
    """Have a blob of another repository of the registry; False when it does not do that.

    An upload that the registry begins instead is left to time out there.
    """
    query = f"mount={quote(digest)}&from={quote(source, safe='')}"
    url = client.url("blobs", "uploads/", query=query)
    try:
        with client.repeat(lambda: client.send("POST", url, {}, ok=(201, 202))) as response:
            return response.status == 201
    except (NotInRegistry, Unauthorized):
        return False


class Upload:
    """One blob on its way. `file` may still grow."""

    def __init__(
        self,
        client: RegistryClient,
        file: GrowingFile,
        report: Callable[[int], None] = lambda _count: None,
        retrying: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._file = file
        self._report = report
        self._retrying = retrying
        self._location = ""
        self._sent = 0
        """Bytes the registry is known to have."""

    def send(self, finish: Callable[[], tuple[str, int]]) -> None:
        """Send all of the file; `finish` waits until it is made and gives digest and size.

        Blocks. Raises RegistryError, Cancelled, and what making the file fails with.
        """
        attempt = 0
        while True:
            before = self._sent
            try:
                self._go_on()
                digest, size = finish()
                self._commit(digest, size)
            except Broken as failure:
                attempt = 1 if self._sent > before else attempt + 1
                if attempt >= self._client.settings.patience.attempts:
                    raise
                self._retrying()
                finish()  # what may not have got through is a body without a length
                self._client.pause(failure, attempt)
            else:
                return

    def _go_on(self) -> None:
        """Send what the registry does not have: in pieces while the file grows, else in one."""
        client = self._client
        if self._location:
            self._ask()
        if not self._location:
            url = client.url("blobs", "uploads/")
            with client.send("POST", url, {}, ok=(202,)) as response:
                self._moved(response)
            self._sent = 0
        reached = start = self._sent
        size = self._file.size
        if start and start == size:
            return
        length = None if size is None else size - start

        def body() -> GrowingReader:
            nonlocal reached
            reached = start

            def report(offset: int) -> None:
                nonlocal reached
                reached = offset
                self._report(offset)

            return GrowingReader(self._file, client.cancellation, report, start)

        headers = {"Content-Type": _STREAM}
        with client.send(
            "PATCH", self._location, headers, body=body, length=length, ok=(202, 204)
        ) as response:
            self._moved(response)
            self._sent = self._told(response, reached)

    def _ask(self) -> None:
        """How much of the upload has arrived; forget it when the registry does not know it."""
        try:
            with self._client.send("GET", self._location, {}, ok=(204, 202, 200)) as response:
                self._sent = self._told(response, 0)
                self._moved(response)
        except (NotInRegistry, Unauthorized):
            self._location = ""

    def _told(self, response: Response, otherwise: int) -> int:
        found = _RANGE.fullmatch(response.header("Range").strip())
        if not found:
            return otherwise
        last = int(found[1])
        return last + 1 if last else min(otherwise, 1)  # "0-0" is also what nothing looks like

    def _moved(self, response: Response) -> None:
        if response.header("Location"):
            self._location = self._client.location(response)

    def _commit(self, digest: str, size: int) -> None:
        if self._sent != size:
            raise Broken(f"the registry has {self._sent} of {size} bytes", sent=True)
        joiner = "&" if "?" in self._location else "?"
        url = f"{self._location}{joiner}digest={quote(digest, safe='')}"
        with self._client.send("PUT", url, {"Content-Type": _STREAM}, ok=(201, 204)) as response:
            told = response.header("Docker-Content-Digest")
            if told and told != digest:
                raise RegistryError(f"the registry keeps {told[:80]} instead of {digest}")


def send_bytes(client: RegistryClient, digest: str, data: bytes) -> None:
    """Send a small blob in one piece, unless the repository has it."""
    if exists(client, digest):
        return

    def once() -> None:
        with client.send("POST", client.url("blobs", "uploads/"), {}, ok=(202,)) as response:
            location = client.location(response)
        joiner = "&" if "?" in location else "?"
        url = f"{location}{joiner}digest={quote(digest, safe='')}"
        client.send("PUT", url, {"Content-Type": _STREAM}, body=data, ok=(201, 204)).close()

    client.repeat(once)
