"""Writes the table of system call numbers in src/dockpy/syscalls.py.

    python tools/update_syscalls.py [--arm-include DIR] [--check]

Numbers come from the kernel's headers by way of the C preprocessor: linux-libc-dev of an x86_64
host has x86_64, i386 and x32, and asm-generic/unistd.h is aarch64's table. 32-bit ARM needs the
headers of another package (linux-libc-dev-armhf-cross, its `include` directory as --arm-include);
without it, the column already in the file is kept. Calls newer than the headers are listed below.
--check writes nothing and exits with status 1 when the file differs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "src/dockpy/syscalls.py"
BEGIN = '_TABLE = """\\\n'
END = '"""  # end of the generated part\n'
COLUMNS = ("x86_64", "i386", "x32", "aarch64", "arm")
X32_BIT = 1 << 30

# Every call since 424 has the same number on every architecture (syscalls(2), the tables of the
# kernel's source). These are the ones Linux got between 6.1, whose headers are common, and 6.17.
NEWER = {
    name: number
    for number, name in enumerate(
        (
            "cachestat",
            "fchmodat2",
            "map_shadow_stack",
            "futex_wake",
            "futex_wait",
            "futex_requeue",
            "statmount",
            "listmount",
            "lsm_get_self_attr",
            "lsm_set_self_attr",
            "lsm_list_modules",
            "mseal",
            "setxattrat",
            "getxattrat",
            "listxattrat",
            "removexattrat",
            "open_tree_attr",
            "file_getattr",
            "file_setattr",
        ),
        451,
    )
}
NEWER_X86_64 = {"uretprobe": 335, "uprobe": 336}

# What arch/arm64/include/uapi/asm/unistd.h defines before it includes the generic table.
AARCH64_WANTS = (
    "__ARCH_WANT_RENAMEAT",
    "__ARCH_WANT_NEW_STAT",
    "__ARCH_WANT_SET_GET_RLIMIT",
    "__ARCH_WANT_TIME32_SYSCALLS",
    "__ARCH_WANT_SYS_CLONE3",
    "__ARCH_WANT_MEMFD_SECRET",
)
NOT_CALLS = frozenset(
    {
        "syscalls",
        "arch_specific_syscall",
        "SYSCALL_BASE",
        "OABI_SYSCALL_BASE",
        "SYSCALL_MASK",
        "BASE",
    }
)
_DEFINE = re.compile(r"#define (\w+) (.+)")
_WORD = re.compile(r"[A-Za-z_]\w*")
_NAME = re.compile(r"__(?:ARM_)?NR_(\w+)\Z")


def macros(header: str, flags: Sequence[str]) -> dict[str, str]:
    """Every object-like macro after including `header`. CalledProcessError without a compiler."""
    result = subprocess.run(
        ["cc", "-E", "-dM", *flags, "-"],
        input=f"#include <{header}>\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = (_DEFINE.match(line) for line in result.stdout.splitlines())
    return {match[1]: match[2] for match in found if match}


def value(text: str, known: Mapping[str, str]) -> int:
    """A sum of numbers and macros. ValueError when it is anything else."""
    while names := set(_WORD.findall(re.sub(r"0x[0-9a-fA-F]+", "0", text))):
        for name in names:
            if name not in known:
                raise ValueError(text)
            text = re.sub(rf"\b{name}\b", f"({known[name]})", text)
    return sum(int(term, 0) for term in re.sub(r"[()\s]", "", text).split("+"))


def column(header: str, *flags: str) -> dict[str, int]:
    """Names and numbers of one architecture."""
    known = macros(header, flags)
    found = {}
    for macro, text in known.items():
        match = _NAME.match(macro)
        if match and match[1] not in NOT_CALLS and not macro.startswith("__NR3264_"):
            found[match[1]] = value(text, known)
    return found


def columns(arm_include: Path | None, kept: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """All architectures, newer names added where the headers lack them."""
    wants = [f"-D{want}" for want in AARCH64_WANTS]
    arm = (
        column("asm/unistd.h", "-D__ARM_EABI__", "-nostdinc", f"-I{arm_include}")
        if arm_include
        else dict(kept)
    )
    found = {
        "x86_64": NEWER_X86_64 | column("asm/unistd_64.h"),
        "i386": column("asm/unistd_32.h"),
        "x32": column("asm/unistd_x32.h", f"-D__X32_SYSCALL_BIT={X32_BIT:#x}"),
        "aarch64": column("asm-generic/unistd.h", *wants),
        "arm": arm,
    }
    for name, numbers in found.items():
        bit = X32_BIT if name == "x32" else 0
        found[name] = {call: number + bit for call, number in NEWER.items()} | numbers
    return found


def table(found: Mapping[str, Mapping[str, int]]) -> str:
    """One line for each name: its number in every column, `-` where it has none."""
    names = sorted(set().union(*found.values()))
    lines = []
    for name in names:
        numbers = (found[each].get(name) for each in COLUMNS)
        cells = ["-" if number is None else str(number) for number in numbers]
        if cells[2] != "-":
            cells[2] = str(int(cells[2]) - X32_BIT)
        lines.append(" ".join([name, *cells]))
    return "\n".join(lines) + "\n"


def kept_column(text: str, name: str) -> dict[str, int]:
    """A column as the file has it."""
    at = COLUMNS.index(name) + 1
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: int(row[at]) for row in rows if len(row) > at and row[at] != "-"}


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description="Update the table of system call numbers.")
    parser.add_argument("--arm-include", type=Path, help="headers of 32-bit ARM")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if stale")
    wanted = parser.parse_args(argv)
    text = TARGET.read_text()
    head, old = text.split(BEGIN)
    old, tail = old.split(END)
    new = table(columns(wanted.arm_include, kept_column(old, "arm")))
    if wanted.check:
        print("up to date" if new == old else f"{TARGET} is not what the headers say")
        return int(new != old)
    TARGET.write_text(head + BEGIN + new + END + tail)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
