"""Queries and answers of the domain name system as bytes; no sockets.

Facts (RFC 1035 4.1, RFC 6891, RFC 2308):
- A message is a 12 byte header (id, flags, four counts), questions, and three lists of records.
- A name is a list of labels of at most 63 bytes, 255 bytes with their lengths; a length with both
  upper bits set is a pointer to an earlier place in the message.
- Names compare without case, and an answer repeats the question's own bytes: clients that mix the
  case at random (0x20) look for them.
- A client that can take more than 512 bytes of UDP says so in an OPT record. Who sends one gets
  one back, and nobody else.
- "No such name" (NXDOMAIN) and "no such record of it" (NOERROR, empty) differ: musl takes NXDOMAIN
  for AAAA as the end of the name, A record or not. An answer without a SOA is not cached as a no.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct(">HHHHHH")
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSE, RECURSION_AVAILABLE = (
    0x8000,
    0x0400,
    0x0200,
    0x0100,
    0x0080,
)
OPCODE = 0x7800
CHECKING_DISABLED = 0x0010
NAME_LIMIT, LABEL_LIMIT, PLAIN_UDP = 255, 63, 512
OWN_UDP = 1232
"""What we take and give by UDP: fits the smallest IPv6 packet, so nothing is fragmented."""
INTERNET = 1
QUESTION_POINTER = b"\xc0\x0c"


class Type(IntEnum):
    """Record types that mean something here."""

    A = 1
    PTR = 12
    AAAA = 28
    OPT = 41
    IXFR = 251
    AXFR = 252


class Rcode(IntEnum):
    """How a question went. BADVERS needs the OPT record for its upper bits."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Garbage(ValueError):
    """Bytes that are no query and get no answer: too short, or an answer themselves."""


class Malformed(ValueError):
    """A query that cannot be served; `reply` says so to the client."""

    def __init__(self, text: str, reply: bytes) -> None:
        super().__init__(text)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Query:
    """One question, as it was asked.

    `name`: lower case, without the last dot; bytes that no host name has are written \\DDD, so
    that a dot inside a label is not taken for one between labels. `question`: the very bytes.
    `udp_limit`: bytes the client takes in one datagram. `edns`: it sent an OPT record.
    """

    ident: int
    flags: int
    name: str
    type: int
    question: bytes
    edns: bool = False
    udp_limit: int = PLAIN_UDP
    data: bytes = b""

    @property
    def address(self) -> str | None:
        """The address whose name is asked for, when this is a question about one."""
        return reversed_address(self.name) if self.type == Type.PTR else None


# -- reading --------------------------------------------------------------------------------------


def read_name(data: bytes, offset: int) -> tuple[list[bytes], int]:
    """The labels of a name, and the offset behind it.

    A pointer must lead to before the place it was reached from, and behind the header: so every
    name ends. ValueError for anything else, and for names over the limits.
    """
    labels: list[bytes] = []
    length, end, lowest = 1, -1, offset
    while True:
        if offset >= len(data):
            raise ValueError("a name ends behind the message")
        size = data[offset]
        if size & 0xC0 == 0xC0:
            if offset + 2 > len(data):
                raise ValueError("half a pointer")
            target = (size & 0x3F) << 8 | data[offset + 1]
            if not HEADER.size <= target < lowest:
                raise ValueError("a pointer that does not lead back")
            if end < 0:
                end = offset + 2
            offset = lowest = target
            continue
        if size > LABEL_LIMIT:
            raise ValueError("a label of unknown kind")
        offset += 1
        if size == 0:
            return labels, offset if end < 0 else end
        if offset + size > len(data):
            raise ValueError("a label ends behind the message")
        length += size + 1
        if length > NAME_LIMIT:
            raise ValueError("a name over 255 bytes")
        labels.append(data[offset : offset + size])
        offset += size


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record; `data` are the record's own bytes, pointers not followed."""

    labels: tuple[bytes, ...]
    type: int
    family: int
    ttl: int
    data: bytes


