"""What the parts of `benchmarks.compare` stand on: an engine of ours with an image, the floor, and
what they found."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers
from benchmarks.figures import group_record
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime

FLOORS = {"none": "net", "bridge": "bridge=flbr"}
"""What the floor does for each network of ours."""


class Bench:
    """What the parts share: an engine with a `base` image and the floor's program."""

    def __init__(self, directory: Path, rootfs: Path, short: bool) -> None:
        self.directory = directory
        self.short = short
        self.runtime = Runtime(directory / "state", run=directory / "run")
        with open(rootfs, "rb") as archive:
            self.image = self.runtime.import_image(archive, "base")
        self.tree = self.runtime.graph.lower_directories(self.image)[0]
        self.floor = peers.Floor(directory)
        self.results: list[dict[str, object]] = []
        self.failures: list[str] = []

    def show(self, title: str, rows: list[Samples], reference: Samples | None = None) -> None:
        print(table(title, rows, reference), flush=True)
        self.results.append(group_record(title, rows, reference))


def one_start(
    runtime: Runtime,
    network: str = "bridge",
    ports: tuple[str, ...] = (),
    *,
    image: str = "base",
    cmd: tuple[str, ...] = ("/bin/true",),
) -> float:
    """create + start + wait + remove, in milliseconds."""
    began = time.perf_counter()
    container = runtime.create(Config(image=image, cmd=cmd, network_mode=network, port_specs=ports))
    container.start()
    code = container.wait()
    runtime.destroy(container)
    took = (time.perf_counter() - began) * 1e3
    if code != 0:
        raise RuntimeError(f"{cmd[0]} ended with {code}")
    return took


def in_threads(work: Callable[[int], object], count: int, threads: int) -> None:
    """The work for every number below `count`, by so many threads at once.

    The first failure is raised when all threads have ended.
    """
    left, failures = iter(range(count)), list[BaseException]()

    def some() -> None:
        try:
            for number in left:
                work(number)
        except BaseException as failure:
            failures.append(failure)

    working = [threading.Thread(target=some) for _ in range(threads)]
    for one in working:
        one.start()
    for one in working:
        one.join()
    if failures:
        raise failures[0]


def base_archive(directory: Path, given: str | None) -> Path:
    """The root file system to measure with: a given tar, or a small one of busybox."""
    target = directory / "base.tar"
    tree = directory / "tree"
    tree.mkdir()
    source = Path(__file__).with_name("lines.c")
    subprocess.run(["cc", "-O2", "-static", "-o", str(tree / "lines"), str(source)], check=True)
    if given is not None:
        shutil.copyfile(given, target)
        subprocess.run(["tar", "-C", str(tree), "-rf", str(target), "./lines"], check=True)
        return target
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("compare: install busybox-static, or give --rootfs a tar")
    shutil.copy(busybox, tree / "bin" / "busybox")
    for applet in ("true", "sh", "sleep", "cat"):
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    subprocess.run(["tar", "-C", str(tree), "-cf", str(target), "."], check=True)
    return target


def stop_daemon(root: Path) -> None:
    """End the daemon that the client started, by its pid."""
    lock = root / "lock"
    if not lock.exists():
        return
    pid = int(lock.read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # ours: an engine makes its process a subreaper
        time.sleep(0.05)
