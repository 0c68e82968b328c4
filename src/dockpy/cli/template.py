"""The part of Go's text/template that people use with --format. Pure.

Source: Go's documentation of text/template and fmt, Docker's "Format command and log output".

Values are what JSON has. A plain dict stands for a Go struct: a field it does not have is an error.
A `Map` stands for a Go map: a key it does not have is `<no value>`, and "" through `index`.
Left out: define, template, block, methods, complex and character constants. Decided differently:
`%v` of a struct shows its values in order, as Go does, and None is an empty list, `[]`, because in
what Docker shows null stands for a nil slice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any

from dockpy.errors import UsageError


class Map(dict[str, Any]):
    """A dict whose keys are data, not fields."""


class _NoValue:
    """What a map gives for a key it does not have."""

    def __repr__(self) -> str:
        return "<no value>"


NO_VALUE = _NoValue()
MISSING = object()


class TemplateError(UsageError):
    """A template that does not parse, or does not fit the data; the text has the position."""


def render(template: str, data: object) -> str:
    """The text of `template` for `data`. Raises TemplateError."""
    return compile_template(template).render(data)


@lru_cache(maxsize=128)
def compile_template(template: str) -> Template:
    """A template to be rendered many times. Raises TemplateError."""
    try:
        return Template(template)
    except RecursionError:
        raise TemplateError("template: it is nested too deeply") from None


# -- words ---------------------------------------------------------------------------------------

_ACTION = re.compile(r"\{\{(-(?=\s))?")
_COMMENT = re.compile(r"\s*/\*.*?\*/\s*?((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<raw>`[^`]*`)
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+))
    | (?P<field>\.[A-Za-z_]\w*)
    | (?P<variable>\$\w*)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<mark>:=|[=|(),.])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_BLOCKS = frozenset({"range", "if", "with"})
_UNSUPPORTED = frozenset({"define", "template", "block"})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int
    spaced: bool
    """Whether white space stands before it: `.A .B` are two operands, `.A.B` is one."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text between actions, or the tokens of one action."""

    at: int
    text: str = ""
    tokens: tuple[_Token, ...] | None = None


def _split(source: str) -> Iterator[_Piece]:
    """Text and actions in turn, white space trimmed as the actions ask."""
    position, trim = 0, False
    while True:
        action = _ACTION.search(source, position)
        text = source[position : action.start() if action else len(source)]
        if trim:
            text = text.lstrip()
        if action and action[1]:
            text = text.rstrip()
        if text:
            yield _Piece(position, text)
        if action is None:
            return
        comment = _COMMENT.match(source, action.end())
        if comment is not None:
            position, trim = comment.end(), bool(comment[1])
            continue
        tokens, position, trim = _tokens(source, action.end())
        yield _Piece(action.start(), tokens=tokens)


def _tokens(source: str, position: int) -> tuple[tuple[_Token, ...], int, bool]:
    """The tokens up to the closing braces, the position after them, and whether to trim there."""
    found: list[_Token] = []
    start, spaced = position, False
    while True:
        if source.startswith("}}", position):
            return tuple(found), position + 2, False
        if spaced and source.startswith("-}}", position):
            return tuple(found), position + 3, True
        match = _TOKEN.match(source, position)
        if match is None:
            if position >= len(source):
                raise _error(source, start, "the action is not closed; }} is missing")
            what = "the string is not closed" if source[position] in '"`' else "unexpected"
            raise _error(source, position, f"{what}: {source[position : position + 10]!r}")
        kind = str(match.lastgroup)
        if kind != "space":
            found.append(_Token(kind, match[0], position, spaced))
        spaced = kind == "space"
        position = match.end()


def _error(source: str, at: int, what: str) -> TemplateError:
    line = source.count("\n", 0, at) + 1
    column = at - (source.rfind("\n", 0, at) + 1) + 1
    where = f"line {line}, column {column}" if "\n" in source else f"column {column}"
    return TemplateError(f"template, {where}: {what}")


