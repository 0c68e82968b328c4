"""Pipes of callers, wider: what is none stays as it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dockpy.pipes import PIPE_SIZE, widen


def test_a_pipe_grows_by_either_end_and_what_it_holds_stays() -> None:
    for end in (0, 1):
        ends = os.pipe()
        os.write(ends[1], b"kept")
        widen(ends[end])
        assert fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) == PIPE_SIZE
        assert os.read(ends[0], 10) == b"kept"
        for one in ends:
            os.close(one)


def test_a_pipe_that_was_changed_before_grows_too() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE // 2)
    widen(reader)
    assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    os.close(reader)
    os.close(writer)


def test_what_is_no_pipe_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with open(tmp_path / "file", "rb") as file:
        widen(file.fileno())
        assert file.read() == b"text"
