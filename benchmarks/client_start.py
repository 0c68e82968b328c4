"""What the command line itself costs: `dockpy version`, daemon warm, beside the bare interpreter.

    python -m benchmarks.client_start [--rounds N] [--command DOCKPY] [--with-run IMAGE]

Contestants take turns. The ways to start it: docs/decisions/0002-launcher.md.
The daemon is the one of DOCKPY_ROOT and DOCKPY_RUN; it is started when there is none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import dockpy
from benchmarks.samples import Samples, table

PACKAGE = Path(dockpy.__file__).parent
BOOT = (
    f"import sys; p = type(sys)('dockpy'); p.__path__ = [{str(PACKAGE)!r}];"
    "sys.modules['dockpy'] = p; from dockpy.api.client import main; main()"
)


def once(command: Sequence[str]) -> float:
    """Milliseconds from before the process starts until it is reaped. CalledProcessError."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1000


def contestants(directory: Path, launcher: str | None, image: str | None) -> dict[str, list[str]]:
    """Each way to start the client, and the floors."""
    trampoline = directory / "trampoline"
    trampoline.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS -c "{BOOT}" "$@"\n')
    trampoline.chmod(0o755)
    found = {
        "/bin/true": ["/bin/true"],
        "python -IS -c pass": [sys.executable, "-IS", "-c", "pass"],
        "python -IS -c BOOT version": [sys.executable, "-IS", "-c", BOOT, "version"],
        "/bin/sh trampoline version": [str(trampoline), "version"],
        "python -m dockpy version": [sys.executable, "-m", "dockpy", "version"],
    }
    if launcher:
        found["dockpy version"] = [launcher, "version"]
        if image:
            found["dockpy run --rm true"] = [launcher, "run", "--rm", image, "/bin/true"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--command", help="an installed dockpy")
    parser.add_argument("--with-run", metavar="IMAGE", help="also run /bin/true in it")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(PACKAGE.parent)  # for -m alone: -IS does not look at it
    with tempfile.TemporaryDirectory() as directory:
        ways = contestants(Path(directory), options.command, options.with_run)
        samples = {name: Samples(name) for name in ways}
        for command in ways.values():
            once(command)
        for _ in range(options.rounds):
            for name, command in ways.items():
                samples[name].values.append(once(command))
    load = os.getloadavg()[0]
    title = f"client start, ms, load {load:.1f} (ratio: to python -IS -c pass)"
    print(table(title, list(samples.values()), samples["python -IS -c pass"]))


if __name__ == "__main__":
    main()
