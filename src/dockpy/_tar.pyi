from typing import Self

from dockpy._tarread import STREAM_PROBLEMS as STREAM_PROBLEMS
from dockpy._tarread import TarReader

ARCHIVE_PROBLEMS: dict[int, str]
KERNEL_STEPS: dict[int, str]

def begin_write_back(files: list[int]) -> int: ...

class Unpacker(TarReader):
    replaced: bool
    written: int
    def __new__(
        cls,
        directory: int,
        *,
        max_bytes: int,
        max_entries: int,
        max_path: int,
        max_metadata: int,
        whiteouts: bool,
        by_hand: bool = False,
        skeleton: bool = False,
        merges: bool = False,
        owner: int = -1,
        group: int = -1,
        tame: bool = False,
        keeps_from: int = 0,
    ) -> Self: ...
    def take_written(self) -> list[int]: ...
    @property
    def walks_by_hand(self) -> bool: ...
    def close(self) -> None: ...
