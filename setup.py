"""Builds the native modules: every `_*.pyx` beside the package becomes one extension module.

DOCKPY_ONLY="_clone _copy" builds just those, for work on one module.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("src/dockpy")
WITH_LIBRARIES = {"_tar": ["archive"]}


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
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        compiler_directives={"language_level": "3", "boundscheck": False, "wraparound": False},
    )
)
