"""Users and groups from files that an enemy may have written."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

import pytest

from dockpy.errors import RequestError
from dockpy.users import FILE_LIMIT, Identity, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
worker:x:1000:1001:Worker,,,:/home/worker:/bin/sh
4242:x:7:8:a name of digits:/seven:/bin/sh
homeless:x:1002:1002:::/bin/sh
"""
GROUP = b"""root:x:0:
daemon:x:1:root
audio:x:29:worker,daemon
video:x:44:coworker,worker
staff:x:50:worker2
own:x:1001:worker
"""


class Opened(io.BytesIO):
    """A file that remembers whether it was closed."""


def files(
    passwd: bytes | None = PASSWD, group: bytes | None = GROUP
) -> Callable[[str], BinaryIO | None]:
    contents = {"/etc/passwd": passwd, "/etc/group": group}

    def open_file(path: str) -> BinaryIO | None:
        content = contents[path]
        return None if content is None else Opened(content)

    return open_file


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", Identity(0, 0, (0, 1), "/root")),
        ("root", Identity(0, 0, (0, 1), "/root")),
        ("worker", Identity(1000, 1001, (1001, 29, 44), "/home/worker")),
        ("1000", Identity(1000, 1001, (1001, 29, 44), "/home/worker")),
        ("001000", Identity(1000, 1001, (1001, 29, 44), "/home/worker")),
        ("worker:", Identity(1000, 1001, (1001, 29, 44), "/home/worker")),
        ("worker:audio", Identity(1000, 29, (29,), "/home/worker")),
        ("worker:0", Identity(1000, 0, (0,), "/home/worker")),
        (":audio", Identity(0, 29, (29,), "/root")),
        ("5000", Identity(5000, 0, (0,), "/")),
        ("5000:6000", Identity(5000, 6000, (6000,), "/")),
        ("2147483647:2147483647", Identity(2147483647, 2147483647, (2147483647,), "/")),
        ("homeless", Identity(1002, 1002, (1002,), "/")),
    ],
)
def test_users_are_found_as_docker_finds_them(spec: str, expected: Identity) -> None:
    assert resolve(spec, files()) == expected


def test_digits_are_an_id_even_where_a_user_has_that_name() -> None:
    assert resolve("4242", files()) == Identity(4242, 0, (0,), "/")
    assert resolve("7", files()).home == "/seven"
    assert resolve("1:4242", files(group=b"4242:x:5:\n")).gid == 4242


def test_without_files_ids_work_and_names_do_not() -> None:
    assert resolve("", files(None, None)) == Identity(0, 0, (0,), "/")
    assert resolve("33:44", files(None, None)) == Identity(33, 44, (44,), "/")
    with pytest.raises(RequestError, match="no user 'worker' in the container's /etc/passwd"):
        resolve("worker", files(None, None))
    with pytest.raises(RequestError, match="no group 'audio' in the container's /etc/group"):
        resolve("1:audio", files(None, None))


@pytest.mark.parametrize(
    "spec",
    ["-1", "4294967295", "2147483648", "99999999999999999999", "9" * 500, "0:-1", "0:4294967295"],
)
def test_ids_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="out of range; use 0 to 2147483647") as caught:
        resolve(spec, files())
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("spec", ["a:b:c", "root\n", "ro\0ot", "x" * 513, "0:0:0", "a\tb"])
def test_what_cannot_be_a_user_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(RequestError, match="bad user") as caught:
        resolve(spec, files())
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_literally() -> None:
    for spec in ("w.rker", "worker|root", ".*", "[a-z]+", "root:aud.o"):
        with pytest.raises(RequestError, match=r"no (user|group) "):
            resolve(spec, files())


def test_the_first_of_several_entries_counts() -> None:
    passwd = b"a:x:5:6::/one:\na:x:7:8::/two:\nb:x:5:9::/three:\n"
    assert resolve("a", files(passwd)) == Identity(5, 6, (6,), "/one")
    assert resolve("5", files(passwd)) == Identity(5, 6, (6,), "/one")


@pytest.mark.parametrize(
    "line",
    [
        b"worker",
        b"worker:x",
        b"worker:x:5",
        b"worker:x:5:5",
        b"worker:x:five:5::/:",
        b"worker:x:-5:5::/:",
        b"worker:x:4294967296:0::/:",
        b"worker:x:5:4294967295::/:",
        b"worker:x:" + b"9" * 5000 + b":0::/:",
        b"\0worker:x:5:5::/:",
        b"worker\0:x:5:5::/:",
        b"\xffworker:x:5:5::/:",
        b":x:1000:5::/:",
        b"\n\n\n",
        b"worker:x:\xd9\xa5:5::/:",
    ],
)
def test_a_line_that_is_no_entry_is_passed_over(line: bytes) -> None:
    found = resolve("worker", files(line + b"\n" + PASSWD))
    assert (found.uid, found.gid, found.home) == (1000, 1001, "/home/worker")


