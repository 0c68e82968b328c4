"""Mistakes of a user: one clear line each, a non-zero code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from end_to_end.client import Client

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("run no-such-image true", 125, "no-such-image"),
        ("run --no-such-flag base true", 125, "--no-such-flag"),
        ("run -v /no/such:/x base true", 125, "/no/such"),
        ("run base", 125, "command"),
        ("run", 125, "image"),
        ("run base no-such-program", 127, "no-such-program"),
        ("run -m 1k base true", 125, "memory"),
        ("run -m lots base true", 125, "lots"),
        ("run -u nobody-here base true", 125, "nobody-here"),
        ("run --cap-add NO_CAP base true", 125, "NO_CAP"),
        ("run --ulimit nofiles=1 base true", 125, "nofiles"),
        ("run --net mesh base true", 125, "mesh"),
        ("run --stop-signal NOSIG base true", 125, "NOSIG"),
        ("run --name bad/name base true", 125, "bad/name"),
        ("run -e =x base true", 125, "=x"),
        ("run --env-file /no/such base true", 125, "/no/such"),
        ("run -t --detach-keys ctrl- base true", 125, "ctrl-"),
        ("run --tmpfs relative base true", 125, "relative"),
        ("run --security-opt nonsense base true", 125, "nonsense"),
        ("run --cpuset-cpus 9999 base true", 125, "9999"),
        ("stop nobody", None, "nobody"),
        ("start nobody", None, "nobody"),
        ("restart nobody", None, "nobody"),
        ("kill nobody", None, "nobody"),
        ("logs nobody", None, "nobody"),
        ("inspect nobody", None, "nobody"),
        ("attach nobody", None, "nobody"),
        ("wait nobody", None, "nobody"),
        ("rm nobody", None, "nobody"),
        ("dance", None, "dance"),
        ("ps --filter colour=red", None, "colour"),
        ("import /no/such/archive x", None, "/no/such/archive"),
        ("import /etc/passwd a/UPPER", None, "a/UPPER"),
    ],
)
def test_a_mistake_gives_one_line_and_leaves_nothing(
    dockpy: Client, line: str, code: int | None, says: str
) -> None:
    argv = line.split()
    images = dockpy.ok("images", "-q").out
    result = dockpy(*argv)
    assert result.code == code if code is not None else result.code not in (0, -1)
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert says.lower() in result.err.lower()
    assert "Traceback" not in result.err
    if argv[0] == "run" and code == 127:
        dockpy.remove_all()
    assert dockpy.ids() == []
    assert dockpy.ok("images", "-q").out == images


@pytest.mark.parametrize(
    "content", [b"this is no archive\n" * 100, b"\x1f\x8b\x08\0broken", b"BZh9broken", b""]
)
def test_an_unreadable_archive_is_refused(dockpy: Client, tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "broken"
    archive.write_bytes(content)
    for result in (dockpy("import", str(archive), "x"), dockpy("import", "-", "x", input=content)):
        assert result.code != 0
        assert result.out == ""
        assert len(result.err.strip().splitlines()) == 1, result.err
    assert dockpy.ok("images", "-q").lines == dockpy.ok("images", "-q", "base").lines


def test_a_name_in_use_names_its_owner(dockpy: Client) -> None:
    owner = dockpy.detached("--name", "taken", "base", "sleep", "60")
    result = dockpy("run", "--name", "taken", "base", "true")
    assert result.code == 125
    assert owner[:12] in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert dockpy.ids() == [owner]


def test_an_ambiguous_prefix_is_not_guessed(dockpy: Client) -> None:
    made: dict[str, str] = {}
    for _ in range(17):  # sixteen first digits: two must agree
        identifier = dockpy.ok("run", "-d", "base", "true").out.strip()
        if identifier[0] in made:
            break
        made[identifier[0]] = identifier
    result = dockpy("inspect", identifier[0])
    assert result.code != 0
    assert "ambiguous" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_failed_start_keeps_no_half_made_container_running(dockpy: Client) -> None:
    dockpy("run", "--name", "broken", "base", "no-such-program")
    assert dockpy.ok("ps", "-q").lines == []
    cgroups = dockpy.traces()["cgroups"]
    assert cgroups == []
