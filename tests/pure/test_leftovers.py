from __future__ import annotations

import os
import subprocess
import threading

import pytest

import leftovers


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE", 0.0)


def test_nothing_left_gives_no_lines() -> None:
    assert leftovers.left(leftovers.around_test(host=False)) == []


def test_an_open_descriptor_is_named() -> None:
    before = leftovers.around_test(host=False)
    reader, writer = os.pipe()
    try:
        assert leftovers.left(before) == ["descriptor of pipe:[N] (2 times)"]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_zombie_is_named() -> None:
    before = leftovers.around_test(host=False)
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert leftovers.left(before) == [f"zombie {child} (true)"]
    finally:
        os.waitpid(child, 0)


def test_a_running_child_and_a_thread_are_named() -> None:
    before = leftovers.around_test(host=False)
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait, name="forgotten")
    thread.start()
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        try:
            extra = leftovers.left(before)
        finally:
            wait.set()
            thread.join()
            child.kill()
    assert f"child {child.pid} (sleep)" in extra
    assert "thread forgotten" in extra
