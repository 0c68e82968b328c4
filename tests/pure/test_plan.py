"""Packing a plan, and what a failed step means to the person who asked."""

from __future__ import annotations

import errno
import struct

import pytest

from dockpy._clone import OPERATIONS, check_plan
from dockpy.errors import CannotExecute, CommandNotFound, KernelError, RequestError, UsageError
from dockpy.plan import FILE, REAL_DIRECTORY, Plan
from dockpy.start import NAMESPACES

HEADER = struct.Struct("<IIQII")
STEP = struct.Struct("<iiiiqqIIII")


def small(base: Plan | None = None) -> Plan:
    """A plan that passes the check, as short as one can be."""
    plan = Plan(NAMESPACES, base)
    plan.private_mounts()
    plan.root(0)
    plan.pivot()
    plan.close_descriptors()
    plan.chdir("/work")
    plan.execute(["prog", "a b", ""], ["A=1"], ["/bin/prog", "/usr/bin/prog"])
    return plan


def step(packed: bytes, index: int) -> tuple[int, ...]:
    return STEP.unpack_from(packed, HEADER.size + index * STEP.size)


def texts(packed: bytes, offset: int, count: int) -> list[bytes]:
    arena = packed[HEADER.unpack_from(packed)[3] :]
    return arena[offset:].split(b"\0")[:count]


def test_the_shortest_plan_is_accepted() -> None:
    assert check_plan(small().pack(), 1) is None


def test_packed_texts_are_found_where_the_step_says() -> None:
    packed = small().pack()
    last = step(packed, 5)
    assert last[:4] == (OPERATIONS["exec"], 3, 1, 2)
    assert texts(packed, last[6], 3) == [b"prog", b"a b", b""]
    assert texts(packed, last[7], 1) == [b"A=1"]
    assert texts(packed, last[8], 2) == [b"/bin/prog", b"/usr/bin/prog"]


def test_the_same_text_is_kept_once() -> None:
    plan = Plan(NAMESPACES)
    plan.mask("proc/kcore")
    plan.read_only("proc/kcore")
    assert plan.pack().count(b"proc/kcore") == 1


def test_bytes_that_are_no_utf8_come_back_as_they_were() -> None:
    plan = Plan(NAMESPACES)
    plan.hostname(b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert b"\xff\xfe\0" in plan.pack()


@pytest.mark.parametrize("text", ["a\0b", "\0"])
def test_a_nul_is_refused_wherever_it_comes(text: str) -> None:
    with pytest.raises(UsageError, match="NUL"):
        Plan(NAMESPACES).execute([text], [], [text])


def test_an_empty_environment_packs() -> None:
    plan = Plan(NAMESPACES)
    plan.private_mounts()
    plan.root(0)
    plan.pivot()
    plan.close_descriptors()
    plan.execute(["x"], [], ["/x"])
    assert check_plan(plan.pack(), 1) is None
    assert step(plan.pack(), 4)[2] == 0


def test_blobs_are_aligned_and_whole() -> None:
    plan = Plan(NAMESPACES)
    plan.hostname("odd")
    plan.seccomp(b"\x01" * 16)
    plan.groups([1, 2**32 - 2])
    packed = plan.pack()
    arena = HEADER.unpack_from(packed)[3]
    filter_at, groups_at = (arena + step(packed, index)[6] for index in (1, 2))
    assert filter_at % 8 == groups_at % 8 == 0
    assert packed[filter_at : filter_at + 16] == b"\x01" * 16
    assert packed[groups_at : groups_at + 8] == struct.pack("<II", 1, 2**32 - 2)


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32])
def test_ids_that_mean_no_change_are_refused(number: int) -> None:
    with pytest.raises(UsageError):
        Plan(NAMESPACES).ids(number, 0)
    with pytest.raises(UsageError):
        Plan(NAMESPACES).ids(0, number)


def test_the_greatest_ids_and_masks_keep_their_bits() -> None:
    plan = Plan(NAMESPACES)
    plan.ids(2**32 - 2, 2**31)
    plan.capabilities(2**64 - 1)
    packed = plan.pack()
    assert [value % 2**32 for value in step(packed, 0)[1:3]] == [2**32 - 2, 2**31]
    assert step(packed, 1)[4] % 2**64 == 2**64 - 1


def test_steps_of_a_base_are_taken_with_labels_paths_and_texts() -> None:
    base = Plan()
    base.hostname("before")
    base.mount("proc", "proc", create=REAL_DIRECTORY)
    base.mask("proc/kcore")
    plan = Plan(NAMESPACES, base)
    plan.umask(0)
    plan.take(base, slice(1, 3))
    packed = plan.pack()
    assert plan.labels == ["set umask", "mount proc", "mask"]
    assert plan.paths == [None, "proc", "proc/kcore"]
    assert texts(packed, step(packed, 1)[7], 1) == [b"proc"]
    assert texts(packed, step(packed, 2)[6], 1) == [b"proc/kcore"]
    assert "/proc is not a directory" in str(plan.error(2, errno.ELOOP))
    plan.hostname("mine")
    assert base.pack() != plan.pack()
    assert "mine" not in base._known


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("err", "kind", "code", "words"),
    [
        (errno.ENOENT, CommandNotFound, 127, "no such program"),
        (errno.ENOTDIR, CommandNotFound, 127, "no such program"),
        (errno.ELIBACC, CommandNotFound, 127, "interpreter"),
        (errno.EACCES, CannotExecute, 126, "permission"),
        (errno.EISDIR, CannotExecute, 126, "is a directory"),
        (errno.ENOEXEC, CannotExecute, 126, "architecture"),
        (errno.ELOOP, CannotExecute, 126, "links"),
        (errno.E2BIG, CannotExecute, 126, "too long"),
    ],
)
def test_a_program_that_does_not_run_is_one_line_with_its_exit_code(
    err: int, kind: type[RequestError], code: int, words: str
) -> None:
    error = small().error(6, err)
    assert type(error) is kind
    assert error.exit_code == code
    assert str(error).startswith("prog: ")
    assert words in str(error)
    assert "\n" not in str(error)


def test_any_other_refusal_of_exec_is_the_kernels() -> None:
    error = small().error(6, errno.ENOMEM)
    assert isinstance(error, KernelError)
    assert str(error).startswith("execute on prog: ENOMEM")


def test_step_zero_is_the_clone() -> None:
    error = small().error(0, errno.EAGAIN)
    assert isinstance(error, KernelError)
    assert error.step == "clone"


@pytest.mark.parametrize(
    ("err", "words"),
    [
        (errno.ENOENT, "not inside the container"),
        (errno.EXDEV, "not inside the container"),
        (errno.EACCES, "permission denied"),
        (errno.ENOTDIR, "not a directory"),
        (errno.ELOOP, "not a directory"),
    ],
)
def test_a_working_directory_that_cannot_be_is_named(err: int, words: str) -> None:
    error = small().error(5, err)
    assert isinstance(error, CannotExecute)
    assert str(error).startswith("working directory /work")
    assert words in str(error)


def test_mount_points_are_named_as_the_user_knows_them() -> None:
    plan = Plan(NAMESPACES)
    plan.mount("tmpfs", "some/where")
    plan.attach(0, "/etc/hosts", create=FILE)
    first, second = plan.error(1, errno.ENOSPC), plan.error(2, errno.ENOTDIR)
    assert str(first).startswith("mount tmpfs on /some/where: ENOSPC")
    assert isinstance(second, RequestError)
    assert "/etc/hosts" in str(second)
