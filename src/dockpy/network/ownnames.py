"""What the resolver of a network answers by itself, and what is left to others. No sockets.

The rules, in their order:
- `localhost` and names below it are the asker's own (RFC 6761, 6.3).
- A name of the network is answered from the network, whatever type is asked for: a name with only
  an IPv4 address has no AAAA record, but it is not unknown, and nobody else is asked about it.
- An address of the network is answered from the network too: a name, or "no such name". What runs
  on a private range is nobody else's business.
- Anything else is for the host's servers, names of one part included, as with Docker: home routers
  and office networks have such names. A container that is not running is asked for there as well.
- An internal network passes nothing on: "no such name", at once. SERVFAIL would be as true, but
  musl waits 5 seconds after it and glibc asks a second time.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from typing import Protocol

from dockpy.network.dnswire import Query, Rcode, address_answer, answer, name_answer

TTL = 5
"""Seconds an answer may be kept. An address is given to the next container soon after its
container is gone, and a cache must not lead there; asking again costs no more than a look into a
table. Not 0: a program that asks for every request is spared most of its questions."""
Range = ipaddress.IPv4Network | ipaddress.IPv6Network


class Names(Protocol):
    """Who is who on the networks. Called in the resolver's thread: must not block for long."""

    def addresses(self, network: str, name: str, client: str) -> Sequence[str] | None:
        """Addresses of both versions for a lower-case name without a last dot.

        `client` is the address that asks. None: not a name of this network. Empty: a name that
        has no address just now.
        """

    def name(self, network: str, address: str) -> str | None:
        """The name of the container with that address; None when there is none."""

    def servers(self, network: str, client: str) -> Sequence[str]:
        """Servers that client has of its own (--dns), instead of the host's; mostly empty."""


def own_answer(
    query: Query, names: Names, network: str, client: str, within: Range, *, internal: bool
) -> bytes | None:
    """The answer, or None when others are to be asked."""
    if query.name == "localhost" or query.name.endswith(".localhost"):
        return address_answer(query, ["127.0.0.1", "::1"], TTL)
    address = query.address
    if address is not None:
        name = names.name(network, address)
        if name is not None:
            return name_answer(query, name, TTL)
        if ipaddress.ip_address(address) in within:
            return answer(query, Rcode.NXDOMAIN)
    elif query.name and "\\" not in query.name:
        found = names.addresses(network, query.name, client)
        if found is not None:
            # Several containers of one name take turns at being the first.
            return address_answer(query, random.sample(list(found), len(found)), TTL)
    return answer(query, Rcode.NXDOMAIN) if internal else None
