"""port: where a container's ports are published."""

from __future__ import annotations

from dockpy.cli import options
from dockpy.cli.command import Operand, command
from dockpy.cli.session import Session
from dockpy.network.ports import lookup, numbers, port_lines
from dockpy.network.values import Lease


@command(
    "port",
    "Show where a container's ports are published.\n\n"
    "With a port and its protocol, such as 53/udp, the addresses of that one; with a number alone, "
    "such as 80, only the port of the host that leads there, ready for another command.",
    options.container(),
    Operand("port", "port", required=False),
)
def port(session: Session, *, container: str, port: str | None) -> int:
    found = session.runtime.get(container)
    lease = session.runtime.networks.lease(found.id) or Lease()
    if port is None:
        lines = port_lines(lease.published, ipv6=lease.ipv6)
    elif "/" in port:
        lines = lookup(lease.published, port, ipv6=lease.ipv6)
    else:
        lines = numbers(lease.published, port)
    session.write("".join(f"{line}\n" for line in lines))
    return 0
