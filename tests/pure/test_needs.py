from __future__ import annotations

import errno
import os

import pytest

from needs import Needs, Refused, in_child


def test_a_probe_runs_once_and_its_answer_is_kept() -> None:
    calls: list[str] = []
    needs = Needs({"thing": lambda: calls.append("tried")}, require_all=False)
    assert [needs.missing("thing"), needs.missing("thing")] == [None, None]
    assert calls == ["tried"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENODEV])
def test_a_refusal_of_the_kernel_is_a_reason_to_skip(number: int) -> None:
    def probe() -> None:
        raise OSError(number, os.strerror(number))

    assert os.strerror(number) in str(Needs({"thing": probe}, require_all=False).missing("thing"))


def test_a_missing_tool_is_a_reason_to_skip() -> None:
    def probe() -> None:
        raise Refused("no such tool")

    assert Needs({"thing": probe}, require_all=False).missing("thing") == "no such tool"


def test_any_other_failure_of_a_probe_is_raised() -> None:
    def probe() -> None:
        raise OSError(errno.EINVAL, "the probe is wrong")

    with pytest.raises(OSError, match="the probe is wrong"):
        Needs({"thing": probe}, require_all=False).missing("thing")


def test_a_childs_errno_and_refusal_arrive_in_the_parent() -> None:
    def denied() -> None:
        raise OSError(errno.EPERM, "not allowed")

    def refused() -> None:
        raise Refused("not here")

    with pytest.raises(OSError, match="not allowed") as caught:
        in_child(denied)
    assert caught.value.errno == errno.EPERM
    with pytest.raises(Refused, match="not here"):
        in_child(refused)


def test_a_child_that_breaks_is_not_a_refusal() -> None:
    def broken() -> None:
        raise ValueError("a bug in the probe")

    with pytest.raises(RuntimeError, match="a bug in the probe"):
        in_child(broken)
