"""nfnetlink messages for nf_tables, as bytes. Pure: nothing is sent from here.

Facts, from the kernel's uapi headers (linux/netlink.h, linux/netfilter/nfnetlink.h,
linux/netfilter/nf_tables.h):

- A transaction is a BATCH_BEGIN, messages, and a BATCH_END in one send; the kernel applies all of
  it or nothing. Lengths and types are of the host's byte order, integers in nf_tables attributes
  are big-endian, registers hold bytes as they are on the wire.
- A key of several fields pads each field to 4 bytes. NFT_REG_1.. are 16 bytes wide, and
  NFT_REG32_00 (8), _01 (9) ... name their 4-byte quarters.
- Sets carry the numbers of nft's own data types (nftables, include/datatype.h), six bits for each
  field, so that `nft list table` shows addresses and ports instead of bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x200, 0x400, 0x800
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SUBSYSTEM = 10
NESTED = 0x8000
ELEMENTS_AT_ONCE = 400
"""Elements in one message: the attribute that nests them is at most 64 KiB long."""

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")


class Kind(IntEnum):
    """Message types of nf_tables."""

    NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2
    NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 3, 4, 5
    NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
    NEW_SET, GET_SET, DELETE_SET = 9, 10, 11
    NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 12, 13, 14


class Family(IntEnum):
    """Where a table stands."""

    INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10


class Hook(IntEnum):
    """Hooks of the ip, ip6, inet and bridge families."""

    PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = 0, 1, 2, 3, 4


class Type(IntEnum):
    """nft's numbers of data types."""

    ADDRESS4, ADDRESS6, HARDWARE, PROTOCOL, SERVICE, INTERFACE = 7, 8, 9, 12, 13, 41


WIDTH = {
    Type.ADDRESS4: 4,
    Type.ADDRESS6: 16,
    Type.HARDWARE: 6,
    Type.PROTOCOL: 1,
    Type.SERVICE: 2,
    Type.INTERFACE: 16,
}
"""Bytes of each type, before padding."""


class SetFlag(IntEnum):
    """What a set is besides a list of keys."""

    INTERVAL, MAP, CONCATENATED = 0x4, 0x8, 0x80


INTERVAL_END = 0x1
"""The flag of an element that ends a range of a plain interval set."""


# -- attributes and messages -------------------------------------------------------------------


def attribute(number: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), number) + value + bytes(-len(value) % 4)


def text(number: int, value: str) -> bytes:
    return attribute(number, value.encode() + b"\0")


def u32(number: int, value: int) -> bytes:
    return _ATTRIBUTE.pack(8, number) + value.to_bytes(4, "big")


def nested(number: int, *parts: bytes) -> bytes:
    return attribute(number | NESTED, b"".join(parts))


def listed(parts: Iterable[bytes]) -> bytes:
    """Values as the list elements (NFTA_LIST_ELEM) of a nested attribute."""
    return b"".join(nested(1, part) for part in parts)


def message(
    kind: int,
    flags: int,
    family: int,
    body: bytes,
    sequence: int = 0,
    subsystem: int = SUBSYSTEM,
) -> bytes:
    """A whole netlink message of the nf_tables subsystem, or another of nfnetlink's."""
    return (
        _HEADER.pack(20 + len(body), subsystem << 8 | kind, NLM_F_REQUEST | flags, sequence, 0)
        + _GENERIC.pack(family, 0, 0)
        + body
    )


def frame(kind: int) -> bytes:
    """The message that begins or ends a batch."""
    return _HEADER.pack(20, kind, NLM_F_REQUEST, 0, 0) + _GENERIC.pack(0, 0, SUBSYSTEM)


def batch(messages: Sequence[bytes], first: int = 1) -> bytes:
    """One transaction: all of the messages or none; they get the numbers from `first` on.

    Only the last asks for an acknowledgement: refusals are told in any case.
    """
    parts = [frame(BATCH_BEGIN)]
    last = first + len(messages) - 1
    for number, one in enumerate(messages, first):
        length, kind, flags, _, port = _HEADER.unpack_from(one)
        asked = flags | (NLM_F_ACK if number == last else 0)
        parts.append(_HEADER.pack(length, kind, asked, number, port) + one[16:])
    parts.append(frame(BATCH_END))
    return b"".join(parts)


# -- tables, chains, rules, sets ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `data` a map. Keys are padded to 4 bytes field by field."""

    name: str
    key: tuple[Type, ...]
    data: tuple[Type, ...] = ()
    interval: bool = False

    @property
    def ranged(self) -> bool:
        """Whether an element is a range over several fields: it then has two keys."""
        return self.interval and len(self.key) > 1


