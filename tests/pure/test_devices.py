"""Device rules, `--device` texts and the programs made of them, without a kernel."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy import devices
from dockpy.devices import DEFAULT_RULES, DeviceRequest, DeviceRule, allows, merged, parse_device
from dockpy.errors import NotFound, UsageError


def answer(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """What the kernel would say: a plain interpreter of the few instructions in use."""
    code = [struct.unpack_from("=BBhi", program, at) for at in range(0, len(program), 8)]
    letters = sum(devices.LETTERS[letter] for letter in access)
    context = {0: devices.KINDS[kind] | letters << 16, 4: major, 8: minor}
    register = dict.fromkeys(range(11), 0)
    at = 0
    while True:
        opcode, registers, offset, immediate = code[at]
        target, source = registers & 15, registers >> 4
        at += 1
        if opcode == 0x61:
            register[target] = context[offset]
        elif opcode == 0xBC:
            register[target] = register[source]
        elif opcode == 0xB4:
            register[target] = immediate
        elif opcode == 0x54:
            register[target] &= immediate
        elif opcode == 0x74:
            register[target] >>= immediate
        elif opcode == 0x55:
            at += offset if register[target] != immediate else 0
        elif opcode == 0x95:
            return register[0]
        else:
            raise AssertionError(f"opcode {opcode:#x}")


ACCESSES = ["".join(each) for n in (1, 2, 3) for each in itertools.combinations("rwm", n)]
PROBES = [
    (kind, major, minor, access)
    for kind in "bc"
    for major in (0, 1, 5, 8, 10, 136, 4095)
    for minor in (0, 1, 2, 3, 200, 1048575)
    for access in ACCESSES
]


@pytest.mark.parametrize(
    "rules",
    [
        (),
        DEFAULT_RULES,
        (*DEFAULT_RULES, DeviceRule("c", 10, 200, "rw"), DeviceRule("b", 8, None, "r")),
        (DeviceRule("b", None, 0, "w"), DeviceRule("b", None, 0, "r")),
        (DeviceRule("c", None, None),),
        (DeviceRule("b", 4095, 1048575, "m"),),
    ],
)
def test_a_program_answers_as_its_rules_mean(rules: tuple[DeviceRule, ...]) -> None:
    program = devices.program(rules)
    for probe in PROBES:
        assert answer(program, *probe) == allows(rules, *probe), probe


@pytest.mark.parametrize("path", ["null", "zero", "full", "random", "urandom", "tty", "ptmx"])
def test_the_default_rules_let_the_harmless_devices_be_used(path: str) -> None:
    status = os.stat(f"/dev/{path}")
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if major == 0 or minor > 100:  # /dev/ptmx can be a link to pts/ptmx, which is 5:2 as well
        major, minor = 5, 2
    assert allows(DEFAULT_RULES, "c", major, minor, "rw")


@pytest.mark.parametrize(
    ("kind", "major", "minor"), [("c", 10, 200), ("c", 1, 1), ("c", 1, 11), ("b", 8, 0)]
)
def test_the_default_rules_let_any_node_be_made_but_not_used(
    kind: str, major: int, minor: int
) -> None:
    assert allows(DEFAULT_RULES, kind, major, minor, "m")
    assert not allows(DEFAULT_RULES, kind, major, minor, "r")
    assert not allows(DEFAULT_RULES, kind, major, minor, "w")


def test_two_rules_for_one_device_allow_their_accesses_together() -> None:
    rules = merged(
        [DeviceRule("c", 10, 1, "w"), DeviceRule("b", 1, 1), DeviceRule("c", 10, 1, "r")]
    )
    assert [str(rule) for rule in rules] == ["c 10:1 rw", "b 1:1 rwm"]


@pytest.mark.parametrize(
    "rule",
    [
        DeviceRule("a", 1, 1),
        DeviceRule("c", -1, 1),
        DeviceRule("c", 1, 1 << 31),
        DeviceRule("c", 1, 1, ""),
        DeviceRule("c", 1, 1, "x"),
    ],
)
def test_a_rule_no_kernel_could_mean_is_refused(rule: DeviceRule) -> None:
    with pytest.raises(ValueError, match="not a device"):
        devices.program([rule])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/dev/sda", DeviceRequest("/dev/sda", "/dev/sda", "rwm")),
        ("/dev/sda:/dev/xvda", DeviceRequest("/dev/sda", "/dev/xvda", "rwm")),
        ("/dev/sda:r", DeviceRequest("/dev/sda", "/dev/sda", "r")),
        ("/dev/sda:/dev/xvda:mr", DeviceRequest("/dev/sda", "/dev/xvda", "rm")),
        ("/dev/snd:/dev//snd/", DeviceRequest("/dev/snd", "/dev/snd", "rwm")),
    ],
)
def test_a_device_text_is_source_target_and_access(text: str, parsed: DeviceRequest) -> None:
    assert parse_device(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "sda", "dev/sda", "/dev/a:b", "/dev/a:/b:x", "/dev/a:/b:rr", "/dev/a:/b:"),
        *("/a:/b:/c:r", "/dev/a:/b/../c", "/dev/\0"),
    ],
)
def test_a_bad_device_text_is_one_clear_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_device(text)
    assert "--device" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_device_is_named() -> None:
    with pytest.raises(NotFound, match="no such device: /dev/absent-device"):
        devices.look_up(parse_device("/dev/absent-device"))


def test_a_plain_file_is_not_a_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a device"):
        devices.look_up(parse_device(str(tmp_path / "file")))


def test_names_that_go_while_a_directory_is_looked_through_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk = os.walk

    def haunted(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for above, directories, names in walk(top):
            yield above, directories, [*names, "gone-by-now"]

    monkeypatch.setattr(os, "walk", haunted)
    found = devices.look_up(parse_device("/dev"))
    assert any(one.target == "/dev/null" for one in found)


def test_a_device_is_looked_up_on_the_host_and_put_where_asked() -> None:
    request = parse_device("/dev/null:/dev/nothing:rw")
    assert request.nodes() == [("/dev/nothing", "c", 1, 3, 0o666)]
    assert devices.requested_rules(["/dev/null:rw"]) == [DeviceRule("c", 1, 3, "rw")]
