"""What dockpy promises to cost, beside what a run found. Pure.

A promise is a figure of one row, or its ratio to another row of the same table; where the run has
no such rows it is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import Figures, Row
from benchmarks.svg import number


def in_turn(name: str) -> str:
    """The title of a table of published ports' ratios, a row for each of the others' titles."""
    return f"{name} beside docker in the same turn"


@dataclass(frozen=True, slots=True)
class Promise:
    """`row` of the table whose title begins with `title`, over the row `beside` when one is named;
    `most`: it may be that much, else it must be at least `least`."""

    says: str
    group: str
    title: str
    row: str
    beside: str = ""
    most: float | None = None
    least: float | None = None

    def figure(self, found: Figures) -> float | None:
        """What the run found; None when it did not measure it."""
        for group in found.of(self.group):
            rows = {row.name.strip(): row for row in group.rows}
            if not group.title.startswith(self.title) or self.row not in rows:
                continue
            if not self.beside:
                return rows[self.row].median
            if self.beside in rows and rows[self.beside].median:
                return rows[self.row].median / rows[self.beside].median
        return None

    def met(self, figure: float) -> bool:
        if self.most is not None:
            return figure <= self.most
        return self.least is None or figure >= self.least

    @property
    def bound(self) -> str:
        sign, value = ("<=", self.most) if self.most is not None else (">=", self.least)
        return f"{sign} {number(value or 0.0)}{' x' if self.beside else ''}"


def _starts() -> list[Promise]:
    found = []
    for network, floor in (("none", "net"), ("bridge", "bridge")):
        found += [
            Promise(
                f"create to removal through the API, {network}, gap {gap} ms, beside the floor",
                "start",
                f"create+start+wait+remove, {network}, gap {gap} ms",
                f"dockpy API, {network}",
                f"floor mounts {floor} cgroup",
                most=2.0,
            )
            for gap in (0, 100)
        ]
    return found


def _ports() -> list[Promise]:
    """A neighbour meets no proxy. Its bytes take the same way to both engines, and cost what they
    cost a server without any: as many, with 3 % of noise."""
    alone = "from a neighbour, client and server on one processor"
    local = "a published port on localhost"
    rows = (
        (f"{local}, bytes a second", "ports", "one connection from localhost", 2.0),
        (f"{local}, connections a second", "ports", "connections from localhost", 2.0),
        (f"{local}, wrk, small answers a second", "webs", "wrk, 1 KiB answers, localhost", 2.0),
        (
            "from a neighbour, bytes a second (1, with 3 % of noise)",
            "ports",
            f"one connection {alone}",
            0.97,
        ),
        ("from a neighbour, connections a second", "ports", f"connections {alone}", 1.0),
    )
    return [
        Promise(f"{says}, beside docker's", group, in_turn("dockpy"), row, least=least)
        for says, group, row, least in rows
    ]


_RUN = "run --rm --network bridge"
PROMISES = (
    *_starts(),
    Promise("`run --rm`, beside docker's", "cli", _RUN, "dockpy run", "docker run", most=0.1),
    Promise(
        "`run --rm` a second, 8 clients, bridge",
        "clients",
        "run --rm, bridge: runs",
        "dockpy, 8 clients",
        least=100,
    ),
    Promise(
        "starts a second through the API, 8 threads, bridge",
        "burst",
        "starts a second",
        "dockpy API, 8 threads, bridge",
        least=200,
    ),
    Promise(
        "start among 1,000 running, beside among none",
        "density",
        "starts 50 ms apart",
        "start among 1000",
        "start among 0",
        most=1.3,
    ),
    *_ports(),
    Promise("output to its log, MB/s", "streams", "streams", "dockpy, to the log", least=400),
    Promise("attached, logged, MB/s", "streams", "streams", "dockpy, attached, logged", least=500),
    Promise("log read back, MB/s", "streams", "streams", "dockpy, log read back", least=300),
    Promise("diff, beside find", "images", "diff", "dockpy changes", "find", most=2.0),
    Promise(
        "commit, beside tar", "images", "commit", "dockpy commit", "tar -c | sha256sum", most=2.0
    ),
    Promise("export, beside tar", "images", "export", "dockpy export", "tar -c", most=2.0),
    Promise(
        "exec through the API, beside nsenter", "exec", "exec", "dockpy API", "nsenter", most=3
    ),
    Promise("exec, beside docker's", "exec", "exec", "dockpy exec", "docker exec", most=1 / 3),
)
IDLE_MEMORY = 100.0
"""KiB of user memory for a container that does nothing, without its own program's."""
TAIL = 3.0
"""How many times the median the slowest hundredth of starts may take."""


def table(found: Figures) -> str:
    """Markdown: each promise, its bound, the run's figure, and whether that meets it."""
    lines = ["| promise | bound | found | |", "| --- | --- | ---: | --- |"]
    for one in PROMISES:
        figure = one.figure(found)
        if figure is not None:
            lines.append(_line(one.says, one.bound, figure, one.met(figure)))
    for row in _tails(found):
        ratio = row.p99 / row.median
        says = f"{row.name}, gap 100 ms: p99 beside the median"
        lines.append(_line(says, f"<= {number(TAIL)} x", ratio, ratio <= TAIL))
    memory = _memory(found)
    if memory is not None:
        says = "user memory of an idle container, KiB: daemon and supervisors"
        lines.append(_line(says, f"<= {number(IDLE_MEMORY)}", memory, memory <= IDLE_MEMORY))
    return "\n".join([*lines, ""])


def _line(says: str, bound: str, figure: float, met: bool) -> str:
    return f"| {says} | {bound} | {number(figure)} | {'met' if met else '**not met**'} |"


def _tails(found: Figures) -> list[Row]:
    """Our starts, one for each network, of as many samples as make a p99."""
    return [
        row
        for group in found.of("start")
        for row in group.rows
        if group.title.endswith("gap 100 ms") and row.name.startswith("dockpy") and row.n >= 100
    ]


def _memory(found: Figures) -> float | None:
    for group in found.of("density"):
        if group.title.startswith("memory of each"):
            ours = ("engine (the daemon)", "supervisors")
            return sum(row.median for row in group.rows if row.name in ours)
    return None
