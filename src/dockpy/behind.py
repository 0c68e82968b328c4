"""What an unpacker leaves to another thread: its skeleton, and the beginning of write-back.

Making files is the longest part of an extraction, and one thread's. Whatever can be done beside it
is: to compress what the skeleton keeps, and to have the kernel begin to write large files to the
disk, which is idle otherwise until the flush at the end. How much waits is bounded: a slow disk
slows the unpacker down, not the memory up.
"""

from __future__ import annotations

import contextlib
import os
import threading
from queue import SimpleQueue

from dockpy._tar import Unpacker, begin_write_back
from dockpy.errors import KernelError
from dockpy.skeleton import SkeletonWriter

__all__ = ["WRITE_BACK_FROM", "Behind"]

WRITE_BACK_FROM = 64 << 10
"""Bytes of the files that are worth a descriptor and a call: one in fifteen, most of the content.
The kernel does the small ones better itself, many at once in the order of the disk."""

_RECORDS = 64 << 10  # bytes of the skeleton
_FILES = 8
_WAITING = 16  # hand-overs


class Behind:
    """One thread beside one unpacker. Use as a context; `finish` before its end if all is well.

    `skeleton`: a descriptor, which stays the caller's, to write what `skeleton.rebuild` needs to.
    """

    def __init__(self, skeleton: int | None) -> None:
        self._writer = None if skeleton is None else SkeletonWriter(skeleton)
        self._given: SimpleQueue[tuple[bytes, list[int]] | None] = SimpleQueue()
        self._room = threading.Semaphore(_WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dockpy-behind", daemon=True)

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._writer is not None:
            self._writer.abandon()

    def take(self, unpacker: Unpacker, *, all_of_it: bool = False) -> None:
        """Take over what has gathered, if it is much. Blocks while too much waits; as `finish`."""
        many = unpacker.skeleton_size >= _RECORDS or unpacker.written >= _FILES
        if not many and not all_of_it:
            return
        if self._failure is not None:
            raise self._failure
        self._room.acquire()
        records = b"" if self._writer is None else unpacker.take_skeleton()
        self._given.put((records, unpacker.take_written()))

    def finish(self) -> None:
        """All is taken; wait until it is done. KernelError when the disk does not take it."""
        self._end()
        if self._failure is not None:
            raise self._failure
        if self._writer is not None:
            self._writer.finish()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._given.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._given.get()) is not None:
            records, files = item
            try:
                if self._failure is None:
                    self._do(records, files)
                else:
                    for file in files:
                        with contextlib.suppress(OSError):
                            os.close(file)
            except BaseException as failure:  # raised again in the unpacker's thread
                self._failure = failure
            self._room.release()

    def _do(self, records: bytes, files: list[int]) -> None:
        err = begin_write_back(files)
        if err:
            raise KernelError("write file", err)
        if self._writer is not None:
            self._writer.write(records)
