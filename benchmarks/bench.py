"""What the parts of `compare` share: an engine with an image, the floor, and the run's tables."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks import peers
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
        self.groups: list[dict[str, object]] = []
        self.skipped: list[str] = []
        """Peers that were not compared with, and why."""
        self.failures: list[str] = []
        self.machine = machine()

    def show(self, title: str, rows: list[Samples], reference: Samples | None = None) -> None:
        print(table(title, rows, reference), flush=True)
        self.groups.append(
            {
                "title": title,
                "reference": reference.name if reference else "",
                "rows": [row.record() for row in rows if row.values],
            }
        )

    def skip(self, peer: str, why: str) -> None:
        """Name a peer that is left out."""
        print(f"{peer}: {why}; skipped", flush=True)
        self.skipped.append(f"{peer} ({why})")

    def save(self, path: Path) -> None:
        """The run as JSON, for `benchmarks.plots` and for comparing by hand."""
        run = {"machine": self.machine, "skipped": self.skipped, "groups": self.groups}
        path.write_text(json.dumps(run, indent=1))


def machine() -> dict[str, str]:
    """What a figure of this run depends on."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        check=False,
        text=True,
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
        "kernel": platform.release().partition("-")[0],
        "processors": str(os.cpu_count()),
        "HZ": kernel_hz(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
    }


def kernel_hz() -> str:
    """The kernel's timer frequency, as its configuration says."""
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{platform.release()}")):
        if path.exists():
            read = "zcat" if path.suffix == ".gz" else "cat"
            text = subprocess.run([read, str(path)], capture_output=True, text=True, check=False)
            for line in text.stdout.splitlines():
                if line.startswith("CONFIG_HZ="):
                    return line.partition("=")[2]
    return "unknown"


def one_start(runtime: Runtime, network: str = "bridge", ports: tuple[str, ...] = ()) -> float:
    """create + start + wait + remove of /bin/true, in milliseconds."""
    began = time.perf_counter()
    container = runtime.create(
        Config(image="base", cmd=("/bin/true",), network_mode=network, port_specs=ports)
    )
    container.start()
    code = container.wait()
    runtime.destroy(container)
    took = (time.perf_counter() - began) * 1e3
    if code != 0:
        raise RuntimeError(f"/bin/true ended with {code}")
    return took


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
