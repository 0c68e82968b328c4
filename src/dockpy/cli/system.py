"""info version daemon: about the engine itself."""

from __future__ import annotations

import os
import platform
from typing import Any

from dockpy.cli import options
from dockpy.cli.command import Option, command
from dockpy.cli.engine import EngineInfo
from dockpy.cli.session import Session
from dockpy.cli.template import compile_template, to_json
from dockpy.errors import Conflict
from dockpy.image_config import go_architecture
from dockpy.model import VERSION


@command("info", "Show figures of the engine and its host.", options.format_())
def info(session: Session, *, format: str | None) -> int:
    found = session.runtime.info()
    if format:
        session.write(formatted(format, info_values(found)))
        return 0
    lines = [
        f"Containers: {found.containers}",
        f" Running: {found.running}",
        f" Stopped: {found.containers - found.running}",
        f"Images: {found.images}",
        f"Server Version: {found.version}",
        "Storage Driver: overlay",
        "Logging Driver: json-file",
        f"Cgroup: {found.cgroup}",
        f"Supervisors: {' '.join(map(str, found.supervisors))}",
        f"Dying Networks: {found.dying_networks}",
        f"Kernel Version: {found.kernel}",
        "OSType: linux",
        f"Architecture: {found.architecture}",
        f"CPUs: {found.cpus}",
        f"Total Memory: {found.memory / (1 << 30):.4g}GiB",
        f"Dockpy Root Dir: {found.root}",
        f"Dockpy Run Dir: {found.run}",
        *(f"WARNING: {one}" for one in found.warnings),
    ]
    session.write("".join(f"{line}\n" for line in lines))
    return 0


def info_values(found: EngineInfo) -> dict[str, Any]:
    """What a template may name: Docker's names, then dockpy's own."""
    return {
        "Containers": found.containers,
        "ContainersRunning": found.running,
        "ContainersPaused": 0,
        "ContainersStopped": found.containers - found.running,
        "Images": found.images,
        "Driver": "overlay",
        "LoggingDriver": "json-file",
        "KernelVersion": found.kernel,
        "OSType": "linux",
        "Architecture": found.architecture,
        "NCPU": found.cpus,
        "MemTotal": found.memory,
        "DockerRootDir": found.root,
        "Name": platform.node(),
        "ServerVersion": found.version,
        "Warnings": list(found.warnings),
        "RunDir": found.run,
        "Cgroup": found.cgroup,
        "Supervisors": list(found.supervisors),
        "DyingNetworks": found.dying_networks,
    }


@command("version", "Show the versions of client and server.", options.format_())
def version(session: Session, *, format: str | None) -> int:
    values = version_values()
    if format:
        session.write(formatted(format, values))
        return 0
    lines = []
    for side in ("Client", "Server"):
        lines.append(f"{side}: dockpy")
        lines += [f" {name + ':':<16}{value}" for name, value in values[side].items()]
    session.write("".join(f"{line}\n" for line in lines))
    return 0


def version_values() -> dict[str, dict[str, str]]:
    """Client and server are of one installation, so they have one version."""
    common = {
        "Version": VERSION,
        "PythonVersion": platform.python_version(),
        "Os": "linux",
        "Arch": go_architecture(platform.machine()),
    }
    return {"Client": common, "Server": {**common, "KernelVersion": platform.release()}}


def formatted(form: str, values: object) -> str:
    """One line by `json` or a template. TemplateError."""
    if form == "json":
        return to_json(values) + "\n"
    return compile_template(form).render(values) + "\n"


@command(
    "daemon",
    "Run the daemon in the foreground.\n\n"
    "'dockpy -d' does the same. Commands start a daemon by themselves when there is none.",
    Option("--root", help="Where images and containers are kept", metavar="DIRECTORY"),
    Option("--run", help="Where sockets are kept", metavar="DIRECTORY"),
    Option("--bridge", help="Name of the default network's bridge", metavar="NAME"),
    Option("--bip", help="Its address and range, such as 172.30.0.1/16", metavar="ADDRESS/LENGTH"),
    Option("--fixed-cidr-v6", help="IPv6 range of the default network", metavar="RANGE"),
    Option("--mtu", help="Largest packet of the default network", metavar="N"),
)
def daemon(session: Session, **options: str | None) -> int:
    del options
    served = session.runtime.info().root
    raise Conflict(f"the daemon with pid {os.getpid()} serves {served} already")
