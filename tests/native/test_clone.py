"""Whatever bytes come as a plan: an answer, never a crash, and never a child of a bad one."""

from __future__ import annotations

import errno
import os
import random
import struct
from dataclasses import replace

import pytest

from dockpy._clone import OPERATIONS, check_plan, try_spawn
from dockpy.plan import Plan
from dockpy.start import NAMESPACES, start_plan
from starts import BARE

HEADER = struct.Struct("<IIQII")
STEP = struct.Struct("<iiiiqqIIII")
NONE = 0xFFFFFFFF
ENDS = ("exec", "exec_fd")


def whole() -> bytes:
    """A plan with nearly everything in it; its slots are 0 to 3."""
    return start_plan(
        replace(
            BARE,
            stdout_slot=1,
            stderr_slot=1,
            cgroup_tasks_slots=(2, 3),
            seccomp=b"\x06\0\0\0\0\0\xff\x7f",
            groups=(1, 2),
            tmpfs=(("/t", "size=1m"),),
            rlimits=((7, 10, 10),),
            read_only=True,
            cwd="/w",
        )
    ).pack()


def split(plan: bytes) -> tuple[list[int], list[list[int]], bytes]:
    header = list(HEADER.unpack_from(plan))
    steps = [
        list(STEP.unpack_from(plan, HEADER.size + number * STEP.size))
        for number in range(header[1])
    ]
    return header, steps, plan[HEADER.size + len(steps) * STEP.size :]


def join(header: list[int], steps: list[list[int]], arena: bytes) -> bytes:
    return HEADER.pack(*header) + b"".join(STEP.pack(*step) for step in steps) + arena


def index_of(steps: list[list[int]], operation: str) -> int:
    return next(i for i, step in enumerate(steps) if step[0] == OPERATIONS[operation])


def changed(operation: str, **fields: int) -> bytes:
    """The whole plan with fields of one step changed."""
    names = ("op", "a", "b", "c", "n", "m", "s1", "s2", "s3")
    header, steps, arena = split(whole())
    for name, value in fields.items():
        steps[index_of(steps, operation)][names.index(name)] = value
    return join(header, steps, arena)


def test_a_good_plan_is_good_only_with_all_its_slots() -> None:
    assert check_plan(whole(), 4) is None
    assert check_plan(whole(), 3) == "no such slot"
    assert check_plan(whole(), 0) == "no such slot"


def test_every_truncation_is_refused() -> None:
    plan = whole()
    for length in range(0, len(plan)):
        assert check_plan(plan[:length], 4) is not None, length
    assert check_plan(plan + b"\0", 4) == "not a plan"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 5000),
        (1, 0xFFFFFFFF),
        (2, 0),
        (2, NAMESPACES | 0x100),
        (2, NAMESPACES & ~0x20000),
        (2, NAMESPACES | 1 << 40),
        (3, 0),
        (3, 0xFFFFFFFF),
        (4, 0),
        (4, 0xFFFFFFFF),
    ],
)
def test_a_wrong_header_is_refused(field: int, value: int) -> None:
    header, steps, arena = split(whole())
    header[field] = value
    assert check_plan(join(header, steps, arena), 4) is not None


