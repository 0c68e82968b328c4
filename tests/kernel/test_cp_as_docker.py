"""Where a copy arrives, and under which name: every case as Docker answered it.

tests/reference/docker_cp.json was recorded from dockerd 20.10 with a container that does not run,
in both directions, from trees that `make` makes here. "made": what changed at the target, one text
for all cases "source target" that change the same (`a/` a directory, `a=text` a file, `a>text` a
link, `S` for the side copied from, `TOP` for the name of the tree's own directory). Cases that are
not there were refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy.copying import Side, copy
from dockpy.errors import DockpyError

pytestmark = pytest.mark.needs("root")

RECORDED = json.loads(
    (Path(__file__).resolve().parents[1] / "reference" / "docker_cp.json").read_text()
)
OTHERWISE = {"dang/"}
"""Targets where we differ: we make the directory that a dangling link names; Docker fails."""
Tree = dict[str, str]


def make(top: Path, who: str) -> None:
    (top / "d").mkdir(parents=True)
    (top / "e").mkdir()
    for name, text in (("f", f"{who}f"), ("d/x", f"{who}x"), (f"d/{who}", who)):
        (top / name).write_text(text)
    for name, target in (("ld", "d"), ("lf", "f"), ("dang", "missing")):
        (top / name).symlink_to(target)


def look(top: Path) -> Tree:
    """Every name below with what it is."""

    def kind(path: Path) -> str:
        if path.is_symlink():
            return f">{os.readlink(path)}"
        return "/" if path.is_dir() else f"={path.read_text()}"

    return {str(one.relative_to(top)): kind(one) for one in top.rglob("*")}


def expected(follow: bool) -> dict[tuple[str, str], str]:
    """What each case makes; those that are refused are not there."""
    which = "follow" if follow else "plain"
    return {
        (source, target): made
        for made, cases in RECORDED["made"].items()
        for source, _, target in (one.partition(" ") for one in cases.get(which, ()))
    }


def outcome(place: Path, source: str, target: str, follow: bool) -> str | None:
    """What a copy changes at its target, in the words of the record; None: it was refused."""
    make(place / "from" / "TOP", "S")
    make(place / "to" / "TOP", "T")
    untouched, before = look(place / "from"), look(place / "to" / "TOP")
    root = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        copy(
            Side(root, f"/from/TOP/{source}", source),
            Side(root, f"/to/TOP/{target}", target),
            follow=follow,
        )
        refused = False
    except DockpyError:
        refused = True
    finally:
        os.close(root)
    after = look(place / "to" / "TOP")
    assert look(place / "from") == untouched
    assert before.keys() <= after.keys()
    if refused:
        assert after == before, "what was refused changes nothing"
        return None
    changed = (name for name in sorted(after) if after[name] != before.get(name))
    return " ".join(f"{name}{after[name]}" for name in changed)


def cases() -> Iterator[tuple[str, str]]:
    for source in RECORDED["sources"]:
        for target in RECORDED["targets"]:
            if target not in OTHERWISE:
                yield source, target


@pytest.mark.parametrize("follow", [False, True], ids=["plain", "follow"])
def test_a_copy_arrives_where_dockers_does(tmp_path: Path, follow: bool) -> None:
    known = expected(follow)
    different = {
        (source, target): (found, known.get((source, target)))
        for number, (source, target) in enumerate(cases())
        if (found := outcome(tmp_path / str(number), source, target, follow))
        != known.get((source, target))
    }
    assert different == {}


def test_a_directory_goes_where_a_dangling_link_leads(tmp_path: Path) -> None:
    assert outcome(tmp_path, "d", "dang/", False) == "missing/ missing/S=S missing/x=Sx"
