from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.references import Reference, check_tag, parse, parse_repository

SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", Reference("", "base")),
        ("base:1.0", Reference("", "base", "1.0")),
        ("a__b/c-d.e/f---g", Reference("", "a__b/c-d.e/f---g")),
        ("localhost/base", Reference("localhost", "base")),
        ("localhost:5000/base:x", Reference("localhost:5000", "base", "x")),
        ("example.org/a/b", Reference("example.org", "a/b")),
        ("EXAMPLE/a", Reference("EXAMPLE", "a")),
        ("[2001:db8::1]:5000/a", Reference("[2001:db8::1]:5000", "a")),
        ("a/b", Reference("", "a/b")),
        (f"base@{SHA}", Reference("", "base", "", SHA)),
        (f"h.io:1/base:t@{SHA}", Reference("h.io:1", "base", "t", SHA)),
        ("base:" + "T" * 128, Reference("", "base", "T" * 128)),
        ("a" * 255, Reference("", "a" * 255)),
        ("abcd1234", Reference("", "abcd1234")),
    ],
)
def test_a_valid_name_comes_apart_and_back_together(text: str, expected: Reference) -> None:
    assert parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("Base", "lower case"),
        ("a/Base:x", "lower case"),
        ("base:", "tag is empty"),
        ("base:.x", "must not begin"),
        ("base:-x", "must not begin"),
        ("base:a b", "tag"),
        ("base:" + "x" * 129, "128"),
        ("base@sha256:12", "digest"),
        ("base@", "digest"),
        (f"base@{SHA.upper()}", "digest"),
        ("a//b", "empty part"),
        ("/a", "empty part"),
        ("a/", "empty part"),
        ("a..b", "between them"),
        ("a___b", "between them"),
        ("-a", "between them"),
        ("a_", "between them"),
        ("a b", "between them"),
        ("a\nb", "between them"),
        ("base\n", "between them"),
        ("é", "between them"),
        ("-x.org/a", "not a host name"),
        ("x.org:port/a", "not a host name"),
        ("x.org/", "name is empty"),
        ("a" * 256, "255"),
        ("0" * 64, "image id"),
        (":tag", "empty"),
    ],
)
def test_each_mistake_in_a_name_has_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repository_has_neither_tag_nor_digest() -> None:
    assert parse_repository("h:1/a").repository == "h:1/a"
    for text in ("a:b", f"a@{SHA}"):
        with pytest.raises(UsageError, match="tag or a digest"):
            parse_repository(text)


def test_a_tag_is_given_back_when_it_is_valid() -> None:
    assert check_tag("_v1.0-rc") == "_v1.0-rc"
    with pytest.raises(UsageError):
        check_tag("v1\n")
