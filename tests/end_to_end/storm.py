"""Fifty containers that print and exit while somebody is killed, and what must be true of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from end_to_end.client import Client, Result, eventually

COUNT = 50
LINES = 12
EXPECTED = "".join(f"line {number}\n" for number in range(LINES))
AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """A container whose name and exit code tell which one it is."""

    number: int

    @property
    def name(self) -> str:
        return f"job-{self.number}"

    @property
    def code(self) -> int:
        return self.number + 1

    @property
    def command(self) -> list[str]:
        script = (
            f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.05; done;"
            f"exit {self.code}"
        )
        return ["sh", "-c", script]


JOBS = [Job(number) for number in range(COUNT)]


class Storm:
    """Clients that start the jobs, a few at a time, in threads of their own."""

    def __init__(self, client: Client, *flags: str) -> None:
        self.client = client
        self.flags = flags
        self.results: dict[Job, Result] = {}

    def _start(self, job: Job) -> None:
        self.results[job] = self.client(
            "run", *self.flags, "--name", job.name, "base", *job.command
        )

    @contextlib.contextmanager
    def blowing(self) -> Iterator[Storm]:
        """Starts go on inside; outside all clients have ended."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [pool.submit(self._start, job) for job in JOBS]
            yield self
            for one in waiting:
                one.result()

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.results) >= count, f"{count} clients have ended")


def outcomes(client: Client, jobs: Sequence[Job] = JOBS) -> dict[str, str]:
    """Name to "status code" of the jobs that are there, none of them running any more."""
    template = "{{.Name}} {{.State.Status}} {{.State.ExitCode}}"

    def states() -> dict[str, str]:
        ids = client.ids()
        lines = client.ok("inspect", "--format", template, *ids).lines if ids else []
        return dict(line.lstrip("/").split(" ", 1) for line in lines)

    names = {job.name for job in jobs}
    eventually(
        lambda: not any("running" in state for state in states().values()),
        "all programs end",
        30,
    )
    return {name: state for name, state in states().items() if name in names}


def logs(client: Client, names: Sequence[str]) -> dict[str, str]:
    """What each of them has written, by the files that log collectors read."""
    if not names:
        return {}
    lines = client.ok("inspect", "--format", "{{.Id}}", *names).lines
    return {name: logged(client, line) for name, line in zip(names, lines, strict=True)}


def logged(client: Client, identifier: str) -> str:
    path = client.root / "containers" / identifier / "container.log"
    try:
        return "".join(json.loads(line)["log"] for line in path.read_text().splitlines())
    except FileNotFoundError:
        return ""


def daemon_of(client: Client) -> int:
    """The pid of the engine that owns the client's root."""
    return int((client.root / "lock").read_text())


def supervisors_of(client: Client) -> list[int]:
    """Pids of all supervisors over the client's root, whichever engine they come from.

    A child of one that has not executed its program yet looks the same and is left out.
    """
    mark = os.fsencode(client.root / "containers")
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "cmdline").read_bytes().split(b"\0"):
                parent = re.search(r"^PPid:\s*(\d+)", (entry / "status").read_text(), re.M)
                found[int(entry.name)] = int(parent[1]) if parent else 0
    return sorted(pid for pid, parent in found.items() if parent not in found)


def kill(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return not Path(f"/proc/{pid}").exists()

    eventually(gone, f"process {pid} is gone")


def end_engine(client: Client) -> None:
    """Remove all containers, end the daemon, and see that its supervisors go with it."""
    client.remove_all()
    pid = daemon_of(client)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not alive(pid), f"daemon {pid} ends")
    eventually(lambda: not supervisors_of(client), "no supervisor is left")


def alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return Path(f"/proc/{pid}").exists()


def held(pid: int) -> Counter[str]:
    """What a process has open, by kind; namespaces and their sysfs are a pool that fills and
    empties (a sysfs has 1 as its root's inode, a container's root has another)."""
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            pooled = target == "/" and os.stat(f"/proc/{pid}/fd/{name}").st_ino == 1
            if not target.startswith("net:") and not pooled:
                found[re.sub(r"[0-9]+", "N", target)] += 1
    return found
