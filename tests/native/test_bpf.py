"""bpf(2) for the device controller: what the kernel takes, and what comes back when it does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from dockpy import _bpf, devices
from dockpy.cgroups import Hierarchies
from dockpy.devices import DEFAULT_RULES, DeviceRule
from dockpy.errors import KernelError


@pytest.fixture
def group() -> Iterator[int]:
    """The descriptor of an empty v2 group."""
    v2 = Hierarchies.detect().v2
    assert v2 is not None, "no cgroup2 mount"
    path = v2 / f"dockpy-bpf-{os.getpid()}"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    path.rmdir()


def loaded(fd: int) -> int:
    """How many programs stand at the group."""
    found = _bpf.device_programs(fd)
    assert isinstance(found, list)
    for each in found:
        os.close(each)
    return len(found)


@pytest.mark.needs("cgroup-bpf")
@pytest.mark.parametrize(
    "rules",
    [
        (),
        DEFAULT_RULES,
        tuple(DeviceRule("bc"[n % 2], n, None if n % 3 else n, "rw") for n in range(400)),
    ],
)
def test_the_verifier_accepts_every_list(rules: tuple[DeviceRule, ...]) -> None:
    fd = devices.load(devices.program(rules))
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.needs("cgroup-bpf")
def test_a_program_that_never_ends_is_refused_with_a_reason() -> None:
    endless = devices.INSTRUCTION.pack(0x05, 0, -1, 0) + devices.program(())
    assert _bpf.load_device_program(endless) in {-errno.EINVAL, -errno.EACCES}
    assert _bpf.verifier_log(endless)
    with pytest.raises(KernelError, match="load device program"):
        devices.load(endless)


def test_half_an_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="8-byte"):
        _bpf.load_device_program(b"1234")


@pytest.mark.needs("cgroup-bpf")
def test_replacing_leaves_exactly_the_new_program(group: int) -> None:
    first = devices.load(devices.program(DEFAULT_RULES))
    second = devices.load(devices.program(()))
    try:
        devices.attach(group, first)
        assert loaded(group) == 1
        devices.replace(group, second)
        assert loaded(group) == 1
        devices.replace(group, None)
        assert loaded(group) == 0
    finally:
        os.close(first)
        os.close(second)


@pytest.mark.needs("cgroup-bpf")
def test_a_program_that_stands_there_is_refused_and_stays(group: int) -> None:
    program = devices.load(devices.program(DEFAULT_RULES))
    try:
        devices.attach(group, program)
        with pytest.raises(KernelError, match="EINVAL"):
            devices.replace(group, program)
        assert loaded(group) == 1
    finally:
        os.close(program)


def test_what_is_not_a_group_or_program_comes_back_as_a_number() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        assert _bpf.attach_device_program(null, null) == errno.EINVAL
        assert _bpf.detach_device_program(null, null) in {errno.EINVAL, errno.EBADF}
        assert _bpf.device_programs(null) in {errno.EINVAL, errno.EBADF}
        with pytest.raises(KernelError, match="attach device program: EINVAL"):
            devices.attach(null, null)
        with pytest.raises(KernelError, match="list device programs"):
            devices.replace(null, None)
    finally:
        os.close(null)
