"""Which device numbers a container may open and make, and the two languages the kernel takes it in.

v1 has lines in devices.allow; v2 has a program (BPF_PROG_TYPE_CGROUP_DEVICE) that the kernel runs
at every open and mknod of a device, with `struct bpf_cgroup_dev_ctx`, and that answers 1 or 0.
Every program attached to the group or above must answer 1. Rules only allow; the rest is denied.
Sources: Documentation/admin-guide/cgroup-v1/devices.rst, cgroup-v2.rst "Device controller",
Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dockpy import _bpf
from dockpy.errors import KernelError, NotFound, UsageError

MKNOD, READ, WRITE = 1, 2, 4
"""BPF_DEVCG_ACC_*, the letters m, r, w."""
BLOCK, CHARACTER = 1, 2
"""BPF_DEVCG_DEV_*."""
LETTERS = {"m": MKNOD, "r": READ, "w": WRITE}
KINDS = {"b": BLOCK, "c": CHARACTER}


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Allows `access` (a set of the letters r, w, m) to devices; None is every number."""

    kind: str
    major: int | None
    minor: int | None
    access: str = "rwm"

    def __str__(self) -> str:
        """As devices.allow takes it: `c 1:3 rwm`."""
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


DEFAULT_RULES = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    DeviceRule("c", 1, 3),  # null
    DeviceRule("c", 1, 5),  # zero
    DeviceRule("c", 1, 7),  # full
    DeviceRule("c", 1, 8),  # random
    DeviceRule("c", 1, 9),  # urandom
    DeviceRule("c", 5, 0),  # tty
    DeviceRule("c", 5, 1),  # console
    DeviceRule("c", 5, 2),  # ptmx
    DeviceRule("c", 136, None),  # pts/*
)
"""What a container gets unless privileged: making any node, using only the harmless ones."""


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """`--device source[:target][:access]`, parsed."""

    source: str
    target: str
    access: str

    def nodes(self) -> list[tuple[str, str, int, int, int]]:
        """(path, kind, major, minor, mode) of the nodes to make; looks at the host as `look_up`."""
        return [
            (each.target, each.kind, each.major, each.minor, each.mode) for each in look_up(self)
        ]


@dataclass(frozen=True, slots=True)
class Device:
    """One node to make at `target`; `mode` has the permission bits only."""

    target: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    rule: DeviceRule


def parse_device(text: str) -> DeviceRequest:
    """`/dev/sda`, `/dev/sda:/dev/xvda`, `/dev/sda:r`, `/dev/sda:/dev/xvda:rw`.

    Raises UsageError.
    """
    source, *rest = text.split(":")
    access = "rwm"
    if rest and not rest[-1].startswith("/"):
        access = rest.pop()
    target = rest.pop(0) if rest else source
    if rest or not source.startswith("/") or "\0" in text or ".." in target.split("/"):
        raise UsageError(f"--device {text!r}: give /host/path[:/container/path][:rwm]")
    if not access or len(set(access)) != len(access) or set(access) - set(LETTERS):
        raise UsageError(f"--device {text!r}: {access!r} is not a set of the letters r, w, m")
    return DeviceRequest(source, os.path.normpath(target), "".join(sorted(access, key="rwm".index)))


def look_up(request: DeviceRequest) -> list[Device]:
    """The devices of the host behind a request: one, or all below a directory.

    Follows symbolic links of the host (as /dev/cdrom is one). Raises NotFound for a missing path
    and UsageError where no device is found.
    """
    source = Path(request.source)
    try:
        if not source.is_dir():
            found = [_device(os.stat(source), request.target, request.access)]
        else:
            found = [
                _device(status, f"{request.target}/{path.relative_to(source)}", request.access)
                for path, status in _files_below(source)
            ]
    except FileNotFoundError:
        raise NotFound("device", request.source) from None
    except OSError as error:
        raise KernelError("look up device", error.errno or 0, request.source) from error
    devices = [device for device in found if device is not None]
    if not devices:
        raise UsageError(f"--device {request.source}: not a device")
    return devices


def requested_rules(texts: Iterable[str]) -> list[DeviceRule]:
    """The rules that `--device` texts stand for. Raises as `parse_device` and `look_up`."""
    return [device.rule for text in texts for device in look_up(parse_device(text))]


def _files_below(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """What is not a directory below one; in /dev names come and go while we look."""
    found = []
    for above, _, names in os.walk(directory):
        for name in names:
            path = Path(above, name)
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.lstat()))
    return sorted(found, key=lambda one: one[0])


def _device(status: os.stat_result, target: str, access: str) -> Device | None:
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return None
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return Device(
        target=target,
        kind=kind,
        major=major,
        minor=minor,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        rule=DeviceRule(kind, major, minor, access),
    )


