"""Overlays of containers that wrote nothing, which the next containers get: who does, and who must
not."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import Config, Container, Exec, Runtime, spares
from dockpy.errors import RequestError
from dockpy.model import Bind, Status
from patience import patient

pytestmark = [
    pytest.mark.needs("root", "overlay", "busybox", "cgroups"),
    pytest.mark.skipif(
        tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15),
        reason="this kernel does not clone mounts that are nowhere attached",
    ),
]

TRUE = Config(image="base", cmd=("true",), network_mode="none")


def shell(script: str, **values: object) -> Config:
    return TRUE.with_(cmd=("sh", "-c", script), **values)


def upper(container: Container) -> str:
    """Which one it has: a mark beside it, for a number of an inode may come again."""
    beside = container.directory / "work"
    try:
        return os.getxattr(beside, "user.mark").decode()
    except OSError:
        os.setxattr(beside, "user.mark", secrets.token_hex(4).encode())
        return upper(container)


def ran(runtime: Runtime, config: Config) -> tuple[str, bytes]:
    """A container's upper and output, after it was removed and cleared away."""
    container = runtime.create(config)
    try:
        used, said = upper(container), container.output()
        container.wait()
    finally:
        runtime.destroy(container, force=True)
        runtime._janitor.drain()
    return used, said


def next_upper(runtime: Runtime, config: Config = TRUE) -> str:
    return ran(runtime, config)[0]


@pytest.fixture(name="runtime")
def given(engine: Runtime) -> Iterator[Runtime]:
    yield engine
    for container in engine.list():
        engine.destroy(container, force=True)


def test_who_wrote_nothing_leaves_its_upper_to_the_next(runtime: Runtime) -> None:
    one = runtime.create(shell("echo of the first; ls / >/dev/null"))
    first = upper(one)
    assert one.output() == b"of the first\n"
    one.wait()
    runtime._janitor.drain()  # its state is written, and not under way while it is removed
    (one.directory / ".tmp-state.json-0123").write_text("cut off by an earlier removal")
    runtime.destroy(one)
    runtime._janitor.drain()
    second = runtime.create(TRUE)
    assert upper(second) == first
    names = [".tmp-state.json-worn", "config.json", "upper", "work"]
    assert sorted(os.listdir(second.directory)) == names
    assert second.run() == 0
    assert list(second.read_log()) == []
    assert second.changes() == []
    runtime._janitor.drain()
    assert sorted(os.listdir(second.directory)) == ["config.json", "state.json", "upper", "work"]
    third = runtime.create(TRUE)
    assert upper(third) != first


def test_the_next_may_write(runtime: Runtime) -> None:
    first = next_upper(runtime)
    used, said = ran(runtime, shell("echo mine > /new; rm /bin/cat; cat /new; ls /bin/cat; ls /"))
    assert used == first
    assert b"new" in said
    again, said = ran(runtime, shell("cat /bin/cat | wc -c; ls /"))
    assert again != first
    assert b"new" not in said
    assert int(said.split()[0]) > 0


CHANGES = {
    "a file": "echo > /file",
    "a file that went": "echo > /file; rm /file",
    "a deletion": "rm /etc/passwd",
    "its mode": "chmod 700 /",
    "its owner": "chown 7:7 /",
    "its time": "touch /",
    "a mode that came back": "chmod 700 /; sleep 0.02; chmod 755 /",
    "deep below": "echo >> /etc/passwd",
}


@pytest.mark.parametrize("script", CHANGES.values(), ids=CHANGES)
def test_an_upper_that_was_touched_is_nobody_elses(runtime: Runtime, script: str) -> None:
    assert next_upper(runtime, shell(script)) != next_upper(runtime)


def test_an_attribute_of_the_root_is_seen(runtime: Runtime) -> None:
    container = runtime.create(TRUE)
    container.run()
    runtime._janitor.drain()
    spare = runtime._spares.pop(container.id)
    assert spare is not None
    assert spare.untouched
    os.setxattr(container.directory / "upper", "user.note", b"")
    assert not spare.untouched
    os.close(spare.tree)


