"""Classic BPF for seccomp: from decisions about system calls to a packed filter. Pure.

The rules of the machine, from seccomp(2), bpf(4) and linux/bpf_common.h: one 32-bit accumulator,
jumps go forward only and conditional ones at most 255 instructions far, at most 4096 instructions,
`struct seccomp_data` is {int nr; u32 arch; u64 instruction_pointer; u64 args[6]}.

The program is written from its end: every target of a jump is then in place already and its
distance known. A target that is too far is reached over an unconditional jump, whose offset has 32
bits. Equal pieces are written once. Numbers are found by binary search over ranges that are treated
alike. Arguments are looked at last: the kernel (since 5.11) tries each number without arguments
once, and lets constant ALLOWs pass unfiltered from then on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

LARGEST_PROGRAM = 4096
"""BPF_MAXINSNS."""
INSTRUCTION = struct.Struct("<HBBI")
"""struct sock_filter on the little-endian machines there are tables for: code, jt, jf, k."""

_LOAD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05
_EQUAL, _GREATER, _AT_LEAST = 0x15, 0x25, 0x35
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOW = (1 << 32) - 1
_FARTHEST = 255


class TooLarge(ValueError):
    """The filter has more instructions than the kernel takes."""


class Operator(Enum):
    """How an argument is compared: all 64 bits, without a sign."""

    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    MASKED_EQ = "& mask =="


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of argument `index` (0 to 5); `mask` counts for MASKED_EQ only.

    `bits`: 64, or 32 when the kernel uses the lower half of the argument only; what the upper half
    holds then makes no difference.
    """

    index: int
    operator: Operator
    value: int
    mask: int = 0
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to a call: the first clause whose conditions all hold gives the verdict.

    Verdicts are the kernel's SECCOMP_RET values; `otherwise` is the one when no clause holds.
    """

    otherwise: int
    clauses: tuple[tuple[tuple[Condition, ...], int], ...] = ()


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `first` up to the next range's first, and how they are treated."""

    first: int
    treatment: Treatment


