"""Firewalls of others that keep packets from containers, each told in one line with what to do.

Every table of the kernel judges every packet, and each may drop it. What is written here is left
alone: it belongs to an administrator, or to a program that would put it back.

Facts: firewalld's chains are in table `inet firewalld` and let nothing pass between interfaces of
which one is in no zone (firewalld.policies(5)); a zone's interfaces stand in its rules by name.
iptables-legacy's tables are not in nftables; which there are is told by ip_tables_names below
/proc/net (only there once such a table was used), their rules by the program alone.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

FIREWALLD = "firewalld"
LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")
LEGACY = "iptables-legacy"
TIMEOUT = 5.0
"""Seconds the program may take; it waits for others that change the tables."""


def by_default(chain: str, bridges: Iterable[str]) -> str:
    """A chain that somebody wrote for nftables itself, such as `inet filter forward`."""
    return (
        f"nftables' chain {chain} drops by default, packets of containers too; let it accept what "
        f"comes from and goes to {', '.join(sorted(bridges))}"
    )


def without_zone(bridges: Iterable[str]) -> str:
    """firewalld, and the bridges it has in no zone."""
    interfaces = " ".join(f"--add-interface={one}" for one in sorted(bridges))
    return (
        "firewalld keeps containers from other hosts; "
        f"firewall-cmd --permanent --zone=trusted {interfaces} and firewall-cmd --reload let them"
    )


def legacy(bridges: Iterable[str]) -> list[str]:
    """What iptables-legacy's FORWARD chain drops by default. Blocks at most TIMEOUT seconds."""
    try:
        tables = LEGACY_TABLES.read_text().split()
    except OSError:
        return []
    program = shutil.which(LEGACY)
    if "filter" not in tables or program is None:
        return []
    lines: list[str] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(
            [program, "-w", "-S", "FORWARD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT,
        ).stdout.splitlines()
    closed = [] if "-P FORWARD DROP" not in lines else closed_to(lines, sorted(bridges))
    return [
        f"{LEGACY} drops what is forwarded for {one}; {LEGACY} -I FORWARD -i {one} -j ACCEPT, and "
        f"the same with -o, let it pass"
        for one in closed
    ]


def closed_to(lines: Sequence[str], bridges: Sequence[str]) -> list[str]:
    """Bridges that no rule of the chain lets through in both directions."""
    return [
        one
        for one in bridges
        if any(f"-A FORWARD {direction} {one} -j ACCEPT" not in lines for direction in ("-i", "-o"))
    ]
