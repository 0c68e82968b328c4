"""No code between clone and exec may need the interpreter: read in the C that Cython generated.

What the child may run is derived: everything that is reachable from its entry function.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dockpy._clone

ENTRY = "run_plan"
DEFINITION = re.compile(r"^static (?:\w+ )*?[\w *]+?\b(__pyx_f_\w+)\(([^;{]*)\) \{", re.MULTILINE)
CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
PYTHON = re.compile(r"\b(_?Py[A-Z_]\w*|__Pyx_\w+|__pyx_(?:n|m|mstate|tp|ptype|state)_?\w*)")

WORDS = {"if", "while", "for", "switch", "return", "sizeof"}
MACROS = {"likely", "unlikely", "CYTHON_UNUSED_VAR", "S_ISDIR", "S_ISFIFO", "S_ISSOCK"}
PLAIN = {"memset", "memcpy", "strlen"}
"""Functions of libc that touch nothing but the memory they are given."""
OURS = {"dockpy_call", "dockpy_openat2"}
"""One system call, and one that is repeated (see _sys.pxd)."""
TYPES = {"int32_t", "int64_t", "uint32_t", "uint64_t"}
ALLOWED = WORDS | MACROS | PLAIN | OURS | TYPES


def generated() -> str:
    """The C beside the source, or where the build put it; without comments and literals."""
    here = Path(dockpy._clone.__file__)
    source = here.with_name("_clone.c")
    if not source.exists():
        pytest.fail(f"{source} is missing; build with setup.py build_ext --inplace")
    text = re.sub(r"/\*.*?\*/", " ", source.read_text(), flags=re.DOTALL)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


def functions(text: str) -> dict[str, str]:
    """Bodies of the C functions made from ours, by their name in the source."""
    found = {}
    for match in DEFINITION.finditer(text):
        end = text.index("\n}", match.end())
        found[match[1]] = text[match.end() : end]
    return found


def called(body: str) -> set[str]:
    return set(CALL.findall(body))


def reachable(bodies: dict[str, str], entry: str) -> set[str]:
    found: set[str] = set()
    ahead = [entry]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += [one for one in re.findall(r"__pyx_f_\w+", bodies[name]) if one in bodies]
    return found


def child_functions() -> dict[str, str]:
    bodies = functions(generated())
    (entry,) = [name for name in bodies if name.endswith(f"_{ENTRY}")]
    return {name: bodies[name] for name in sorted(reachable(bodies, entry))}


def offences(body: str) -> set[str]:
    """Names a body must not use: the interpreter's, and functions nobody allowed."""
    foreign = {name for name in called(body) - ALLOWED if not name.startswith("__pyx_f_")}
    return foreign | set(PYTHON.findall(body))


def test_the_child_reaches_every_kind_of_step() -> None:
    names = " ".join(child_functions())
    for step in (
        "take_root",
        "make_missing",
        "execute",
        "filter_calls",
        "standard_streams",
        "in_root",
    ):
        assert f"_{step}" in names
    assert len(child_functions()) > 25


def test_the_repeated_call_is_nothing_but_calls() -> None:
    text = generated()
    start = text.index("static inline long dockpy_openat2(")
    body = text[start : text.index("\n    }", start)]
    assert called(body) - WORDS == {"dockpy_openat2", "dockpy_call"}


def test_no_function_of_the_child_uses_the_interpreter_or_unknown_functions() -> None:
    found = {name: offences(body) for name, body in child_functions().items()}
    assert {name: bad for name, bad in found.items() if bad} == {}


def test_the_child_calls_nothing_that_is_not_defined_here() -> None:
    bodies = functions(generated())
    missing = {
        one
        for body in child_functions().values()
        for one in called(body)
        if one.startswith("__pyx_f_") and one not in bodies
    }
    assert missing == set()


@pytest.mark.parametrize(
    "line",
    [
        "__pyx_t_1 = PyLong_FromLong(3);",
        "__Pyx_INCREF(__pyx_v_x);",
        "with_gil = PyGILState_Ensure();",
        "malloc(10);",
        "setuid(0);",
        "__Pyx_AddTraceback();",
    ],
)
def test_the_check_itself_sees_an_offence(line: str) -> None:
    assert offences(f"  {line}\n")


def test_the_check_itself_follows_calls() -> None:
    text = (
        "static int __pyx_f_a(int x) {\n  return __pyx_f_b(x);\n}\n"
        "static int __pyx_f_b(int x) {\n  return malloc(x);\n}\n"
        "static int __pyx_f_c(int x) {\n  return 0;\n}\n"
    )
    bodies = functions(text)
    assert reachable(bodies, "__pyx_f_a") == {"__pyx_f_a", "__pyx_f_b"}
    assert offences(bodies["__pyx_f_b"]) == {"malloc"}