GRIPS: dict[str, Callable[[Path], dict[str, object]]] = {
    "a volume": lambda place: {"binds": (Bind(str(place), "/mnt"),)},
    "privileged": lambda _: {"privileged": True},
    "more capabilities": lambda _: {"cap_add": ("SYS_PTRACE",)},
    "no filter": lambda _: {"seccomp": "unconfined"},
    "the host's network": lambda _: {"network_mode": "host"},
}


@pytest.mark.parametrize("grip", GRIPS.values(), ids=GRIPS)
def test_who_could_have_passed_descriptors_on_leaves_nothing(
    runtime: Runtime, tmp_path: Path, grip: Callable[[Path], dict[str, object]]
) -> None:
    assert next_upper(runtime, TRUE.with_(**grip(tmp_path))) != next_upper(runtime)


def test_a_network_that_was_shared_is_a_grip(runtime: Runtime) -> None:
    one = runtime.create(TRUE.with_(cmd=("sleep", "600")))
    used = upper(one)
    one.start()
    ran(runtime, TRUE.with_(network_mode=f"container:{one.id}"))
    runtime.destroy(one, force=True)
    runtime._janitor.drain()
    assert next_upper(runtime) != used


def exported(container: Container) -> None:
    with open(os.devnull, "wb") as out:
        container.export(out.fileno())


def copied(container: Container) -> None:
    with container.root(writable=False):
        pass


def all_rights(container: Container) -> None:
    container.execute(Exec(cmd=("true",), privileged=True)).start()


