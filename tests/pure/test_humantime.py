"""Durations and sizes in the words Docker's users know."""

from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.humantime import human_duration, human_size, parse_size

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (0, "Less than a second"),
        (0.999, "Less than a second"),
        (float("nan"), "Less than a second"),
        (1, "1 second"),
        (1.9, "1 second"),
        (2, "2 seconds"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119.9, "About a minute"),
        (120, "2 minutes"),
        (59 * MINUTE + 59, "59 minutes"),
        (HOUR, "About an hour"),
        (1.5 * HOUR - 1, "About an hour"),
        (1.5 * HOUR, "2 hours"),
        (2.5 * HOUR, "3 hours"),
        (47 * HOUR, "47 hours"),
        (47.5 * HOUR, "2 days"),
        (2 * DAY, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
        (3650 * DAY, "10 years"),
    ],
)
def test_durations_have_dockers_wording(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("100", 100),
        ("100b", 100),
        ("64k", 64 << 10),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("512MB", 512 << 20),
        ("512MiB", 512 << 20),
        ("1g", 1 << 30),
        ("1.5g", 3 << 29),
        ("1 g", 1 << 30),
        (" 1g ", 1 << 30),
        ("2t", 2 << 40),
        ("1p", 1 << 50),
        ("0.1k", 102),
        ("9007199254740993", 9007199254740993),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes_are_read_to_the_byte(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "-1",
        "1x",
        "1mm",
        "1bm",
        "1..5g",
        "1.g",
        "1,5g",
        "0x10",
        "1e3",
        "inf",
        "\u0661k",
        "9223372036854775808",
        "8192p",
        "9" * 400,
        "1\n2",
    ],
)
def test_what_is_no_size_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError, match="bad size") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (5, "5B"),
        (999, "999B"),
        (1000, "1kB"),
        (1234, "1.23kB"),
        (206_000_000, "206MB"),
        (117_400_000, "117MB"),
        (1_500_000_000, "1.5GB"),
        (999_600, "1MB"),
        (999_999_999, "1GB"),
        (2e12, "2TB"),
        (3e15, "3PB"),
        (5e18, "5000PB"),
    ],
)
def test_sizes_are_shown_with_three_digits(size: float, text: str) -> None:
    assert human_size(size) == text
