"""The expressions a rule is made of, as bytes: each loads a register, compares one, or acts.

A rule stops at the first expression that does not hold. Numbers are those of
linux/netfilter/nf_tables.h; `Ct.DNAT` and the states are of nf_conntrack_common.h.
"""

from __future__ import annotations

import sys
from enum import IntEnum

from dockpy.network.nft import attribute, nested, text, u32

REGISTER = 1
"""NFT_REG_1, 16 bytes; quarters of it and of what follows are 8, 9, 10 ..."""
QUARTER = 8
DROP, ACCEPT = 0, 1
GOTO = -4 & 0xFFFFFFFF
INVALID, ESTABLISHED, RELATED = 0x1, 0x2, 0x4
DNAT_STATUS = 0x20
MULTICAST = 2
"""PACKET_MULTICAST: sent to a group of the link."""
LOCAL = 2
"""RTN_LOCAL: an address of this host."""


class Meta(IntEnum):
    """What `meta` can load."""

    PROTOCOL, IIFNAME, OIFNAME, NFPROTO, L4PROTO, PACKET_TYPE = 1, 6, 7, 15, 16, 19


class Base(IntEnum):
    """Where a payload offset counts from."""

    LINK, NETWORK, TRANSPORT = 0, 1, 2


class Ct(IntEnum):
    """What `ct` can load."""

    STATE, STATUS = 0, 2


def expression(name: str, *parts: bytes) -> bytes:
    return text(1, name) + nested(2, *parts)


def meta(key: Meta, register: int = REGISTER) -> bytes:
    return expression("meta", u32(2, key), u32(1, register))


def payload(base: Base, offset: int, length: int, register: int = REGISTER) -> bytes:
    return expression("payload", u32(1, register), u32(2, base), u32(3, offset), u32(4, length))


def equal(value: bytes, register: int = REGISTER) -> bytes:
    return expression("cmp", u32(1, register), u32(2, 0), nested(3, attribute(1, value)))


def different(value: bytes, register: int = REGISTER) -> bytes:
    return expression("cmp", u32(1, register), u32(2, 1), nested(3, attribute(1, value)))


def within(name: str, register: int = REGISTER) -> bytes:
    """The key in the register is in the set."""
    return expression("lookup", text(1, name), u32(2, register))


def outside(name: str, register: int = REGISTER) -> bytes:
    """The key in the register is not in the set."""
    return expression("lookup", text(1, name), u32(2, register), u32(5, 1))


def mapped(name: str, register: int = REGISTER) -> bytes:
    """The key in the register is in the map; its value takes the key's place."""
    return expression("lookup", text(1, name), u32(2, register), u32(3, register))


def masked(mask: bytes, register: int = REGISTER) -> bytes:
    """Keep those bits of a register."""
    return expression(
        "bitwise",
        u32(1, register),
        u32(2, register),
        u32(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def connection(key: Ct, bits: int, *, any_of: bool = True) -> tuple[bytes, ...]:
    """Any of those bits is set in the connection's state or status, or none of them is."""
    mask = bits.to_bytes(4, sys.byteorder)
    return (
        expression("ct", u32(2, key), u32(1, REGISTER)),
        masked(mask),
        different(bytes(4)) if any_of else equal(bytes(4)),
    )


def to_this_host(register: int) -> tuple[bytes, ...]:
    """The destination is an address of this host."""
    kind = LOCAL.to_bytes(4, sys.byteorder)
    return expression("fib", u32(3, 2), u32(2, 3), u32(1, register)), equal(kind, register)


def verdict(code: int) -> bytes:
    return expression("immediate", u32(1, 0), nested(2, nested(2, u32(1, code))))


def goto(chain: str) -> bytes:
    """Go on in another chain of the table and do not come back."""
    return expression("immediate", u32(1, 0), nested(2, nested(2, u32(1, GOTO), text(2, chain))))


def dnat(family: int, address: int, port: int) -> bytes:
    """Send the connection to the address and port in those registers."""
    return expression("nat", u32(1, 1), u32(2, family), u32(3, address), u32(5, port))


def masquerade() -> bytes:
    return expression("masq")


def counter() -> bytes:
    return expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))
