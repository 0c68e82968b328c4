"""Classic BPF, one instruction at a time, as Documentation/networking/filter.rst tells it.

Also refuses what the kernel's checker (seccomp_check_filter, bpf_check_classic) would refuse of the
instructions our filters may use: jumps out of the program, loads that are not aligned words of
struct seccomp_data, an end without a return.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

INSTRUCTION = struct.Struct("=HBBI")
DATA_SIZE = 64
MOST_INSTRUCTIONS = 4096


class Filter:
    """A packed program; `run` says what it returns, `steps` how long the last run was."""

    def __init__(self, packed: bytes) -> None:
        self.code = list(INSTRUCTION.iter_unpack(packed))
        self.steps = 0
        assert 0 < len(self.code) <= MOST_INSTRUCTIONS
        for at, (code, yes, no, value) in enumerate(self.code):
            if code == 0x05:
                assert at + 1 + value < len(self.code), f"jump out of the program at {at}"
            elif code & 0x07 == 0x05:
                assert at + 1 + max(yes, no) < len(self.code), f"jump out of the program at {at}"
            elif code == 0x20:
                assert value % 4 == 0, f"unaligned load at {at}"
                assert value < DATA_SIZE, f"load beyond the data at {at}"
            else:
                assert code in (0x06, 0x54), f"unexpected instruction {code:#x} at {at}"
        assert self.code[-1][0] == 0x06, "the last instruction is no return"

    def run(self, audit: int, number: int, arguments: Sequence[int] = ()) -> int:
        """The filter's answer to one call; missing arguments are 0."""
        padded = [*arguments, *([0] * (6 - len(arguments)))]
        data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0x400000, *padded)
        accumulator = 0
        at = self.steps = 0
        while True:
            code, yes, no, value = self.code[at]
            self.steps += 1
            at += 1
            if code == 0x06:
                return int(value)
            if code == 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            elif code == 0x54:
                accumulator &= value
            elif code == 0x05:
                at += value
            else:
                test = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                }[code]
                at += yes if test else no
