"""Lines of --change: the instructions of a Dockerfile that preset a container. Pure.

All but CMD and ENTRYPOINT know the variables that the configuration has at that point (`words`).
Source: Docker's reference of `import --change` and of the Dockerfile format; its answers.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from dockpy.cli.words import expand, split_words
from dockpy.errors import UsageError
from dockpy.model import Config
from dockpy.settings import merge_environment
from dockpy.signals import parse_signal

SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")


_CONTINUED = re.compile(r"\\[ \t]*\n")


def apply_changes(config: Config, changes: Sequence[str]) -> Config:
    """The configuration with each line applied in turn. UsageError names the line.

    A change may hold several lines, with comments and continued ones, as a Dockerfile. A new
    ENTRYPOINT takes an old CMD away, which was the arguments of another program.
    """
    seen: set[str] = set()
    for line in (one for change in changes for one in instructions(change)):
        word, rest = (*line.split(maxsplit=1), "", "")[:2]
        handler = INSTRUCTIONS.get(word.upper())
        if handler is None:
            names = ", ".join(INSTRUCTIONS)
            raise UsageError(f"--change {line!r}: {word!r} is not one of {names}")
        if not rest:
            raise UsageError(f"--change {line!r}: {word.upper()} needs a value")
        try:
            config = handler(config, rest)
        except (UsageError, ValueError) as error:
            raise UsageError(f"--change {line!r}: {error}") from error
        seen.add(word.upper())
    if config.entrypoint and "ENTRYPOINT" in seen and "CMD" not in seen:
        config = config.with_(cmd=())
    return config


def instructions(change: str) -> Iterator[str]:
    """The lines of one --change: mostly one. UsageError when there is none."""
    found = False
    for line in _CONTINUED.sub("", change).split("\n"):
        if (kept := line.strip()) and not kept.startswith("#"):
            found = True
            yield kept
    if not found:
        raise UsageError(f"--change {change!r}: there is no instruction in it")


def parse_words(text: str) -> tuple[str, ...]:
    """A JSON list of texts, or a line for the shell."""
    found = json_list(text)
    return (*SHELL, text) if found is None else found


def json_list(text: str) -> tuple[str, ...] | None:
    """A JSON list of texts; None for what is none. UsageError for a list of other things."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not is_texts(found):
        raise UsageError("a list in brackets may hold texts in double quotes only")
    return tuple(found)


def parse_pairs(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """`a=1 b="x y"`, or the old form `a the rest`."""
    words = split_words(text)
    if "=" not in words[0]:
        if len(words) < 2:
            raise UsageError("key=value expected")
        rest = text[len(words[0]) :].strip()
        return {expand(words[0], variables): expand(rest, variables)}
    found = {}
    for word in words:
        key, equals, value = expand(word, variables).partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not key=value")
        found[key] = value
    return found


def parse_ports(text: str) -> tuple[str, ...]:
    """`80 443/tcp 7000-7002/udp`, each as number/protocol."""
    found: list[str] = []
    for word in text.split():
        match = _PORT.fullmatch(word.lower())
        if match is None:
            raise UsageError(f"{word!r} is not a port such as 80/tcp")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= last <= 65535:
            raise UsageError(f"{word!r}: ports go from 1 to 65535")
        found += [f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1)]
    return tuple(found)


def _cmd(config: Config, text: str) -> Config:
    return config.with_(cmd=parse_words(text))


def _entrypoint(config: Config, text: str) -> Config:
    return config.with_(entrypoint=parse_words(text))


def _variables(config: Config) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config.env)


def _env(config: Config, text: str) -> Config:
    pairs = parse_pairs(text, _variables(config))
    entries = tuple(f"{key}={value}" for key, value in pairs.items())
    return config.with_(env=merge_environment(config.env, entries))


def _expose(config: Config, text: str) -> Config:
    ports = parse_ports(expand(text, _variables(config)))
    return config.with_(exposed_ports=tuple(dict.fromkeys((*config.exposed_ports, *ports))))


def _label(config: Config, text: str) -> Config:
    return config.with_(labels={**config.labels, **parse_pairs(text, _variables(config))})


def _stop_signal(config: Config, text: str) -> Config:
    name = expand(text, _variables(config))
    parse_signal(name)
    return config.with_(stop_signal=name)


def _user(config: Config, text: str) -> Config:
    return config.with_(user=expand(text, _variables(config)))


def _volume(config: Config, text: str) -> Config:
    listed = json_list(text)
    written = split_words(text) if listed is None else listed
    paths = [expand(path, _variables(config)) for path in written]
    for path in paths:
        if not path.startswith("/"):
            raise UsageError(f"{path!r} is not an absolute path")
    return config.with_(volumes=tuple(dict.fromkeys((*config.volumes, *paths))))


def _workdir(config: Config, text: str) -> Config:
    path = expand(text, _variables(config))
    return config.with_(working_dir=posixpath.join("/", config.working_dir, path))


INSTRUCTIONS: dict[str, Callable[[Config, str], Config]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


_SEED_TEXTS = {"User": "user", "Hostname": "hostname"}
_SEED_LISTS = ("Cmd", "Env", "PortSpecs")


def parse_seed_config(config: Config, text: str) -> Config:
    """The configuration with the fields of a JSON object, named as in the first Docker's
    `commit -run`: Cmd, Env, User, Hostname, PortSpecs. UsageError for anything else."""
    if not text:
        return config
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--run: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError('--run: a JSON object expected, such as {"Cmd": ["cat"]}')
    for key, value in values.items():
        if key in _SEED_TEXTS and isinstance(value, str):
            config = config.with_(**{_SEED_TEXTS[key]: value})
        elif key in _SEED_LISTS and is_texts(value):
            if key == "Cmd":
                config = config.with_(cmd=tuple(value), entrypoint=None)
            elif key == "Env":
                config = config.with_(env=merge_environment(config.env, tuple(value)))
            else:
                config = _expose(config, " ".join(value))
        else:
            known = ", ".join((*_SEED_LISTS, *_SEED_TEXTS))
            raise UsageError(f"--run: {key!r} with such a value is not one of {known}")
    return config


def is_texts(value: object) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
