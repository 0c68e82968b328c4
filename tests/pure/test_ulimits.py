"""Resource limits as users write them."""

from __future__ import annotations

import resource

import pytest

from dockpy.errors import UsageError
from dockpy.model import Ulimit
from dockpy.ulimits import parse, resource_number


@pytest.mark.parametrize(
    ("text", "soft", "hard"),
    [
        ("nofile=1024", 1024, 1024),
        ("nofile=1024:2048", 1024, 2048),
        ("nofile=0", 0, 0),
        ("nofile=-1", -1, -1),
        ("nofile=1024:-1", 1024, -1),
        ("nofile=unlimited", -1, -1),
        ("nofile=9223372036854775807", (1 << 63) - 1, (1 << 63) - 1),
    ],
)
def test_soft_and_hard_limits_are_read(text: str, soft: int, hard: int) -> None:
    assert parse(text) == Ulimit("nofile", soft, hard)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nofile",
        "nofile=",
        "nofile=:5",
        "nofile=5:",
        "nofile=5:6:7",
        "nofile=a",
        "nofile=1.5",
        "nofile=-2",
        "nofile= 5",
        "nofile=\u0665",
        "nofile=9223372036854775808",
        "nofile=" + "9" * 5000,
        "nofile=6:5",
        "nofile=-1:5",
        "nofiles=5",
        "NOFILE=5",
        "=5",
        "x" * 5000,
    ],
)
def test_what_is_no_limit_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_numbers_are_those_of_the_c_library() -> None:
    known = {
        name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
        for name in dir(resource)
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
    }
    assert known
    for name, number in known.items():
        assert resource_number(name) == number
