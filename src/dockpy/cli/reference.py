"""docs/cli.md, made from the option tables: `python -m dockpy.cli.reference > docs/cli.md`."""

from __future__ import annotations

from dockpy.cli.command import Command
from dockpy.cli.main import COMMANDS

HEAD = """\
# The command line

Made from the option tables by `python -m dockpy.cli.reference > docs/cli.md`; a test compares.

    dockpy COMMAND [OPTIONS] [ARGUMENTS]

## Rules for all commands

- A long option is `--name value` or `--name=value`. One dash does as well (`-dns 9.9.9.9`), as in
  Docker of 2013; a word that is exactly a long name is that option, never a row of letters.
- A letter is `-n 5`, `-n5` or `-n=5`; letters can be joined: `-it`.
- Switches need no value; after `=` they take `true` or `false` (`-t=true`, `--sig-proxy=false`).
- `--` ends the options. For `run` and `create` the image does: what follows belongs to the program.
- `-h` is help wherever it has no other meaning (for `run` it is `--hostname`).
- Containers are named by id, by any unique prefix of it, or by name; images by `name[:tag]` or id.

## Exit codes

| code | meaning |
| --- | --- |
| the program's own | `run`, `start -a`, `attach`: it ended; 128+n when signal n killed it |
| 0 | done; also when the detach keys were typed |
| 1 | a container or image could not be worked on; the others were |
| 125 | the command line is wrong, or `run`, `create` or `start -a` could not do it |
| 126, 127 | `run`, `start -a`: the program cannot be executed, does not exist |
| 128+n | signal n ended `wait`, `logs -f`, or a `run` that does not pass signals on |
| 141 | nobody reads the output any more |

An error is one line on standard error that begins with `dockpy:`.

## Signals, terminals and leaving

`run`, `start -a` and `attach` pass the signals they get to the program, except with a terminal
(`-t`) or `--sig-proxy=false`: then SIGHUP, SIGINT, SIGQUIT and SIGTERM end the command and the
container goes on. With `-it` your terminal is raw, so Ctrl-c is a byte for the program; Ctrl-p
Ctrl-q (or `--detach-keys`) leaves it running. `-it` without a terminal is refused; `-i` alone takes
a pipe. When the output breaks (`dockpy run base yes | head`) the command ends with 141 and the
container goes on, as with Docker.

`run` removes a container that could not be started; one that ran stays until `rm`, or is removed at
its end with `--rm`. `-a stdin` alone prints the id, as nothing else would tell it, and opens stdin
as `-i` does.

## Templates

`--format` takes Go's templates: fields (`{{.State.Pid}}`), `index`, `json`, `range`, `if`, `with`,
`else`, `break`, `continue`, variables, pipelines, comments, trimming (`{{- -}}`), and the functions
`and or not eq ne lt le gt ge len slice print printf println join split upper lower title truncate
pad`. A field that does not exist is an error that names its place; a key that a map (labels, ports)
does not have is `<no value>`, and empty through `index`. Not available: `define`, `template`,
`block`, `html`, `js`, `urlquery`, `call`, `range` over a number, character constants.
`ps` and `images` take `table TEMPLATE` (with `\\t` between columns) and `json` too, `inspect`,
`info` and `version` take `json`.

## Filters

Values of one key are alternatives, several keys must all fit; labels must all fit.

## Times

`logs --since` and `--until` take RFC 3339 (`2026-01-02T15:04:05Z`, `2026-01-02`), Unix seconds, or
a duration before now (`10m`, `1h30m`).
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "\n## Commands\n"]
    parts += [section(COMMANDS[name]) for name in sorted(COMMANDS)]
    return "".join(parts)


def section(command: Command) -> str:
    """One command."""
    text = command.help_text().rstrip("\n")
    indented = "\n".join(f"    {line}" if line else "" for line in text.splitlines())
    return f"\n### {command.name}\n\n{indented}\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference())
