"""One more program in a running container: `exec` by the API and by command lines."""

from __future__ import annotations

import shutil
import subprocess
import time

from benchmarks.bench import Bench
from benchmarks.commands import LOW, engines, one_round
from benchmarks.samples import Samples
from dockpy import Config, Container
from dockpy.model import Exec

SLEEP = ("/bin/sleep", "1000000")
IN_TURNS = 4
"""How often one contestant goes before the next one's turn."""


def one_exec(container: Container) -> float:
    """Start to exit code of /bin/true, in milliseconds."""
    began = time.perf_counter()
    execution = container.execute(Exec(cmd=("/bin/true",)))
    execution.start()
    code = execution.wait()
    took = (time.perf_counter() - began) * 1e3
    if code != 0:
        raise RuntimeError(f"/bin/true ended with {code}")
    return took


def execs(bench: Bench) -> None:
    """`nsenter` into the same container is the reference: it enters namespaces and the root, and
    has no cgroup to join, no filter, no capabilities to drop, no output to carry."""
    rounds = 2 if bench.short else 12
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        print("nsenter: not installed; skipped")
        return
    container = bench.runtime.create(Config(image="base", cmd=SLEEP))
    container.start()
    try:
        pid = container.state.pid
        enter = [nsenter, "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "--root", "/bin/true"]
        with engines(bench) as found:
            commands = {"nsenter": enter}
            for name, command in [*found.items()]:
                # Else its `rm -f` waits for a program that takes no notice of SIGTERM.
                limits = [*LOW, "--stop-timeout", "0"] if name == "podman" else []
                words = ["run", "-d", "--name", "box", *limits, "--network", "none", "base"]
                done = subprocess.run(
                    [*command, *words, *SLEEP], check=False, capture_output=True, text=True
                )
                if done.returncode:
                    print(f"{name}: {done.stderr.strip()[-200:]}; skipped")
                    continue
                commands[f"{name} exec"] = [*command, "exec", "box", "/bin/true"]
            rows = measure(container, commands, rounds)
            reference = next(row for row in rows if row.name == "nsenter")
            bench.show("exec of /bin/true", rows, reference)
            for name in [*found]:
                remove = [*found[name], "rm", "-f", "box"]
                subprocess.run(remove, check=False, capture_output=True)
    finally:
        bench.runtime.destroy(container, force=True)


def measure(container: Container, commands: dict[str, list[str]], rounds: int) -> list[Samples]:
    """Everybody `IN_TURNS` times in every round; the first round does not count."""
    api = Samples("dockpy API")
    rows = {name: Samples(name) for name in commands}
    for turn in range(rounds + 1):
        taken = [one_exec(container) for _ in range(IN_TURNS)]
        api.values += taken if turn else []
        one_round(commands, rows, counts=turn > 0, times=IN_TURNS)
    nsenter = rows.pop("nsenter")
    return [nsenter, api, *rows.values()]
