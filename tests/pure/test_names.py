"""Names and identifiers of containers."""

from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.names import generate_id, random_name, truncate_id, validate_id, validate_name


def test_identifiers_are_64_hex_digits_and_differ() -> None:
    found = {generate_id() for _ in range(200)}
    assert len(found) == 200
    assert all(validate_id(each) == each for each in found)


def test_no_short_identifier_looks_like_a_number() -> None:
    assert not any(truncate_id(generate_id()).isdigit() for _ in range(2000))


def test_a_short_identifier_is_its_first_twelve_digits() -> None:
    assert truncate_id("0123456789abcdef" * 4) == "0123456789ab"
    assert truncate_id("short") == "short"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 63,
        "a" * 65,
        "g" * 64,
        "A" * 64,
        "a" * 63 + "\n",
        "a" * 64 + "\n",
        "../" + "a" * 61,
    ],
)
def test_what_is_no_identifier_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="64 lower-case hex digits"):
        validate_id(text)


def test_random_names_are_allowed_and_rarely_the_same() -> None:
    found = [random_name() for _ in range(500)]
    assert all(validate_name(each) == each for each in found)
    assert len(set(found)) > 400


@pytest.mark.parametrize("name", ["ab", "A1", "0a", "web_1", "web.1-b", "a" * 255, "a-"])
def test_names_of_letters_digits_and_three_signs_are_allowed(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "_a",
        ".a",
        "-a",
        "a b",
        "a/b",
        "a\n",
        "ab\n",
        "../x",
        "a" * 256,
        "ä1",
        "a\u0661",
        "a:b",
    ],
)
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="bad container name") as caught:
        validate_name(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
