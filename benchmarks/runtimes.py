"""Programs that isolate one process and keep no images: runc, crun and bubblewrap.

Each runs /bin/true in the same root as the floor and dockpy, in new mount, pid, uts, ipc and
network namespaces, with /proc and /dev of its own. What they do less: the root is there already,
read-only, so no overlay is made; nothing is logged; a `runc spec` has no system call filter; bwrap
has no cgroup. What they do more: each is a command that is started for it, as `dockpy run` is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import FLOORS, Bench, one_start
from benchmarks.commands import engines, one_round, run_words
from benchmarks.samples import Samples

PAUSE = 0.02
"""Seconds after each round, in which the kernel clears away."""
OCI = ("runc", "crun")


def bundle(program: str, directory: Path, tree: Path) -> Path:
    """A directory with the program's own default `config.json`, changed to run /bin/true in `tree`
    without a terminal. Source: the OCI runtime specification, config.md."""
    directory.mkdir()
    subprocess.run([program, "spec"], cwd=directory, check=True)
    path = directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["root"] = {"path": str(tree), "readonly": True}
    path.write_text(json.dumps(config))
    return directory


def bubblewrap(program: str, tree: Path) -> list[str]:
    """The same isolation in bwrap's words. Source: bwrap(1)."""
    return [
        *(program, "--ro-bind", str(tree), "/", "--proc", "/proc", "--dev", "/dev"),
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--cap-drop", "ALL", "--new-session", "/bin/true"),
    ]


def isolating(bench: Bench) -> dict[str, list[str]]:
    """The commands of those that are installed and work here; the others are named."""
    found: dict[str, list[str]] = {}
    for name in OCI:
        program = shutil.which(name)
        if program is None:
            print(f"{name}: not installed; skipped")
            continue
        place = bundle(program, bench.directory / f"{name}-bundle", bench.tree)
        state = bench.directory / f"{name}-state"
        found[name] = [program, "--root", str(state), "run", "--bundle", str(place), "bench"]
    program = shutil.which("bwrap")
    if program is None:
        print("bwrap: not installed; skipped")
    else:
        found["bwrap"] = bubblewrap(program, bench.tree)
    for name, command in [*found.items()]:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.strip()[-200:]}; skipped")
            del found[name]
    return found


def runtimes(bench: Bench) -> None:
    """Everybody once in every round; the first round does not count."""
    rounds = 10 if bench.short else 40
    commands = isolating(bench)
    with engines(bench, only=("dockpy",)) as found:
        for name, command in found.items():
            commands[f"{name} run"] = run_words(name, command, "none")
        floor, api = Samples("floor mounts net cgroup"), Samples("dockpy API")
        rows = {name: Samples(name) for name in commands}
        for turn in range(rounds + 1):
            ours = one_start(bench.runtime, "none")
            least = bench.floor.times(bench.tree, 1, "mounts", FLOORS["none"], "cgroup")
            one_round(commands, rows, counts=turn > 0)
            time.sleep(PAUSE)
            if turn:
                api.values.append(ours)
                floor.values += least
    bench.show("one /bin/true, isolated, no network", [floor, api, *rows.values()], floor)
