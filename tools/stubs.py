"""Checks every .pyi against the compiled module beside it, with mypy's stubtest.

    PYTHONPATH=src python tools/stubs.py

A stub without its compiled module, and a compiled module without a stub, are offences too. What
Cython adds to every module and class is allowed by ALLOWED. Exit status 1 on any offence.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ALLOWED = (
    r".*\.__pyx_.*",
    r".*\.__(reduce|setstate)(_cython)?__",
    r".*\.__(test|file|loader|spec)__",
    r"dockpy\._\w+\.\w+\.__init__",
)
"""Names Cython makes; regular expressions over full names, as stubtest's allow-list has them.

A `cdef class` made by __cinit__ has no __init__ of its own whose parameters could be compared.
"""
FLAGS = ("--concise", "--ignore-unused-allowlist", "--ignore-disjoint-bases")
"""Every extension type is a disjoint base; saying so in each stub would tell a reader nothing."""


def unmatched(package: Path, suffix: str) -> list[str]:
    """Stubs and compiled modules that lack their counterpart."""
    stubs = {path.name.removesuffix(".pyi") for path in package.rglob("_*.pyi")}
    compiled = {path.name.removesuffix(suffix) for path in package.rglob(f"*{suffix}")}
    sources = {path.stem for path in package.rglob("_*.pyx")}
    return [
        *(f"{name}.pyi: the compiled module is missing" for name in sorted(stubs - compiled)),
        *(f"{name}.pyx: the stub is missing" for name in sorted(sources - stubs)),
    ]


def stubtest(modules: Sequence[str]) -> int:
    """Exit status of stubtest over `modules`, which must be importable."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as allowed:
        allowed.write("\n".join(ALLOWED) + "\n")
        allowed.flush()
        command = [sys.executable, "-m", "mypy.stubtest", *FLAGS, "--allowlist", allowed.name]
        done = subprocess.run([*command, *modules], check=False)
    return done.returncode


def main() -> int:
    package = Path(__file__).resolve().parents[1] / "src/dockpy"
    offences = unmatched(package, str(sysconfig.get_config_var("EXT_SUFFIX")))
    for line in offences:
        print(line)
    stubs = sorted(package.glob("_*.pyi"))
    return stubtest([f"dockpy.{path.stem}" for path in stubs]) or bool(offences)


if __name__ == "__main__":
    raise SystemExit(main())