LOOKS = {
    "changes": lambda one: one.changes(),
    "export": exported,
    "copy": copied,
    "commit": lambda one: one._engine.commit(one),
    "privileged exec": all_rights,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_whose_files_were_opened_from_outside_leaves_nothing(
    runtime: Runtime, look: Callable[[Container], object]
) -> None:
    one = runtime.create(TRUE.with_(cmd=("sleep", "600")))
    used = upper(one)
    one.start()
    look(one)
    runtime.destroy(one, force=True)
    runtime._janitor.drain()
    assert next_upper(runtime) != used


def test_a_container_is_started_again_on_its_own_mount(runtime: Runtime) -> None:
    one = runtime.create(shell("[ -e /mark ] && exit 3; [ -e /bin/true ]"))
    assert one.run() == 0
    assert one.run() == 0
    runtime._janitor.drain()
    assert one.id in runtime._spares._kept
    with one.root(writable=True) as root:
        assert one.id not in runtime._spares._kept
        os.close(os.open("mark", os.O_CREAT | os.O_WRONLY, dir_fd=root.directory))
    assert one.run() == 3


def test_files_can_be_copied_into_a_disposable_container_with_a_used_mount(
    runtime: Runtime,
) -> None:
    disposable = TRUE.with_(auto_remove=True)
    first = runtime.create(disposable)
    used = upper(first)
    first.run()
    runtime._janitor.drain()
    second = runtime.create(disposable.with_(cmd=("cat", "/note")))
    assert upper(second) == used
    with second.root(writable=True) as root:
        note = os.open("note", os.O_CREAT | os.O_WRONLY, dir_fd=root.directory)
        os.write(note, b"from outside")
        os.close(note)
    assert second.output() == b"from outside"


def test_a_removed_image_takes_its_mounts_along(runtime: Runtime, tiny_archive: Path) -> None:
    config = TRUE.with_(image="other", cmd=("ls", "/bin/true"))
    stamp = tiny_archive.stat().st_mtime
    with open(tiny_archive, "rb") as archive:
        image = runtime.import_image(archive, "other")
    kept = runtime.create(config)
    kept.run()
    used = {next_upper(runtime, config), upper(kept)}
    runtime.tags.delete("other", "latest")
    runtime.tags.delete("base", "latest")
    for one in {image.id, *(image.id for image in runtime.graph.all())}:
        with contextlib.suppress(RequestError):
            runtime.graph.delete(one)
    assert runtime._trash.wait(patient(10))
    for name in ("other", "base"):
        with open(tiny_archive, "rb") as archive:
            runtime.import_image(archive, name)
    assert tiny_archive.stat().st_mtime == stamp
    runtime.destroy(kept)
    runtime._janitor.drain()
    fresh, said = ran(runtime, config)
    assert said == b"/bin/true\n"
    assert fresh not in used


def test_a_created_container_with_a_used_mount_was_never_started(
    real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> None:
    root, run = real_tmp / "twice", short_run()
    with Runtime(root, run=run) as runtime:
        with open(tiny_archive, "rb") as archive:
            runtime.import_image(archive, "base")
        used = next_upper(runtime)
        assert upper(runtime.create(TRUE, "waiting")) == used
    with Runtime(root, run=run) as successor:
        waiting = successor.get("waiting")
        assert waiting.state.status is Status.CREATED
        assert waiting.run() == 0
        successor.destroy(waiting)
    shutil.rmtree(root)


def test_a_start_on_a_used_mount_is_seen_by_its_time(runtime: Runtime) -> None:
    next_upper(runtime)
    one = runtime.create(TRUE.with_(cmd=("sleep", "600")))
    assert os.stat(one.directory / "work" / "work").st_mtime_ns == 0
    before = time.time()
    one.start()
    assert os.stat(one.directory / "work" / "work").st_mtime >= before - 0.1


def test_a_start_that_fails_unmounts_what_it_was_given(runtime: Runtime) -> None:
    used = next_upper(runtime)
    one = runtime.create(TRUE.with_(cmd=("no-such-program",)))
    assert upper(one) == used
    for _ in range(2):
        with pytest.raises(RequestError):
            one.start()
    assert runtime._spares._kept == {}
    runtime.destroy(one)
    runtime._janitor.drain()
    assert next_upper(runtime) != used


def test_a_start_right_after_one_that_failed_fails_for_the_same_reason(runtime: Runtime) -> None:
    """What is cleaned up of the first is not taken from under the second."""
    one = runtime.create(TRUE.with_(cmd=("no-such-program",)))
    for _ in range(100):
        with pytest.raises(RequestError, match="no-such-program"):
            one.start()


def test_they_are_few_and_not_for_long(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "MOST", 2)
    monkeypatch.setattr(spares, "AGE", 0.3)
    ended = [runtime.create(TRUE) for _ in range(4)]
    for one in ended:
        one.run()
    runtime._janitor.drain()
    assert len(runtime._spares._kept) <= 2
    for one in ended:
        runtime.destroy(one)
    runtime._janitor.drain()
    deadline = time.monotonic() + patient(10)
    while time.monotonic() < deadline and runtime._spares._thread is not None:
        time.sleep(0.02)
    assert (runtime._spares._free, runtime._spares._kept) == ([], {})
    assert runtime._trash.wait(patient(10))
    assert os.listdir(runtime.root / "trash") == []


def test_an_older_kernel_has_none(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    from dockpy.errors import KernelError

    def refused(*_: object, **__: object) -> int:
        raise KernelError("clone mount", 22)

    monkeypatch.setattr(spares, "clone_tree", refused)
    assert next_upper(runtime) != next_upper(runtime)
    assert ran(runtime, shell("echo works"))[1] == b"works\n"
    assert (runtime._spares._free, runtime._spares._kept) == ([], {})


def test_the_next_sees_the_mode_and_owner_of_the_images_root(runtime: Runtime) -> None:
    first = next_upper(runtime)
    one = runtime.create(TRUE)
    seen = os.stat(one.directory / "upper")
    assert upper(one) == first
    assert stat.S_IMODE(seen.st_mode) == 0o755
    assert (seen.st_uid, seen.st_gid) == (0, 0)


def test_an_end_that_is_told_after_the_removal_leaves_no_group(runtime: Runtime) -> None:
    """The clean-up of a container waits, and another thread tells its end once more."""
    one = runtime.create(TRUE)
    while hash(one.id) % 2 == hash("") % 2:  # its own lane is not that of jobs without a key
        one = runtime.create(TRUE)
    gate = threading.Event()
    runtime._janitor.put(gate.wait, one.id)  # type: ignore[arg-type]
    one.start()
    one.wait()
    run = one._run
    assert run is not None
    runtime.destroy(one)
    runtime.container_exited(run, 0, time.time())
    time.sleep(0.2)
    gate.set()
    runtime._janitor.drain()
    assert one.id not in runtime.cgroups.names()
    assert run.key not in runtime._held