@dataclass(frozen=True, slots=True)
class Element:
    """One entry. `last` is the upper end, inclusive, of a range of several fields."""

    key: bytes
    data: bytes = b""
    last: bytes = b""
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: `kind` is filter or nat; it accepts what no rule decides. Without a `hook` it
    is one that rules of others of its table go to."""

    name: str
    rules: tuple[tuple[bytes, ...], ...]
    kind: str = "filter"
    hook: Hook | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table with all that belongs to it, elements apart."""

    family: Family
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def concatenated(*values: bytes) -> bytes:
    """Fields of a key, or of a map's value, as the kernel compares them."""
    return b"".join(padded(value) for value in values)


def interface(name: str) -> bytes:
    """An interface's name as meta loads it: 16 bytes, zero-filled."""
    return name.encode().ljust(16, b"\0")


def type_number(types: Sequence[Type]) -> int:
    number = 0
    for one in types:
        number = number << 6 | one
    return number


def type_length(types: Sequence[Type]) -> int:
    if len(types) == 1:
        return WIDTH[types[0]]
    return sum((WIDTH[one] + 3) // 4 * 4 for one in types)


def new_table(family: Family, name: str, userdata: bytes = b"") -> bytes:
    mark = attribute(6, userdata) if userdata else b""
    return message(Kind.NEW_TABLE, NLM_F_CREATE, family, text(1, name) + u32(2, 0) + mark)


def delete_table(family: Family, name: str) -> bytes:
    return message(Kind.DELETE_TABLE, 0, family, text(1, name))


def new_set(family: Family, table: str, one: Set, identifier: int) -> bytes:
    """A set that messages of the same batch may refer to by its name."""
    flags = (SetFlag.MAP if one.data else 0) | (SetFlag.INTERVAL if one.interval else 0)
    body = text(1, table) + text(2, one.name)
    description = b""
    if one.ranged:
        flags |= SetFlag.CONCATENATED
        lengths = (u32(1, (WIDTH[field] + 3) // 4 * 4) for field in one.key)
        description = nested(9, nested(2, listed(lengths)))
    body += u32(3, flags) + u32(4, type_number(one.key)) + u32(5, type_length(one.key))
    if one.data:
        body += u32(6, type_number(one.data)) + u32(7, type_length(one.data))
    if one.key == (Type.INTERFACE,):
        # For `nft list` only: the key is a string of the host's byte order (libnftnl, udata.h).
        description += attribute(13, b"\0\4" + (1).to_bytes(4, sys.byteorder))
    return message(Kind.NEW_SET, NLM_F_CREATE, family, body + description + u32(10, identifier))


def new_chain(family: Family, table: str, chain: Chain) -> bytes:
    body = text(1, table) + text(3, chain.name)
    if chain.hook is not None:
        hook = nested(4, u32(1, chain.hook), u32(2, chain.priority & 0xFFFFFFFF))
        body += hook + u32(5, 1) + text(7, chain.kind)
    return message(Kind.NEW_CHAIN, NLM_F_CREATE, family, body)


def new_rule(
    family: Family, table: str, chain: str, expressions: Iterable[bytes], userdata: bytes = b""
) -> bytes:
    """A rule at the chain's end."""
    mark = attribute(7, userdata) if userdata else b""
    body = text(1, table) + text(2, chain) + nested(4, listed(expressions)) + mark
    return message(Kind.NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, body)


def delete_rule(family: Family, table: str, chain: str, handle: int) -> bytes:
    body = text(1, table) + text(2, chain) + attribute(3, handle.to_bytes(8, "big"))
    return message(Kind.DELETE_RULE, 0, family, body)


def elements(
    kind: Kind, family: Family, table: str, name: str, entries: Sequence[Element]
) -> list[bytes]:
    """Messages that add (NEW_ELEMENT) or take away (DELETE_ELEMENT) entries of a set.

    Adding one that is there with the same value does nothing; with another value it is EEXIST.
    """
    flags = NLM_F_CREATE if kind is Kind.NEW_ELEMENT else 0
    head = text(1, table) + text(2, name)
    groups = (
        entries[at : at + ELEMENTS_AT_ONCE] for at in range(0, len(entries), ELEMENTS_AT_ONCE)
    )
    return [
        message(kind, flags, family, head + nested(3, listed(map(_element, group))))
        for group in groups
    ]


def _element(one: Element) -> bytes:
    body = nested(1, attribute(1, one.key))
    if one.last:
        body += nested(10, attribute(1, one.last))
    if one.data:
        body += nested(2, attribute(1, one.data))
    if one.flags:
        body += u32(3, one.flags)
    return body


def whole_table(table: Table, userdata: bytes = b"") -> list[bytes]:
    """Messages that make the table with its sets, chains and rules."""
    made = [new_table(table.family, table.name, userdata)]
    made += [
        new_set(table.family, table.name, one, number) for number, one in enumerate(table.sets, 1)
    ]
    for chain in table.chains:
        made.append(new_chain(table.family, table.name, chain))
    for chain in table.chains:
        made += [new_rule(table.family, table.name, chain.name, rule) for rule in chain.rules]
    return made
