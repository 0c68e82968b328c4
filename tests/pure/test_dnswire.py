from __future__ import annotations

import random
import struct

import pytest

from dockpy.network.dnswire import (
    HEADER,
    NAME_LIMIT,
    Garbage,
    Malformed,
    Query,
    Rcode,
    Type,
    address_answer,
    answer,
    fitted,
    name_answer,
    parse_query,
    read_name,
    read_records,
    renumbered,
    reply_code,
    reversed_address,
    wire_name,
)

A, AAAA, PTR, MX = Type.A, Type.AAAA, Type.PTR, 15


def asked(name: str, kind: int = A, *, ident: int = 0x1234, flags: int = 0x0100) -> bytes:
    """A query as a resolver library sends it."""
    head = HEADER.pack(ident, flags, 1, 0, 0, 0)
    return head + wire_name(name) + struct.pack(">HH", kind, 1)


def with_opt(data: bytes, size: int = 1232, version: int = 0, count: int = 1) -> bytes:
    option = struct.pack(">BHHBBHH", 0, 41, size, 0, version, 0, 0)
    return data[:10] + count.to_bytes(2, "big") + data[12:] + option * count


def parts(data: bytes) -> tuple[int, int, list[bytes], list[int]]:
    """Flags, code, the contents of the answers and their times to live."""
    _, flags, _, count, _, _ = HEADER.unpack_from(data)
    _, end = read_name(data, HEADER.size)
    records = list(read_records(data, end + 4, count))
    return flags, flags & 0xF, [each.data for each in records], [each.ttl for each in records]


def test_a_query_is_its_name_in_lower_case_and_its_own_bytes() -> None:
    query = parse_query(asked("WeB.Example", AAAA))
    assert (query.ident, query.name, query.type) == (0x1234, "web.example", AAAA)
    assert query.question == b"\3WeB\7Example\0\0\x1c\0\1"


def test_an_address_comes_back_under_the_question_as_it_was_spelled() -> None:
    reply = address_answer(parse_query(asked("wEb")), ["172.30.0.2", "172.30.0.3"], 5)
    assert reply[:2] == b"\x12\x34"
    assert reply[12:21] == b"\3wEb\0\0\1\0\1"
    flags, code, data, ttl = parts(reply)
    assert (code, data, ttl) == (0, [bytes([172, 30, 0, 2]), bytes([172, 30, 0, 3])], [5, 5])
    assert flags & 0x8580 == 0x8580  # answer, authoritative, recursion wanted and to be had


def test_answers_point_at_the_question_for_their_name() -> None:
    reply = address_answer(parse_query(asked("web")), ["10.0.0.1"], 5)
    _, end = read_name(reply, HEADER.size)
    assert next(read_records(reply, end + 4, 1)).labels == (b"web",)


@pytest.mark.parametrize("kind", [AAAA, PTR, MX, 65])
def test_a_name_without_a_record_of_that_type_exists_all_the_same(kind: int) -> None:
    _, code, data, _ = parts(address_answer(parse_query(asked("web", kind)), ["10.0.0.1"], 5))
    assert (code, data) == (Rcode.NOERROR, [])


def test_each_version_of_ip_gets_its_own_addresses() -> None:
    both = ["10.0.0.1", "fd00::1"]
    assert parts(address_answer(parse_query(asked("web")), both, 5))[2] == [b"\x0a\0\0\1"]
    six = parts(address_answer(parse_query(asked("web", AAAA)), both, 5))[2]
    assert six == [bytes.fromhex("fd" + "0" * 29 + "1")]


def test_a_question_about_an_address_is_read_and_answered() -> None:
    query = parse_query(asked("2.0.30.172.IN-ADDR.arpa", PTR))
    assert query.address == "172.30.0.2"
    assert parts(name_answer(query, "web.net", 5))[2] == [b"\3web\3net\0"]
    six = ".".join("fd30000000000000000000000000000a"[::-1]) + ".ip6.arpa"
    assert parse_query(asked(six, PTR)).address == "fd30::a"
    assert parse_query(asked(six, A)).address is None


