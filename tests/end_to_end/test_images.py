"""commit diff export history save load images rmi: what a container becomes."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SCRIPT = "echo new > /new; rm /etc/group; echo more >> /etc/passwd; mkdir /d; rm -r /var/lib"
DIFF = "C /etc\nD /etc/group\nC /etc/passwd\nA /d\nA /new\nC /var\nD /var/lib\n"


@pytest.fixture
def there(dockpy: Client) -> Iterator[Client]:
    """A client with a container `done` that changed files and ended."""
    dockpy.ok("run", "--name", "done", "base", "sh", "-c", SCRIPT)
    yield dockpy
    dockpy.remove_all()
    for name in dockpy.ok("images", "--format", "{{.Repository}}:{{.Tag}}").lines:
        if name not in ("base:latest", "<none>:<none>"):
            dockpy("rmi", name)


def test_diff_tells_what_was_added_changed_and_deleted(there: Client) -> None:
    assert sorted(there.ok("diff", "done").lines) == sorted(DIFF.splitlines())


def test_a_committed_image_has_the_changes_and_the_presets(there: Client) -> None:
    identifier = there.ok(
        *("commit", "-m", "a comment", "-a", "me", "--change", 'CMD ["cat","/new"]'),
        *("--change", "ENV X=7", "--change", "WORKDIR /d", "done", "some/image:1"),
    ).out
    assert identifier.startswith("sha256:")
    assert there.ok("run", "--rm", "some/image:1").out == "new\n"
    script = "echo $X; pwd; cat /etc/group; ls /var"
    result = there("run", "--rm", "some/image:1", "sh", "-c", script)
    assert result.out == "7\n/d\n"
    assert "No such file" in result.err
    steps = there.ok("history", "--format", "{{.Comment}}|{{.CreatedBy}}", "some/image:1").lines
    assert steps[0].startswith("a comment|sh -c echo new")
    assert len(steps) == 2
    assert there.ok("history", "-q", "--no-trunc", "some/image:1").lines[0] == identifier.strip()


def test_the_seeds_way_to_commit(there: Client) -> None:
    there.ok("commit", "-run", '{"Cmd": ["cat", "/new"], "Env": ["A=b"]}', "done", "old", "style")
    assert there.ok("run", "--rm", "old:style").out == "new\n"


def test_a_container_that_writes_all_the_time_is_committed_whole(dockpy: Client) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i > /a; echo $i > /b; done"
    dockpy.ok("run", "-d", "--name", "busy", "base", "sh", "-c", script)
    eventually(lambda: dockpy("exec", "busy", "test", "-s", "/b").code == 0, "it writes")
    for number in range(5):
        dockpy.ok("commit", "busy", f"busy:{number}")
        out = dockpy.ok("run", "--rm", f"busy:{number}", "sh", "-c", "cat /a; echo .; cat /b").out
        first, second = (one.strip() for one in out.split(".\n"))
        # At any one moment b is as a, one behind, or just emptied by the shell.
        assert first in ("", second) or second == "" or int(first) - int(second) == 1
        dockpy.ok("rmi", f"busy:{number}")
    assert dockpy.field("busy", "{{.State.Running}}") == "true"
    dockpy.remove_all()


def test_an_export_is_the_whole_tree_and_comes_in_again(there: Client, tmp_path: Path) -> None:
    there.ok("export", "-o", str(tmp_path / "x.tar"), "done")
    with tarfile.open(tmp_path / "x.tar") as one:
        names = {name.removeprefix("./") for name in one.getnames()}
    assert {"new", "d", "etc/passwd", "bin/busybox"} <= names
    assert not {"etc/group", "var/lib", "proc/1"} & names
    assert there.ok("export", "done").raw == (tmp_path / "x.tar").read_bytes()
    there.ok("import", str(tmp_path / "x.tar"), "flat")
    assert there.ok("run", "--rm", "flat", "cat", "/new").out == "new\n"


def test_images_are_saved_and_loaded_again(there: Client, tmp_path: Path) -> None:
    identifier = there.ok("commit", "done", "some/image:1").out
    there.ok("save", "-o", str(tmp_path / "s.tar"), "some/image:1")
    assert there.ok("save", "some/image:1").raw == (tmp_path / "s.tar").read_bytes()
    there.ok("rmi", "some/image:1")
    assert there.ok("load", "-i", str(tmp_path / "s.tar")).out == "Loaded image: some/image:1\n"
    assert there.ok("images", "-q", "--no-trunc", "some/image").out == identifier
    there.ok("rmi", "some/image:1")
    data = (tmp_path / "s.tar").read_bytes()
    assert there.ok("load", input=data).out == "Loaded image: some/image:1\n"
    assert there.ok("run", "--rm", "some/image:1", "cat", "/new").out == "new\n"


def test_a_reader_that_leaves_ends_an_export(there: Client) -> None:
    with there.started("export", "done") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 141


def test_a_tree_of_images_and_its_graph(there: Client) -> None:
    there.ok("commit", "done", "below:1")
    tree = there.ok("images", "--tree").out
    base = next(line for line in tree.splitlines() if "base:latest" in line)
    below = next(line for line in tree.splitlines() if "below:1" in line)
    assert tree.index(base) < tree.index(below)
    assert below.startswith((" ", "\u2502"))
    graph = there.ok("images", "-viz").out
    assert graph.startswith("digraph")
    assert "below:1" in graph
    assert graph.count("->") == len(tree.splitlines())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["commit", "absent"], "absent"),
        (["commit", "done", "Upper/Case"], "Upper/Case"),
        (["commit", "--change", "NONSENSE x", "done"], "NONSENSE"),
        (["commit", "--run", "{", "done"], "not JSON"),
        (["commit", "--run", '{"Memory": "x"}', "done"], "Memory"),
        (["diff", "absent"], "absent"),
        (["export", "absent"], "absent"),
        (["export", "-o", "/nowhere/x", "done"], "/nowhere/x"),
        (["history", "absent"], "absent"),
        (["save", "absent"], "absent"),
        (["save", "-o", "/nowhere/x", "base"], "/nowhere/x"),
        (["load", "-i", "/nowhere"], "/nowhere"),
        (["load", "-i", "/etc/passwd"], "tar"),
        (["load", "-i", "/etc"], "cannot open /etc: Is a directory"),
        (["import", "/etc", "etc"], "cannot open /etc: Is a directory"),
        (["images", "--tree", "-q"], "--tree"),
        (["rmi", "base"], "done|container"),
        (["rmi", "absent"], "absent"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(there: Client, argv: list[str], words: str) -> None:
    before = there.ok("images", "-aq").out
    result = there(*argv)
    assert result.code != 0
    assert result.err.count("\n") == 1
    assert any(word in result.err for word in words.split("|"))
    assert there.ok("images", "-aq").out == before


def test_a_failed_save_leaves_no_file(there: Client, tmp_path: Path) -> None:
    assert there("save", "-o", str(tmp_path / "s.tar"), "base", "absent").code != 0
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").write_bytes(b"kept")
    assert there("export", "-o", str(tmp_path / "mine"), "absent").code != 0
    assert (tmp_path / "mine").read_bytes() == b"kept"
