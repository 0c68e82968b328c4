"""Signals by name and number."""

from __future__ import annotations

import signal

import pytest

from dockpy.errors import UsageError
from dockpy.signals import parse_signal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("KILL", 9),
        ("SIGKILL", 9),
        ("kill", 9),
        ("SigTerm", 15),
        ("9", 9),
        ("09", 9),
        (" 9 ", 9),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMIN+0", 34),
        ("RTMIN+30", 64),
        ("RTMAX", 64),
        ("RTMAX-1", 63),
        ("rtmax-30", 34),
        ("32", 32),
        ("CLD", 17),
        ("POLL", 29),
        ("IOT", 6),
    ],
)
def test_names_and_numbers_are_understood(text: str, number: int) -> None:
    assert parse_signal(text) == number


def test_every_signal_python_knows_is_known_by_name() -> None:
    for name, one in signal.Signals.__members__.items():
        assert parse_signal(name) == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65",
        "-1",
        "+9",
        "1.5",
        "SIG",
        "SIG9",
        "KILLS",
        "SIGSIGKILL",
        "RTMIN+31",
        "RTMIN-1",
        "RTMAX+1",
        "RTMAX-31",
        "RTMIN+",
        "RTMIN+x",
        "\u0669",
        "9" * 5000,
    ],
)
def test_what_is_no_signal_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal") as caught:
        parse_signal(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