@pytest.mark.parametrize(
    "name",
    [
        "in-addr.arpa",
        "30.172.in-addr.arpa",
        "1.2.3.4.5.in-addr.arpa",
        "300.0.0.1.in-addr.arpa",
        "a.b.c.d.in-addr.arpa",
        "1.ip6.arpa",
        ".".join("x" * 32) + ".ip6.arpa",
        "web",
    ],
)
def test_a_name_that_is_no_whole_address_is_none(name: str) -> None:
    assert reversed_address(name) is None


def test_who_sends_an_opt_record_gets_one_and_nobody_else() -> None:
    plain = answer(parse_query(asked("web")), Rcode.NXDOMAIN)
    assert HEADER.unpack_from(plain)[5] == 0
    edns = answer(parse_query(with_opt(asked("web"))), Rcode.NXDOMAIN)
    assert HEADER.unpack_from(edns)[5] == 1
    assert edns[len(plain) :] == struct.pack(">BHHBBHH", 0, 41, 1232, 0, 0, 0, 0)


@pytest.mark.parametrize(("said", "taken"), [(0, 512), (512, 512), (1000, 1000), (65535, 1232)])
def test_the_size_a_client_takes_is_kept_between_the_limits(said: int, taken: int) -> None:
    assert parse_query(with_opt(asked("web"), said)).udp_limit == taken


def test_a_later_edns_version_is_refused_by_its_code() -> None:
    with pytest.raises(Malformed) as caught:
        parse_query(with_opt(asked("web"), version=1))
    assert caught.value.reply[3] & 0xF == 0
    assert caught.value.reply[-6] == 1  # the upper bits of BADVERS


def test_what_is_too_long_for_a_datagram_sends_the_client_to_tcp() -> None:
    many = [f"10.0.0.{number}" for number in range(100)]
    for data, option in ((asked("web"), 0), (with_opt(asked("web"), 600), 1)):
        query = parse_query(data)
        reply = address_answer(query, many, 5)
        short = fitted(query, reply)
        assert len(short) <= query.udp_limit < len(reply)
        assert HEADER.unpack_from(short)[2:] == (1, 0, 0, option)
        assert short[2] & 0x02
        assert fitted(query, answer(query, Rcode.NXDOMAIN))[2] & 0x02 == 0


def test_bytes_of_a_label_that_are_no_host_name_are_spelled_out() -> None:
    data = HEADER.pack(1, 0, 1, 0, 0, 0) + b"\4a.b\xff\1c\0\0\1\0\1"
    assert parse_query(data).name == "a\\046b\\255.c"


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".".join(["a" * 63] * 4), "."])
def test_a_name_over_the_limits_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="no domain name"):
        wire_name(name)


def test_the_longest_names_go_both_ways() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(wire_name(name)) == NAME_LIMIT
    assert parse_query(asked(name)).name == name


def query_of(tail: bytes, questions: int = 1) -> bytes:
    return HEADER.pack(7, 0x0100, questions, 0, 0, 0) + tail


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\3we",
        b"\3web",
        b"\3web\0\0\1",
        b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        b"\xc0\x00\0\1\0\1",  # into the header
        b"\xc0\x20\0\1\0\1",  # ahead
        b"\1a\xc0\x0c\0\1\0\1",  # a circle
        b"\xc0",
        b"\x80\0\0\1\0\1",  # a label kind nobody has
        (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",  # over 255 bytes
    ],
)
def test_a_question_that_cannot_be_read_is_a_format_error(tail: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_query(query_of(tail))
    assert caught.value.reply[:2] == b"\0\7"
    assert caught.value.reply[3] & 0xF == Rcode.FORMERR


def test_pointers_that_lead_back_are_followed() -> None:
    data = bytes(12) + b"\3web\0" + b"\1x\xc0\x0c" + b"\1y\xc0\x11"
    assert read_name(data, 21) == ([b"y", b"x", b"web"], 25)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (query_of(b"\3web\0\0\1\0\1", 0), Rcode.FORMERR),
        (query_of(b"\3web\0\0\1\0\1", 2), Rcode.FORMERR),
        (with_opt(asked("web"), count=2), Rcode.FORMERR),
        (asked("web", flags=0x2000), Rcode.NOTIMP),
        (asked("web", 252), Rcode.REFUSED),
        (asked("web")[:-2] + b"\0\3", Rcode.REFUSED),  # of class CHAOS
    ],
)
def test_what_is_not_served_is_refused_by_its_code(data: bytes, code: Rcode) -> None:
    with pytest.raises(Malformed) as caught:
        parse_query(data)
    assert caught.value.reply[3] & 0xF == code


