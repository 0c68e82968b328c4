"""Files a caller names are opened with the caller's rights, in one thread of root's."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dockpy.cli.rights import open_as, rights_of
from patience import patient

USER, GROUP, CREW = 64123, 64124, 64125


def status_ids() -> list[str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as status:
        return [line for line in status if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory everybody reaches."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


def open_in(place: Path, name: str, flags: int = os.O_RDONLY, groups: tuple[int, ...] = ()) -> int:
    cwd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        return open_as(name, flags, 0o666, cwd=cwd, uid=USER, gid=GROUP, groups=groups)
    finally:
        os.close(cwd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another's rights")
class TestRights:
    def test_a_file_of_roots_is_refused_and_an_own_one_opens(self, place: Path) -> None:
        for name, owner in (("theirs", 0), ("mine", USER)):
            (place / name).write_text(name)
            (place / name).chmod(0o600)
            os.chown(place / name, owner, 0)
        with pytest.raises(PermissionError):
            open_in(place, "theirs")
        descriptor = open_in(place, "mine")
        assert os.read(descriptor, 10) == b"mine"
        os.close(descriptor)

    def test_supplementary_groups_count(self, place: Path) -> None:
        (place / "crew").write_text("x")
        (place / "crew").chmod(0o640)
        os.chown(place / "crew", 0, CREW)
        with pytest.raises(PermissionError):
            open_in(place, "crew")
        os.close(open_in(place, "crew", groups=(CREW,)))

    def test_a_new_file_belongs_to_the_caller(self, place: Path) -> None:
        place.chmod(0o777)
        os.close(open_in(place, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        found = (place / "new").stat()
        assert (found.st_uid, found.st_gid) == (USER, GROUP)

    def test_the_thread_gets_its_rights_back_also_after_an_error(self, place: Path) -> None:
        before = status_ids()
        with pytest.raises(FileNotFoundError):
            open_in(place, "absent")
        assert status_ids() == before

    def test_other_threads_keep_theirs(self) -> None:
        before = status_ids()
        during: list[str] = []
        ready, go = threading.Event(), threading.Event()

        def observe() -> None:
            ready.set()
            go.wait(patient(10))
            during.extend(status_ids())

        thread = threading.Thread(target=observe)
        thread.start()
        ready.wait(patient(10))
        with rights_of(USER, GROUP, ()):
            inside = status_ids()
            go.set()
            thread.join(patient(10))
        assert during == before
        assert inside != before
