"""The command line beside peers: `run`, many clients at once, `exec`, and bare runtimes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import FLOORS, Bench
from benchmarks.samples import Samples
from dockpy import Config, Container
from dockpy.model import Exec


def cli(bench: Bench) -> None:
    """`run --rm base /bin/true` and `exec` from process start to process end, beside peers."""
    rounds = 10 if bench.short else 30
    with engines(bench) as found:
        if not found:
            return
        for network in FLOORS:
            contestants = {"python -IS": [sys.executable, "-IS", "-c", "pass"]}
            for name, command in found.items():
                contestants[f"{name} run"] = [*command, *run_words(name, network)]
            if network == "none":
                contestants.update(bare_runtimes(bench))
            title = f"run --rm --network {network} base /bin/true, command line"
            race(bench, title, contestants, rounds)
        clients(bench, found)
        contestants = {}
        for name, command in found.items():
            words = run_words(name, "none")[1:-1]
            sleeper = [*command, "run", "-d", "--name", "sleeper", *words, "/bin/sleep", "1000000"]
            subprocess.run(sleeper, check=True, capture_output=True)
            contestants[f"{name} exec"] = [*command, "exec", "sleeper", "/bin/true"]
        try:
            race(bench, "exec sleeper /bin/true, command line", contestants, rounds)
        finally:
            for command in found.values():
                subprocess.run([*command, "rm", "-f", "sleeper"], check=False, capture_output=True)


@contextlib.contextmanager
def engines(bench: Bench) -> Iterator[dict[str, list[str]]]:
    """The commands of the engines that are here, each with the image `base`; none without ours."""
    program = shutil.which("dockpy", path=str(Path(sys.executable).parent))
    if program is None:
        bench.skip("dockpy's command line", "not installed beside this Python")
        yield {}
        return
    directory = bench.directory / "cli"
    directory.mkdir()
    ours = [program, "--root", str(directory / "state"), "--run", str(directory / "run")]
    archive = str(bench.directory / "base.tar")
    subprocess.run([*ours, "import", archive, "base"], check=True, capture_output=True)
    found = {"dockpy": ours}
    try:
        with peers.docker(bench.directory, network=True) as docker:
            for name, command in (("docker", docker), ("podman", peers.podman(bench.directory))):
                if command is None:
                    bench.skip(name, "not installed, or does not start here")
                    continue
                words = [*command, "import", archive, "base"]
                loaded = subprocess.run(words, check=False, capture_output=True)
                if loaded.returncode == 0:
                    found[name] = command
                else:
                    bench.skip(name, loaded.stderr.decode(errors="replace").strip()[-200:])
            yield found
    finally:
        stop_daemon(directory / "state")


def run_words(engine: str, network: str) -> list[str]:
    """A command line behind the engine's name; limits that any host lets podman set."""
    low = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
    options = low if engine == "podman" else []
    return ["run", "--rm", *options, "--network", network, "base", "/bin/true"]


def bare_runtimes(bench: Bench) -> dict[str, list[str]]:
    """What runs a program in a directory and keeps nothing: no images, layers, logs, networks."""
    found = {}
    if bubblewrap := shutil.which("bwrap"):
        place = [*("--ro-bind", str(bench.tree), "/"), *("--dev", "/dev"), *("--proc", "/proc")]
        found["bwrap"] = [bubblewrap, "--unshare-all", *place, "/bin/true"]
    for name in ("runc", "crun"):
        program = shutil.which(name)
        if program is None:
            continue
        bundle = bench.directory / name
        bundle.mkdir()
        subprocess.run([program, "spec"], cwd=bundle, check=True, capture_output=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"].update(terminal=False, args=["/bin/true"])
        spec["root"]["path"] = str(bench.tree)
        (bundle / "config.json").write_text(json.dumps(spec))
        state = ["--root", str(bundle / "state")]
        found[name] = [program, *state, "run", "--bundle", str(bundle), f"bench-{os.getpid()}"]
    for name in ("bwrap", "runc", "crun"):
        if name not in found:
            bench.skip(name, "not installed")
    return found


def race(bench: Bench, title: str, contestants: dict[str, list[str]], rounds: int) -> None:
    """Time each command in turn; a peer that fails is left out."""
    rows = {name: Samples(name) for name in contestants}
    for turn in range(rounds + 1):
        for name, command in [*contestants.items()]:
            try:
                took = peers.wall(command)
            except RuntimeError:
                if name.startswith(("dockpy", "python")):
                    raise
                failed = subprocess.run(command, capture_output=True, check=False, text=True)
                last = failed.stderr.strip().rpartition("\n")[2] or "it failed"
                bench.skip(name, last[:120])
                del contestants[name], rows[name]
                continue
            if turn:
                rows[name].values.append(took)
    reference = next((rows[name] for name in rows if name.startswith("docker")), None)
    bench.show(title, [*rows.values()], reference or next(iter(rows.values())))


def clients(bench: Bench, found: dict[str, list[str]]) -> None:
    """`run --rm` a second from 1, 8 and 16 clients at once, on the bridge."""
    each = {"dockpy": 10 if bench.short else 50}
    rows = [
        Samples(
            f"{name}, {count} clients", [together(command, name, count, each.get(name, 3))], "/s"
        )
        for name, command in found.items()
        for count in ((8,) if bench.short else (1, 8, 16))
        if name == "dockpy" or not bench.short
    ]
    bench.show("run --rm a second, bridge", rows)


def together(command: list[str], name: str, count: int, each: int) -> float:
    """Runs a second of `count` clients that run `each` containers, one after another."""
    words = [*command, *run_words(name, "bridge")]
    began = time.perf_counter()

    def work() -> None:
        for _ in range(each):
            subprocess.run(words, check=True)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count * each / (time.perf_counter() - began)


def execs(bench: Bench) -> None:
    """One more program in a running container, through the API, beside nsenter."""
    rounds = 10 if bench.short else 60
    runtime = bench.runtime
    entered, ours = Samples("nsenter"), Samples("dockpy API, exec")
    container = runtime.create(Config(image="base", cmd=("/bin/sleep", "1000000")))
    container.start()
    try:
        pid = str(container.state.pid)
        program = shutil.which("nsenter")
        for turn in range(rounds + 1):
            began = time.perf_counter()
            code = run_exec(container)
            took = (time.perf_counter() - began) * 1e3
            if code:
                raise RuntimeError(f"/bin/true ended with {code}")
            if turn:
                ours.values.append(took)
                if program:
                    words = [program, "-t", pid, *("-m", "-u", "-i", "-n", "-p"), "/bin/true"]
                    entered.values.append(peers.wall(words))
    finally:
        runtime.destroy(container, force=True)
    if program is None:
        bench.skip("nsenter", "not installed")
    bench.show("exec of /bin/true in a running container", [entered, ours], entered)


def run_exec(container: Container) -> int:
    """/bin/true in a running container; its exit code."""
    execution = container.execute(Exec(cmd=("/bin/true",)))
    execution.start()
    return execution.wait()


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
