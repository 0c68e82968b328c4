"""A conversation with the kernel's netfilter over one netlink socket.

Facts (netlink(7); net/netfilter/nfnetlink.c): the kernel carries a batch out while it is being
sent, so the answers are there when `send` returns and nothing here waits. A refused batch
changes nothing. Notifications carry the port number of whoever made the change.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from enum import Flag, auto

from dockpy.errors import KernelError
from dockpy.network.nft import NLM_F_ACK, NLM_F_DUMP, SUBSYSTEM, batch, message

NETLINK_NETFILTER = 12
NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
NFNLGRP_NFTABLES = 7
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK = 270, 1, 10
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 32, 33, 26
LARGEST = 8 << 20
"""Bytes of the largest batch: some 60,000 published ports at once."""

_HEADER = struct.Struct("=IHHII")


class Netfilter:
    """One netlink socket, in the network namespace of the thread that made it. Thread-safe."""

    def __init__(self) -> None:
        """Raises KernelError where the kernel has no nfnetlink."""
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = _open()
        _buffer(self._socket, SO_SNDBUFFORCE, socket.SO_SNDBUF)
        _buffer(self._socket, SO_RCVBUFFORCE, socket.SO_RCVBUF)
        # Refusals without a copy of what was refused.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)

    @property
    def port(self) -> int:
        """The number this socket's changes are announced with."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def commit(self, messages: Sequence[bytes], step: str) -> None:
        """Apply all messages or none. KernelError(step, errno) of the first one refused."""
        if not messages:
            return
        with self._lock:
            first, last = self._numbers(len(messages))
            self._send(batch(messages, first), step)
            for number, error in self._answers():
                if number < first or number > last:
                    continue  # of an earlier batch that was given up
                if error:
                    self._drain()
                    raise KernelError(step, error)
                if number == last:
                    return
            raise KernelError(step, errno.EPROTO)

    def request(self, subsystem: int, kind: int, family: int, body: bytes, step: str) -> None:
        """One message outside a batch; KernelError(step, errno) when it is refused."""
        with self._lock:
            number, _ = self._numbers(1)
            self._send(message(kind, NLM_F_ACK, family, body, number, subsystem), step)
            for answered, error in self._answers():
                if answered == number:
                    if error:
                        raise KernelError(step, error)
                    return
            raise KernelError(step, errno.EPROTO)

    def dump(
        self, kind: int, family: int, body: bytes, step: str, subsystem: int = SUBSYSTEM
    ) -> list[bytes]:
        """All objects of a kind: the bodies of the answers, behind the nfgenmsg header.

        ENOENT gives an empty list. A change while the dump runs (EINTR) starts it again.
        """
        for _ in range(8):
            with self._lock, contextlib.suppress(_Interrupted):
                return self._dump(kind, family, body, step, subsystem)
        raise KernelError(step, errno.EINTR)

    def _dump(self, kind: int, family: int, body: bytes, step: str, subsystem: int) -> list[bytes]:
        number, _ = self._numbers(1)
        self._send(message(kind, NLM_F_DUMP, family, body, number, subsystem), step)
        found: list[bytes] = []
        interrupted = False
        while True:
            for answer, flags, sequence, part in self._messages():
                if sequence != number:
                    continue
                interrupted = interrupted or bool(flags & 0x10)
                if answer == NLMSG_DONE:
                    if interrupted:
                        raise _Interrupted
                    return found
                if answer == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", part)
                    if -code == errno.ENOENT:
                        return []
                    if -code == errno.EINTR:
                        raise _Interrupted
                    raise KernelError(step, -code)
                found.append(part[4:])

    def _numbers(self, count: int) -> tuple[int, int]:
        first = self._sequence + 1
        if first + count >= 1 << 32:
            first = 1
        self._sequence = first + count - 1
        return first, self._sequence

    def _send(self, data: bytes, step: str) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(step, error.errno or errno.EIO) from error

    def _answers(self) -> Iterator[tuple[int, int]]:
        """(number, errno) of the acknowledgements that are there; 0 is success."""
        while True:
            try:
                messages = self._messages()
            except BlockingIOError:
                return
            for kind, _, sequence, part in messages:
                if kind == NLMSG_ERROR:
                    yield sequence, -struct.unpack_from("=i", part)[0]

    def _messages(self) -> list[tuple[int, int, int, bytes]]:
        """(type, flags, sequence, body) of what is in the next datagram."""
        return list(split(self._socket.recv(1 << 17, socket.MSG_DONTWAIT)))

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1 << 17, socket.MSG_DONTWAIT)


class _Interrupted(Exception):
    """The tables changed while they were being listed."""


class News(Flag):
    """Why a monitor's wait ended; nothing: its time was over."""

    CHANGED = auto()
    WOKEN = auto()


class Monitor:
    """Tells when somebody else changes the tables of this network namespace.

    What the socket with port number `ours` does is left out by the kernel, so that our own
    changes wake nobody. Made in the namespace to watch; used by one thread, `wake` by any.
    """

    def __init__(self, ours: int) -> None:
        self._socket = _open()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake_reader, select.POLLIN)
        attach(self._socket, not_announced_by(ours))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)

    def wait(self, timeout: float | None = None) -> News:
        """Block until somebody changed something, `wake` was called, or `timeout` seconds."""
        ready = {descriptor for descriptor, _ in self._poll.poll(_milliseconds(timeout))}
        news = News(0)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 1 << 12)
            news |= News.WOKEN
        if self._socket.fileno() in ready:
            self._drain()
            news |= News.CHANGED
        return news

    def _drain(self) -> None:
        """What changed is not asked: the tables are compared as a whole."""
        while True:
            try:
                self._socket.recv(1 << 12, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more news than there is room for
                    raise

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wakes already
            os.write(self._wake_writer, b"x")

    def close(self) -> None:
        self._socket.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, math.ceil(seconds * 1000))


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of the netlink messages in a datagram."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < 16:
            return
        yield kind, flags, sequence, data[at + 16 : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by number; of one that is there several times the last."""
    return dict(attribute_list(data))


def attribute_list(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found.append((number & 0x3FFF, data[at + 4 : at + length]))
        at += (length + 3) & ~3
    return found


def not_announced_by(port: int) -> list[tuple[int, int, int, int]]:
    """A classic BPF program that lets pass what another port number did.

    Byte 12 of a message is the number, in host order; BPF loads words in network order.
    """
    (swapped,) = struct.unpack(">I", struct.pack("=I", port))
    return [
        (0x20, 0, 0, 12),  # load the word at 12
        (0x15, 0, 1, swapped),  # equal: next, else skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    ]


def attach(one: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """Give the socket a filter; what does not pass is never queued (socket(7))."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)


def _open() -> socket.socket:
    try:
        made = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
    except OSError as error:
        raise KernelError("open a netfilter socket", error.errno or errno.EIO) from error
    made.bind((0, 0))
    return made


def _buffer(one: socket.socket, force: int, plain: int) -> None:
    """Room for the largest batch; without CAP_NET_ADMIN as much as is allowed."""
    try:
        one.setsockopt(socket.SOL_SOCKET, force, LARGEST)
    except PermissionError:
        one.setsockopt(socket.SOL_SOCKET, plain, LARGEST)
