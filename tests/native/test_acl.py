"""Access lists of archives, against the programs that know them."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from dockpy import archive
from dockpy._acl import attribute_of
from hostile import Scene, folder
from reference.tarblocks import END, file, pax

NOBODY = 0xFFFFFFFF
TAGS = {"user": 1, "group": 4, "mask": 16, "other": 32}
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def value(*entries: tuple[int, int, int]) -> bytes:
    """The kernel's form of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def reference(text: str) -> bytes:
    """The slow, obvious conversion of well-formed entries."""
    found = []
    for entry in text.replace("\n", ",").split(","):
        if not entry:
            continue
        tag, name, permissions, *number = entry.split(":")
        bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in permissions)
        who = int(number[0] if number else name) if name else NOBODY
        found.append((TAGS[tag] * (2 if name else 1), bits, who))
    order = [1, 2, 4, 8, 16, 32]
    return value(*sorted(found, key=lambda one: order.index(one[0])))


@pytest.mark.parametrize("seed", range(20))
def test_random_lists_become_what_the_obvious_conversion_gives(seed: int) -> None:
    dice = random.Random(seed)

    def bits() -> str:
        return "".join(letter if dice.random() < 0.5 else "-" for letter in "rwx")

    entries = [f"{tag}::{bits()}" for tag in ("user", "group", "mask", "other")]
    for tag in ("user", "group"):
        for _ in range(dice.randrange(4)):
            number = dice.randrange(1 << 32) - 1 if dice.random() < 0.2 else dice.randrange(9999)
            number = max(number, 0)
            entries.append(dice.choice([f"{tag}:{number}:{bits()}", f"{tag}:me:{bits()}:{number}"]))
    dice.shuffle(entries)
    text = dice.choice([",", "\n"]).join(entries)
    assert attribute_of(text.encode()) == (reference(text), 0)


@pytest.mark.parametrize(
    ("text", "expected", "unnamed"),
    [
        (b"u::rw,g::r,o::-", value((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)), 0),
        (
            b"user::rw-\n user:root:rwx\t#effective:r--\ngroup::r--,mask:r--\nother:---\n\n",
            value((1, 6, NOBODY), (2, 7, 0), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)),
            0,
        ),
        (
            b"user::rw-,user:lisa:rwx,group::---,group:staff:rw-,mask::rwx,other::---",
            value((1, 6, NOBODY), (4, 0, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)),
            2,
        ),
        (
            b"default:user::r--,default:group::r--,default:other::r--",
            value((1, 4, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY)),
            0,
        ),
    ],
)
def test_what_programs_write_is_understood(text: bytes, expected: bytes, unnamed: int) -> None:
    assert attribute_of(text) == (expected, unnamed)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"user::rwx",
        b"user::rwx,group::rwx,other::rwx,other::rwx",
        b"user::rwx,group::rwx,other::rwx,mask::r,mask::r",
        b"user::rwx,group::rwx,other::rwx,evil::rwx",
        b"user::rwx,group::rwx,other::rwxr",
        b"user::rwx,group::rwx,other::",
        b"user::rwx,group::rwx,other::7",
        b"user::rwx,group::rwx,other:1:rwx",
        b"user::rwx,group::rwx,other::rwx,user:a:rwx:b",
        b"user::rwx,group::rwx,other::rwx,user:a:rwx:4294967295",
        b"user::rwx,group::rwx,other::rwx,user:a:rwx:1:2",
        b"user:rwx,group::rwx,other::rwx",
        b"user::rwx,group::rwx,other::rwx,\0",
    ],
)
def test_what_is_no_list_is_told(text: bytes) -> None:
    assert attribute_of(text)[0] is None


def lists(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@pytest.mark.needs("root", "mknod")
def test_a_list_ends_up_on_files_and_directories_and_is_not_inherited(tmp_path: Path) -> None:
    """A default list that were set before the files come would be in each of them."""
    access = b"user::rwx,user:x:r-x:7,group::---,mask::r-x,other::---"
    default = b"user::rwx,group:x:rwx:9,group::r-x,mask::rwx,other::---"
    both = {b"SCHILY.acl.access": access, b"SCHILY.acl.default": default}
    data = pax(both) + folder(b"d", mode=0o750) + file(b"d/plain", mode=0o640)
    data += folder(b"d/sub", mode=0o711)
    data += pax({b"SCHILY.acl.access": access}) + file(b"d/f", mode=0o750)
    Scene(tmp_path).extract(data + END)
    top = tmp_path / "target" / "d"
    assert lists(top) == {ACCESS: reference(access.decode()), DEFAULT: reference(default.decode())}
    assert lists(top / "f") == {ACCESS: reference(access.decode())}
    assert (lists(top / "plain"), lists(top / "sub")) == ({}, {})
    assert [os.stat(p).st_mode & 0o7777 for p in (top, top / "f", top / "plain", top / "sub")] == [
        0o750,
        0o750,
        0o640,
        0o711,
    ]


@pytest.mark.needs("root")
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed")
@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_what_real_programs_pack_is_unpacked_with_its_lists(program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "f").write_bytes(b"x")
    for target, entries in (("f", "u:4242:rw,g:77:r"), ("d", "u:4242:rwx,d:u:4243:rw")):
        subprocess.run(["setfacl", "-m", entries, source / target], check=True)
    packed = tmp_path / "packed.tar"
    options = ["--acls", "--format=posix"] if program == "tar" else ["--acls", "--format=pax"]
    subprocess.run([program, *options, "-C", source, "-cf", packed, "."], check=True, timeout=30)
    with packed.open("rb") as stream:
        found = archive.extract(stream, tmp_path / "t")
    assert found.ignored_attributes == 0
    for name in ("f", "d"):
        assert lists(tmp_path / "t" / name) == lists(source / name)
