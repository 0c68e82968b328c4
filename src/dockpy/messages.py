"""Values with descriptors over a Unix SEQPACKET socket: how daemon and supervisors talk.

One message is one packet: a marshalled tuple whose first element names it. Marshal is safe here
because both ends are dockpy processes of the same user behind a 0700 directory, and it is the
quickest encoder there is. A message too large for a packet travels in a memfd whose descriptor
comes first; the packet is then one NUL. Source: unix(7), cmsg(3).
"""

from __future__ import annotations

import errno
import marshal
import os
from array import array
from collections.abc import Sequence
from socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)
from typing import Any

MARSHAL_VERSION = 2
PACKET_LIMIT = 64 << 10
DESCRIPTOR_LIMIT = 200
"""The kernel's own limit is 253 (SCM_MAX_FD)."""
SPILLED = b"\0"
"""No marshalled value starts with NUL."""
_ANCILLARY = CMSG_SPACE(DESCRIPTOR_LIMIT * 4)


def send(sock: socket, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
    """Send one message; blocks while the socket's buffer is full. OSError when the peer is gone."""
    payload = marshal.dumps(message, MARSHAL_VERSION)
    if len(payload) <= PACKET_LIMIT:
        _send(sock, payload, descriptors)
        return
    spill = os.memfd_create("dockpy-message", os.MFD_CLOEXEC)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(spill, view) :]
        _send(sock, SPILLED, [spill, *descriptors])
    finally:
        os.close(spill)


def receive(sock: socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The next message and its descriptors (close-on-exec, the caller's); None at the end.

    Blocks until one is there. Some descriptors are missing, from the end, when this process has no
    room for them. OSError when the peer is gone, and EMFILE when the message itself is missing so.
    """
    payload, ancillary, _flags, _peer = sock.recvmsg(PACKET_LIMIT + 1, _ANCILLARY, MSG_CMSG_CLOEXEC)
    descriptors = array("i")
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    fds = descriptors.tolist()
    if not payload:
        return None
    if payload != SPILLED:
        return marshal.loads(payload), fds
    if not fds:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    spill = fds.pop(0)
    try:
        size = os.fstat(spill).st_size
        return marshal.loads(os.pread(spill, size, 0)), fds
    finally:
        os.close(spill)


def _send(sock: socket, payload: bytes, descriptors: Sequence[int]) -> None:
    if descriptors:
        sock.sendmsg([payload], [(SOL_SOCKET, SCM_RIGHTS, array("i", descriptors))])
    else:
        sock.send(payload)