def merged(rules: Iterable[DeviceRule]) -> list[DeviceRule]:
    """One rule for each device, with all accesses given for it, in order of first mention.

    Needed because the kernel asks for reading and writing at once. Raises ValueError for a rule
    that no kernel could mean.
    """
    access: dict[tuple[str, int | None, int | None], set[str]] = {}
    for rule in rules:
        numbers = [number for number in (rule.major, rule.minor) if number is not None]
        if rule.kind not in KINDS or set(rule.access) - set(LETTERS) or not rule.access:
            raise ValueError(f"not a device rule: {rule}")
        if any(not 0 <= number < 1 << 31 for number in numbers):
            raise ValueError(f"not a device number: {rule}")
        access.setdefault((rule.kind, rule.major, rule.minor), set()).update(rule.access)
    return [
        DeviceRule(kind, major, minor, "".join(sorted(letters, key="rwm".index)))
        for (kind, major, minor), letters in access.items()
    ]


def allows(rules: Iterable[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """What `rules` mean, said plainly; programs and kernels are tested against it."""
    return any(
        rule.kind == kind
        and rule.major in {None, major}
        and rule.minor in {None, minor}
        and set(access) <= set(rule.access)
        for rule in merged(rules)
    )


# struct bpf_insn: opcode, destination (low 4 bits) and source (high 4 bits), offset, immediate
INSTRUCTION = struct.Struct("=BBhi")
LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
MOVE_REGISTER = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
MOVE = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
JUMP_NOT_EQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
EXIT = 0x95  # BPF_JMP | BPF_EXIT
ANSWER, CONTEXT, KIND, ACCESS, MAJOR, MINOR = 0, 1, 2, 3, 4, 5


def program(rules: Iterable[DeviceRule]) -> bytes:
    """The v2 program for `rules`: `struct bpf_insn[]`; answers 1 for what one rule allows.

    `struct bpf_cgroup_dev_ctx` is three 32-bit words: kind in the low and access in the high half
    of the first, major, minor.
    """
    return b"".join(INSTRUCTION.pack(*each) for each in _instructions(merged(rules)))


def _instructions(rules: list[DeviceRule]) -> Iterator[tuple[int, int, int, int]]:
    yield LOAD_WORD, KIND | CONTEXT << 4, 0, 0
    yield MOVE_REGISTER, ACCESS | KIND << 4, 0, 0
    yield AND, KIND, 0, 0xFFFF
    yield SHIFT_RIGHT, ACCESS, 0, 16
    yield LOAD_WORD, MAJOR | CONTEXT << 4, 4, 0
    yield LOAD_WORD, MINOR | CONTEXT << 4, 8, 0
    for rule in rules:
        tests = list(_tests(rule))
        for index, test in enumerate(tests):
            if test[0] == JUMP_NOT_EQUAL:  # to the next rule, over the two that answer 1
                yield JUMP_NOT_EQUAL, test[1], len(tests) - index + 1, test[2]
            else:
                yield test[0], test[1], 0, test[2]
        yield MOVE, ANSWER, 0, 1
        yield EXIT, 0, 0, 0
    yield MOVE, ANSWER, 0, 0
    yield EXIT, 0, 0, 0


def _tests(rule: DeviceRule) -> Iterator[tuple[int, int, int]]:
    """(opcode, registers, immediate) of the comparisons a rule needs."""
    yield JUMP_NOT_EQUAL, KIND, KINDS[rule.kind]
    denied = (MKNOD | READ | WRITE) & ~sum(LETTERS[letter] for letter in rule.access)
    if denied:
        yield MOVE_REGISTER, ANSWER | ACCESS << 4, 0
        yield AND, ANSWER, denied
        yield JUMP_NOT_EQUAL, ANSWER, 0
    if rule.major is not None:
        yield JUMP_NOT_EQUAL, MAJOR, rule.major
    if rule.minor is not None:
        yield JUMP_NOT_EQUAL, MINOR, rule.minor


def load(instructions: bytes) -> int:
    """Load a program into the kernel; returns a descriptor (close-on-exec) the caller owns.

    Raises KernelError; EPERM means CAP_BPF or CAP_SYS_ADMIN is missing, EINVAL a kernel without
    CONFIG_CGROUP_BPF or a program the verifier refuses.
    """
    fd = _bpf.load_device_program(instructions)
    if fd < 0:
        raise KernelError("load device program", -fd)
    return fd


def attach(directory: int, program_fd: int) -> None:
    """Make a program rule over devices in the v2 group, beside those that stand there.

    Raises KernelError: EINVAL for one that stands there already, E2BIG for the 65th.
    """
    err = _bpf.attach_device_program(directory, program_fd)
    if err:
        raise KernelError("attach device program", err)


def replace(directory: int, program_fd: int | None) -> None:
    """Attach `program_fd` (None: nothing) and detach all that stood there before.

    The new one comes first: in between, both must allow, so never more is open than before or
    after. A program that stands there already is refused (EINVAL): load an equal one anew.
    """
    old = _bpf.device_programs(directory)
    if isinstance(old, int):
        raise KernelError("list device programs", old)
    try:
        if program_fd is not None:
            attach(directory, program_fd)
        for fd in old:
            err = _bpf.detach_device_program(directory, fd)
            if err:
                raise KernelError("detach device program", err)
    finally:
        for fd in old:
            os.close(fd)
