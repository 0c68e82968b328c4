"""Engines that hold one image and one container that has changed much: ours, and the peers'."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import peers
from dockpy import Config, Runtime

SCRIPT = """set -e
mkdir /data; i=0
while [ $i -lt {files} ]; do
  d=/data/$((i / 100)); [ $((i % 100)) -ne 0 ] || mkdir $d
  echo "file number $i, some bytes of text for it" >$d/$i; i=$((i + 1))
done
find /usr/share /usr/lib -type f | head -n {deleted} | xargs rm -f"""
"""What the container does, the same in every engine."""


class Ours:
    """An engine in this process, with the container `box`."""

    def __init__(self, directory: Path, rootfs: Path, script: str) -> None:
        self.runtime = Runtime(directory / "state", run=directory / "run")
        with open(rootfs, "rb") as archive:
            self.runtime.import_image(archive, "base")
        self.box = self.runtime.create(
            Config(image="base", cmd=("/bin/sh", "-c", script), network_mode="none"), "box"
        )
        if self.box.run():
            raise RuntimeError("the container that was to change files failed")
        self.upper = self.box.directory / "upper"
        self.number = 0

    def import_(self, archive: Path) -> None:
        with open(archive, "rb") as source:
            self.runtime.import_image(source)

    def commit(self) -> None:
        self.number += 1
        (self.upper / "round").write_text(str(self.number))  # another layer than before
        self.runtime.commit(self.box)

    def export(self, command: Sequence[str] = ("cat",), to: int = subprocess.DEVNULL) -> None:
        """Into the pipe of a command."""
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=to) as reader:
            assert reader.stdin is not None
            self.box.export(reader.stdin.fileno())
        if reader.returncode:
            raise subprocess.CalledProcessError(reader.returncode, list(command))

    def close(self) -> None:
        self.runtime.graph.wait_unpacked()
        for container in self.runtime.list():
            self.runtime.destroy(container, force=True)
        self.runtime.close()


class CommandLine:
    """The `dockpy` command, and the daemon it talks to, with the container `box` in it."""

    def __init__(self, directory: Path, rootfs: Path, script: str) -> None:
        program = shutil.which("dockpy", path=str(Path(sys.executable).parent))
        start = [program] if program else [sys.executable, "-m", "dockpy"]
        self.root = directory / "daemon-state"
        self.words = [*start, "--root", str(self.root), "--run", str(directory / "daemon-run")]
        self.installed = program is not None
        self.run("import", str(rootfs), "base")
        self.run("run", "--network", "none", "--name", "box", "base", "/bin/sh", "-c", script)

    def run(self, *words: str) -> None:
        run([*self.words, *words])

    def memory(self, name: str) -> int:
        """A line of the daemon's status in KiB. Source: proc_pid_status(5)."""
        text = Path(f"/proc/{self.pid()}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    def pid(self) -> int:
        return int((self.root / "lock").read_text())

    def peak(self, *words: str) -> int:
        """By how many KiB a daemon that has done nothing yet grows at most for one command."""
        self.stop()
        self.run("version")
        before = self.memory("VmRSS")
        Path(f"/proc/{self.pid()}/clear_refs").write_text("5")  # sets the peak back
        self.run(*words)
        return self.memory("VmHWM") - before

    def stop(self) -> None:
        """End the daemon by its pid."""
        if not (self.root / "lock").exists():
            return
        pid = self.pid()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # ours: an engine makes its process a subreaper
            time.sleep(0.02)

    def close(self) -> None:
        self.run("rm", "-f", "box")
        self.stop()


@contextlib.contextmanager
def others(directory: Path, rootfs: Path, script: str) -> Iterator[dict[str, list[str]]]:
    """The commands of the peers that are here, each with its container `box` in the same state."""
    with peers.docker(directory) as docker:
        found = {}
        for name, command in (("docker", docker), ("podman", peers.podman(directory))):
            if command is None:
                print(f"{name}: not installed or does not start here; skipped")
                continue
            low = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
            words = ["run", "--network", "none", *(low if name == "podman" else [])]
            try:
                run([*command, "import", str(rootfs), "base"])
                run([*command, *words, "--name", "box", "base", "/bin/sh", "-c", script])
            except subprocess.CalledProcessError as error:
                print(f"{name}: {last_words(error)}; skipped")
                continue
            found[name] = command
        yield found


def run(command: Sequence[str]) -> None:
    """CalledProcessError when it fails, with what it said."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def last_words(error: subprocess.CalledProcessError) -> str:
    said: bytes = error.stderr or b""
    return said.decode(errors="replace").strip()[-200:] or str(error)
