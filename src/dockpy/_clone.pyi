from collections.abc import Sequence

OPERATIONS: dict[str, int]

def check_plan(plan: bytes, slots: int) -> str | None: ...
def try_hold_mounts(pidfd: int) -> int: ...
def try_network() -> tuple[int, int, int]: ...
def try_spawn(
    plan: bytes,
    descriptors: Sequence[int],
    cgroup: int,
    by_libc: bool = False,
    moments: list[int] | None = None,
) -> tuple[int, int, int, int]: ...