def read_records(data: bytes, offset: int, count: int) -> Iterator[Record]:
    """Raises ValueError where the message ends too early."""
    for _ in range(count):
        labels, offset = read_name(data, offset)
        if offset + 10 > len(data):
            raise ValueError("a record ends behind the message")
        kind, family, ttl, size = struct.unpack_from(">HHIH", data, offset)
        offset += 10
        if offset + size > len(data):
            raise ValueError("a record's data end behind the message")
        yield Record(tuple(labels), kind, family, ttl, data[offset : offset + size])
        offset += size


def parse_query(data: bytes) -> Query:
    """Raises Garbage (no answer is due) and Malformed (with the answer)."""
    if len(data) < HEADER.size:
        raise Garbage("shorter than a header")
    ident, flags, questions, answers, authorities, additions = HEADER.unpack_from(data)
    if flags & RESPONSE:
        raise Garbage("an answer, not a query")
    plain = Query(ident, flags, "", 0, b"")
    if flags & OPCODE:
        raise Malformed("not a standard query", answer(plain, Rcode.NOTIMP))
    if questions != 1:
        raise Malformed(f"{questions} questions", answer(plain, Rcode.FORMERR))
    try:
        query = _question(ident, flags, data)
        end = HEADER.size + len(query.question)
        records = list(read_records(data, end, answers + authorities + additions))
        query = _with_options(query, [one for one in records if one.type == Type.OPT])
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(str(error), answer(plain, Rcode.FORMERR)) from error
    family = int.from_bytes(query.question[-2:], "big")
    if family != INTERNET or query.type in (Type.AXFR, Type.IXFR):
        raise Malformed("a class or type that is not served", answer(query, Rcode.REFUSED))
    return query


def _question(ident: int, flags: int, data: bytes) -> Query:
    labels, end = read_name(data, HEADER.size)
    if end + 4 > len(data):
        raise ValueError("a question ends behind the message")
    question = data[HEADER.size : end + 4]
    kind = int.from_bytes(question[-4:-2], "big")
    return Query(ident, flags, text_of(labels), kind, question, data=data)


def _with_options(query: Query, options: Sequence[Record]) -> Query:
    if not options:
        return query
    if len(options) > 1 or options[0].labels:
        raise ValueError("more than one OPT record, or one with a name")
    limit = min(max(options[0].family, PLAIN_UDP), OWN_UDP)
    known = Query(
        query.ident, query.flags, query.name, query.type, query.question, True, limit, query.data
    )
    if options[0].ttl >> 16 & 0xFF:
        raise Malformed("an EDNS version above 0", answer(known, Rcode.BADVERS))
    return known


# -- names ----------------------------------------------------------------------------------------


def text_of(labels: Sequence[bytes]) -> str:
    """A name as text: lower case, unusual bytes as \\DDD. The root is ""."""
    return ".".join("".join(map(_character, label)) for label in labels)


def _character(byte: int) -> str:
    letter = chr(byte)
    if byte < 128 and (letter.isalnum() or letter in "-_"):
        return letter.lower()
    return f"\\{byte:03d}"


def wire_name(name: str) -> bytes:
    """The bytes of a plain name. ValueError when it is over the limits, or has an empty label."""
    labels = [label.encode() for label in name.removesuffix(".").split(".")] if name else []
    if any(not 0 < len(label) <= LABEL_LIMIT for label in labels):
        raise ValueError(f"{name!r} is no domain name: a part is empty or over {LABEL_LIMIT} bytes")
    data = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(data) > NAME_LIMIT:
        raise ValueError(f"{name!r} is no domain name: over {NAME_LIMIT} bytes")
    return data


