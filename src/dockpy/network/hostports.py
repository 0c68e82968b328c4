"""Ports of the host that are kept from everybody else by a bound socket, and who has one.

A published port is a rule, which the kernel's socket layer knows nothing of: a server could bind
the same port and wait in vain. So each published port also has a socket bound to it that is never
used: the next to bind the port is refused, as it should be, and a port that somebody has is
found out the same way, without a race. No packet reaches the socket while the rule is there.

A connection that just ended (TIME_WAIT) keeps a port from being bound without SO_REUSEADDR
(tcp(7)); with it, a server that sets it too could take the port. So it is tried without first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

IPPROTO_SCTP = 132
_KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, IPPROTO_SCTP),
}


def hold(protocol: str, address: str, port: int) -> socket.socket | None:
    """A socket bound to the port (0: a free one of the kernel's choice) on the address.

    Raises OSError: EADDRINUSE when somebody has it, EADDRNOTAVAIL when the address is not this
    host's. None where the kernel has no sockets of that protocol: nobody can have the port then.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind, number = _KINDS[protocol]
    try:
        made = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT) and number:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            made.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or protocol != "tcp":
                raise
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        made.close()
        raise
    return made


def user_of(protocol: str, address: str, port: int, proc: Path = Path("/proc")) -> str:
    """Which process has the port: `nginx (pid 812)`, or "" when it cannot be told.

    Reads the descriptors of every process, so only for the text of a refusal.
    """
    inodes = set(_inodes(protocol, address, port, proc))
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for directory in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for name in os.listdir(directory / "fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(directory / "fd" / name) in wanted:
                        program = (directory / "comm").read_text().strip()
                        return f"{program} (pid {directory.name})"
    return ""


def _inodes(protocol: str, address: str, port: int, proc: Path) -> Iterator[str]:
    """Inodes of sockets that stand in the way, from /proc/net (proc_net(5))."""
    for table in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, number = fields[1].rpartition(":")
                # Inode 0: a connection without a process, such as one in TIME_WAIT.
                if int(number, 16) == port and fields[9] != "0" and _overlap(host, address):
                    yield fields[9]


def _overlap(stored: str, address: str) -> bool:
    """Whether a stored local address (hex words of the host's order) and ours collide."""
    if not re.fullmatch("0+", stored) and address not in ("", "0.0.0.0", "::"):
        return _stored(address) == stored or stored.endswith("FFFF0000" + _stored(address))
    return True


def _stored(address: str) -> str:
    if ":" in address:
        data = socket.inet_pton(socket.AF_INET6, address)
    else:
        data = socket.inet_aton(address)
    return "".join(data[at : at + 4][::-1].hex().upper() for at in range(0, len(data), 4))
