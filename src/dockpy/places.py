"""The directories of one engine, and the names that it derives from them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from dockpy.errors import Locked
from dockpy.network.values import NetworkSettings
from dockpy.records import TEMPORARY

DEFAULT_ROOT = Path("/var/lib/dockpy")
DEFAULT_RUN = Path("/run/dockpy")


def run_directory(root: Path) -> Path:
    """Where an engine over `root` keeps its sockets, unless told."""
    if root == DEFAULT_ROOT:
        return DEFAULT_RUN
    return Path(f"/run/dockpy-{hashlib.sha256(bytes(root)).hexdigest()[:12]}")


def cgroup_name(root: Path) -> str:
    """The parent group of an engine over `root`, unless told."""
    if root == DEFAULT_ROOT:
        return "dockpy"
    return f"dockpy-{hashlib.sha256(bytes(root)).hexdigest()[:12]}"


def network_settings(root: Path) -> NetworkSettings:
    """Names of the default network's bridge and tables of an engine over `root`, unless told."""
    if root == DEFAULT_ROOT:
        return NetworkSettings()
    name = hashlib.sha256(bytes(root)).hexdigest()
    return NetworkSettings(bridge=f"dpy{name[:8]}", firewall=f"dockpy-{name[:12]}")


def prepare(root: Path, run: Path) -> None:
    """Make what is missing of both directories; remove what a killed engine left half made.

    For who has the lock: another engine's halves are its own business.
    """
    for place in (root, run):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / "containers").mkdir(mode=0o700, exist_ok=True)
    (root / "trash").mkdir(mode=0o700, exist_ok=True)  # now: a full disk needs it
    for unfinished in (*root.glob("base.*"), *root.glob(f"{TEMPORARY}*")):
        _remove(unfinished)
    base = root / "base"
    if not base.exists():
        fresh = root / f"base.{os.getpid()}"
        for name in ("dev", "proc", "sys", "etc"):
            (fresh / name).mkdir(parents=True, exist_ok=True)
        for name in ("hosts", "hostname", "resolv.conf"):
            (fresh / "etc" / name).touch()
        fresh.chmod(0o755)
        fresh.rename(base)


def take_lock(root: Path) -> int:
    """The descriptor that keeps other engines away; `root` is made if it is missing.

    Raises Locked with the pid of the engine that is here.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Locked(str(root), int(owner) if owner.isdigit() else 0) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
