from collections.abc import Sequence

OPERATIONS: dict[str, int]

def check_plan(plan: bytes, slots: int) -> str | None: ...
def try_spawn(
    plan: bytes, descriptors: Sequence[int], cgroup: int, by_libc: bool = False
) -> tuple[int, int, int, int]: ...
