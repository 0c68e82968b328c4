"""Builds the native modules: every `_*.pyx` beside the package becomes one extension module, and
`init.c` the static program that is PID 1 of containers that ask for one.

DOCKPY_ONLY="_clone _copy" builds just those, for work on one module.
"""

import os
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# After setuptools, which provides it where Python no longer does.
from distutils.command.build_scripts import build_scripts  # isort: skip

SOURCE = Path("src/dockpy")
INIT_FLAGS = [
    *("-Os", "-s", "-Wall", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie"),
    *(
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
        "-fno-tree-loop-distribute-patterns",
    ),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,noexecstack"),
]
"""A program without a C library: two KB."""


class BuildAll(build_ext):
    """Extension modules as always, and the static init beside them."""

    def run(self) -> None:
        super().run()
        target = SOURCE if self.inplace else Path(self.build_lib) / "dockpy"
        target.mkdir(parents=True, exist_ok=True)
        compile_program(SOURCE / "init.c", target / "_init", *INIT_FLAGS)


class BuildCommand(build_scripts):
    """The `dockpy` command: a small program where others have a script."""

    editable_mode = False
    """Set by setuptools for an installation that uses this checkout's package."""

    def copy_scripts(self) -> tuple[list[str], list[str]]:
        target = Path(self.build_dir) / "dockpy"
        target.parent.mkdir(parents=True, exist_ok=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        flags = ("-Os", "-s", "-Wall", "-static", f'-DPYTHON_VERSION="{version}"')
        if self.editable_mode:
            flags += (f'-DSOURCE="{SOURCE.resolve()}"',)
        compile_program(SOURCE / "launcher.c", target, *flags, str(SOURCE / "quick.c"))
        return [str(target)], [str(target)]


def compile_program(source: Path, target: Path, *flags: str) -> None:
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *flags, "-o", target, source], check=True)


def extensions() -> list[Extension]:
    only = os.environ.get("DOCKPY_ONLY", "").split()
    return [
        Extension(
            f"dockpy.{source.stem}",
            [str(source)],
            extra_compile_args=["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"],
        )
        for source in sorted(SOURCE.glob("_*.pyx"))
        if not only or source.stem in only
    ]


setup(
    cmdclass={"build_ext": BuildAll, "build_scripts": BuildCommand},
    scripts=[str(SOURCE / "launcher.c")],
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        compiler_directives={"language_level": "3", "boundscheck": False, "wraparound": False},
    ),
)