@pytest.mark.parametrize("data", [b"", bytes(11), asked("web", flags=0x8180)])
def test_no_answer_is_due_to_what_is_no_query(data: bytes) -> None:
    with pytest.raises(Garbage):
        parse_query(data)


def replied(query: Query, ident: int) -> bytes:
    return renumbered(answer(query, Rcode.NXDOMAIN), ident)


def test_an_answer_belongs_to_its_query_by_id_and_question() -> None:
    query = parse_query(asked("web.test"))
    right = replied(query, 99)
    assert reply_code(query, 99, right) is Rcode.NXDOMAIN
    assert reply_code(query, 98, right) is None
    assert reply_code(query, 99, replied(parse_query(asked("wob.test")), 99)) is None
    assert reply_code(query, 99, replied(parse_query(asked("web.test", AAAA)), 99)) is None
    assert reply_code(query, 99, replied(parse_query(asked("WEB.test")), 99)) is Rcode.NXDOMAIN
    assert reply_code(query, 99, renumbered(query.data, 99)) is None
    assert reply_code(query, 99, right[:-5]) is None


def test_only_a_refusal_may_come_without_its_question() -> None:
    query = parse_query(asked("web.test"))
    assert reply_code(query, 9, HEADER.pack(9, 0x8001, 0, 0, 0, 0)) is Rcode.FORMERR
    assert reply_code(query, 9, HEADER.pack(9, 0x8000, 0, 0, 0, 0)) is None
    assert reply_code(query, 9, HEADER.pack(9, 0x8003, 0, 0, 0, 0)) is None


def test_no_bytes_break_the_reader() -> None:
    """Random and mutated messages end in a query, a refusal or garbage, and in nothing else."""
    source = random.Random(20)
    seeds = [
        asked("web"),
        with_opt(asked("a.b.c.example", AAAA)),
        asked("2.0.30.172.in-addr.arpa", PTR),
        address_answer(parse_query(asked("web")), ["10.0.0.1"], 5),
    ]
    outcomes = {"query": 0, "refusal": 0, "garbage": 0}
    for _ in range(20_000):
        data = bytearray(source.choice(seeds))
        for _ in range(source.randrange(1, 6)):
            action = source.randrange(4)
            place = source.randrange(len(data)) if data else 0
            if action == 0 and data:
                data[place] = source.randrange(256)
            elif action == 1:
                del data[place:]
            elif action == 2:
                data[place:place] = source.randbytes(source.randrange(1, 20))
            elif data:
                data[place] |= 0xC0
        longest = 0
        try:
            query = parse_query(bytes(data))
            longest = len(address_answer(query, ["10.0.0.1", "fd00::1"], 5)) - 28 - 11
            outcomes["query"] += 1
        except Malformed as refused:
            longest = len(refused.reply) - 11
            outcomes["refusal"] += 1
        except Garbage:
            outcomes["garbage"] += 1
        assert longest <= len(data)  # nobody is sent more than they sent, but records
        reply_code(parse_query(seeds[0]), 0x1234, bytes(data))
    assert all(outcomes.values())
