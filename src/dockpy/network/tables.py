"""The engine's tables in the kernel: what is wanted in them, put there, compared, put back.

Everything goes through one transaction each time, and what is wanted is kept here, so the tables
can be made anew at any moment. Established connections keep their translation meanwhile: it
belongs to the connection, not to the rule.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from dockpy.errors import Conflict, KernelError
from dockpy.network import cablerules, nft, rules
from dockpy.network.entries import Entry
from dockpy.network.nfnetlink import Netfilter, attribute_list, attributes
from dockpy.network.nft import Element, Family, Kind

log = logging.getLogger(__name__)
Place = tuple[Family, str, bytes, int]
MISSING = (errno.ENOENT, errno.EAFNOSUPPORT)
UNGUARDED = (
    "this kernel has no nftables for bridges: containers with NET_RAW can send as others of their "
    "network; load nft_meta_bridge and restart the daemon"
)


class Tables:
    """One engine's tables. Not thread-safe: the firewall has the lock."""

    def __init__(self, netfilter: Netfilter, name: str, *, loopback6: bool) -> None:
        self._netfilter = netfilter
        self._name = name
        self._tables = [rules.inet_table(name, loopback6=loopback6), cablerules.bridge_table(name)]
        self._alone = rules.inet_table(name, loopback6=loopback6, guarded=False)
        self._wanted: dict[Place, Element] = {}
        self._unclaimed: set[Place] = set()
        self._made: dict[Family, object] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        """Families the kernel has tables of."""
        return tuple(table.family for table in self._tables)

    def entries(self) -> Iterator[Entry]:
        for (family, name, _, _), element in self._wanted.items():
            yield Entry(family, name, element)

    def adopt(self) -> int:
        """Want what an engine before this one left; gives the number of entries.

        They stay until somebody wants them too (`add`) or `settle`.
        """
        for table in self._tables:
            sizes = self._sizes(table.family)
            for one in table.sets:
                size = (nft.type_length(one.key), nft.type_length(one.data) if one.data else 0)
                if sizes.get(one.name) != size:
                    continue  # of another version of the engine
                for element in self._elements(table.family, one.name):
                    entry = Entry(table.family, one.name, element)
                    self._wanted[entry.place] = element
                    self._unclaimed.add(entry.place)
        return len(self._wanted)

    def settle(self) -> int:
        """Take away what was adopted and nobody wanted since; gives the number of entries."""
        gone = [
            Entry(place[0], place[1], self._wanted[place])
            for place in self._wanted
            if place in self._unclaimed
        ]
        self.remove(gone)
        return len(gone)

    def claim(self, names: Iterable[str]) -> None:
        """Keep what was adopted in those sets."""
        kept = set(names)
        self._unclaimed = {place for place in self._unclaimed if place[1] not in kept}

    def install(self) -> None:
        """Make the tables with all that is wanted, in place of what there is, at one moment.

        A kernel without bridge tables gets the packets' table alone, which then says itself what
        a bridge may send. KernelError otherwise.
        """
        try:
            self._netfilter.commit(self._whole(), "make the firewall's tables")
        except KernelError as error:
            if error.errno not in (*MISSING, errno.EOPNOTSUPP) or self._tables == [self._alone]:
                raise
            refused, self._tables = self._tables, [self._alone]
            try:
                self._netfilter.commit(self._whole(), "make the firewall's tables")
            except KernelError:
                self._tables = refused
                raise error from None
            log.warning("%s", UNGUARDED)
        self._made = {table.family: self._shape(table) for table in self._tables}

    def remove_all(self) -> None:
        """Take the tables away."""
        for table in self._tables:
            with contextlib.suppress(KernelError):
                gone = [nft.delete_table(table.family, table.name)]
                self._netfilter.commit(gone, "remove the firewall's tables")

    def add(self, entries: Sequence[Entry], step: str) -> None:
        """Want the entries, all or none, and have them when this returns.

        Conflict when one leads elsewhere already; KernelError(step) when the kernel refuses.
        """
        fresh, replaced = [], []
        for entry in entries:
            there = self._wanted.get(entry.place)
            if there is None:
                fresh.append(entry)
            elif there != entry.element:
                if entry.place not in self._unclaimed:
                    raise Conflict(f"{step}: another container has that already")
                replaced.append(entry._replace(element=there))
                fresh.append(entry)
        messages = [
            *self._messages(Kind.DELETE_ELEMENT, replaced),
            *self._messages(Kind.NEW_ELEMENT, fresh),
        ]
        before = {entry.place: self._wanted.get(entry.place) for entry in fresh}
        for entry in fresh:
            self._wanted[entry.place] = entry.element
        try:
            self._commit(messages, step)
        except BaseException:
            for place, element in before.items():
                if element is None:
                    del self._wanted[place]
                else:
                    self._wanted[place] = element
            raise
        self._unclaimed.difference_update(entry.place for entry in entries)

    def remove(self, entries: Sequence[Entry]) -> None:
        """Have the entries no more; those that are not there do not matter."""
        gone = [entry for entry in entries if self._wanted.pop(entry.place, None) is not None]
        self._unclaimed.difference_update(entry.place for entry in gone)
        self._commit(self._messages(Kind.DELETE_ELEMENT, gone), "take away firewall entries")

    def intact(self) -> bool:
        """Whether the kernel has exactly what is wanted: chains, rules by their numbers, sets."""
        families = self.families
        if any(self._shape(table) != self._made.get(table.family) for table in self._tables):
            return False
        found = {
            Entry(table.family, one.name, element).place: element
            for table in self._tables
            for one in table.sets
            for element in self._elements(table.family, one.name)
        }
        return found == {
            place: element for place, element in self._wanted.items() if place[0] in families
        }

    # -- what is sent --------------------------------------------------------------------------

    def _commit(self, messages: Sequence[bytes], step: str) -> None:
        """Commit; when somebody took the tables away, all of them are made anew with it."""
        try:
            self._netfilter.commit(messages, step)
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST):
                raise
            log.warning("the firewall's tables were changed by somebody: making them anew")
            self.install()

    def _messages(self, kind: Kind, entries: Iterable[Entry]) -> list[bytes]:
        families = self.families
        made: list[bytes] = []
        ordered = sorted(
            (entry for entry in entries if entry.family in families), key=lambda one: one[:2]
        )
        for (family, name), group in groupby(ordered, key=lambda one: (one.family, one.name)):
            elements = [entry.element for entry in group]
            made += nft.elements(kind, family, self._name, name, elements)
        return made

    def _whole(self) -> list[bytes]:
        made = []
        for table in self._tables:
            made += [
                nft.new_table(table.family, table.name),
                nft.delete_table(table.family, table.name),
                *nft.whole_table(table),
            ]
        return made + self._messages(Kind.NEW_ELEMENT, self.entries())

    # -- what is there -------------------------------------------------------------------------

    def _shape(self, table: nft.Table) -> object:
        """The table's flags, chains and rules as the kernel has numbered them."""
        named = nft.text(1, table.name)
        family, dump = table.family, self._netfilter.dump
        tables = [attributes(one) for one in dump(Kind.GET_TABLE, family, b"", "list tables")]
        name = table.name.encode() + b"\0"
        mine = [(one.get(2), one.get(4)) for one in tables if one.get(1) == name]
        chains = [attributes(one) for one in dump(Kind.GET_CHAIN, family, b"", "list chains")]
        rule_list = [attributes(one) for one in dump(Kind.GET_RULE, family, named, "list rules")]
        return (
            mine,
            [(one.get(3), one.get(2), one.get(5)) for one in chains if one.get(1) == name],
            [(one.get(2), one.get(3)) for one in rule_list if one.get(1) == name],
        )

    def _sizes(self, family: Family) -> dict[str, tuple[int, int]]:
        """Bytes of key and value of every set of ours there is."""
        body = nft.text(1, self._name)
        found = {}
        for one in self._netfilter.dump(Kind.GET_SET, family, body, "list sets"):
            parts = attributes(one)
            if parts.get(1) == self._name.encode() + b"\0":
                name = parts[2].rstrip(b"\0").decode()
                key, data = parts.get(5, b""), parts.get(7, b"")
                found[name] = (int.from_bytes(key, "big"), int.from_bytes(data, "big"))
        return found

    def _elements(self, family: Family, name: str) -> Iterator[Element]:
        body = nft.text(1, self._name) + nft.text(2, name)
        for part in self._netfilter.dump(Kind.GET_ELEMENT, family, body, "list elements"):
            for _, element in attribute_list(attributes(part).get(3, b"")):
                yield parse_element(element)


def parse_element(data: bytes) -> Element:
    """An element as the kernel lists it."""
    parts = attributes(data)

    def value(number: int) -> bytes:
        return attributes(parts.get(number, b"")).get(1, b"")

    return Element(value(1), value(2), value(10), int.from_bytes(parts.get(3, b""), "big"))
