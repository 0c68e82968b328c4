"""Capabilities by name, and what containers get."""

from __future__ import annotations

from pathlib import Path

import pytest

from dockpy.capabilities import ALL, DEFAULT, LAST_CAPABILITY, mask, mask_of, names
from dockpy.errors import UsageError

KILL, CHOWN, NET_ADMIN, SYS_ADMIN = 1 << 5, 1 << 0, 1 << 12, 1 << 21


def test_default_is_the_documented_list_and_no_others() -> None:
    assert sorted(names(DEFAULT)) == [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]


def test_numbers_are_those_of_the_kernels_header() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    found = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[1].startswith("CAP_"):
            found[words[1]] = words[2]
    assert found.pop("CAP_LAST_CAP") == "CAP_CHECKPOINT_RESTORE"
    for number in range(LAST_CAPABILITY + 1):
        assert found[f"CAP_{names(1 << number)[0]}"] == str(number)


@pytest.mark.parametrize("text", ["KILL", "kill", "CAP_KILL", "cap_kill", "Cap_Kill"])
def test_names_work_with_and_without_their_prefix_in_any_case(text: str) -> None:
    assert mask_of([text]) == KILL


@pytest.mark.parametrize("text", ["", "CAP_", "KILL ", "5", "CAP_CAP_KILL", "KILLS", "ALLS"])
def test_unknown_names_are_refused_wherever_they_stand(text: str) -> None:
    for add, drop, privileged in (
        ([text], [], False),
        (["ALL"], [text], False),
        ([text], [], True),
    ):
        with pytest.raises(UsageError, match="unknown capability") as caught:
            mask(add, drop, privileged)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], DEFAULT),
        (["NET_ADMIN"], [], DEFAULT | NET_ADMIN),
        ([], ["KILL"], DEFAULT & ~KILL),
        ([], ["NET_ADMIN"], DEFAULT),
        (["KILL"], ["KILL"], DEFAULT),
        (["ALL"], [], ALL),
        (["ALL"], ["SYS_ADMIN", "KILL"], ALL & ~SYS_ADMIN & ~KILL),
        ([], ["ALL"], 0),
        (["KILL", "CHOWN"], ["ALL"], KILL | CHOWN),
        (["cap_all"], ["all"], ALL),
        (["ALL"], ["ALL", "KILL"], ALL & ~KILL),
        (["ALL", "KILL"], ["KILL"], ALL & ~KILL),
    ],
)
def test_add_and_drop_follow_dockers_rules(add: list[str], drop: list[str], expected: int) -> None:
    assert mask(add, drop, False) == expected


def test_nobody_gets_what_the_engine_itself_lacks() -> None:
    available = ALL & ~SYS_ADMIN
    assert mask(["SYS_ADMIN"], [], False, available=available) == DEFAULT
    assert mask(["ALL"], [], False, available=available) == available
    assert mask([], [], True, available=available) == available
    assert mask([], [], False, available=0) == 0


def test_privileged_is_everything_whatever_is_dropped() -> None:
    assert mask([], ["ALL"], True) == ALL


def test_privileged_has_capabilities_of_newer_kernels_others_have_not() -> None:
    newer = 1 << (LAST_CAPABILITY + 1)
    assert mask([], [], True, available=ALL | newer) == ALL | newer
    assert mask(["ALL"], [], False, available=ALL | newer) == ALL
    assert names(newer | 1) == ["CHOWN", str(LAST_CAPABILITY + 1)]
