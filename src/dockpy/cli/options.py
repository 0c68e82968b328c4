"""Options and operands that more than one command has."""

from __future__ import annotations

from dockpy.cli.command import Operand, Option, Switch
from dockpy.cli.flags import (
    parse_environment,
    parse_keys,
    parse_path_inside,
    parse_seconds,
)


def containers() -> Operand:
    """One or more containers by id, unique prefix or name."""
    return Operand("containers", "container", many=True)


def container() -> Operand:
    """One container by id, unique prefix or name."""
    return Operand("container", "container")


def detach_keys() -> Option:
    """The keys that leave a container running."""
    return Option(
        "--detach-keys",
        help="Keys that leave the container running (with a terminal; default ctrl-p,ctrl-q)",
        parse=parse_keys,
        metavar="KEYS",
        default="",
    )


def sig_proxy() -> Switch:
    """Whether signals go to the program."""
    return Switch(
        "--sig-proxy",
        help="Pass signals to the program (without a terminal; on unless =false)",
        default=True,
    )


def stop_time() -> Option:
    """How long a program may take to stop."""
    return Option(
        "-t",
        "--time",
        "--timeout",
        "time",
        help="Seconds to wait before killing it; negative: for ever",
        parse=parse_seconds,
        metavar="SECONDS",
    )


def format_() -> Option:
    """Go template."""
    return Option(
        "-f",
        "--format",
        "format",
        help="Show with a Go template, or as json",
        metavar="TEMPLATE",
    )


def environment() -> Option:
    """One entry of the environment."""
    return Option(
        "-e",
        "--env",
        help="Set NAME=value, or take NAME from your environment",
        parse=parse_environment,
        metavar="NAME[=VALUE]",
        multiple=True,
    )


def env_file() -> Option:
    """A file of such entries."""
    return Option(
        "--env-file", help="Read NAME=value lines from a file", metavar="FILE", multiple=True
    )


def user() -> Option:
    """Who the program runs as."""
    return Option(
        "-u",
        "--user",
        help="User, and group, by name or number",
        metavar="USER[:GROUP]",
        default="",
    )


def workdir() -> Option:
    """Where it starts."""
    return Option(
        "-w",
        "--workdir",
        help="Working directory inside the container",
        parse=parse_path_inside,
        metavar="DIRECTORY",
        default="",
    )
