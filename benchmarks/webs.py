"""Published ports of dockpy and Docker by common programs: wrk against nginx, and iperf3, by turns.

    python -m benchmarks.webs [--short] [--blocks N] [--json FILE]

nginx, iperf3 and wrk are this host's own programs, the first two in containers of both engines;
each engine is as on a host of its own (`sites`). Asked from this host through localhost, and from a
neighbour on its link through the host's address. Needs root and the three programs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers
from benchmarks.neighbour import HOST, Neighbour
from benchmarks.sites import Figure, Server, compared, options, show

WEB, IPERF = 80, 5201
SMALL, LARGE = 1 << 10, 64 << 20
"""Bytes of an answer."""
FEW, MANY = 4, 8
"""Connections at once, for large answers and small ones. Latency is asked for with one: with more,
how nginx's processes share them decides which half of the answers is the quick one."""
WRK, UP, DOWN = "wrk", "iperf3", "iperf3 back"
NGINX = """
daemon off; user root; worker_processes auto; pid /nginx.pid; error_log /dev/null;
events {}
http { access_log off; sendfile on; keepalive_requests 1000000000;
       server { listen 80; root /www; } }
"""
TOLD = """
done = function(summary, latency)
    local failed = summary.errors
    print(string.format("found %d %d %d %d %d", summary.requests, summary.bytes, summary.duration,
        latency:percentile(50), failed.connect + failed.read + failed.write + failed.status))
end
"""
"""For wrk: requests, bytes, duration and the median latency in microseconds, errors."""


class Wanted(NamedTuple):
    place: str
    tool: str
    seconds: int
    script: str
    size: int = 0
    connections: int = 0


def libraries(program: Path) -> set[Path]:
    """What the loader takes along; nothing for a static program. Source: ldd(1)."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return {Path(one) for one in re.findall(r"(/\S+) \(0x", told)}


def web(directory: Path) -> Server:
    """A root with nginx and iperf3, and what they read."""
    tree = directory / "tree"
    for name in ("dev", "proc", "sys", "etc", "tmp", "bin", "www", "var/log/nginx"):
        (tree / name).mkdir(parents=True)
    (tree / "var/lib/nginx").mkdir(parents=True)
    for name in ("nginx", "iperf3", "busybox"):
        program = peers.program(name)
        shutil.copy2(program, tree / "bin" / name)
        for library in libraries(program):
            place = tree / library.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, place)
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    (tree / "nginx.conf").write_text(NGINX)
    for size in (SMALL, LARGE):
        (tree / f"www/{size}").write_bytes(bytes(size))
    both = "/bin/nginx -c /nginx.conf & exec /bin/iperf3 -s"
    return Server.of(tree, ("/bin/busybox", "sh", "-c", both), (WEB, IPERF))


def measured(wanted: Wanted, _: int, neighbour: Neighbour) -> list[Figure]:
    here = wanted.place == "localhost"
    address = "127.0.0.1" if here else HOST

    def told(*words: str) -> str:
        if here:
            return subprocess.check_output(words, text=True)
        return neighbour.call(subprocess.check_output, words, text=True)

    if wanted.tool == WRK:
        return [by_wrk(wanted, told_by_wrk(told(*wrk_words(wanted, address))))]
    back = ["-R"] if wanted.tool == DOWN else []
    words = ["iperf3", "-J", "-c", address, "-p", str(IPERF), "-t", str(wanted.seconds), *back]
    received = json.loads(told(*words))["end"]["sum_received"]["bits_per_second"]
    way = "from" if back else "to"
    return [Figure(f"iperf3 {way} the container, {wanted.place}", received / 8e6, "MB/s")]


def wrk_words(wanted: Wanted, address: str) -> list[str]:
    return [
        *("wrk", "-t", "1", "-c", str(wanted.connections)),
        *("-d", f"{wanted.seconds}s", "-s", wanted.script),
        f"http://{address}:{WEB}/{wanted.size}",
    ]


def told_by_wrk(output: str) -> list[int]:
    """What `TOLD` printed. RuntimeError when a request failed."""
    found = re.search(r"^found (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    if found is None or int(found[5]):
        raise RuntimeError(f"wrk did not get its answers: {output}")
    return [int(one) for one in found.groups()]


def by_wrk(wanted: Wanted, found: list[int]) -> Figure:
    requests, size, took, latency, _ = found
    if wanted.size == LARGE:
        return Figure(f"wrk, 64 MiB answers, {wanted.place}", size / took, "MB/s")
    if wanted.connections == 1:
        return Figure(f"wrk, latency of 1 KiB answers, {wanted.place}", float(latency), "us")
    return Figure(f"wrk, 1 KiB answers, {wanted.place}", requests * 1e6 / took, "/s")


def main() -> int:
    asked = options(__doc__)
    blocks = asked.blocks or (1 if asked.short else 6)
    seconds = 1 if asked.short else 2
    with peers.scratch() as directory:
        script = directory / "told.lua"
        script.write_text(TOLD)
        questions = [
            Wanted(place, tool, seconds, str(script), *how)
            for place in ("localhost", "a neighbour")
            for tool, *how in (
                (WRK, SMALL, MANY),
                (WRK, SMALL, 1),
                (WRK, LARGE, FEW),
                (UP,),
                (DOWN,),
            )
        ]
        server = web(directory)
        found = compared(directory, server, measured, questions, blocks=blocks, rounds=1)
    show(found, blocks, asked.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
