from __future__ import annotations

from pathlib import Path

import pytest
from tools.ladder import Ladder, native_imports, offences, python_imports, read_imports

LADDER = Ladder([["errors"], ["_*"], ["mounts", "api", "api.*"], ["runtime"], [""]], {})


def checked(source: Path, ladder: Ladder, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    known, imports = read_imports(source)
    unused = "but there is no such module"
    return [line for line in offences(ladder, known, imports) if unused not in line]


def test_imports_of_lower_levels_are_no_offence(tmp_path: Path) -> None:
    files = {
        "runtime.py": "from dockpy.mounts import x\nimport os\n",
        "mounts.py": "import dockpy._a",
    }
    assert checked(tmp_path, LADDER, {**files, "_a.pyx": "from libc.errno cimport errno\n"}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from dockpy.runtime import Runtime",
        "import dockpy.runtime",
        "from dockpy import runtime",
        "from . import runtime",
        "from .runtime import Runtime",
        "def f():\n    from dockpy.runtime import Runtime",
        "import typing\nif typing.TYPE_CHECKING:\n    from dockpy.runtime import Runtime",
    ],
)
def test_an_import_of_a_higher_level_is_named_however_it_is_written(
    tmp_path: Path, text: str
) -> None:
    (line,) = checked(tmp_path, LADDER, {"mounts.py": text, "runtime.py": ""})
    assert line.startswith("dockpy.mounts line ")
    assert "imports dockpy.runtime" in line


def test_names_of_the_package_itself_stand_above_everything(tmp_path: Path) -> None:
    (line,) = checked(tmp_path, LADDER, {"runtime.py": "from dockpy import Runtime"})
    assert "imports dockpy, " in line


def test_neighbours_are_an_offence_but_not_inside_one_package(tmp_path: Path) -> None:
    files = {
        "mounts.py": "import dockpy.api.wire",
        "api/wire.py": "",
        "api/client.py": "from . import wire",
    }
    (line,) = checked(tmp_path, LADDER, files)
    assert line.startswith("dockpy.mounts line 1")


def test_a_circle_inside_a_package_is_named(tmp_path: Path) -> None:
    files = {"api/wire.py": "from . import client", "api/client.py": "from . import wire"}
    (line,) = checked(tmp_path, LADDER, files)
    assert line == "a circle: api.client -> api.wire -> api.client"


def test_a_module_without_a_level_is_named(tmp_path: Path) -> None:
    (line,) = checked(tmp_path, LADDER, {"helpers.py": ""})
    assert line.startswith("dockpy.helpers: on no level")


def test_a_level_that_names_no_module_is_named(tmp_path: Path) -> None:
    assert list(offences(Ladder([["gone"]], {}), [], [])) == [
        "[tool.dockpy.ladder] names 'gone', but there is no such module"
    ]


def test_native_modules_may_know_native_declarations_only(tmp_path: Path) -> None:
    files = {
        "_a.pyx": "from dockpy._sys cimport Failure\nfrom dockpy.errors import KernelError\n",
        "_sys.pxd": "cdef extern from 'errno.h':\n    pass\n",
        "errors.py": "",
    }
    (line,) = checked(tmp_path, LADDER, files)
    assert line.startswith("dockpy._a line 2")


def test_cimports_are_seen_in_every_form() -> None:
    text = "cimport cython\nfrom libc.string cimport memcpy\nimport os, sys as s\ncdef int x\n"
    assert [each.target for each in native_imports(text, "_a")] == [
        "cython",
        "libc.string",
        "os",
        "sys",
    ]


def test_a_module_that_must_start_quickly_imports_its_list_and_nothing_else(tmp_path: Path) -> None:
    ladder = Ladder([["api", "api.*"]], {"api.client": ["_socket", "posix"]})
    text = "import _socket\nimport posix\nimport json\ndef slow():\n    import subprocess\n"
    (line,) = checked(tmp_path, ladder, {"api/client.py": text})
    assert line.startswith(
        "dockpy.api.client line 3: imports json, which is not on its `only` list"
    )


def test_an_import_inside_a_function_is_marked_as_late() -> None:
    text = "import a\ndef f():\n    import b\nclass C:\n    import c\n"
    found = python_imports(text, "m", is_package=False, known=frozenset())
    assert {each.target: each.at_load for each in found} == {"a": True, "b": False, "c": True}
