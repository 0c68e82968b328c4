from typing import Self

from typing_extensions import Buffer

TREE_PROBLEMS: dict[int, str]
KERNEL_STEPS: dict[int, str]

class Packer:
    problem: int
    error: int
    entries: int
    size: int
    content: int
    metadata: int
    longest: int
    def __new__(cls, directory: int, *, name: bytes, leaf: bytes = b"", layer: bool) -> Self: ...
    @property
    def name(self) -> bytes: ...
    @property
    def is_careful(self) -> bool: ...
    def fill(self, buffer: Buffer) -> int: ...
    def close(self) -> None: ...

def open_below(root: int, path: bytes, by_hand: bool) -> tuple[int, int]: ...
