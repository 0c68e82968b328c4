from typing import Self

from typing_extensions import Buffer

TREE_PROBLEMS: dict[int, str]
KERNEL_STEPS: dict[int, str]

class Rebuilder:
    problem: int
    error: int
    entries: int
    size: int
    def __new__(cls, directory: int) -> Self: ...
    @property
    def name(self) -> bytes: ...
    @property
    def complete(self) -> bool: ...
    @property
    def wants_input(self) -> bool: ...
    def fill(self, skeleton: Buffer, buffer: Buffer) -> tuple[int, int]: ...
    def close(self) -> None: ...