def test_line_ends_of_other_systems_are_no_part_of_names_and_paths() -> None:
    passwd = b"worker:x:1000:1001::/home/worker\r\n"
    group = b"one:x:1:worker\r\ntwo:x:2:worker,other\r\nthree:x:3:other,worker\r\nfour:x:4:\r\n"
    expected = Identity(1000, 1001, (1001, 1, 2, 3), "/home/worker")
    assert resolve("worker", files(passwd, group)) == expected
    assert resolve("worker:four", files(passwd, group)).gid == 4


def test_a_file_without_a_last_line_end_is_read_to_its_end() -> None:
    assert resolve("a", files(b"a:x:5:6::/a", b"g:x:9:a")) == Identity(5, 6, (6, 9), "/a")
    assert resolve("a:g", files(b"a:x:5:6::/a", b"g:x:9")).gid == 9


def test_a_home_with_nul_is_no_home() -> None:
    assert resolve("a", files(b"a:x:5:6::/a\0b:\n")).home == "/"


def test_bytes_that_are_no_text_survive_in_a_home() -> None:
    assert resolve("a", files(b"a:x:5:6::/\xff:\n")).home == "/\udcff"


def test_group_members_are_whole_names() -> None:
    group = b"a:x:1:xworker\nb:x:2:workerx\nc:x:3:worke\nd:x:4:x,worker,y\ne:x:5:worker\n"
    assert resolve("worker", files(group=group)).groups == (1001, 4, 5)


@pytest.mark.parametrize("byte", [b"\n", b":", b"a", b"\0", b",", b"1", b"\r", b" "])
@pytest.mark.parametrize("which", ["passwd", "group"])
def test_a_file_of_one_byte_repeated_is_read_once_and_found_empty(byte: bytes, which: str) -> None:
    huge = byte * FILE_LIMIT
    if which == "passwd":
        with pytest.raises(RequestError, match="no user"):
            resolve("worker", files(huge))
    else:
        assert resolve("worker", files(group=huge)).groups == (1001,)
        with pytest.raises(RequestError, match="no group"):
            resolve("worker:audio", files(group=huge))


def test_an_endless_file_is_refused_after_its_limit() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            assert self.given <= FILE_LIMIT + (1 << 20)
            size = min(len(buffer), 100_000)
            buffer[:size] = bytes(size)
            self.given += size
            return size

    endless = Endless()
    with pytest.raises(RequestError, match="/etc/passwd has more than 8 MiB"):
        resolve("root", lambda path: endless)  # type: ignore[arg-type, return-value]
    assert endless.closed


def test_a_file_that_cannot_be_read_is_named() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise IsADirectoryError(21, "Is a directory")

    with pytest.raises(RequestError, match="cannot read the container's /etc/passwd: Is a dir"):
        resolve("root", lambda path: Broken())


def test_files_are_closed() -> None:
    opened: list[BinaryIO] = []

    def open_file(path: str) -> BinaryIO | None:
        file = files()(path)
        assert file is not None
        opened.append(file)
        return file

    resolve("worker", open_file)
    with pytest.raises(RequestError):
        resolve("nobody:audio", open_file)
    assert opened
    assert all(file.closed for file in opened)


def test_ids_alone_need_no_group_file() -> None:
    def open_file(path: str) -> BinaryIO | None:
        assert path == "/etc/passwd"
        return None

    assert resolve("5:6", open_file).gid == 6


def test_as_many_groups_as_the_kernel_takes_and_not_one_more() -> None:
    def group(count: int) -> bytes:
        return b"".join(b"g%d:x:%d:worker\n" % (each, each + 2000) for each in range(count))

    assert len(resolve("worker", files(group=group(65535))).groups) == 65536
    with pytest.raises(RequestError, match="more groups of the container than the kernel's 65536"):
        resolve("worker", files(group=group(65536)))
    assert len(resolve("worker:5", files(group=group(65536))).groups) == 1


def test_a_group_listed_again_and_again_counts_once() -> None:
    assert resolve("worker", files(group=b"g:x:5:worker\n" * 100_000)).groups == (1001, 5)
