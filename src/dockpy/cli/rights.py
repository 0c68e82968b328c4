"""Opening files with the rights of the user who named them, from a thread of root's.

Facts (credentials(7), setfsuid(2), capabilities(7) "Effect of user ID changes on capabilities"):
the kernel keeps credentials per thread; the raw system calls change the calling thread only;
leaving file-system user 0 drops the capabilities that override file permissions from the
effective set, going back to 0 raises them again. glibc's setfsuid and setfsgid are the raw calls;
its setgroups is not (it tells every thread), so that one is called by number.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dockpy.errors import KernelError

_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "s390x": 206, "ppc64le": 81}
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def rights_of(uid: int, gid: int, groups: Sequence[int]) -> Iterator[None]:
    """The calling thread's file accesses inside are checked as those of `uid`.

    For root nothing changes. Raises KernelError when the rights cannot be given away; when they
    cannot be taken back the thread must not go on, and the error says so.
    """
    if uid == 0:
        yield
        return
    before = _thread_groups()
    _set_groups(groups)
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
        _set_groups(before)


def open_as(
    path: str, flags: int, mode: int, *, cwd: int, uid: int, gid: int, groups: Sequence[int]
) -> int:
    """A descriptor (close-on-exec) of `path`, relative ones from the directory `cwd`. OSError."""
    with rights_of(uid, gid, groups):
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=cwd)


def _thread_groups() -> list[int]:
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as status:
        for line in status:
            if line.startswith("Groups:"):
                return [int(one) for one in line.split()[1:]]
    return []


def _set_groups(groups: Sequence[int]) -> None:
    number = _SETGROUPS[platform.machine()]
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(ctypes.c_long(number), ctypes.c_long(len(groups)), array) != 0:
        raise KernelError("setgroups of one thread", ctypes.get_errno())