def compile_filter(architectures: Mapping[int, Iterable[Range]], foreign: int) -> bytes:
    """The packed struct sock_filter array.

    `architectures`: AUDIT_ARCH values, the most frequent first, each with ranges that begin at 0,
    in ascending order. `foreign` is the verdict on calls of any other architecture. TooLarge.
    """
    writer = _Writer()
    entries = {
        architecture: writer.load(_NUMBER, _search(writer, list(_merged(ranges))))
        for architecture, ranges in architectures.items()
    }
    at = writer.verdict(foreign)
    for architecture, entry in reversed(entries.items()):
        at = writer.branch(_EQUAL, architecture, entry, at)
    writer.begin(writer.load(_ARCHITECTURE, at))
    return writer.pack()


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same ranges, neighbours of equal treatment made one."""
    last = None
    for each in ranges:
        if each.treatment != last:
            yield each
        last = each.treatment


def _search(writer: _Writer, ranges: Sequence[Range]) -> int:
    """Binary search for the number in the accumulator; position of its first instruction."""
    if len(ranges) == 1:
        return _treatment(writer, ranges[0].treatment)
    if len(ranges) == 3 and ranges[0].treatment == ranges[2].treatment:
        number = ranges[1].first
        if ranges[2].first == number + 1:
            inside = _treatment(writer, ranges[1].treatment)
            return writer.branch(_EQUAL, number, inside, _treatment(writer, ranges[0].treatment))
    middle = len(ranges) // 2
    upper = _search(writer, ranges[middle:])
    lower = _search(writer, ranges[:middle])
    return writer.branch(_AT_LEAST, ranges[middle].first, upper, lower)


def _treatment(writer: _Writer, treatment: Treatment) -> int:
    at = writer.verdict(treatment.otherwise)
    for conditions, verdict in reversed(treatment.clauses):
        held = writer.verdict(verdict)
        for condition in reversed(conditions):
            held = _condition(writer, condition, held, at)
        at = held
    return at


def _condition(writer: _Writer, condition: Condition, yes: int, no: int) -> int:
    """Compare the halves of an argument: the high one decides, or leaves it to the low one."""
    match condition.operator:
        case Operator.NE:
            return _masked(writer, condition, -1, no, yes)
        case Operator.EQ:
            return _masked(writer, condition, -1, yes, no)
        case Operator.MASKED_EQ:
            return _masked(writer, condition, condition.mask, yes, no)
        case Operator.GT:
            return _ordered(writer, condition, _GREATER, yes, no)
        case Operator.GE:
            return _ordered(writer, condition, _AT_LEAST, yes, no)
        case Operator.LT:
            return _ordered(writer, condition, _AT_LEAST, no, yes)
        case Operator.LE:
            return _ordered(writer, condition, _GREATER, no, yes)


def _masked(writer: _Writer, condition: Condition, mask: int, yes: int, no: int) -> int:
    at = yes
    for half in (0, 1):
        bits, wanted = mask >> 32 * half & _LOW, condition.value >> 32 * half & _LOW
        if wanted & ~bits:
            return no
        if half and condition.bits == 32:
            return no if wanted else at
        if bits:
            at = writer.branch(_EQUAL, wanted, at, no)
            if bits != _LOW:
                at = writer.mask(bits, at)
            at = writer.load(_ARGUMENTS + 8 * condition.index + 4 * half, at)
    return at


def _ordered(writer: _Writer, condition: Condition, code: int, yes: int, no: int) -> int:
    offset = _ARGUMENTS + 8 * condition.index
    low, high = condition.value & _LOW, condition.value >> 32
    at = writer.load(offset, writer.branch(code, low, yes, no))
    if condition.bits == 32:
        return no if high else at
    at = writer.branch(_GREATER, high, yes, writer.branch(_EQUAL, high, at, no))
    return writer.load(offset + 4, at)


class _Writer:
    """A program that grows from its end. A position is the number of instructions behind it."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._written: dict[tuple[int, int, int, int], int] = {}
        self._stand_ins: dict[int, int] = {}

    def verdict(self, value: int) -> int:
        """End with a verdict."""
        return self._once((_RETURN, value, 0, 0), lambda: self._append(_RETURN, value))

    def branch(self, code: int, constant: int, yes: int, no: int) -> int:
        """Compare the accumulator with a constant and go on at one of two positions."""
        if yes == no:
            return yes
        return self._once((code, constant, yes, no), lambda: self._branch(code, constant, yes, no))

    def load(self, offset: int, following: int) -> int:
        """Load 32 bits of seccomp_data, then go on at a position."""
        return self._once(
            (_LOAD, offset, following, 0), lambda: self._then(_LOAD, offset, following)
        )

    def mask(self, bits: int, following: int) -> int:
        """Keep some bits of the accumulator, then go on at a position."""
        return self._once((_AND, bits, following, 0), lambda: self._then(_AND, bits, following))

    def begin(self, position: int) -> None:
        """Let the program start at a position."""
        self._lead_to(position)

    def pack(self) -> bytes:
        """The instructions in the order the kernel wants them."""
        return b"".join(INSTRUCTION.pack(*each) for each in reversed(self._reversed))

    def _once(self, key: tuple[int, int, int, int], write: Callable[[], int]) -> int:
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]

    def _append(self, code: int, constant: int, yes: int = 0, no: int = 0) -> int:
        if len(self._reversed) == LARGEST_PROGRAM:
            raise TooLarge(f"more than {LARGEST_PROGRAM} instructions")
        self._reversed.append((code, yes, no, constant))
        return len(self._reversed) - 1

    def _distance(self, position: int) -> int:
        """What the next instruction to be written has to skip to get to a position."""
        return len(self._reversed) - 1 - self._stand_ins.get(position, position)

    def _branch(self, code: int, constant: int, yes: int, no: int) -> int:
        while far := [each for each in (yes, no) if self._distance(each) > _FARTHEST]:
            self._stand_in(far[0])
        return self._append(code, constant, self._distance(yes), self._distance(no))

    def _then(self, code: int, constant: int, following: int) -> int:
        self._lead_to(following)
        return self._append(code, constant)

    def _lead_to(self, position: int) -> None:
        """See to it that the next instruction to be written runs into a position."""
        if self._distance(position):
            self._stand_in(position)

    def _stand_in(self, position: int) -> None:
        """Write one instruction here that does what a far position does; later jumps use it."""
        code, _, _, constant = self._reversed[position]
        if code == _RETURN:
            self._stand_ins[position] = self._append(code, constant)
        else:
            self._stand_ins[position] = self._append(_JUMP, self._distance(position))