def reversed_address(name: str) -> str | None:
    """The address in a name below in-addr.arpa or ip6.arpa; None for other names, parts of one."""
    try:
        if name.endswith(".in-addr.arpa"):
            octets = name.removesuffix(".in-addr.arpa").split(".")
            return str(ipaddress.IPv4Address(".".join(reversed(octets))))
        if name.endswith(".ip6.arpa"):
            digits = name.removesuffix(".ip6.arpa").split(".")
            if len(digits) == 32 and all(len(digit) == 1 for digit in digits):
                return str(ipaddress.IPv6Address(bytes.fromhex("".join(reversed(digits)))))
    except ValueError:
        pass
    return None


# -- answering ------------------------------------------------------------------------------------


def answer(query: Query, rcode: Rcode, data: Sequence[bytes] = (), ttl: int = 0) -> bytes:
    """The whole answer: `data` are the records' contents, all of the type that was asked for.

    Of any length; `fitted` is for UDP. An answer of our own is authoritative, and says that
    recursion is to be had: glibc takes an empty one without either for a lame server's.
    """
    flags = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE
    flags |= query.flags & (RECURSE | CHECKING_DISABLED | OPCODE) | (rcode & 0xF)
    head = HEADER.pack(
        query.ident, flags, bool(query.question), len(data), 0, 1 if query.edns else 0
    )
    start = struct.Struct(">2sHHIH")
    records = [
        start.pack(QUESTION_POINTER, query.type, INTERNET, ttl, len(each)) + each for each in data
    ]
    return b"".join([head, query.question, *records, _option(rcode) if query.edns else b""])


def _option(rcode: Rcode) -> bytes:
    return struct.pack(">BHHBBHH", 0, Type.OPT, OWN_UDP, rcode >> 4, 0, 0, 0)


def address_answer(query: Query, addresses: Sequence[str], ttl: int) -> bytes:
    """The answer for a name that has these addresses, of either version.

    Asked for a type that none of them has, the name exists all the same: NOERROR, no records.
    """
    version = {Type.A: 4, Type.AAAA: 6}.get(query.type, 0)  # type: ignore[call-overload]
    parsed = map(ipaddress.ip_address, addresses)
    return answer(
        query, Rcode.NOERROR, [each.packed for each in parsed if each.version == version], ttl
    )


def name_answer(query: Query, name: str, ttl: int) -> bytes:
    """The answer to a question about an address; ValueError for a name over the limits."""
    return answer(query, Rcode.NOERROR, [wire_name(name)], ttl)


def fitted(query: Query, reply: bytes) -> bytes:
    """The answer if the client takes that much by UDP, else one that sends it to TCP."""
    if len(reply) <= query.udp_limit:
        return reply
    ident, flags = struct.unpack_from(">HH", reply)
    head = HEADER.pack(ident, flags | TRUNCATED, 1, 0, 0, 1 if query.edns else 0)
    return head + query.question + (_option(Rcode.NOERROR) if query.edns else b"")


# -- passing on -----------------------------------------------------------------------------------


def renumbered(data: bytes, ident: int) -> bytes:
    """The same message under another id."""
    return ident.to_bytes(2, "big") + data[2:]


def reply_code(query: Query, ident: int, data: bytes) -> Rcode | None:
    """How another server answered; None for bytes that are no answer to this query.

    The id and the question must be the ones that were sent; some servers change the case of
    names. A refusal to read the query may leave the question out. Codes that are not known here
    count as SERVFAIL; the upper bits of extended ones are not looked at.
    """
    if len(data) < HEADER.size:
        return None
    got, flags, questions, *_ = HEADER.unpack_from(data)
    if got != ident or not flags & RESPONSE or flags & OPCODE:
        return None
    code = flags & 0xF
    rcode = Rcode(code) if code in Rcode.__members__.values() else Rcode.SERVFAIL
    if questions == 0 and rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return rcode
    if questions != 1:
        return None
    try:
        labels, end = read_name(data, HEADER.size)
    except ValueError:
        return None
    # The last four bytes are type and class; text_of is without case.
    same = text_of(labels) == query.name and data[end : end + 4] == query.question[-4:]
    return rcode if same else None
