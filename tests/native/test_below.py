from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dockpy._below import remove_directories


def test_each_directory_that_is_empty_goes_whatever_the_others_say(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("full", "empty", "none", "file")]
    for one in places:
        one.mkdir()
    (places[0] / "group" / "inside").mkdir(parents=True)
    (places[1] / "group").mkdir()
    (places[3] / "group").touch()
    opened = [os.open(one, os.O_RDONLY) for one in places]
    found = remove_directories(opened, b"group")
    for one in opened:
        os.close(one)
    assert found == [errno.ENOTEMPTY, 0, errno.ENOENT, errno.ENOTDIR]
    assert [(one / "group").exists() for one in places] == [True, False, False, True]


def test_more_directories_than_there_is_room_for_are_refused() -> None:
    assert remove_directories([], b"group") == []
    with pytest.raises(ValueError, match="too many"):
        remove_directories([-1] * 33, b"group")
