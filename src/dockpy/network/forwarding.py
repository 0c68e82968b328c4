"""Settings of the kernel that routing to containers needs, per network namespace.

Facts (the kernel's networking/ip-sysctl): `ip_forward` lets packets pass from any interface to
any other. `route_localnet` of one interface lets 127.0.0.0/8 be its packets' addresses; the
rules in `rules.guard` refuse them where they come over the cable. IPv6 has no such setting: an
answer to ::1 is accepted where a local route for ::1 names the bridge. A host that routes IPv6
ignores router advertisements unless `accept_ra` is 2. `bridge-nf-call-*` sends bridged frames
through the rules for packets as well.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dockpy.errors import KernelError

SETTINGS = Path("/proc/sys/net")


def read(name: str, top: Path = SETTINGS) -> str:
    """A setting's text, "" where the kernel has no such setting.

    By descriptor: every cable asks for one, and a Path would take three times as long (19 us).
    """
    try:
        setting = os.open(f"{top}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(setting, 256).decode().strip()
    finally:
        os.close(setting)


def write(name: str, value: str, top: Path = SETTINGS) -> None:
    """Set it unless it is so already. KernelError names it when it is refused."""
    if read(name, top) == value:
        return
    try:
        (top / name).write_text(value)
    except OSError as error:
        step = f"set net.{name.replace('/', '.')} to {value}"
        raise KernelError(step, error.errno or errno.EIO) from error


def routes4(top: Path = SETTINGS) -> bool:
    """Whether the host passes IPv4 packets on."""
    return read("ipv4/ip_forward", top) == "1"


def routes6(top: Path = SETTINGS) -> bool:
    return read("ipv6/conf/all/forwarding", top) == "1"


def has_ipv6(top: Path = SETTINGS, interface: str = "all") -> bool:
    """Whether IPv6 is there and not switched off, on that interface."""
    return read(f"ipv6/conf/{interface}/disable_ipv6", top) == "0"


def bridged_through_rules(top: Path = SETTINGS, *, ipv6: bool = False) -> bool:
    """Whether bridged frames meet the rules for packets (br_netfilter is there and on)."""
    return read(f"bridge/bridge-nf-call-ip{'6' if ipv6 else ''}tables", top) == "1"


def start_routing4(top: Path = SETTINGS) -> None:
    write("ipv4/ip_forward", "1", top)


def start_routing6(top: Path = SETTINGS) -> None:
    """Route IPv6; interfaces that listened to routers go on doing so."""
    if routes6(top):
        return
    for directory in sorted((top / "ipv6/conf").iterdir()):
        if read(f"ipv6/conf/{directory.name}/accept_ra", top) == "1":
            write(f"ipv6/conf/{directory.name}/accept_ra", "2", top)
    write("ipv6/conf/all/forwarding", "1", top)


def keep_silent(bridge: str, top: Path = SETTINGS, *, ipv6: bool) -> None:
    """Have a bridge look for no routers, and speak IPv6 only with `ipv6`: what it announces for
    seconds after it came up, its link-local address and its groups, goes to every container."""
    wanted = {"router_solicitations": "0", "disable_ipv6": "0" if ipv6 else "1"}
    for name, value in wanted.items():
        if read(f"ipv6/conf/{bridge}/{name}", top):
            write(f"ipv6/conf/{bridge}/{name}", value, top)


def accept_loopback(bridge: str, top: Path = SETTINGS) -> None:
    """Let this host's loopback clients reach containers behind the bridge."""
    write(f"ipv4/conf/{bridge}/route_localnet", "1", top)


def interfaces() -> list[str]:
    """Interfaces of this network namespace, the loopback one apart."""
    import socket

    return [name for _, name in socket.if_nameindex() if name != "lo"]
