from __future__ import annotations

import os
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair

import pytest

from dockpy.messages import PACKET_LIMIT, receive, send


def test_message_and_descriptors_arrive_together_and_close_on_exec() -> None:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with ours, theirs:
        send(ours, ("start", 1, b"plan", (-1, 2)), [writer])
        got = receive(theirs)
        assert got is not None
        message, descriptors = got
        assert message == ("start", 1, b"plan", (-1, 2))
        os.write(descriptors[0], b"x")
        assert os.read(reader, 1) == b"x"
        assert not os.get_inheritable(descriptors[0])
        for descriptor in (reader, writer, *descriptors):
            os.close(descriptor)


@pytest.mark.parametrize("size", [PACKET_LIMIT - 64, PACKET_LIMIT, 3 << 20])
def test_message_of_any_size_arrives_whole(size: int) -> None:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        send(ours, ("big", b"x" * size))
        assert receive(theirs) == (("big", b"x" * size), [])
        assert len(os.listdir("/proc/self/fd")) == before


def test_end_of_the_conversation_is_none() -> None:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert receive(theirs) is None
