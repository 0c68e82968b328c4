"""What a registry asks for in WWW-Authenticate. Pure.

Source: RFC 9110 11.6.1 (challenges), the distribution project's "Token Authentication".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*)(?:\s+|$)")
_PARAMETER = re.compile(
    r"""\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*""", re.DOTALL
)
_LIMIT = 8192


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: `scheme` in lower case, and its parameters, lower case names."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse(headers: Sequence[str]) -> list[Challenge]:
    """The challenges in all WWW-Authenticate headers, as far as they can be understood."""
    found: list[Challenge] = []
    for header in headers:
        rest = header[:_LIMIT]
        while (scheme := _SCHEME.match(rest)) is not None:
            rest = rest[scheme.end() :]
            parameters: dict[str, str] = {}
            while (one := _PARAMETER.match(rest)) is not None:
                quoted = one[2]
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else one[3]
                parameters.setdefault(one[1].lower(), value)
                rest = rest[one.end() :]
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def scopes_of(challenge: Challenge) -> tuple[str, ...]:
    """The scopes a Bearer challenge names."""
    return tuple(challenge.parameters.get("scope", "").split())
