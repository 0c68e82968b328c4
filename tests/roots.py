"""Container roots for tests: a tiny one of busybox, and tars of directories."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from needs import busybox_path

APPLETS = (
    *(
        "sh",
        "ash",
        "cat",
        "echo",
        "true",
        "false",
        "sleep",
        "ls",
        "id",
        "env",
        "head",
        "tail",
        "wc",
    ),
    *("mount", "umount", "mkdir", "rmdir", "rm", "cp", "mv", "ln", "touch", "stat", "test", "["),
    *("kill", "ps", "pwd", "hostname", "yes", "dd", "seq", "sort", "grep", "sed", "awk", "tr"),
    *("tty", "stty", "mknod", "chmod", "chown", "readlink", "ip", "nc", "top", "vi", "date"),
    *("sha256sum", "find", "xargs", "printf", "usleep", "sync", "df", "du", "tee", "trap", "nice"),
    *("su", "setsid", "sha1sum", "tar", "cut", "uname", "ulimit", "printenv", "mkfifo", "md5sum"),
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:a worker:/home/worker:/bin/sh\n"
GROUP = "root:x:0:\nworker:x:1000:\ncrew:x:2000:worker\n"
DIRECTORIES = ("bin", "dev", "etc", "home/worker", "proc", "root", "run", "sys", "tmp", "var/lib")


def make_tiny_root(directory: Path) -> Path:
    """A container root of one static busybox: about 2 MB, a shell and its applets."""
    for name in DIRECTORIES:
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox_path(), directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text(PASSWD)
    (directory / "etc/group").write_text(GROUP)
    (directory / "tmp").chmod(0o1777)
    os.chown(directory / "home/worker", 1000, 1000)
    return directory


def pack(root: Path, target: Path, *options: str) -> Path:
    """A tar of `root` at `target`, owned by root."""
    command = ["tar", "--numeric-owner", "-C", str(root), *options, "-cf", str(target), "."]
    subprocess.run(command, check=True)
    return target
