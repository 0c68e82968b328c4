"""Seccomp filters: from a profile to the program the kernel runs at every system call. Pure.

What a profile says is `seccomp_profile`'s matter, how a program is written `bpf`'s. Here it is
decided what happens to every number. Beyond what the profile says:

- A call by a convention the profile does not speak about ends the process. For x86_64 that includes
  x32, which shares its AUDIT_ARCH value. (libseccomp ends the thread, which hangs programs.)
- A number above all that had a name when the table in `syscalls` was made gets ENOSYS where the
  profile refuses by errno: programs then fall back as on an older kernel, where EPERM would stop
  them. runc does so from the largest number the profile names.
- The kernel takes the family of socket(2) as a C int, so the upper half of that argument is passed
  over here too: 2**32 + AF_ALG is greater than AF_VSOCK, and would open AF_ALG.

A known hole, as in Docker: programs of i386 also make sockets by socketcall(2), whose arguments lie
in memory, where no filter sees them. The published profile allows it, and so does ours, as refusing
it breaks 32-bit programs. Any process on an x86_64 kernel can make such calls (int 0x80), so what a
profile says about socket families keeps honest programs out, not others.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from dockpy.bpf import Condition, Range, TooLarge, Treatment, compile_filter
from dockpy.errors import UsageError
from dockpy.seccomp_default import default_profile
from dockpy.seccomp_profile import (
    ACTION_BITS,
    ERRNO,
    KILL_PROCESS,
    Circumstances,
    Profile,
    parse,
    parse_text,
)
from dockpy.syscalls import X32_BIT, numbers

__all__ = ["CONVENTIONS", "Convention", "FilterCache", "compile_profile", "default_profile"]

_PRIVATE = 0xF0000
"""Where 32-bit ARM keeps calls of its own, far above the common ones."""
_MINUS_ONE = (1 << 32) - 1
"""The number of a call that a tracer took back. ptrace(2)."""
_INTEGERS = frozenset({("socket", 0)})
"""Arguments, by call and index, that the kernel takes as a C int and that profiles compare."""


@dataclass(frozen=True, slots=True)
class Convention:
    """One way to make system calls: its name in profiles, and what the kernel calls it."""

    name: str
    audit: int
    column: str

    @property
    def base(self) -> int:
        """The lowest number a call may have."""
        return X32_BIT if self.column == "x32" else 0

    @property
    def numbers(self) -> Mapping[str, int]:
        """Names to numbers."""
        return numbers(self.column)

    @property
    def last(self) -> int:
        """The largest number of the common range that has a name."""
        return max(each for each in self.numbers.values() if each - self.base < _PRIVATE)


_X32 = Convention("SCMP_ARCH_X32", 0xC000003E, "x32")
CONVENTIONS: Mapping[str, Sequence[Convention]] = {
    "x86_64": (
        Convention("SCMP_ARCH_X86_64", 0xC000003E, "x86_64"),
        _X32,
        Convention("SCMP_ARCH_X86", 0x40000003, "i386"),
    ),
    "aarch64": (
        Convention("SCMP_ARCH_AARCH64", 0xC00000B7, "aarch64"),
        Convention("SCMP_ARCH_ARM", 0x40000028, "arm"),
    ),
}
"""What each machine (as in `uname -m`) understands, its own first. AUDIT_ARCH: linux/audit.h."""


def compile_profile(
    profile: Mapping[str, object], capabilities: int, *, machine: str, kernel: tuple[int, int]
) -> bytes:
    """The profile as a packed struct sock_filter array of at most 4096 instructions.

    `capabilities`: the container's bounding set as a mask; `machine`: as in `uname -m`; `kernel`:
    major and minor version. UsageError, one line with the place, for what is not a profile, for
    SCMP_ACT_NOTIFY, for a machine without a table, and for a filter that is too large.
    """
    found = parse(profile, Circumstances(capabilities, machine, kernel))
    trees: dict[int, list[Range]] = {}
    for convention in CONVENTIONS[machine]:
        if convention.name in found.architectures:
            trees.setdefault(convention.audit, []).extend(_ranges(found, convention))
        elif convention is _X32:
            trees[convention.audit] += [
                Range(X32_BIT, Treatment(KILL_PROCESS)),
                Range(_MINUS_ONE, Treatment(found.default)),
            ]
    try:
        return compile_filter(trees, KILL_PROCESS)
    except TooLarge as error:
        raise UsageError(f"seccomp profile does not fit the kernel: {error}") from None


def _ranges(profile: Profile, convention: Convention) -> Iterator[Range]:
    """All numbers of a convention from its base up, in ranges of one treatment."""
    named = _treatments(profile, convention)
    default = unnamed = Treatment(profile.default)
    if profile.default & ACTION_BITS == ERRNO:
        unnamed = Treatment(ERRNO | errno.ENOSYS)
    points = {convention.base: default}
    last = convention.last
    for number in sorted(convention.numbers.values()):
        points[number] = named.get(number, default)
        points[number + 1] = default if number < last else unnamed
    for number, treatment in points.items():
        yield Range(number, treatment)


def _treatments(profile: Profile, convention: Convention) -> dict[int, Treatment]:
    """The treatment of each number that a rule is about."""
    settled: dict[int, Treatment] = {}
    clauses: dict[int, list[tuple[tuple[Condition, ...], int]]] = {}
    for rule in profile.rules:
        for name in rule.names:
            number = convention.numbers.get(name)
            if number is None:
                continue
            if not rule.conditions:
                settled.setdefault(number, Treatment(rule.action))
                continue
            conditions = tuple(
                replace(each, bits=32 if (name, each.index) in _INTEGERS else 64)
                for each in rule.conditions
            )
            clauses.setdefault(number, []).append((conditions, rule.action))
    found = {
        number: Treatment(profile.default, tuple(listed)) for number, listed in clauses.items()
    }
    return found | settled


class FilterCache:
    """Compiled filters by profile and capabilities, the `limit` that were used last, in memory.

    Thread-safe. While one is compiled, others that have to be compiled wait; those that are there
    do not. `machine` and `kernel` are this host's unless given.
    """

    def __init__(
        self, *, machine: str = "", kernel: tuple[int, int] | None = None, limit: int = 64
    ) -> None:
        host = os.uname()
        self._machine = machine or host.machine
        self._kernel = kernel or kernel_version(host.release)
        self._limit = limit
        self._filters: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def get(self, profile_text: str, capabilities: int) -> bytes | None:
        """The filter of `default`, `unconfined` (None) or a profile's JSON. UsageError."""
        if profile_text == "unconfined":
            return None
        key = self._key(profile_text, capabilities)
        found = self._find(key)
        if found is not None:
            return found
        with self._compiling:
            found = self._find(key)
            if found is None:
                profile = (
                    default_profile() if profile_text == "default" else parse_text(profile_text)
                )
                found = compile_profile(
                    profile, capabilities, machine=self._machine, kernel=self._kernel
                )
                self._keep(key, found)
        return found

    def __len__(self) -> int:
        with self._lock:
            return len(self._filters)

    def _key(self, text: str, capabilities: int) -> bytes:
        facts = f"{capabilities:x} {self._machine} {self._kernel[0]}.{self._kernel[1]}\n"
        return sha256((facts + text).encode("utf-8", "surrogatepass")).digest()

    def _find(self, key: bytes) -> bytes | None:
        with self._lock:
            if key in self._filters:
                self._filters.move_to_end(key)
            return self._filters.get(key)

    def _keep(self, key: bytes, program: bytes) -> None:
        with self._lock:
            self._filters[key] = program
            while len(self._filters) > self._limit:
                self._filters.popitem(last=False)


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel release such as 6.1.0-18-amd64; (0, 0) if unreadable."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