def _unquote(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU":
            return chr(int(code[1:], 16))
        if code[0].isdigit():
            return chr(int(code, 8))
        return _ESCAPES.get(code, code)

    return _ESCAPE.sub(replace, text[1:-1])


# -- tree ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Frame:
    """What an expression may refer to."""

    dot: Any
    variables: dict[str, Any]
    write: Callable[[str], None]

    def inner(self, dot: Any) -> _Frame:
        """A block's: it sees the outer variables, its own end with it."""
        return _Frame(dot, _Scope(self.variables), self.write)


class _Scope(dict[str, Any]):
    """Variables of one block before those around it."""

    def __init__(self, outer: dict[str, Any]) -> None:
        super().__init__()
        self.outer = outer

    def __missing__(self, name: str) -> Any:
        return self.outer[name]

    def assign(self, name: str, value: Any) -> None:
        """Change the variable where it was declared."""
        if name in self or not isinstance(self.outer, _Scope):
            (self if name in self else self.outer)[name] = value
        else:
            self.outer.assign(name, value)


type_of = {bool: "bool", int: "int", float: "float", str: "string", type(None): "nil"}
Evaluate = Callable[[_Frame], Any]
Action = Callable[[_Frame], None]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass(slots=True)
class _Parser:
    """Recursive descent over the pieces; makes closures that render."""

    source: str
    pieces: list[_Piece] = field(default_factory=list)
    next: int = 0
    names: list[set[str]] = field(default_factory=lambda: [{"$"}])
    loops: int = 0

    # blocks

    def body(self, ends: tuple[str, ...], opened: int = 0) -> tuple[list[Action], _Piece | None]:
        """Actions up to one of `ends`, whose piece is given back."""
        actions: list[Action] = []
        while self.next < len(self.pieces):
            piece = self.pieces[self.next]
            self.next += 1
            if piece.tokens is None:
                actions.append(_text(piece.text))
                continue
            if not piece.tokens:
                raise _error(self.source, piece.at, "the action is empty")
            word = piece.tokens[0].text if piece.tokens[0].kind == "word" else ""
            if word in ("end", "else"):
                if word in ends:
                    return actions, piece
                raise _error(self.source, piece.at, f"unexpected {word}")
            actions.append(self.action(piece, piece.tokens, word))
        if ends:
            raise _error(self.source, opened, "the block is not closed; {{end}} is missing")
        return actions, None

    def action(self, piece: _Piece, tokens: tuple[_Token, ...], word: str) -> Action:
        if word in _BLOCKS:
            return self.block(word, piece, tokens[1:])
        if word in _UNSUPPORTED:
            raise _error(self.source, piece.at, f"{word} is not available here")
        if word in ("break", "continue") and len(tokens) == 1:
            if not self.loops:
                raise _error(self.source, piece.at, f"{word} outside range")
            return _raiser(_Break if word == "break" else _Continue)
        line = _Line(self, tokens, piece.at)
        names, declare = line.declaration()
        if len(names) > 1:
            raise _error(self.source, piece.at, "too many variables")
        value = line.pipeline()
        line.finish()
        if not names:
            return lambda frame: frame.write(to_text(value(frame)))
        name = names[0]
        if declare:
            self.names[-1].add(name)

            def declare_it(frame: _Frame) -> None:
                frame.variables[name] = value(frame)

            return declare_it
        self.require(name, piece.at)

        def assign_it(frame: _Frame) -> None:
            if isinstance(frame.variables, _Scope):
                frame.variables.assign(name, value(frame))
            else:
                frame.variables[name] = value(frame)

        return assign_it

    def block(self, word: str, piece: _Piece, tokens: tuple[_Token, ...]) -> Action:
        self.names.append(set())
        line = _Line(self, tokens, piece.at)
        names, _ = line.declaration(two=word == "range")
        value = line.pipeline()
        line.finish()
        self.names[-1].update(names)
        self.loops += word == "range"
        inside, end = self.body(("end", "else"), piece.at)
        self.loops -= word == "range"
        otherwise: list[Action] = []
        if end is not None and end.tokens and end.tokens[0].text == "else":
            rest = end.tokens[1:]
            if rest:
                if rest[0].text not in ("if", "with"):
                    raise _error(self.source, end.at, f"unexpected {rest[0].text!r} after else")
                otherwise = [self.block(rest[0].text, end, rest[1:])]
            else:
                otherwise, last = self.body(("end",), piece.at)
                if last is not None and last.tokens is not None and len(last.tokens) > 1:
                    raise _error(self.source, last.at, "unexpected words after end")
        self.names.pop()
        if word == "range":
            return _range(self.source, piece.at, names, value, inside, otherwise)
        return _choice(names, value, inside, otherwise, move_dot=word == "with")

    def require(self, name: str, at: int) -> None:
        if not any(name in scope for scope in self.names):
            raise _error(self.source, at, f"undefined variable {name}")


@dataclass(slots=True)
class _Line:
    """The expression of one action."""

    parser: _Parser
    tokens: tuple[_Token, ...]
    at: int
    next: int = 0

    def peek(self) -> _Token | None:
        return self.tokens[self.next] if self.next < len(self.tokens) else None

    def error(self, what: str, token: _Token | None = None) -> TemplateError:
        return _error(self.parser.source, token.at if token else self.at, what)

    def finish(self) -> None:
        token = self.peek()
        if token is not None:
            raise self.error(f"unexpected {token.text!r}", token)

    def declaration(self, *, two: bool = False) -> tuple[list[str], bool]:
        """The variables before := or =, and whether they are new."""
        texts = [token.text for token in self.tokens[:4]]
        kinds = [token.kind for token in self.tokens[:4]]
        if kinds[:1] == ["variable"] and texts[1:2] in ([":="], ["="]):
            self.next = 2
            return texts[:1], texts[1] == ":="
        if two and kinds[:1] == ["variable"] and texts[1:2] == [","] and texts[3:4] == [":="]:
            self.next = 4
            return [texts[0], texts[2]], True
        return [], False

    def pipeline(self) -> Evaluate:
        value = self.command(None)
        while (token := self.peek()) is not None and token.text == "|":
            self.next += 1
            value = self.command(value)
        return value

    def command(self, piped: Evaluate | None) -> Evaluate:
        """A function with its arguments, or one operand."""
        token = self.peek()
        if token is None or (token.kind == "mark" and token.text not in "(."):
            raise self.error("a value is missing", token)
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            self.next += 1
            return self.call(token, piped)
        value = self.operand()
        if piped is None and not self.starts_operand(self.peek()):
            return value
        if token.kind not in ("field", "variable"):
            raise self.error(f"{token.text!r} takes no arguments; it is not a function", token)
        return self.method(token, value, piped)

    def method(self, token: _Token, value: Evaluate, piped: Evaluate | None) -> Evaluate:
        """A field with arguments: it must hold a function."""
        arguments = self.arguments(piped)

        def evaluate(frame: _Frame) -> Any:
            found = value(frame)
            if not callable(found):
                raise self.error(f"{token.text!r} takes no arguments; it is not a function", token)
            return found(*(argument(frame) for argument in arguments))

        return evaluate

    def arguments(self, piped: Evaluate | None) -> list[Evaluate]:
        found: list[Evaluate] = []
        while self.starts_operand(self.peek()):
            found.append(self.operand())
        return [*found, piped] if piped is not None else found

    def call(self, token: _Token, piped: Evaluate | None) -> Evaluate:
        arguments = self.arguments(piped)
        source, at, name = self.parser.source, token.at, token.text
        if name in ("and", "or"):
            if not arguments:
                raise self.error(f"{name} needs a value", token)
            return _short_circuit(name, arguments)
        function = FUNCTIONS.get(name)
        if function is None:
            raise self.error(f"there is no function {name!r}", token)

        def evaluate(frame: _Frame) -> Any:
            values = [argument(frame) for argument in arguments]
            try:
                return function(*values)
            except TemplateError as error:
                raise _error(source, at, f"{name}: {error}") from error
            except TypeError as error:
                raise _error(source, at, f"{name}: these arguments do not fit") from error
            except (ValueError, IndexError, KeyError, OverflowError) as error:
                raise _error(source, at, f"{name}: {error}") from error

        return evaluate

    def starts_operand(self, token: _Token | None) -> bool:
        return token is not None and (token.kind != "mark" or token.text in "(.")

    def operand(self) -> Evaluate:
        token = self.peek()
        if token is None:
            raise self.error("a value is missing")
        self.next += 1
        value = self.simple(token)
        fields: list[_Token] = [token] if token.kind == "field" else []
        while (more := self.peek()) is not None and more.kind == "field" and not more.spaced:
            if token.kind in ("string", "raw", "number"):
                raise self.error(f"{token.text} has no fields", more)
            self.next += 1
            fields.append(more)
        if not fields:
            return value
        return _fields(self.parser.source, value, fields)

    def simple(self, token: _Token) -> Evaluate:
        constant: Any = MISSING
        if token.kind in ("field",) or token.text == ".":
            return lambda frame: frame.dot
        if token.kind == "variable":
            name = token.text
            self.parser.require(name, token.at)
            return lambda frame: frame.variables[name]
        if token.text == "(":
            value = self.pipeline()
            close = self.peek()
            if close is None or close.text != ")":
                raise self.error("the parenthesis is not closed", token)
            self.next += 1
            return value
        if token.kind == "string":
            constant = _unquote(token.text)
        elif token.kind == "raw":
            constant = token.text[1:-1]
        elif token.kind == "number":
            constant = _number(token.text)
        elif token.text in ("true", "false"):
            constant = token.text == "true"
        elif token.text == "nil":
            constant = None
        elif token.kind == "word":
            return self.call_without_arguments(token)
        if constant is MISSING:
            raise self.error(f"unexpected {token.text!r}", token)
        return lambda _frame: constant

    def call_without_arguments(self, token: _Token) -> Evaluate:
        raise self.error(f"put ( ) around {token.text!r} and its arguments", token)


def _number(text: str) -> int | float:
    if text.lower().lstrip("+-").startswith("0x"):
        return int(text, 16)
    return float(text) if any(one in text for one in ".eE") else int(text)


def _text(text: str) -> Action:
    return lambda frame: frame.write(text)


def _raiser(kind: type[Exception]) -> Action:
    def act(_frame: _Frame) -> None:
        raise kind

    return act


def _fields(source: str, value: Evaluate, fields: Sequence[_Token]) -> Evaluate:
    def evaluate(frame: _Frame) -> Any:
        found = value(frame)
        for token in fields:
            found = _field(source, found, token)
        return found

    return evaluate


def _field(source: str, value: Any, token: _Token) -> Any:
    name = token.text[1:]
    if isinstance(value, Map):
        return value.get(name, NO_VALUE)
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        raise _error(source, token.at, f"there is no field {name}")
    if value is NO_VALUE or value is None:
        raise _error(source, token.at, f"no field {name}: what stands before it has no value")
    kind = type_of.get(type(value), "list")
    raise _error(source, token.at, f"no field {name}: what stands before it is a {kind}")


def _short_circuit(name: str, arguments: Sequence[Evaluate]) -> Evaluate:
    stop_at = name == "or"

    def evaluate(frame: _Frame) -> Any:
        value: Any = None
        for argument in arguments:
            value = argument(frame)
            if truth(value) is stop_at:
                break
        return value

    return evaluate


def _choice(
    names: Sequence[str],
    value: Evaluate,
    inside: Sequence[Action],
    otherwise: Sequence[Action],
    *,
    move_dot: bool,
) -> Action:
    def act(frame: _Frame) -> None:
        inner = frame.inner(frame.dot)
        found = value(frame)
        for name in names:
            inner.variables[name] = found
        chosen = inside if truth(found) else otherwise
        if move_dot and chosen is inside:
            inner.dot = found
        for action in chosen:
            action(inner)

    return act


def _range(
    source: str,
    at: int,
    names: Sequence[str],
    value: Evaluate,
    inside: Sequence[Action],
    otherwise: Sequence[Action],
) -> Action:
    def act(frame: _Frame) -> None:
        found = value(frame)
        pairs = _pairs(found)
        if pairs is None:
            raise _error(source, at, f"range cannot go over {to_text(found)}")
        for key, one in pairs:
            inner = frame.inner(one)
            if names:
                inner.variables[names[-1]] = one
            if len(names) == 2:
                inner.variables[names[0]] = key
            try:
                for action in inside:
                    action(inner)
            except _Continue:
                continue
            except _Break:
                break
        if not pairs:
            inner = frame.inner(frame.dot)
            for action in otherwise:
                action(inner)

    return act


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if value is None or value is NO_VALUE:
        return []
    return None


class Template:
    """A parsed template."""

    def __init__(self, source: str) -> None:
        self.source = source
        parser = _Parser(source)
        parser.pieces = list(_split(source))
        self._actions, _ = parser.body(())

    def render(self, data: object) -> str:
        """The text for `data`. Raises TemplateError."""
        parts: list[str] = []
        frame = _Frame(data, {"$": data}, parts.append)
        for action in self._actions:
            action(frame)
        return "".join(parts)


# -- values --------------------------------------------------------------------------------------


def truth(value: Any) -> bool:
    """Go's rule: false, 0, "", nil and empty lists and maps are false; a struct is true."""
    if isinstance(value, Map) or not isinstance(value, Mapping):
        return value is not NO_VALUE and bool(value)
    return True


def to_text(value: Any) -> str:
    """As fmt's %v."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "[]"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Map):
        return "map[" + " ".join(f"{key}:{to_text(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Mapping):
        return "{" + " ".join(to_text(one) for one in value.values()) + "}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(to_text(one) for one in value) + "]"
    return str(value)


def _float(value: float) -> str:
    """Go's %v: the fewest digits; with an exponent below 1e-04 and from 1e+06 on."""
    mantissa, _, exponent = f"{Decimal(repr(value)).normalize():e}".partition("e")
    power = int(exponent or 0)
    if -4 <= power < 6:
        return repr(value).removesuffix(".0")
    return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"


def to_json(value: Any) -> str:
    """One line, as Docker's `json` function; a struct's functions are left out."""
    if value is NO_VALUE:
        value = None
    elif isinstance(value, Mapping):
        value = {key: one for key, one in value.items() if not callable(one)}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# -- functions -----------------------------------------------------------------------------------


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None or value is NO_VALUE:
            raise TemplateError("there is nothing to look in")
        if isinstance(value, Map):
            value = value.get(_string(key), "")
        elif isinstance(value, Mapping):
            if key not in value:
                raise TemplateError(f"there is no field {key}")
            value = value[key]
        elif isinstance(value, list | tuple | str):
            if not isinstance(key, int) or isinstance(key, bool):
                raise TemplateError(f"{to_text(key)!r} is not a number")
            if not 0 <= key < len(value):
                raise TemplateError(f"index {key} is out of range, there are {len(value)}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        else:
            raise TemplateError(f"{to_text(value)!r} has no parts")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, str | list | tuple) or len(bounds) > 2:
        raise TemplateError("a text or a list, and up to two numbers expected")
    start, end = (*bounds, *(0, len(value))[len(bounds) :])
    if not 0 <= start <= end <= len(value):
        raise TemplateError(f"{start}:{end} is out of range, there are {len(value)}")
    return value[start:end]


def _len(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Map | list | tuple):
        return len(value)
    raise TemplateError(f"{to_text(value)!r} has no length")


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"{to_text(value)!r} is not a text")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "int" if isinstance(value, int) else "float"
    return "text" if isinstance(value, str) else "other"


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None or NO_VALUE in (left, right):
        return left is right
    if _kind(left) != _kind(right):
        raise TemplateError(f"{to_text(left)!r} and {to_text(right)!r} are of different kinds")
    return bool(left == right)


