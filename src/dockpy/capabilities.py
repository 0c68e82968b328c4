"""Linux capabilities by name, and the masks containers run with. Pure. Source: capabilities(7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dockpy.errors import UsageError

NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""Index is the kernel's number."""
LAST_CAPABILITY = len(NAMES) - 1
ALL = (1 << len(NAMES)) - 1
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def mask_of(names: Iterable[str]) -> int:
    """Bits of capabilities named with or without CAP_, in any case; ALL is every one."""
    found = 0
    for text in names:
        name = text.upper().removeprefix("CAP_")
        if name == "ALL":
            found |= ALL
        elif name in _NUMBERS:
            found |= 1 << _NUMBERS[name]
        else:
            raise UsageError(f"unknown capability {text!r}; see capabilities(7) for the names")
    return found


DEFAULT = mask_of(
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT".split()
)


def mask(add: Sequence[str], drop: Sequence[str], privileged: bool, *, available: int = ALL) -> int:
    """The mask of a container: the default, less `drop`, plus `add`.

    Docker's rules for ALL: adding ALL starts from everything and then drops; dropping ALL starts
    from nothing and then adds. Privileged is everything. Never more than `available`, what the
    engine itself has. UsageError for an unknown name.
    """
    added, dropped = mask_of(add), mask_of(drop)
    if privileged:
        return ALL & available
    everything = any(name.upper().removeprefix("CAP_") == "ALL" for name in add)
    nothing = any(name.upper().removeprefix("CAP_") == "ALL" for name in drop)
    if everything:
        return (ALL if nothing else ALL & ~dropped) & available
    return ((0 if nothing else DEFAULT & ~dropped) | added) & available


def names(bits: int) -> list[str]:
    """Names of the bits that are set, without CAP_."""
    return [name for number, name in enumerate(NAMES) if bits >> number & 1]
