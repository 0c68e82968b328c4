"""--filter key=value: values of one key are alternatives, several keys must all fit. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dockpy.errors import UsageError

Filters = Mapping[str, Sequence[str]]


def parse_filter(text: str) -> tuple[str, str]:
    """`key=value`. UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError("key=value expected")
    return key.strip().lower(), value.strip()


def group(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key. UsageError names the keys there are."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        if key not in known:
            raise UsageError(f"--filter {key}={value}: unknown; there are {', '.join(known)}")
        found.setdefault(key, []).append(value)
    return found


def matches_pattern(patterns: Sequence[str], text: str) -> bool:
    """Whether one of the regular expressions is found in the text. UsageError for a bad one."""
    for pattern in patterns:
        try:
            if re.search(pattern, text):
                return True
        except re.error as error:
            raise UsageError(f"--filter {pattern!r}: {error}") from error
    return False


def matches_labels(wanted: Sequence[str], labels: Mapping[str, str]) -> bool:
    """Whether all of `key` or `key=value` are there; labels add up, as Docker has it."""
    for one in wanted:
        key, equals, value = one.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def parse_flag(key: str, values: Sequence[str]) -> bool:
    """The value of a filter that is true or false."""
    chosen = {value.lower() for value in values}
    if chosen <= {"true", "1"}:
        return True
    if chosen <= {"false", "0"}:
        return False
    raise UsageError(f"--filter {key}={values[0]}: true or false expected")
