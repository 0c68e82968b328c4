from typing import Self

TREE_PROBLEMS: dict[int, str]
KERNEL_STEPS: dict[int, str]

class Comparison:
    problem: int
    error: int
    def __new__(cls, upper: int, lowers: list[int], *, mount_points: list[bytes] = ...) -> Self: ...
    @property
    def name(self) -> bytes: ...
    def run(self) -> tuple[bytes, bytes] | None: ...
