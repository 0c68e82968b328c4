"""The import ladder: a module of dockpy imports lower levels only.

    python tools/ladder.py [CHECKOUT]

The levels stand in pyproject.toml, `[tool.dockpy.ladder]`: `levels` from the lowest to the highest,
each a list of patterns of module names without `dockpy.` (`_*` are the native modules, which know
nothing of dockpy but each other's declarations). Modules of one package may import each other, as
long as no circle comes of it. `only` names, for modules that must start quickly, all they may
import when they are loaded; imports inside their functions are free.

Every import counts, also one inside a function or under TYPE_CHECKING: the ladder is about what a
module knows, not about when. Exit status 1 and one line for each offence.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PACKAGE = "dockpy"
CIMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import\b|c?import\s+([\w., ]+))", re.MULTILINE)
EXTERN = re.compile(r"^\s*cdef\s+extern\b")


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """One import: who (without the package's name), of what (in full), where, when."""

    module: str
    target: str
    line: int
    at_load: bool


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rules, as pyproject.toml has them."""

    levels: Sequence[Sequence[str]]
    only: Mapping[str, Sequence[str]]

    def level(self, module: str) -> int | None:
        """Index of the level a module belongs to; None when no pattern names it."""
        for index, patterns in enumerate(self.levels):
            if any(fnmatchcase(module, pattern) for pattern in patterns):
                return index
        return None


def read_ladder(pyproject: Path) -> Ladder:
    """The rules of a checkout. KeyError when there are none."""
    table: dict[str, Any] = tomllib.loads(pyproject.read_text())["tool"]["dockpy"]["ladder"]
    return Ladder(table["levels"], table.get("only", {}))


def module_name(path: Path, source: Path) -> str:
    """`api/wire.py` is api.wire; a package has its directory's name, the top the empty one."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_imports(
    text: str, module: str, *, is_package: bool, known: frozenset[str]
) -> list[Import]:
    """Every import of a Python file, names of modules resolved as far as `known` tells."""
    found: list[Import] = []

    def visit(node: ast.AST, *, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, each.name, node.lineno, at_load) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, module, is_package=is_package)
            for each in node.names:
                below = f"{start}.{each.name}"
                is_module = below.removeprefix(f"{PACKAGE}.") in known
                target = below if is_module else start
                found.append(Import(module, target, node.lineno, at_load))
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, at_load=at_load and not deferred and not _is_type_checking(node))

    visit(ast.parse(text), at_load=True)
    return found


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    up = node.level - 1 if is_package else node.level
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def native_imports(text: str, module: str) -> list[Import]:
    """Imports and cimports of Cython source, by pattern: its grammar is not Python's."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = CIMPORT.match(line)
        if match and not EXTERN.match(line):
            names = match[1] or match[2]
            for name in names.split(","):
                target = name.split()[0]
                if target.startswith("."):
                    target = f"{PACKAGE}{target}".rstrip(".")
                found.append(Import(module, target, number, at_load=True))
    return found


def read_imports(source: Path) -> tuple[frozenset[str], list[Import]]:
    """Names of all modules below `source`, and their imports."""
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd") and "__pycache__" not in path.parts
    ]
    known = frozenset(module_name(path, source) for path in files)
    found: list[Import] = []
    for path in files:
        name = module_name(path, source)
        if path.suffix in (".pyx", ".pxd"):
            found += native_imports(path.read_text(), name)
        else:
            is_package = path.stem == "__init__"
            found += python_imports(path.read_text(), name, is_package=is_package, known=known)
    return known, found


def offences(ladder: Ladder, known: Iterable[str], imports: Iterable[Import]) -> Iterator[str]:
    """One line for each module without a level and each import that goes up or across."""
    modules = sorted(known)
    imports = list(imports)
    for module in modules:
        if ladder.level(module) is None:
            yield f"{PACKAGE}.{module}: on no level; add it to [tool.dockpy.ladder] levels"
    for each in imports:
        reason = _against(ladder, each)
        if reason:
            yield f"{PACKAGE}.{each.module} line {each.line}: imports {each.target}, {reason}"
    for pattern in (each for level in ladder.levels for each in level):
        if not any(fnmatchcase(module, pattern) for module in modules):
            yield f"[tool.dockpy.ladder] names {pattern!r}, but there is no such module"
    for module in sorted(set(ladder.only) - set(modules)):
        yield f"{PACKAGE}.{module}: has an `only` list, but there is no such module"
    circle = find_circle(imports)
    if circle:
        yield "a circle: " + " -> ".join(circle)


def _against(ladder: Ladder, each: Import) -> str | None:
    if each.at_load and each.module in ladder.only and each.target not in ladder.only[each.module]:
        return "which is not on its `only` list; it must start quickly"
    if each.target != PACKAGE and not each.target.startswith(f"{PACKAGE}."):
        return None
    target = each.target.removeprefix(PACKAGE).removeprefix(".")
    if target == each.module:
        return None
    own, other = ladder.level(each.module), ladder.level(target)
    if is_native(each.module):
        return None if is_native(target) else "and native modules know nothing of dockpy"
    if own is None or other is None or other < own or _one_package(each.module, target):
        return None
    return f"which is on level {other}, not below its own level {own}"


def is_native(module: str) -> bool:
    name = module.rpartition(".")[2]
    return name.startswith("_") and not name.startswith("__")


def _one_package(first: str, second: str) -> bool:
    package = first.partition(".")[0]
    return bool(package) and package == second.partition(".")[0]


def find_circle(imports: Iterable[Import]) -> list[str] | None:
    """Modules of dockpy that import each other in a ring, the first again at the end."""
    graph: dict[str, set[str]] = {}
    for each in imports:
        target = each.target.removeprefix(PACKAGE).removeprefix(".")
        if each.target.startswith(f"{PACKAGE}.") and target != each.module:
            graph.setdefault(each.module, set()).add(target)
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(graph.get(module, ())):
            circle = walk(target, [*path, module])
            if circle:
                return circle
        done.add(module)
        return None

    return next((circle for start in sorted(graph) if (circle := walk(start, []))), None)


def main(arguments: Sequence[str]) -> int:
    checkout = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    ladder = read_ladder(checkout / "pyproject.toml")
    known, imports = read_imports(checkout / "src" / PACKAGE)
    found = list(offences(ladder, known, imports))
    for line in found:
        print(line)
    if not found:
        print(f"ladder: {len(known)} modules, {len(imports)} imports, none of them upwards")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
