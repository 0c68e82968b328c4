"""The values of options: one small parser each. Pure; all raise UsageError or ValueError."""

from __future__ import annotations

import ipaddress
import re

from dockpy.errors import UsageError
from dockpy.etcfiles import HOST_GATEWAY
from dockpy.humantime import parse_size
from dockpy.stdio import parse_detach_keys

STREAMS = ("stdin", "stdout", "stderr")
PULL = ("missing", "never", "always")
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_HARDWARE = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")


def parse_streams(text: str) -> tuple[str, ...]:
    """`stdin`, `stdout` or `stderr`; the seed's `-a=true` is all three, `-a=false` none."""
    found = text.lower()
    if found in STREAMS:
        return (found,)
    if found in ("true", "false"):
        return STREAMS if found == "true" else ()
    raise UsageError("stdin, stdout or stderr expected")


def parse_memory(text: str) -> int:
    """Bytes of `512m`, `1.5g`, `1048576`."""
    return parse_size(text)


def parse_memory_or_unlimited(text: str) -> int:
    """As `parse_memory`; -1 is no limit."""
    return -1 if text == "-1" else parse_size(text)


def parse_shm_size(text: str) -> int:
    """Bytes, above 0: a tmpfs of size 0 would have no limit (tmpfs(5))."""
    size = parse_size(text)
    if size <= 0:
        raise UsageError("a size above 0 expected")
    return size


def parse_cpus(text: str) -> float:
    """A number of CPUs such as 0.5, above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise UsageError("a number of CPUs above 0 expected, such as 0.5")
    return value


def parse_cpu_list(text: str) -> str:
    """CPU or memory node numbers such as 0-2,5."""
    if not _CPU_LIST.fullmatch(text):
        raise UsageError("a list such as 0-2,5 expected")
    return text


def parse_oom_score(text: str) -> int:
    """-1000 to 1000 (proc(5), oom_score_adj)."""
    value = int(text)
    if not -1000 <= value <= 1000:
        raise UsageError("a number from -1000 to 1000 expected")
    return value


def parse_seconds(text: str) -> int:
    """Whole seconds; negative for ever."""
    return int(text)


def parse_count(text: str) -> int:
    """A number of things, 0 or more."""
    value = int(text)
    if value < 0:
        raise UsageError("a number of 0 or more expected")
    return value


def parse_address(text: str) -> str:
    """An IP address."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise UsageError("an IP address expected, such as 9.9.9.9") from error


def parse_host_entry(text: str) -> str:
    """`name:address` (or `name=address`); returned as `name:address`. The address `host-gateway`
    stands for the host as the container sees it."""
    name, separator, address = text.partition("=" if "=" in text else ":")
    if not separator or not name or any(one.isspace() for one in name):
        raise UsageError("name:address expected, such as db:10.0.0.5")
    if address == HOST_GATEWAY:
        return f"{name}:{address}"
    try:
        ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise UsageError(f"{address!r} is not an IP address") from error
    return f"{name}:{address.removeprefix('[').removesuffix(']')}"


def parse_hostname(text: str) -> str:
    """A host name of labels (hostname(7)), at most 64 characters, what the kernel holds."""
    if not 0 < len(text) <= 64 or not all(_LABEL.fullmatch(one) for one in text.split(".")):
        raise UsageError("letters, digits, '-' and '.' expected, at most 64 characters")
    return text


def parse_network(text: str) -> str:
    """`bridge`, `none`, `host`, `container:NAME`, or the name of a network."""
    if not text or text == "container:":
        raise UsageError("bridge, none, host, container:NAME or the name of a network expected")
    return "bridge" if text == "default" else text


def parse_address4(text: str) -> str:
    """An IPv4 address."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise UsageError("an IPv4 address expected, such as 10.9.0.5") from error


def parse_hardware(text: str) -> str:
    """A link's address of six bytes, not a group's."""
    if not _HARDWARE.fullmatch(text):
        raise UsageError("six bytes such as 02:42:0a:09:00:05 expected")
    if int(text[:2], 16) & 1:
        raise UsageError("the address of a group; its first byte must be even")
    return text.lower().replace("-", ":")


def parse_link(text: str) -> str:
    """`NAME` or `NAME:ALIAS`."""
    name, colon, alias = text.partition(":")
    if not name or (colon and not alias) or ":" in alias:
        raise UsageError("NAME or NAME:ALIAS expected")
    return text


def parse_alias(text: str) -> str:
    """A name for the network's resolver."""
    if not text or any(one.isspace() for one in text) or len(text) > 253:
        raise UsageError("a name without spaces expected")
    return text


def parse_pull(text: str) -> str:
    """`missing`, `never` or `always`."""
    if text not in PULL:
        raise UsageError("missing, never or always expected")
    return text


def parse_path_inside(text: str) -> str:
    """An absolute path inside the container."""
    if not text.startswith("/"):
        raise UsageError("an absolute path inside the container expected")
    return text


def parse_keys(text: str) -> str:
    """Detach keys such as `ctrl-p,ctrl-q`, as they are; empty for the default."""
    if text:
        parse_detach_keys(text)
    return text


def parse_label(text: str) -> tuple[str, str]:
    """`key=value`, or `key` with an empty value."""
    key, _, value = text.partition("=")
    if not key:
        raise UsageError("key=value expected")
    return key, value


def parse_log_option(text: str) -> tuple[str, int]:
    """`max-size=SIZE` in bytes or `max-file=N`."""
    key, _, value = text.partition("=")
    if key == "max-size":
        size = -1 if value == "-1" else parse_size(value)
        return key, max(size, 0)
    if key == "max-file":
        try:
            count = int(value)
        except ValueError:
            count = 0
        if count < 1:
            raise UsageError("max-file needs a number of 1 or more")
        return key, count
    raise UsageError("max-size=SIZE or max-file=N expected")


def parse_security_option(text: str) -> tuple[str, str]:
    """`seccomp=FILE|unconfined|default` or `no-new-privileges[=BOOL]`, as (key, value)."""
    key, separator, value = text.partition("=")
    if not separator:
        key, separator, value = text.partition(":")
    if key == "no-new-privileges":
        value = value or "true"
        if value not in ("true", "false"):
            raise UsageError("no-new-privileges is true or false")
        return key, value
    if key == "seccomp" and value:
        return key, value
    raise UsageError("seccomp=FILE, seccomp=unconfined or no-new-privileges expected")


def parse_environment(text: str) -> str:
    """`NAME=value`, or `NAME` to take the caller's."""
    if not text or text.startswith("="):
        raise UsageError("NAME=value or NAME expected")
    if "\0" in text:
        raise UsageError("a NUL byte cannot be in an environment")
    return text
