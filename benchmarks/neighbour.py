"""Another host on this one's link, in a network namespace."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

from benchmarks import peers

Found = TypeVar("Found")
HOST, NEIGHBOUR = "10.209.0.1", "10.209.0.2"


class Neighbour:
    """A network namespace on the host's link; what runs `inside` is there."""

    def __init__(self) -> None:
        self._libc = peers.libc()
        made = threading.Thread(target=self._make)
        made.start()
        made.join()
        place = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        for line in (
            "link add lan0 type veth peer name lan1",
            f"link set lan1 netns {place}",
            f"addr add {HOST}/24 dev lan0",
            "link set lan0 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        for line in (f"addr add {NEIGHBOUR}/24 dev lan1", "link set lan1 up"):
            self.call(subprocess.run, ["ip", *line.split()], check=True)

    def _make(self) -> None:
        peers.unshare_network()
        self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def call(self, function: Callable[..., Found], *arguments: object, **named: object) -> Found:
        """Call it in a thread that is there."""
        found = list[Found]()

        def work() -> None:
            if self._libc.setns(self.descriptor, peers.CLONE_NEWNET):
                raise OSError("the neighbour's namespace cannot be entered")
            found.append(function(*arguments, **named))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]
