r"""Words of a Dockerfile's instruction: quotes, backslashes and variables. Pure.

Outside quotes a backslash keeps the next character from meaning anything; in double quotes it does
so before `"`, `$` and `\` only; in single quotes nothing means anything. `$NAME` and `${NAME}` are
replaced by the variable's value, or nothing when it is not set; `${NAME:-OTHER}` is OTHER when it
is not set or empty, `${NAME:+OTHER}` when it is neither. What a variable holds is taken as it is:
it is not cut at spaces, and quotes in it are ordinary.
Source: the reference of the Dockerfile format, "Environment replacement" and "ENV"; Docker 20.10's
answers to `commit --change`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dockpy.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NESTING = 20
"""Levels of `${A:-${B:-...}}`; who needs more has an endless one."""


def split_words(text: str) -> list[str]:
    """The words between spaces that are neither quoted nor behind a backslash, as written.

    UsageError for a quote that is not closed.
    """
    words: list[str] = []
    began, quote, place = -1, "", 0
    while place < len(text):
        char = text[place]
        if not quote and char.isspace():
            if began >= 0:
                words.append(text[began:place])
            began = -1
        else:
            began = place if began < 0 else began
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            if char == "\\" and quote != "'":
                place += 1
        place += 1
    if quote:
        raise UsageError("No closing quotation")
    return [*words, text[began:]] if began >= 0 else words


def expand(text: str, variables: Mapping[str, str]) -> str:
    """What a word, as written, means: no quotes, and variables replaced.

    UsageError for a quote or brace that is not closed, and for another sign than `:-` and `:+`.
    """
    return _Reader(text, variables).read()


class _Reader:
    """One text being read; `place` is where."""

    def __init__(self, text: str, variables: Mapping[str, str], level: int = 0) -> None:
        if level > _LONGEST_NESTING:
            raise UsageError("variables in variables go too deep")
        self._text = text
        self._variables = variables
        self._level = level
        self._place = 0

    def read(self) -> str:
        parts: list[str] = []
        quote = ""
        while self._place < len(self._text):
            char = self._text[self._place]
            self._place += 1
            if char == quote:
                quote = ""
            elif quote == "'":
                parts.append(char)
            elif char in "'\"" and not quote:
                quote = char
            elif char == "\\":
                parts.append(self._behind_backslash(quote))
            elif char == "$":
                parts.append(self._variable())
            else:
                parts.append(char)
        if quote:
            raise UsageError("No closing quotation")
        return "".join(parts)

    def _behind_backslash(self, quote: str) -> str:
        if self._place == len(self._text):
            return "\\"
        char = self._text[self._place]
        if quote and char not in '"$\\':
            return "\\"
        self._place += 1
        return char

    def _variable(self) -> str:
        if self._text.startswith("{", self._place):
            return self._braces()
        found = _NAME.match(self._text, self._place)
        if found is None:
            return "$"
        self._place = found.end()
        return self._variables.get(found[0], "")

    def _braces(self) -> str:
        start = self._place + 1
        end = self._closing_brace(start)
        found = _NAME.match(self._text, start, end)
        if found is None:
            raise UsageError(f"'${{{self._text[start:end]}}}': the name of a variable expected")
        self._place = end + 1
        value = self._variables.get(found[0], "")
        sign, other = self._text[found.end() : end][:2], self._text[found.end() : end][2:]
        if not sign:
            return value
        if sign not in (":-", ":+"):
            raise UsageError(f"'${{{self._text[start:end]}}}': only :- and :+ may follow a name")
        if bool(value) == (sign == ":-"):
            return value
        return _Reader(other, self._variables, self._level + 1).read()

    def _closing_brace(self, start: int) -> int:
        depth = 1
        for place in range(start, len(self._text)):
            if self._text[place] == "{":
                depth += 1
            elif self._text[place] == "}":
                depth -= 1
                if depth == 0:
                    return place
        raise UsageError("a '${' is not closed by '}'")
