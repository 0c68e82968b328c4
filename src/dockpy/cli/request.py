"""From the options of `run` and `create` to a `Config`. Pure: files and the environment come in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from dockpy.cli.flags import STREAMS
from dockpy.errors import UsageError
from dockpy.model import Bind, Config, Ulimit


class RunValues(TypedDict):
    """What the options of `run` parse to, by name; a test compares it with the option table."""

    add_host: tuple[str, ...]
    attach: tuple[tuple[str, ...], ...]
    blkio_weight: int
    cap_add: tuple[str, ...]
    cap_drop: tuple[str, ...]
    cidfile: str | None
    cpu_shares: int
    cpus: float
    cpuset_cpus: str
    cpuset_mems: str
    detach: bool
    detach_keys: str
    device: tuple[str, ...]
    dns: tuple[str, ...]
    dns_opt: tuple[str, ...]
    dns_search: tuple[str, ...]
    domainname: str
    entrypoint: str | None
    env: tuple[str, ...]
    env_file: tuple[str, ...]
    expose: tuple[tuple[str, ...], ...]
    hostname: str
    cgroup_view: bool
    init: bool
    interactive: bool
    ip: str
    label: tuple[tuple[str, str], ...]
    label_file: tuple[str, ...]
    link: tuple[str, ...]
    log_opt: tuple[tuple[str, int], ...]
    mac_address: str
    memory: int
    memory_reservation: int
    memory_swap: int
    mount: tuple[Bind | tuple[str, str], ...]
    name: str | None
    network: str
    network_alias: tuple[str, ...]
    oom_score_adj: int
    pids_limit: int | None
    privileged: bool
    publish: tuple[str, ...]
    publish_all: bool
    pull: str
    quiet: bool
    read_only: bool
    rm: bool
    security_opt: tuple[tuple[str, str], ...]
    shm_size: int
    sig_proxy: bool
    stop_signal: str
    stop_timeout: int | None
    tmpfs: tuple[tuple[str, str], ...]
    trace: bool
    tty: bool
    ulimit: tuple[Ulimit, ...]
    user: str
    volume: tuple[str, ...]
    workdir: str
    image: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """What the options may refer to on the caller's side."""

    env: Mapping[str, str]
    directory: Callable[[], str]
    read_file: Callable[[str], str]


def make_config(values: RunValues, caller: Caller, binds: tuple[Bind, ...]) -> Config:
    """The container asked for; `binds` are those of -v. UsageError for a contradiction."""
    binds += tuple(one for one in values["mount"] if isinstance(one, Bind))
    tmpfs = values["tmpfs"] + tuple(one for one in values["mount"] if not isinstance(one, Bind))
    streams = attached_streams(values)
    interactive = values["interactive"] or "stdin" in streams
    security = dict(values["security_opt"])
    log = dict(values["log_opt"])
    entrypoint = values["entrypoint"]
    if values["detach"] and values["attach"]:
        raise UsageError("-a and -d contradict each other; choose one")
    if values["memory_swap"] and not values["memory"]:
        raise UsageError("--memory-swap needs --memory beside it")
    if 0 < values["memory_swap"] < values["memory"]:
        raise UsageError("--memory-swap counts memory too; make it --memory or more")
    if values["memory"] and values["memory_reservation"] > values["memory"]:
        raise UsageError("--memory-reservation is above --memory; make it smaller")
    targets = [bind.target for bind in binds] + [target for target, _ in tmpfs]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{target} is asked for twice; give every mount its own target")
    return Config(
        image=values["image"],
        cmd=values["words"],
        entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()),
        env=environment(values["env_file"], values["env"], caller),
        user=values["user"],
        working_dir=values["workdir"],
        hostname=values["hostname"],
        domainname=values["domainname"],
        labels=labels(values["label_file"], values["label"], caller),
        stop_signal=values["stop_signal"],
        stop_timeout=values["stop_timeout"],
        tty=values["tty"],
        open_stdin=interactive,
        stdin_once=interactive and "stdin" in streams,
        attach_stdin="stdin" in streams,
        attach_stdout="stdout" in streams,
        attach_stderr="stderr" in streams,
        memory=values["memory"],
        memory_swap=values["memory_swap"],
        memory_reservation=values["memory_reservation"],
        cpus=values["cpus"],
        cpu_shares=values["cpu_shares"],
        cpuset_cpus=values["cpuset_cpus"],
        cpuset_mems=values["cpuset_mems"],
        pids_limit=values["pids_limit"],
        blkio_weight=values["blkio_weight"],
        oom_score_adj=values["oom_score_adj"],
        shm_size=values["shm_size"],
        ulimits=values["ulimit"],
        binds=binds,
        tmpfs=dict(tmpfs),
        read_only=values["read_only"],
        cap_add=values["cap_add"],
        cap_drop=values["cap_drop"],
        privileged=values["privileged"],
        seccomp=seccomp(security, values["privileged"], caller),
        no_new_privileges=security.get("no-new-privileges") == "true",
        devices=values["device"],
        network_mode=values["network"],
        network_aliases=values["network_alias"],
        ip_address=values["ip"],
        mac_address=values["mac_address"],
        port_specs=values["publish"],
        publish_all=values["publish_all"],
        exposed_ports=tuple(port for ports in values["expose"] for port in ports),
        links=values["link"],
        dns=values["dns"],
        dns_search=values["dns_search"],
        dns_options=values["dns_opt"],
        extra_hosts=values["add_host"],
        init=values["init"],
        cgroup_view=values["cgroup_view"],
        auto_remove=values["rm"],
        detach_keys=values["detach_keys"],
        log_max_size=log.get("max-size", 0),
        log_max_file=log.get("max-file", 1),
    )


