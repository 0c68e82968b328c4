"""Builds the native modules: every `_*.pyx` beside the package becomes one extension module, and
`init.c` the static program that is PID 1 of containers that ask for one.

DOCKPY_ONLY="_clone _copy" builds just those, for work on one module.
"""

import os
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("src/dockpy")
WITH_LIBRARIES = {"_tar": ["archive"]}


class BuildAll(build_ext):
    """Extension modules as always, and the static init beside them."""

    def run(self) -> None:
        super().run()
        target = SOURCE if self.inplace else Path(self.build_lib) / "dockpy"
        target.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-Os", "-static", "-s", "-Wall", "-o", target / "_init", SOURCE / "init.c"],
            check=True,
        )


def extensions() -> list[Extension]:
    only = os.environ.get("DOCKPY_ONLY", "").split()
    return [
        Extension(
            f"dockpy.{source.stem}",
            [str(source)],
            libraries=WITH_LIBRARIES.get(source.stem, []),
            extra_compile_args=["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"],
        )
        for source in sorted(SOURCE.glob("_*.pyx"))
        if not only or source.stem in only
    ]


setup(
    cmdclass={"build_ext": BuildAll},
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        compiler_directives={"language_level": "3", "boundscheck": False, "wraparound": False},
    ),
)
