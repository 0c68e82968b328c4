"""What an image presets and what a user asks for, made one; and the same as JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dockpy.errors import RequestError
from dockpy.model import Bind, Config, Ulimit

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_DEFAULTS: dict[str, Any] = {one.name: getattr(Config(), one.name) for one in fields(Config)}


def merge(preset: Config, asked: Config) -> Config:
    """The configuration of a container from its image's and the user's.

    The user's values win; environments and labels are joined; an entry point given by the user
    discards the image's command. Source: OCI image spec, "Conversion"; Docker's documented rules.
    """
    entrypoint, cmd = asked.entrypoint, asked.cmd
    if entrypoint is None:
        entrypoint = preset.entrypoint
        cmd = cmd or preset.cmd
    return asked.with_(
        entrypoint=entrypoint,
        cmd=cmd,
        env=merge_environment(preset.env, asked.env),
        user=asked.user or preset.user,
        working_dir=asked.working_dir or preset.working_dir,
        labels={**preset.labels, **asked.labels},
        exposed_ports=tuple(dict.fromkeys((*preset.exposed_ports, *asked.exposed_ports))),
        volumes=tuple(dict.fromkeys((*preset.volumes, *asked.volumes))),
        stop_signal=asked.stop_signal or preset.stop_signal,
        stop_timeout=asked.stop_timeout if asked.stop_timeout is not None else preset.stop_timeout,
    )


def merge_environment(lower: tuple[str, ...], upper: tuple[str, ...]) -> tuple[str, ...]:
    """Both lists of NAME=value; a name in `upper` replaces the one in `lower`, in its place."""
    if not lower:
        return upper
    values = {entry.partition("=")[0]: entry for entry in lower}
    for entry in upper:
        values[entry.partition("=")[0]] = entry
    return tuple(values.values())


def command(config: Config) -> tuple[str, ...]:
    """The program and its arguments. RequestError when neither image nor user names one."""
    argv = (*(config.entrypoint or ()), *config.cmd)
    if not argv or not argv[0]:
        raise RequestError("no command given, and the image has none; name one after the image")
    return argv


def environment(config: Config, hostname: str, home: str) -> tuple[str, ...]:
    """What the program finds in its environment: the defaults, then the configuration's own.

    An entry without "=" asks for the name to be left out, as Docker does for unset names.
    """
    defaults = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}"]
    if config.tty:
        defaults.append("TERM=xterm")
    merged = merge_environment((*defaults, f"HOME={home}"), config.env)
    return tuple(entry for entry in merged if "=" in entry)


def to_json(config: Config) -> dict[str, Any]:
    """The values that differ from the defaults."""
    found: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(config, name)
        if value != default:
            found[name] = value
    if "binds" in found:
        found["binds"] = [
            [one.source, one.target, one.read_only, one.recursive] for one in config.binds
        ]
    if "ulimits" in found:
        found["ulimits"] = [[one.name, one.soft, one.hard] for one in config.ulimits]
    for name in ("labels", "tmpfs"):
        if name in found:
            found[name] = dict(found[name])
    return found


def from_json(record: Mapping[str, Any]) -> Config:
    """The configuration `to_json` wrote; names unknown to this version are left out.

    Raises TypeError or ValueError when the record is not one.
    """
    values: dict[str, Any] = {  # ten thousand of them at a start-up
        name: tuple(value) if value.__class__ is list else value
        for name, value in record.items()
        if name in _DEFAULTS
    }
    if "binds" in values:
        values["binds"] = tuple(Bind(*one) for one in values["binds"])
    if "ulimits" in values:
        values["ulimits"] = tuple(Ulimit(*one) for one in values["ulimits"])
    return Config(**values)
