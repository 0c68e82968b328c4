"""Commands: click's option tables with a parser of our own.

click declares, types and documents the options; it does not parse them here, because its parser
visits every option of the command for every call (0.7 ms for `run`, see
docs/decisions/0005-cli-parsing.md) and does not know the spellings of 2013. The rules:

- `--name value`, `--name=value`; the same with one dash (`-dns 1.2.3.4`, `-attach=stdin`), as Go's
  flag package had it: a word that is exactly a long name is that option, never letters.
- `-n 5`, `-n5`, `-n=5`, `-a=true`; letters can be joined: `-it`, `-itv /a:/b`.
- Switches take a value after `=` only, in the words of Go's strconv.ParseBool.
- `--` ends the options; so does the first operand where `interspersed` is False.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import click

from dockpy.errors import UsageError

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
HELP = ("--help",)


class ShowHelp(Exception):
    """The caller asked for a command's help instead of running it."""


class Option(click.Option):
    """An option; `parse` makes its value from the caller's text and raises UsageError."""

    def __init__(
        self,
        *names: str,
        help: str,
        parse: Callable[[str], Any] = str,
        metavar: str = "TEXT",
        multiple: bool = False,
        default: Any = None,
    ) -> None:
        self.parse = parse
        self.fallback = () if multiple else default
        super().__init__(names, help=help, metavar=metavar, multiple=multiple)

    @property
    def switch(self) -> bool:
        return False


class Switch(Option):
    """An option that is on or off."""

    def __init__(self, *names: str, help: str, default: bool = False) -> None:
        click.Option.__init__(self, names, help=help, is_flag=True, default=default)
        self.parse = parse_switch
        self.fallback = default

    @property
    def switch(self) -> bool:
        return True


class Operand(click.Argument):
    """What stands beside the options. `one` is its name in error lines."""

    def __init__(self, name: str, one: str, *, many: bool = False, required: bool = True) -> None:
        self.one = one
        super().__init__(
            [name],
            metavar=operand_text(one, many=many, required=required),
            nargs=-1 if many else 1,
            required=required,
        )


def operand_text(one: str, *, many: bool, required: bool) -> str:
    """How a usage line shows an operand."""
    text = one.upper() + ("..." if many else "")
    return text if required else f"[{text}]"


