"""Everything that dockpy is compared with, in one command.

    python -m benchmarks [--short] [--rootfs TAR] [--json FILE] [GROUP ...]
    python -m benchmarks --list

Each group is a module that also runs alone; here it is a process of its own, so that one that fails
costs its own rows only. What is not installed is named and skipped. The exit status is 1 only when
a ratio measured in this run is far beyond its promise, or a group failed. Needs root. With --short,
as CI runs it, only the groups marked so in --list run, with few rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures, peers
from benchmarks.figures import Figures, Group
from benchmarks.groups import GROUPS, Asked, Module

HERE = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="see --list")
    parser.add_argument("--list", action="store_true", help="the groups, and what they measure")
    parser.add_argument("--short", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--rootfs", type=Path, metavar="TAR", help="a root file system")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{'s' if one.short else ' '} {one.name:10} {one.says}" for one in GROUPS))
        print("(s: part of --short)")
        return 0
    if unknown := set(given.groups) - {one.name for one in GROUPS}:
        parser.error(f"no group is called {min(unknown)}; --list names them")
    if os.geteuid() != 0:
        parser.error("this needs root")
    wanted = [one for one in GROUPS if chosen(one, given.groups, short=given.short)]
    found = Figures(figures.machine(), figures.now(), figures.commit(HERE))
    found.machine["short"] = given.short
    print(header(found), flush=True)
    with peers.scratch() as directory:
        asked = Asked(root_archive(directory, given.rootfs, short=given.short), given.short)
        for module in wanted:
            run(module, asked, found, directory)
    found.machine["load_after"] = round(os.getloadavg()[0], 2)
    if given.json:
        found.write(given.json)
    print(f"== load {found.machine['load_before']} before, {found.machine['load_after']} after")
    for line in found.skipped:
        print(f"not measured: {line}")
    for line in found.failures:
        print(f"failed: {line}")
    return 1 if found.failures else 0


def chosen(module: Module, names: Sequence[str], *, short: bool) -> bool:
    """The groups that were named, or else the usual ones."""
    return module.name in names if names else module.short if short else module.usual


def header(found: Figures) -> str:
    facts = found.machine
    return (
        f"Linux {facts['kernel']}, HZ {facts['hz'] or 'not told'}, {facts['processors']} x "
        f"{facts['processor']}, {facts['memory_mib']} MiB, cgroups {facts['cgroups']}, "
        f"Python {facts['python']}, commit {found.commit or 'not known'}, "
        f"load {facts['load_before']}"
    )


def root_archive(directory: Path, given: Path | None, *, short: bool) -> Path | None:
    """The tar to measure with; None: each group makes a small root of busybox, as short runs do
    unless told otherwise. The tree of DOCKPY_DEBIAN_ROOT is packed."""
    tree = os.environ.get("DOCKPY_DEBIAN_ROOT")
    if given is not None or tree is None or short:
        return given and given.resolve()
    target = directory / "debian.tar"
    subprocess.run(["tar", "--numeric-owner", "-C", tree, "-cf", str(target), "."], check=True)
    return target


def run(module: Module, asked: Asked, found: Figures, directory: Path) -> None:
    """One group in a process of its own; its output is shown as it comes."""
    print(f"\n== {module.name}: {module.says}", flush=True)
    words = module.arguments(asked)
    if isinstance(words, str):
        print(words)
        found.skipped.append(f"{module.name}: {words}")
        return
    output = directory / f"{module.name}.json"
    if module.writes:
        words = [*words, "--json", str(output)]
    began = time.monotonic()
    code, lines = shown([sys.executable, "-m", module.module, *words])
    for line in lines:
        if line.endswith(("skipped", "skipped from here on")):
            found.skipped.append(f"{module.name}: {line}")
        elif line.startswith(("too slow: ", "too much ")):
            found.failures.append(f"{module.name}: {line}")
    if code and not any(one.startswith(f"{module.name}: ") for one in found.failures):
        found.failures.append(f"{module.name}: {lines[-1] if lines else ''} (exit status {code})")
    found.groups += groups_of(module, output, lines)
    print(f"== {module.name}: {time.monotonic() - began:.0f} s", flush=True)


def shown(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run it and repeat each line; its exit status and the lines."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return process.returncode, lines


def groups_of(module: Module, output: Path, lines: Sequence[str]) -> list[Group]:
    """What it wrote, or else what its tables said."""
    if not output.exists():
        return figures.from_text(module.name, lines)
    records = json.loads(output.read_text())
    records = [one for one in records if one.get("rows")]
    return [dataclasses.replace(Group.of("", one), name=module.name) for one in records]


if __name__ == "__main__":
    raise SystemExit(main())
