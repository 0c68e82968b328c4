"""Filters in the kernel: what a process that has one is told, call by call.

Every call is made in a forked child; most with and without the filter, so that a refusal which the
machine would have given anyway proves nothing.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import struct
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence

import pytest

from dockpy.capabilities import ALL, DEFAULT
from dockpy.seccomp import FilterCache, compile_profile, default_profile, kernel_version
from dockpy.syscalls import X32_BIT, numbers

pytestmark = pytest.mark.needs("root", "seccomp")

MACHINE = os.uname().machine
NUMBERS = numbers(MACHINE) if MACHINE in ("x86_64", "aarch64") else {}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
CHILD_SECONDS = 20
LARGEST_ERRNO = 4095

x86_64_only = pytest.mark.skipif(MACHINE != "x86_64", reason="a matter of x86_64")
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def default_filter(capabilities: int = DEFAULT) -> bytes:
    packed = FilterCache().get("default", capabilities)
    assert packed is not None
    return packed


def filter_of(profile: Mapping[str, object]) -> bytes:
    kernel = kernel_version(os.uname().release)
    return compile_profile(profile, DEFAULT, machine=MACHINE, kernel=kernel)


def install(packed: bytes) -> None:
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(code))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "cannot install the filter")


def system_call(number: int, *arguments: int) -> int:
    """0 when it worked, else the errno."""
    words = [ctypes.c_ulong(each) for each in (number, *arguments, *[0] * (6 - len(arguments)))]
    return ctypes.get_errno() if libc.syscall(*words) == -1 else 0


def in_child(packed: bytes | None, action: Callable[[], object]) -> tuple[object, int]:
    """What `action` returned below the filter, and the signal that ended the child, or 0."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(CHILD_SECONDS)
            if packed is not None:
                install(packed)
            os.write(writer, json.dumps(action()).encode())
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    return (json.loads(told) if told else None), os.WTERMSIG(status)


def answer(packed: bytes | None, number: int, arguments: Sequence[int] = ()) -> object:
    told, ended_by = in_child(packed, lambda: system_call(number, *arguments))
    assert not ended_by
    return told


AF_ALG, AF_VSOCK, SOCK_STREAM, SOCK_SEQPACKET = 38, 40, 1, 5
CLONE_NEWUTS, CLONE_NEWUSER, SIGCHLD = 0x04000000, 0x10000000, 17
REFUSED = {
    "mount": ("mount", (), errno.EPERM),
    "umount": ("umount2", (), errno.EPERM),
    "unshare a namespace": ("unshare", (CLONE_NEWUTS,), errno.EPERM),
    "unshare nothing": ("unshare", (), errno.EPERM),
    "enter a namespace": ("setns", (2**32 - 1,), errno.EPERM),
    "clone into a user namespace": ("clone", (CLONE_NEWUSER | 0x4000000 | SIGCHLD,), errno.EPERM),
    "clone3": ("clone3", (), errno.ENOSYS),
    "keyctl": ("keyctl", (), errno.EPERM),
    "add_key": ("add_key", (), errno.EPERM),
    "bpf": ("bpf", (2**32 - 1,), errno.EPERM),
    "perf_event_open": ("perf_event_open", (), errno.EPERM),
    "kexec": ("kexec_load", (1, 17), errno.EPERM),
    "io_uring": ("io_uring_setup", (), errno.EPERM),
    "userfaultfd": ("userfaultfd", (1,), errno.EPERM),
    "open by handle": ("open_by_handle_at", (2**32 - 1,), errno.EPERM),
    "a new mount": ("fsopen", (), errno.EPERM),
    "a module": ("init_module", (), errno.EPERM),
    "swap": ("swapon", (), errno.EPERM),
    "a personality without address randomisation": ("personality", (0x0040000,), errno.EPERM),
    "socket of AF_ALG": ("socket", (AF_ALG, SOCK_SEQPACKET), errno.EPERM),
    "socket of AF_ALG, upper half set": ("socket", (1 << 32 | AF_ALG, SOCK_SEQPACKET), errno.EPERM),
    "socket of AF_VSOCK": ("socket", (AF_VSOCK, SOCK_STREAM), errno.EPERM),
    "socket of AF_VSOCK, upper half set": (
        "socket",
        (1 << 63 | AF_VSOCK, SOCK_STREAM),
        errno.EPERM,
    ),
}


@pytest.mark.parametrize(("name", "arguments", "expected"), REFUSED.values(), ids=REFUSED)
def test_default_filter_refuses_what_the_kernel_would_not(
    name: str, arguments: tuple[int, ...], expected: int
) -> None:
    number = NUMBERS[name]
    if name != "clone":  # unfiltered it would make a second child
        assert answer(None, number, arguments) != expected
    assert answer(default_filter(), number, arguments) == expected


ALLOWED = {
    "who am I": ("getuid", ()),
    "socket of AF_UNIX": ("socket", (1, SOCK_STREAM)),
    "socket of AF_NETLINK, upper half set": ("socket", (1 << 32 | 16, 3)),
    "ask for the personality": ("personality", (0xFFFFFFFF,)),
    "set the personality": ("personality", (0,)),
    "memory barrier": ("membarrier", ()),
    "close": ("close", (0,)),
}


@pytest.mark.parametrize(("name", "arguments"), ALLOWED.values(), ids=ALLOWED)
def test_default_filter_lets_everyday_calls_pass(name: str, arguments: tuple[int, ...]) -> None:
    assert answer(default_filter(), NUMBERS[name], arguments) == 0


