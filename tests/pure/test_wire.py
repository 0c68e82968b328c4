"""The client's and the daemon's language."""

from __future__ import annotations

import random

import pytest

from dockpy.api import wire
from dockpy.api.wire import Request, WireError, pack, unpack


def values(request: Request) -> tuple[int, int, list[bytes], list[bytes]]:
    return request.kind, request.flags, request.argv, request.env


def request(argv: list[bytes], env: list[bytes] | None = None, flags: int = 0) -> Request:
    return Request(wire.RUN, flags, argv, env or [])


@pytest.mark.parametrize(
    "sent",
    [
        request([]),
        request([b""]),
        request([b"run", b"", b"--", b"\xff\xfe"], [b"A=1", b"B=", b"=", b""]),
        Request(wire.RESUME, wire.TERMINAL | wire.READING, [b"id", b"proxy"], []),
    ],
)
def test_a_request_comes_out_as_it_went_in(sent: Request) -> None:
    packet, spilled = pack(sent)
    assert spilled == b""
    assert values(unpack(packet)) == values(sent)


def test_words_too_large_for_a_packet_travel_beside_it() -> None:
    sent = request([b"run", b"x" * 131_000], [b"E=%d" % number for number in range(20_000)])
    packet, spilled = pack(sent)
    assert len(packet) == wire.HEADER
    assert wire.descriptors_of(wire.flags_of(packet)) == 5
    got = unpack(packet, spilled)
    assert (got.argv, got.env) == (sent.argv, sent.env)


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_the_border_between_packet_and_memfd_holds(size: int) -> None:
    sent = request([b"x" * (wire.PACKET_LIMIT - wire.HEADER - 1 + size)])
    packet, spilled = pack(sent)
    assert len(packet) <= wire.PACKET_LIMIT
    assert bool(spilled) == (size > 0)
    assert unpack(packet, spilled).argv == sent.argv


def test_a_word_with_a_nul_is_refused() -> None:
    with pytest.raises(WireError):
        pack(request([b"a\0b"]))


def test_more_than_any_process_can_have_is_refused_by_the_client() -> None:
    with pytest.raises(WireError, match="too large"):
        pack(request([b"x" * wire.REQUEST_LIMIT]))


def test_another_protocol_is_told_what_to_do() -> None:
    packet = bytearray(pack(request([b"ps"]))[0])
    packet[6] += 1
    with pytest.raises(WireError, match="restart the daemon"):
        unpack(bytes(packet))


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0), (7, 0), (7, 9), (8, wire.SPILLED), (9, 0), (9, 3), (12, 255), (13, 1), (16, 255)],
)
def test_a_changed_header_is_refused(place: int, value: int) -> None:
    packet = bytearray(pack(request([b"ps", b"-a"]))[0])
    packet[place] = value
    with pytest.raises(WireError):
        unpack(bytes(packet))


def test_a_cut_packet_is_refused() -> None:
    packet = pack(request([b"ps", b"-a"], [b"A=1"]))[0]
    for length in range(len(packet)):
        with pytest.raises(WireError):
            unpack(packet[:length])


def test_noise_is_refused_and_never_more_than_that() -> None:
    noise = random.Random(7)
    packet = pack(request([b"ps", b"-a"], [b"A=1"]))[0]
    for _ in range(3000):
        broken = bytearray(packet)
        for _ in range(noise.randrange(1, 4)):
            broken[noise.randrange(len(broken))] = noise.randrange(256)
        try:
            got = unpack(bytes(broken), noise.randbytes(8))
        except WireError:
            continue
        assert len(got.argv) + len(got.env) <= wire.WORD_LIMIT
