"""Linux capabilities by name, and the masks containers run with. Pure. Source: capabilities(7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dockpy.errors import UsageError

_IN_ORDER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NAMES = _IN_ORDER.split()
"""Index is the kernel's number."""
LAST_CAPABILITY = len(NAMES) - 1
ALL = (1 << len(NAMES)) - 1
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def _is_all(name: str) -> bool:
    return name.upper().removeprefix("CAP_") == "ALL"


def mask_of(names: Iterable[str]) -> int:
    """Bits of capabilities named with or without CAP_, in any case; ALL is every one."""
    found = 0
    for text in names:
        name = text.upper().removeprefix("CAP_")
        if _is_all(name):
            found |= ALL
        elif name in _NUMBERS:
            found |= 1 << _NUMBERS[name]
        else:
            raise UsageError(f"unknown capability {text!r}; see capabilities(7) for the names")
    return found


_USUAL = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
)
DEFAULT = mask_of(_USUAL.split())


def mask(add: Sequence[str], drop: Sequence[str], privileged: bool, *, available: int = ALL) -> int:
    """The mask of a container: the default, less `drop`, plus `add`.

    Docker's rules for ALL: adding ALL is everything less the names in `drop`, where ALL then counts
    for nothing; dropping ALL leaves what `add` names. Privileged is all that is `available`, also
    capabilities of newer kernels that have no name here; nobody gets more than that. `available`:
    what the engine itself has. UsageError for an unknown name.
    """
    added, dropped = mask_of(add), mask_of(drop)
    if privileged:
        return available
    if any(map(_is_all, add)):
        return ALL & ~mask_of(name for name in drop if not _is_all(name)) & available
    kept = 0 if any(map(_is_all, drop)) else DEFAULT & ~dropped
    return (kept | added) & available


def names(bits: int) -> list[str]:
    """Names of the bits that are set, without CAP_; the number where there is no name."""
    return [
        NAMES[number] if number <= LAST_CAPABILITY else str(number)
        for number in range(bits.bit_length())
        if bits >> number & 1
    ]