def attached_streams(values: RunValues) -> tuple[str, ...]:
    """Which streams the caller is connected to: those of -a; without -a and -d both outputs."""
    asked = {stream for streams in values["attach"] for stream in streams}
    if values["attach"]:
        return tuple(stream for stream in STREAMS if stream in asked)
    if values["detach"]:
        return ()
    return STREAMS if values["interactive"] else STREAMS[1:]


def environment(files: Sequence[str], entries: Sequence[str], caller: Caller) -> tuple[str, ...]:
    """The files' entries, then those given one by one; a later one replaces an earlier one.

    A bare NAME takes the caller's value; one the caller has not got is left out of a file, and is
    taken out of the image's environment when given with -e, as Docker does.
    """
    found: dict[str, str] = {}
    for path in files:
        for line in meaningful_lines(caller.read_file(path)):
            name, equals, value = line.partition("=")
            if not name or any(one.isspace() for one in name):
                raise UsageError(f"{path}: {line!r} is not NAME=value")
            if equals:
                found[name] = f"{name}={value}"
            elif name in caller.env:
                found[name] = f"{name}={caller.env[name]}"
    for entry in entries:
        name, equals, _ = entry.partition("=")
        if not equals and name in caller.env:
            found[name] = f"{name}={caller.env[name]}"
        else:
            found[name] = entry
    return tuple(found.values())


def labels(
    files: Sequence[str], entries: Sequence[tuple[str, str]], caller: Caller
) -> dict[str, str]:
    """The files' labels, then those given one by one."""
    found: dict[str, str] = {}
    for path in files:
        for line in meaningful_lines(caller.read_file(path)):
            key, _, value = line.partition("=")
            if not key or any(one.isspace() for one in key):
                raise UsageError(f"{path}: {line!r} is not key=value")
            found[key] = value
    found.update(entries)
    return found


def meaningful_lines(text: str) -> list[str]:
    """Lines without their leading space; no empty ones, no comments."""
    lines = (line.lstrip() for line in text.removeprefix("\ufeff").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def seccomp(security: Mapping[str, str], privileged: bool, caller: Caller) -> str:
    """`default`, `unconfined` or the text of the profile file; --privileged alone is unconfined."""
    asked = security.get("seccomp")
    if asked is None:
        return "unconfined" if privileged else "default"
    if asked in ("unconfined", "default", "builtin"):
        return "default" if asked == "builtin" else asked
    return caller.read_file(asked)


def absolute_source(text: str, directory: Callable[[], str]) -> str:
    """A -v value whose source begins with a dot, made absolute from the caller's directory."""
    source, colon, rest = text.partition(":")
    if colon and (source in (".", "..") or source.startswith(("./", "../"))):
        return os.path.normpath(os.path.join(directory(), source)) + colon + rest
    return text
