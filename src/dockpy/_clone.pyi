from collections.abc import Sequence

OPERATIONS: dict[str, int]

def try_spawn(
    plan: bytes, descriptors: Sequence[int], cgroup: int
) -> tuple[int, int, int, int]: ...
