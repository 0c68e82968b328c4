"""What `docker diff` answered: Docker 20.10.24 with overlay2 on Linux 6.18, sorted by path.

The root below was imported, `SECOND_LAYER` was run in a container of it and committed, and each
case ran in a new container of that image. With the vfs driver the answers were the same, but for
the second name of a written hard link, which is written there too.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

SECOND_LAYER = """
    rm /d10/a
    rm -rf /d11
    mkdir /d11
    echo n>/d11/new
    rm -rf /d12
    echo 2 >> /d13/a
    chmod 700 /d14
    rm -rf /d18/sub
    mkdir -p /dn/x
    echo q>/dn/x/q
"""
APPLETS = (
    *("sh", "rm", "mkdir", "touch", "mv", "chmod", "chown", "ln", "mkfifo", "cp", "echo", "mknod"),
    *("rmdir", "true"),
)
FILES = (
    *("plain", "touch", "back", "chmod", "chown", "openw", "same", "to_dir", "to_link", "to_fifo"),
    *("gone", "renamed", "trunc", "append", "rmnew", "hard1", "order"),
)


class Case(NamedTuple):
    """A shell script, and the lines Docker printed."""

    name: str
    script: str
    answer: str

    def lines(self) -> list[str]:
        return [line.strip() for line in self.answer.split("\n") if line.strip()]


def make_root(root: Path, busybox: Path) -> None:
    """The imported root, in a new directory. All of it is from 2001, to the second."""
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    for number in range(1, 20):
        directory = root / f"d{number}"
        (directory / "sub/deep").mkdir(parents=True)
        for name in "abc":
            (directory / name).write_text(name * 5)
        (directory / "sub/s").write_text("s")
        (directory / "sub/deep/t").write_text("t")
    for name in ("f", "e1", "e2", "etc"):
        (root / name).mkdir()
    for name in FILES:
        (root / "f" / name).write_text(name)
    (root / "f/hard2").hardlink_to(root / "f/hard1")
    (root / "f/link").symlink_to("old")
    (root / "f/dirlink").symlink_to("/d3")
    (root / "ld").symlink_to("d9")
    os.mkfifo(root / "f/fifo")
    for name, kind, device in (
        ("nb", stat.S_IFBLK, os.makedev(7, 0)),
        ("nb2", stat.S_IFBLK, os.makedev(7, 0)),
        ("nc", stat.S_IFCHR, os.makedev(1, 3)),
        ("nc2", stat.S_IFCHR, os.makedev(1, 3)),
    ):
        os.mknod(root / name, kind | 0o644, device)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    for path in root.rglob("*"):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)


CASES = [
    Case(
        "nothing is done",
        """
        true
        """,
        """
        """,
    ),
    Case(
        "new files, directories, links and pipes",
        """
        echo a>/new
        mkdir -p /nd/x/y
        echo b>/nd/x/y/z
        echo q>/d1/newfile
        mkdir /d1/newdir
        echo z>/d2/sub/deep/new
        ln -s x /d1/nl
        mkfifo /d1/nf
        """,
        """
        C /d1
        A /d1/newdir
        A /d1/newfile
        A /d1/nf
        A /d1/nl
        C /d2
        C /d2/sub
        C /d2/sub/deep
        A /d2/sub/deep/new
        A /nd
        A /nd/x
        A /nd/x/y
        A /nd/x/y/z
        A /new
        """,
    ),
    Case(
        "written, touched, truncated, another mode or owner",
        """
        echo a>/f/plain
        touch /f/touch
        chmod 600 /f/chmod
        chown 5:5 /f/chown
        echo x>>/f/append
        : >/f/trunc
        """,
        """
        C /f
        C /f/append
        C /f/chmod
        C /f/chown
        C /f/plain
        C /f/touch
        C /f/trunc
        """,
    ),
    Case(
        "a file deep below",
        """
        echo a>>/d2/sub/deep/t
        """,
        """
        C /d2
        C /d2/sub
        C /d2/sub/deep
        C /d2/sub/deep/t
        """,
    ),
    Case(
        "opened but not written; set to what it was",
        """
        exec 3>>/f/openw
        chmod 644 /f/same
        touch -d @1000000000 /f/back
        chmod 644 /d5/a
        chown 0:0 /d5/b
        chmod 755 /d6
        """,
        """
        """,
    ),
    Case(
        "directories: mode, owner, time",
        """
        chmod 700 /d3
        chown 3:3 /d4
        touch /d5
        chmod 711 /d6/sub
        """,
        """
        C /d3
        C /d4
        C /d6
        C /d6/sub
        """,
    ),
    Case(
        "made and removed again",
        """
        echo >/d3/tmp
        rm /d3/tmp
        mkdir /d4/sub/q
        rmdir /d4/sub/q
        """,
        """
        """,
    ),
    Case(
        "files, links, pipes and trees removed",
        """
        rm /f/gone
        rm -rf /d1
        rm /d2/sub/deep/t
        rm -rf /d3/sub
        rm /f/link /f/fifo
        """,
        """
        D /d1
        C /d2
        C /d2/sub
        C /d2/sub/deep
        D /d2/sub/deep/t
        C /d3
        D /d3/sub
        C /f
        D /f/fifo
        D /f/gone
        D /f/link
        """,
    ),
    Case(
        "a directory made anew with some of its names",
        """
        rm -rf /d2
        mkdir /d2
        echo n>/d2/a
        echo k>/d2/new
        """,
        """
        C /d2
        C /d2/a
        D /d2/b
        D /d2/c
        A /d2/new
        D /d2/sub
        """,
    ),
    Case(
        "a directory made anew with its old time",
        """
        rm -rf /d2
        mkdir /d2
        touch -d @1000000000 /d2
        """,
        """
        C /d2
        D /d2/a
        D /d2/b
        D /d2/c
        D /d2/sub
        """,
    ),
    Case(
        "a directory made anew inside another",
        """
        rm -rf /d2/sub
        mkdir -p /d2/sub/deep/
        echo >/d2/sub/deep/t
        echo > /d2/sub/deep/u
        """,
        """
        C /d2
        C /d2/sub
        C /d2/sub/deep
        C /d2/sub/deep/t
        A /d2/sub/deep/u
        D /d2/sub/s
        """,
    ),
    Case(
        "replaced by another type",
        """
        rm /f/to_dir
        mkdir /f/to_dir
        echo>/f/to_dir/x
        rm /f/to_link
        ln -s q /f/to_link
        rm /f/to_fifo
        mkfifo /f/to_fifo
        rm -rf /d7
        echo>/d7
        rm -rf /d8
        ln -s d9 /d8
        rm /f/link
        ln -s newtarget /f/link
        rm /f/dirlink
        mkdir /f/dirlink
        echo >/f/dirlink/a
        rm /ld
        mkdir /ld
        echo>/ld/a
        echo >/ld/zz
        mkdir /ld/sub
        echo >/ld/sub/s
        """,
        """
        C /d7
        C /d8
        C /f
        C /f/dirlink
        A /f/dirlink/a
        C /f/link
        C /f/to_dir
        A /f/to_dir/x
        C /f/to_fifo
        C /f/to_link
        C /ld
        A /ld/a
        A /ld/sub
        A /ld/sub/s
        A /ld/zz
        """,
    ),
    Case(
        "files and directories renamed",
        """
        mv /f/renamed /f/ren2
        mv /d4 /d4new
        mv /d5/a /d6/fromd5
        mv /d6/b /d6/c
        """,
        """
        D /d4
        A /d4new
        A /d4new/a
        A /d4new/b
        A /d4new/c
        A /d4new/sub
        A /d4new/sub/deep
        A /d4new/sub/deep/t
        A /d4new/sub/s
        C /d5
        D /d5/a
        C /d6
        D /d6/b
        A /d6/fromd5
        C /f
        A /f/ren2
        D /f/renamed
        """,
    ),
    Case(
        "removed and made again",
        """
        rm /f/rmnew
        echo rmnew>/f/rmnew
        rm /d9/a
        """,
        """
        C /d9
        D /d9/a
        C /f
        C /f/rmnew
        """,
    ),
    Case(
        "one of two hard links written",
        """
        echo h>>/f/hard1
        """,
        """
        C /f
        C /f/hard1
        """,
    ),
    Case(
        "new hard links to old files",
        """
        ln /f/hard1 /f/hard3
        ln /d1/a /d2/h
        """,
        """
        C /d2
        A /d2/h
        C /f
        A /f/hard3
        """,
    ),
    Case(
        "made again what a layer had deleted",
        """
        echo a>/d10/a
        echo a>/d11/a
        mkdir /d12
        echo a>/d12/a
        echo>>/d13/a
        echo>/d14/x
        mkdir /d18/sub
        echo>/d18/sub/s
        """,
        """
        C /d10
        A /d10/a
        C /d11
        A /d11/a
        A /d12
        A /d12/a
        C /d13
        C /d13/a
        C /d14
        A /d14/x
        C /d18
        A /d18/sub
        A /d18/sub/s
        """,
    ),
    Case(
        "deleted what a layer had added or hidden",
        """
        rm /d11/new
        rm -rf /dn
        rm /d10/b
        rm -rf /d11
        """,
        """
        C /d10
        D /d10/b
        D /d11
        D /dn
        """,
    ),
    Case(
        "made anew what a layer had made anew",
        """
        rm -rf /d11
        mkdir /d11
        rm -rf /dn/x
        mkdir /dn/x
        """,
        """
        C /d11
        D /d11/new
        C /dn
        C /dn/x
        D /dn/x/q
        """,
    ),
    Case(
        "a file beside the mount points",
        """
        echo a>/etc/x
        """,
        """
        C /etc
        A /etc/x
        """,
    ),
    Case(
        "around the mount points",
        """
        rm /etc/passwd
        echo >/bin/n
        mkdir /run
        echo >/run/q
        mkdir /tmp
        echo >/tmp/q
        """,
        """
        C /bin
        A /bin/n
        C /etc
        D /etc/passwd
        A /run
        A /run/q
        A /tmp
        A /tmp/q
        """,
    ),
    Case(
        "the root itself",
        """
        chmod 711 /
        touch /
        """,
        """
        """,
    ),
    Case(
        "made, renamed and removed",
        """
        echo > /d3/x
        mv /d3/x /d3/y
        rm /d3/y
        touch -d @1000000000 /d3
        """,
        """
        """,
    ),
    Case(
        "device nodes",
        """
        touch /nb
        touch /nc
        rm /nb2
        mknod /nb2 b 7 1
        mv /nc2 /nc3
        """,
        """
        C /nb2
        C /nc
        D /nc2
        A /nc3
        """,
    ),
    Case(
        "empty directories made anew",
        """
        rm -rf /e1
        mkdir /e1
        rmdir /e2
        mkdir /e2
        rm -rf /d3
        mkdir /d3
        rmdir /d3
        """,
        """
        D /d3
        """,
    ),
    Case(
        "trees made anew with a name of the old",
        """
        rm -rf /d3
        mkdir -p /d3/sub/deep/t
        mv /d4/sub /d4/bus
        mkdir /d4/sub
        echo>/d4/sub/n
        """,
        """
        C /d3
        D /d3/a
        D /d3/b
        D /d3/c
        C /d3/sub
        C /d3/sub/deep
        C /d3/sub/deep/t
        D /d3/sub/s
        C /d4
        A /d4/bus
        A /d4/bus/deep
        A /d4/bus/deep/t
        A /d4/bus/s
        C /d4/sub
        D /d4/sub/deep
        A /d4/sub/n
        D /d4/sub/s
        """,
    ),
    Case(
        "a file where a tree was, a tree where a file was",
        """
        rm -rf /d3/sub
        echo>/d3/sub
        rm -rf /d4
        ln -s d5 /d4
        rm -rf /d5
        mkdir /d5
        mkdir /d5/a
        rm -rf /d6
        mkdir /d6
        mkdir /d6/sub
        chmod 700 /d6/sub
        """,
        """
        C /d3
        C /d3/sub
        C /d4
        C /d5
        C /d5/a
        D /d5/b
        D /d5/c
        D /d5/sub
        C /d6
        D /d6/a
        D /d6/b
        D /d6/c
        C /d6/sub
        D /d6/sub/deep
        D /d6/sub/s
        """,
    ),
    Case(
        "copied with all attributes and moved back",
        """
        cp -a /f/plain /f/plain2
        mv /f/plain2 /f/plain
        cp -a /d7 /d7n
        rm -rf /d7
        mv /d7n /d7
        """,
        """
        """,
    ),
]
