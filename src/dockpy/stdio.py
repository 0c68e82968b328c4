"""Pipes, terminals and the descriptors that clients lend us.

A client's descriptor shares its description with the client's shell: O_NONBLOCK is never set on it.
Pipes and terminals are opened anew through /proc/self/fd instead, which gives a description of our
own on the same pipe or terminal (proc(5)); sockets and files are used as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Iterator

from dockpy._copy import escapable_copy
from dockpy.errors import UsageError

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
LONGEST_SEQUENCE = 32
_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """The bytes of `ctrl-p,ctrl-q`, `a,b`, `ctrl-@`; UsageError names the key that is not one."""
    sequence = bytearray()
    for key in text.split(","):
        letter = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            sequence += key.encode()
        elif key.startswith("ctrl-") and len(letter) == 1 and letter.isascii() and letter.isalpha():
            sequence.append(ord(letter.lower()) - 96)
        elif key.startswith("ctrl-") and letter in _CONTROL:
            sequence.append(_CONTROL[letter])
        else:
            raise UsageError(f"bad detach key {key!r}; use single letters or ctrl-LETTER")
    if len(sequence) > LONGEST_SEQUENCE:
        raise UsageError(f"more than {LONGEST_SEQUENCE} detach keys")
    return bytes(sequence)


def copy_escapable(source: int, target: int, keys: str = DEFAULT_DETACH_KEYS) -> tuple[int, bool]:
    """Copy from one descriptor to another until the end or the detach keys.

    Gives the bytes written and whether the keys ended it. Keys are recognised across reads; an
    incomplete sequence is passed through. Blocks, without the GIL. OSError as write(2), read(2).
    """
    written, detached, err = escapable_copy(source, target, parse_detach_keys(keys))
    if err:
        raise OSError(err, os.strerror(err))
    return written, detached


def pipe_pair() -> tuple[int, int]:
    """Read and write end of a new pipe, close-on-exec."""
    return os.pipe2(os.O_CLOEXEC)


def as_foreign_output(descriptor: int) -> int:
    """A descriptor of ours that writes where a client's does, without blocking where it matters."""
    return _own_description(descriptor, os.O_WRONLY)


def as_foreign_input(descriptor: int) -> int:
    """The same for reading."""
    return _own_description(descriptor, os.O_RDONLY)


def _own_description(descriptor: int, access: int) -> int:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(descriptor)):
        with contextlib.suppress(OSError):
            return os.open(
                f"/proc/self/fd/{descriptor}",
                access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
            )
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def window_size(descriptor: int) -> tuple[int, int]:
    """Rows and columns of a terminal; OSError when it is none."""
    packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return rows, columns


def set_window_size(descriptor: int, rows: int, columns: int) -> None:
    """Tell a terminal its size in characters; programs on it get SIGWINCH."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """A terminal that passes every key on as it is; its settings are always restored."""
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
