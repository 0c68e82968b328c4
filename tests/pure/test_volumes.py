"""Mounts as users write them."""

from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.model import Bind
from dockpy.volumes import parse_mount, parse_tmpfs, parse_volume


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", Bind("/a", "/b")),
        ("/a:/b:", Bind("/a", "/b")),
        ("/a:/b:ro", Bind("/a", "/b", read_only=True)),
        ("/a:/b:rw", Bind("/a", "/b")),
        ("/a:/b:ro,Z", Bind("/a", "/b", read_only=True)),
        ("/a:/b:z,rprivate,cached", Bind("/a", "/b")),
        ("/a:/b:norecursive", Bind("/a", "/b", recursive=False)),
        ("/a b:/c d", Bind("/a b", "/c d")),
        ("/:/host", Bind("/", "/host")),
        ("/a:/b/../c//d/", Bind("/a", "/c/d")),
        ("/a:/../../b", Bind("/a", "/b")),
        ("/a://b", Bind("/a", "/b")),
    ],
)
def test_volumes_are_read(text: str, expected: Bind) -> None:
    assert parse_volume(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write /SOURCE:/TARGET"),
        ("/a", "write /SOURCE:/TARGET"),
        ("/a:", "write /SOURCE:/TARGET"),
        (":/b", "write /SOURCE:/TARGET"),
        ("/a:/b:ro:rw", "write /SOURCE:/TARGET"),
        ("name:/b", "source must be an absolute path"),
        ("./a:/b", "source must be an absolute path"),
        ("/a:b", "target must be an absolute path"),
        ("/a:/", "root itself"),
        ("/a:/b/..", "root itself"),
        ("/a:/b:ro,rw", "both ro and rw"),
        ("/a:/b:readonly", "unknown option 'readonly'"),
        ("/a:/b:rslave", "propagation rslave is not supported"),
        ("/a:/b:shared", "propagation shared is not supported"),
        ("/a\0:/b", "NUL"),
        ("/a:/b\0c", "NUL"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match="bad volume") as caught:
        parse_volume(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/t", ("/t", "")),
        ("/t:", ("/t", "")),
        ("/t:size=64m,mode=1770", ("/t", "size=64m,mode=1770")),
        ("/t/../u", ("/u", "")),
    ],
)
def test_tmpfs_mounts_are_read(text: str, expected: tuple[str, str]) -> None:
    assert parse_tmpfs(text) == expected


@pytest.mark.parametrize("text", ["", "t", ":size=1m", "/", "/a\0", "/a:size=1\0"])
def test_what_is_no_tmpfs_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="bad tmpfs") as caught:
        parse_tmpfs(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=bind,source=/a,target=/b", Bind("/a", "/b")),
        ("type=bind,src=/a,dst=/b,readonly", Bind("/a", "/b", read_only=True)),
        ("TYPE=bind,src=/a,destination=/b,ro=true", Bind("/a", "/b", read_only=True)),
        ("type=bind,src=/a,target=/b,ro=0", Bind("/a", "/b")),
        ('type=bind,"src=/a,b",target=/b', Bind("/a,b", "/b")),
        ("type=bind,src=/a=b,target=/b", Bind("/a=b", "/b")),
        ("type=bind,src=/a,target=/b,bind-propagation=rprivate", Bind("/a", "/b")),
        ("type=bind,src=/a,target=/b,consistency=cached", Bind("/a", "/b")),
        ("type=bind,src=/a,target=/b,bind-nonrecursive", Bind("/a", "/b", recursive=False)),
        ("type=bind,src=/a,target=/b,bind-recursive=disabled", Bind("/a", "/b", recursive=False)),
        ("type=tmpfs,target=/t", ("/t", "")),
        ("type=tmpfs,dst=/t,tmpfs-size=64M,tmpfs-mode=1770", ("/t", "size=64m,mode=1770")),
        ("type=tmpfs,dst=/t,tmpfs-size=65536,readonly", ("/t", "ro,size=65536")),
        ("type=tmpfs,dst=/t,tmpfs-size=1gb", ("/t", "size=1g")),
    ],
)
def test_long_mounts_are_read(text: str, expected: Bind | tuple[str, str]) -> None:
    assert parse_mount(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write type=bind"),
        ("type=bind", "write target"),
        ("source=/a,target=/b", "write type=bind or type=tmpfs"),
        ("type=volume,source=a,target=/b", "write type=bind or type=tmpfs"),
        ("type=bind,target=/b", "write source"),
        ("type=bind,source=a,target=/b", "source must be an absolute path"),
        ("type=bind,source=/a,target=b", "target must be an absolute path"),
        ("type=bind,source=/a,target=/", "root itself"),
        ("type=bind,source=/a,src=/c,target=/b", "source is there twice"),
        ("type=bind,source=/a,target=/b,readonly=perhaps", "readonly is true or false"),
        ("type=bind,source=/a,target=/b,bind-propagation=rslave", "rslave is not supported"),
        ("type=bind,source=/a,target=/b,bind-recursive=readonly", "is not supported"),
        ("type=bind,source=/a,target=/b,tmpfs-size=1m", "unknown option 'tmpfs-size'"),
        ("type=tmpfs,target=/b,source=/a", "unknown option 'source'"),
        ("type=tmpfs,target=/b,tmpfs-size=much", "tmpfs-size is bytes"),
        ("type=tmpfs,target=/b,tmpfs-mode=999", "tmpfs-mode is an octal number"),
        ('type=bind,"source=/a,target=/b', "bad mount"),
        ("type=tmpfs,target=/b\ntype=tmpfs", "bad mount"),
        ("type=bind,source=/a,target=/b,,", "an empty field"),
    ],
)
def test_what_is_no_long_mount_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match="bad mount") as caught:
        parse_mount(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