@pytest.mark.parametrize(
    ("operation", "fields", "wrong"),
    [
        ("mount", {"op": 0}, "unknown step"),
        ("mount", {"op": -1}, "unknown step"),
        ("mount", {"op": 1000}, "unknown step"),
        ("mount", {"s1": NONE}, "step without its text"),
        ("mount", {"s2": NONE}, "step without its text"),
        ("mount", {"s1": 1 << 30}, "text outside the plan"),
        ("mount", {"a": -1}, "mount options outside the plan"),
        ("mount", {"a": 1 << 30}, "mount options outside the plan"),
        ("mount", {"a": 0x7FFFFFFF, "s3": 0}, "mount options outside the plan"),
        ("write_fd", {"a": 4}, "no such slot"),
        ("write_fd", {"a": -1}, "no such slot"),
        ("root", {"a": 1 << 30}, "no such slot"),
        ("stdio", {"a": -2}, "no such slot"),
        ("stdio", {"c": 4}, "no such slot"),
        ("close", {"a": 9}, "no such slot"),
        ("unshare", {"n": 0x20000}, "unknown namespace"),
        ("seccomp", {"a": 0}, "filter outside the plan"),
        ("seccomp", {"a": 4096}, "filter outside the plan"),
        ("seccomp", {"a": -1}, "filter outside the plan"),
        ("groups", {"a": 65536}, "groups outside the plan"),
        ("groups", {"a": -1}, "groups outside the plan"),
        ("exec", {"a": 0}, "arguments outside the plan"),
        ("exec", {"a": 1 << 30}, "arguments outside the plan"),
        ("exec", {"b": -1}, "arguments outside the plan"),
        ("exec", {"c": 0}, "programs outside the plan"),
        ("exec", {"c": 1 << 20}, "programs outside the plan"),
        ("exec", {"op": OPERATIONS["chdir"]}, "the program is not the last step"),
        ("chdir", {"op": OPERATIONS["exec"]}, "the program is not the last step"),
        ("private", {"op": OPERATIONS["umask"]}, "step out of order"),
        ("pivot", {"op": OPERATIONS["umask"]}, "step out of order"),
        ("close", {"op": OPERATIONS["umask"]}, "step out of order"),
        ("loopback", {"op": OPERATIONS["pivot"]}, "step out of order"),
        ("signals", {"op": OPERATIONS["set_read_only"]}, "step out of order"),
    ],
)
def test_a_wrong_step_is_refused_and_named(
    operation: str, fields: dict[str, int], wrong: str
) -> None:
    assert check_plan(changed(operation, **fields), 4) == wrong


def test_text_that_does_not_end_is_refused() -> None:
    header, steps, arena = split(whole())
    assert check_plan(join(header, steps, arena[:-1] + b"x"), 4) == "text does not end"


def test_random_changes_never_crash_the_check() -> None:
    # never spawned: a plan that happens to be good would be carried out
    chance = random.Random(20)
    plan = whole()
    refused = 0
    for _ in range(20_000):
        bytes_ = bytearray(plan)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(bytes_))
            bytes_[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        refused += check_plan(bytes(bytes_), 4) is not None
    assert refused > 1000


def test_random_bytes_are_refused() -> None:
    chance = random.Random(21)
    for length in range(0, 600):
        assert check_plan(chance.randbytes(length), 4) is not None


def test_random_steps_behind_a_right_header_never_crash_the_check() -> None:
    chance = random.Random(22)
    odd = (0, 1, -1, 2, 7, 0x7FFFFFFF, -0x80000000)
    for _ in range(5_000):
        arena = chance.randbytes(chance.randint(0, 64)) + b"\0"
        count = chance.randint(1, 6)
        steps = [
            [
                chance.randint(-1, len(OPERATIONS) + 2),
                *(chance.choice(odd) for _ in range(3)),
                *(chance.choice(odd) for _ in range(2)),
                *(chance.choice((0, 1, len(arena) - 1, len(arena), NONE)) for _ in range(3)),
                0,
            ]
            for _ in range(count)
        ]
        header = [0x31595044, count, NAMESPACES, HEADER.size + count * STEP.size, len(arena)]
        assert check_plan(join(header, steps, arena), 1) is not None


@pytest.mark.parametrize("plan", [b"", b"x" * 100, whole()[:-1]])
def test_a_bad_plan_starts_nothing(plan: bytes) -> None:
    with pytest.raises(ValueError, match="bad plan"):
        try_spawn(plan, [0, 1, 2, 3], -1)


def test_bad_arguments_are_refused_as_python_does() -> None:
    with pytest.raises(TypeError):
        try_spawn(None, [], -1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        try_spawn(whole(), ["x", "y", "z", "w"], -1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="too many descriptors"):
        try_spawn(whole(), [0] * 2000, -1)


def test_every_operation_has_its_own_number() -> None:
    assert len(set(OPERATIONS.values())) == len(OPERATIONS)
    assert min(OPERATIONS.values()) == 1
    assert max(OPERATIONS.values()) == len(OPERATIONS)


def test_without_rights_the_clone_itself_is_the_failed_step() -> None:
    plan = Plan(NAMESPACES)
    plan.private_mounts()
    plan.root(0)
    plan.pivot()
    plan.close_descriptors()
    plan.execute(["/x"], [], ["/x"])
    packed = plan.pack()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            code = 0 if try_spawn(packed, [0], -1) == (0, -1, 0, errno.EPERM) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