def _less(left: Any, right: Any) -> bool:
    if _kind(left) != _kind(right) or _kind(left) not in ("int", "float", "text"):
        raise TemplateError(f"{to_text(left)!r} and {to_text(right)!r} cannot be compared")
    return bool(left < right)


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("it needs two values")
    return any(_same(first, other) for other in others)


_VERB = re.compile(r"%([-+# 0]*)(\d+)?(?:\.(\d*))?([a-zA-Z%])")


def _printf(form: str, *values: Any) -> str:
    rest = list(values)

    def replace(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        text = _format(flags, precision, verb, rest.pop(0))
        if width is None or len(text) >= int(width):
            return text
        if "-" in flags:
            return text.ljust(int(width))
        if "0" in flags and verb in "dfxXo":
            return text.zfill(int(width))
        return text.rjust(int(width))

    text = _VERB.sub(replace, _string(form))
    if rest:
        extra = ", ".join(f"{_go_type(one)}={to_text(one)}" for one in rest)
        text += f"%!(EXTRA {extra})"
    return text


def _go_type(value: Any) -> str:
    return type_of.get(type(value), "[]interface {}")


def _format(flags: str, precision: str | None, verb: str, value: Any) -> str:
    digits = None if precision is None else int(precision or 0)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if verb == "v" or (verb == "t" and isinstance(value, bool)):
        return to_text(value)
    if verb == "s" and not isinstance(value, bool | int | float):
        return to_text(value)[:digits]
    if verb == "q" and isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if verb == "q" and isinstance(value, list | tuple):
        return "[" + " ".join(_format("", None, "q", one) for one in value) + "]"
    if verb == "c" and is_integer:
        return chr(value)
    if verb in "dxXo" and is_integer:
        return f"{value:{'+' if '+' in flags else ''}{verb}}"
    if verb in "xX" and isinstance(value, str):
        return value.encode().hex().upper() if verb == "X" else value.encode().hex()
    if verb in "feg" and isinstance(value, float):
        if verb == "g" and digits is None:
            return _float(value)
        return f"{value:{'+' if '+' in flags else ''}.{6 if digits is None else digits}{verb}}"
    return f"%!{verb}({_go_type(value)}={to_text(value)})"


def _print(*values: Any) -> str:
    """fmt.Sprint: a space between two operands when neither is a text."""
    text = ""
    for position, value in enumerate(values):
        before = values[position - 1] if position else ""
        if not isinstance(value, str) and not isinstance(before, str):
            text += " "
        text += to_text(value)
    return text


def _join(values: Any, separator: str = "") -> str:
    if values is None:
        return ""
    if isinstance(values, str | Mapping):
        raise TemplateError("a list expected")
    return separator.join(_string(one) for one in values)


def _truncate(text: str, length: int) -> str:
    return _string(text)[: max(length, 0)]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "index": _index,
    "slice": _slice,
    "len": _len,
    "not": lambda value: not truth(value),
    "eq": _eq,
    "ne": lambda left, right: not _same(left, right),
    "lt": _less,
    "le": lambda left, right: _less(left, right) or _same(left, right),
    "gt": lambda left, right: _less(right, left),
    "ge": lambda left, right: not _less(left, right),
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(to_text(one) for one in values) + "\n",
    "join": _join,
    "split": lambda text, separator: _string(text).split(_string(separator)),
    "upper": lambda text: _string(text).upper(),
    "lower": lambda text: _string(text).lower(),
    "title": lambda text: re.sub(r"(?<![\w'])[^\W\d_]", lambda m: m[0].upper(), _string(text)),
    "truncate": _truncate,
    "pad": _pad,
}
