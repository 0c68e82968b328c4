"""The table of system call numbers, against facts from the manual pages and kernel's tables."""

from __future__ import annotations

import pytest

from dockpy.syscalls import ARCHITECTURES, X32_BIT, numbers

KNOWN = {
    "read": (0, 3, 0, 63, 3),
    "socket": (41, 359, 41, 198, 281),
    "socketcall": (None, 102, None, None, None),
    "openat": (257, 295, 257, 56, 322),
    "rt_sigaction": (13, 174, 512, 134, 174),
    "execve": (59, 11, 520, 221, 11),
    "arch_prctl": (158, 384, 158, None, None),
    "umount": (None, 22, None, None, None),
    "set_tls": (None, None, None, None, 0xF0005),
    "clone3": (435,) * 5,
    "mseal": (462,) * 5,
    "file_setattr": (469,) * 5,
    "uretprobe": (335, None, None, None, None),
}


@pytest.mark.parametrize(("name", "expected"), KNOWN.items(), ids=KNOWN)
def test_a_name_has_its_number_on_every_architecture(
    name: str, expected: tuple[int | None, ...]
) -> None:
    bits = (X32_BIT if each == "x32" else 0 for each in ARCHITECTURES)
    found = [numbers(each).get(name) for each in ARCHITECTURES]
    wanted = zip(expected, bits, strict=True)
    assert found == [None if number is None else number | bit for number, bit in wanted]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tables_have_hundreds_of_names_and_nothing_that_is_no_call(architecture: str) -> None:
    table = numbers(architecture)
    assert 300 < len(table) < 600
    assert not [name for name in table if name != name.lower() or "base" in name.split("_")]
    low = X32_BIT if architecture == "x32" else 0
    assert min(table.values()) == low
    assert max(table.values()) <= low + 0xF0006


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_calls_since_424_have_one_number_everywhere(architecture: str) -> None:
    bit = X32_BIT if architecture == "x32" else 0
    newer = {
        name: number for name, number in numbers("x86_64").items() if 424 <= number != 447
    }  # memfd_secret, 447, is not on 32-bit ARM
    assert (
        newer.items() <= {name: each & ~bit for name, each in numbers(architecture).items()}.items()
    )


def test_a_table_cannot_be_changed_by_who_got_it() -> None:
    with pytest.raises(TypeError):
        numbers("x86_64")["read"] = 1  # type: ignore[index]


def test_an_unknown_architecture_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="riscv"):
        numbers("riscv")
