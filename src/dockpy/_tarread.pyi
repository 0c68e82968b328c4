from typing import Self

from typing_extensions import Buffer

STREAM_PROBLEMS: dict[int, str]

class TarReader:
    problem: int
    error: int
    entries: int
    bytes_written: int
    ignored_attributes: int
    def __new__(cls) -> Self: ...
    @property
    def name(self) -> bytes: ...
    @property
    def skeleton_size(self) -> int: ...
    def feed(self, data: Buffer) -> bool: ...
    def finish(self) -> bool: ...
    def take_skeleton(self) -> bytes: ...