class Command(click.Command):
    """One verb. Built once at import; parsing keeps no state, so threads share it.

    `failure` is the exit code when the engine refuses; None takes the error's own.
    `interruptible` commands deal with the client's signals themselves.
    """

    def __init__(
        self,
        name: str,
        help: str,
        action: Callable[..., int],
        parameters: Sequence[Option | Operand],
        *,
        interspersed: bool = True,
        failure: int | None = 1,
        interruptible: bool = False,
    ) -> None:
        super().__init__(
            name,
            params=list(parameters),
            help=help,
            short_help=help.partition("\n")[0].rstrip("."),
            context_settings={"help_option_names": list(HELP), "max_content_width": 100},
        )
        self.action = action
        self.failure = failure
        self.interruptible = interruptible
        self.interspersed = interspersed
        self.options = [one for one in parameters if isinstance(one, Option)]
        self.operands = [one for one in parameters if isinstance(one, Operand)]
        self._fallbacks = {str(one.name): one.fallback for one in self.options}
        self._spellings: dict[str, Option] = {}
        for option in self.options:
            for spelling in option.opts:
                self._spellings[spelling] = option
        for spelling, option in list(self._spellings.items()):
            if spelling.startswith("--"):
                self._spellings.setdefault(spelling[1:], option)

    # -- parsing ---------------------------------------------------------------------------------

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of all parameters. Raises UsageError, ShowHelp."""
        values = self._fallbacks.copy()
        operands: list[str] = []
        rest = iter(words)
        for word in rest:
            if len(word) < 2 or word[0] != "-":
                operands.append(word)
                if not self.interspersed:
                    operands.extend(rest)
            elif word == "--":
                operands.extend(rest)
            else:
                self._take(word, rest, values)
        self._place(operands, values)
        return values

    def _take(self, word: str, rest: Any, values: dict[str, Any]) -> None:
        spelling, equals, text = word.partition("=")
        option = self._spellings.get(spelling)
        if option is None:
            if spelling in ("--help", "-help", "-h"):
                raise ShowHelp
            if word.startswith("--"):
                raise UsageError(self._unknown(spelling))
            self._take_letters(word, rest, values)
        elif equals:
            self._set(option, spelling, text, values)
        elif option.switch:
            values[str(option.name)] = True
        else:
            self._set(option, spelling, next_word(spelling, rest), values)

    def _take_letters(self, word: str, rest: Any, values: dict[str, Any]) -> None:
        for position in range(1, len(word)):
            spelling = f"-{word[position]}"
            option = self._spellings.get(spelling)
            if option is None:
                where = f" in {word}" if position > 1 else ""
                raise UsageError(
                    self._unknown(word.partition("=")[0] if not where else spelling) + where
                )
            tail = word[position + 1 :]
            if tail.startswith("="):
                self._set(option, spelling, tail[1:], values)
                return
            if not option.switch:
                self._set(option, spelling, tail or next_word(spelling, rest), values)
                return
            values[str(option.name)] = True

    def _set(self, option: Option, spelling: str, text: str, values: dict[str, Any]) -> None:
        try:
            value = option.parse(text)
        except ValueError as error:
            what = "a number" if option.metavar in ("N", "SECONDS") else option.metavar
            raise UsageError(f"{spelling} {text!r}: {what} expected") from error
        except UsageError as error:
            if spelling in str(error):
                raise
            if str(error).startswith(repr(text)):  # it says itself what it is about
                raise UsageError(f"{spelling} {error}") from error
            raise UsageError(f"{spelling} {text!r}: {error}") from error
        name = str(option.name)
        values[name] = (*values[name], value) if option.multiple else value

    def _place(self, operands: list[str], values: dict[str, Any]) -> None:
        for operand in self.operands:
            many = operand.nargs == -1
            if operand.required and not operands:
                least = "at least one" if many else "a" + "n" * (operand.one[0] in "aeiou")
                raise UsageError(f"it needs {least} {operand.one}")
            if many:
                values[str(operand.name)] = tuple(operands)
                operands = []
            else:
                values[str(operand.name)] = operands.pop(0) if operands else None
        if operands:
            raise UsageError(f"unexpected argument {operands[0]!r}")

    def _unknown(self, spelling: str) -> str:
        known = [one for one in (*self._spellings, *HELP) if one.startswith("--")]
        near = difflib.get_close_matches(spelling, known, n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown flag {spelling}{hint}"

    # -- help ------------------------------------------------------------------------------------

    def help_text(self) -> str:
        """What --help shows, with the line feed at its end."""
        root = click.Context(click.Command("dockpy"), info_name="dockpy")
        context = self.context_class(
            self,
            parent=root,
            info_name=self.name,
            terminal_width=100,
            **self.context_settings,
        )
        return self.get_help(context) + "\n"


def next_word(spelling: str, rest: Any) -> str:
    """The word after an option that needs a value."""
    for word in rest:
        return str(word)
    raise UsageError(f"{spelling} needs a value")


def parse_switch(text: str) -> bool:
    """True or False by the words of Go's strconv.ParseBool; ValueError otherwise."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise UsageError("true or false expected")


def command(
    name: str,
    help: str,
    *parameters: Option | Operand,
    interspersed: bool = True,
    failure: int | None = 1,
    interruptible: bool = False,
) -> Callable[[Callable[..., int]], Command]:
    """Makes a function `(session, **parameters) -> exit code` a command."""

    def make(action: Callable[..., int]) -> Command:
        return Command(
            name,
            help,
            action,
            parameters,
            interspersed=interspersed,
            failure=failure,
            interruptible=interruptible,
        )

    return make
