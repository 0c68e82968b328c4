"""The servers the host itself asks, as /etc/resolv.conf has them at the moment."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dockpy import etcfiles

MOST = 3
"""As many as the host's own library asks (MAXNS, resolv.conf(5))."""


def only_the_host_can_ask() -> bool:
    """Whether its servers cannot be asked from a container's network (`etcfiles.asks_itself`)."""
    texts = []
    for path in (etcfiles.RESOLV, etcfiles.SYSTEMD_RESOLV):
        try:
            texts.append(Path(path).read_text(errors="replace"))
        except OSError:
            texts.append("")
    return etcfiles.asks_itself(*texts)


class HostServers:
    """Reads the file when it was changed or replaced; a look at it costs one stat(2)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._servers: tuple[str, ...] = ()

    def current(self) -> tuple[str, ...]:
        """Servers in the order they are to be asked.

        Without any, the host asks itself (resolv.conf(5)). A file that cannot be read while it
        is replaced changes nothing.
        """
        with contextlib.suppress(OSError):
            status = os.stat(self._path)
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                text = self._path.read_text(errors="replace")
                self._servers = tuple(etcfiles.nameservers(text)[:MOST]) or ("127.0.0.1",)
                self._seen = seen
        return self._servers or ("127.0.0.1",)
