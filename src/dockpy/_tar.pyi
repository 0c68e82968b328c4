from typing import Self

from typing_extensions import Buffer

ARCHIVE_PROBLEMS: dict[int, str]
KERNEL_STEPS: dict[int, str]

class Unpacker:
    problem: int
    error: int
    entries: int
    bytes_written: int
    ignored_attributes: int
    replaced: bool
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
    ) -> Self: ...
    @property
    def name(self) -> bytes: ...
    @property
    def walks_by_hand(self) -> bool: ...
    def feed(self, data: Buffer) -> bool: ...
    def finish(self) -> bool: ...
    def take_skeleton(self) -> bytes: ...
    def close(self) -> None: ...

def remove_tree(directory: int, name: bytes) -> int: ...
def open_below(root: int, path: bytes, by_hand: bool) -> tuple[int, int]: ...