@pytest.mark.needs("busybox")
def test_threads_children_and_programs_start_below_the_default_filter() -> None:
    def action() -> list[int]:
        seen: list[int] = []
        thread = threading.Thread(target=seen.append, args=(1,))
        thread.start()
        thread.join()
        program = os.posix_spawn("/bin/busybox", ["true"], {})
        return [*seen, os.waitpid(program, 0)[1]]

    assert in_child(default_filter(), action) == ([1, 0], 0)


def test_a_capability_opens_the_calls_that_need_it() -> None:
    bad_pointer = answer(None, NUMBERS["mount"], (1, 1, 1))
    assert answer(default_filter(ALL), NUMBERS["mount"], (1, 1, 1)) == bad_pointer != errno.EPERM


def test_numbers_nobody_named_get_enosys() -> None:
    assert answer(default_filter(), max(NUMBERS.values()) + 100) == errno.ENOSYS


@pytest.mark.needs("busybox")
def test_a_filter_outlives_exec() -> None:
    def action() -> int:
        words = ["grep", "-q", "^Seccomp:.2$", "/proc/self/status"]
        return os.waitpid(os.posix_spawn("/bin/busybox", words, {}), 0)[1]

    assert in_child(default_filter(), action) == (0, 0)


@pytest.mark.parametrize(
    ("action", "number", "signal_number", "errno_seen"),
    [
        ("ERRNO", 4095, 0, 4095),
        ("ERRNO", None, 0, errno.EPERM),
        ("TRACE", None, 0, errno.ENOSYS),  # as nobody traces
        ("LOG", None, 0, 0),
        ("ALLOW", None, 0, 0),
        ("TRAP", None, signal.SIGSYS, None),
        ("KILL", None, signal.SIGSYS, None),
        ("KILL_THREAD", None, signal.SIGSYS, None),
        ("KILL_PROCESS", None, signal.SIGSYS, None),
    ],
)
def test_each_action_does_what_its_name_says(
    action: str, number: int | None, signal_number: int, errno_seen: int | None
) -> None:
    rule = {"names": ["umask"], "action": f"SCMP_ACT_{action}", "errnoRet": number}
    packed = filter_of({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    told = in_child(packed, lambda: system_call(NUMBERS["umask"], 0o22))
    assert told == (errno_seen, signal_number)


def test_arguments_are_compared_in_both_halves() -> None:
    limit = (5 << 32) + 7
    rule = {
        "names": ["umask"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 99,
        "args": [{"index": 1, "op": "SCMP_CMP_GT", "value": limit}],
    }
    packed = filter_of({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    values = [0, limit - 1, limit, limit + 1, 6 << 32, (4 << 32) + 9, 1 << 63]
    number = NUMBERS["umask"]
    told, _ = in_child(packed, lambda: [system_call(number, 0o22, each) for each in values])
    assert told == [99 if each > limit else 0 for each in values]


@x86_64_only
def test_calls_of_x32_are_filtered_as_those_of_x86_64() -> None:
    assert answer(None, NUMBERS["mount"] | X32_BIT) != errno.EPERM
    assert answer(default_filter(), NUMBERS["mount"] | X32_BIT) == errno.EPERM


@x86_64_only
def test_calls_of_a_convention_the_profile_leaves_out_end_the_process() -> None:
    packed = filter_of({"defaultAction": "SCMP_ACT_ALLOW"})
    number = NUMBERS["getpid"] | X32_BIT
    assert in_child(packed, lambda: system_call(number)) == (None, signal.SIGSYS)


def i386_call(number: int, argument: int = 0) -> int:
    """The same by int 0x80, as any 64-bit process can make calls of i386."""
    code = bytes.fromhex("53 89f8 89f3 31c9 31d2 31f6 cd80 5b c3")
    # push rbx; eax, ebx = number, argument; ecx = edx = esi = 0; int 0x80; pop rbx; ret
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as page:
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
        result = function(ctypes.addressof(start))(number, argument)
        del start
    return -result if -LARGEST_ERRNO <= result < 0 else 0


@x86_64_only
def test_calls_of_i386_are_filtered_by_their_own_numbers() -> None:
    own = numbers("i386")
    told, ended_by = in_child(None, lambda: i386_call(own["umask"]))
    if ended_by == signal.SIGSEGV:
        pytest.skip("this kernel has no calls of i386")
    assert (told, ended_by) == (0, 0)

    def action() -> list[int]:
        calls = ("umask", "mount", "unshare", "clone3", "keyctl")
        return [*(i386_call(own[each]) for each in calls), i386_call(own["socket"], AF_ALG)]

    expected = [0, errno.EPERM, errno.EPERM, errno.ENOSYS, errno.EPERM, errno.EPERM]
    assert in_child(default_filter(), action) == (expected, 0)


def test_the_kernel_takes_a_filter_of_thousands_of_instructions() -> None:
    rules = [
        {
            "names": ["umask"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 90,
            "args": [{"index": 2, "op": "SCMP_CMP_EQ", "value": value}],
        }
        for value in range(1, 900)
    ]
    packed = filter_of({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    assert 3000 < len(packed) // 8 <= 4096
    number = NUMBERS["umask"]
    told, _ = in_child(packed, lambda: [system_call(number, 0o22, 0, each) for each in (0, 1, 899)])
    assert told == [0, 90, 90]


@pytest.mark.needs("docker_profile")
def test_the_kernel_takes_the_published_profile(docker_profile: os.PathLike[str]) -> None:
    with open(docker_profile, "rb") as file:
        packed = filter_of(json.load(file))
    assert answer(packed, NUMBERS["mount"]) == errno.EPERM
    assert packed == filter_of(default_profile()), "ours is the same program"
