"""What a run of the benchmarks found, as a value and as a JSON file.

A file is one object: `machine` (facts of the computer), `began` (UTC), `commit`, `skipped` and
`failures` (lines of text), and `groups`, each with a `name` (cli, images, ...), a `title`, the name
of its `reference` row or null, and its `rows` as `Samples.record` makes them; a timeline has
`steps` too. Modules that run alone write the list of groups, without the rest.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.samples import Samples

FORMAT = 1
_LINE = re.compile(
    r"  (?P<name>.+?) +(?P<n>\d+) +(?P<p10>[-\d.]+) +(?P<median>[-\d.]+) +(?P<p90>[-\d.]+)"
    r" +(?P<p99>[-\d.]+) +(?:(?P<ratio>[\d.]+) +)?(?P<unit>\S+)"
)
"""A row as `samples.table` prints it."""


_STEP = re.compile(r" *([0-9.]+) +([0-9.]+)  (\w+) +(.*)")
"""A line as `dockpy run --trace` prints it."""


class NotFigures(Exception):
    """A file that no run of the benchmarks wrote."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant: quantiles of `n` samples in `unit`, and the samples where they were kept."""

    name: str
    unit: str
    n: int
    p10: float
    median: float
    p90: float
    p99: float
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Row:
        p10, median, p90, p99 = (float(record[key]) for key in ("p10", "median", "p90", "p99"))
        values = tuple(float(one) for one in record.get("values", ()))
        name, unit, n = str(record["name"]), str(record["unit"]), int(record["n"])
        return cls(name, unit, n, p10, median, p90, p99, values)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a timeline: `at` milliseconds it was done, it took `took` of them."""

    who: str
    what: str
    at: float
    took: float


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that were measured in turns, and the row that the others are compared with."""

    name: str
    title: str
    reference: str | None
    rows: tuple[Row, ...]
    steps: tuple[Step, ...] = ()

    def ratio(self, row: Row) -> float | None:
        """A row's median over the reference's; None where there is no reference of its unit."""
        for one in self.rows:
            if one.name == self.reference and one.unit == row.unit and one.median:
                return row.median / one.median
        return None

    @classmethod
    def of(cls, name: str, record: Mapping[str, Any]) -> Group:
        """From a record; one that says nothing of a reference has it in its first row."""
        rows = tuple(Row.of(one) for one in record["rows"])
        first = rows[0].name if rows else None
        steps = tuple(Step(**one) for one in record.get("steps", ()))
        return cls(
            str(record.get("name", name)),
            str(record["title"]),
            record.get("reference", first),
            rows,
            steps,
        )


@dataclass(slots=True)
class Figures:
    """A whole run."""

    machine: dict[str, Any]
    began: str
    commit: str
    groups: list[Group] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[Group]:
        return [one for one in self.groups if one.name == name]

    def write(self, path: Path) -> None:
        """One line for all about the run, and one for each group."""
        about = {"format": FORMAT, **asdict(self)}
        groups = ",\n".join(json.dumps(one) for one in about.pop("groups"))
        path.write_text(f'{json.dumps(about)[:-1]},\n"groups": [\n{groups}\n]}}\n')

    @classmethod
    def read(cls, path: Path) -> Figures:
        """NotFigures: the file is not there, or another one."""
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise NotFigures(f"{path} has format {found['format']}, this reads {FORMAT}")
            groups = [Group.of("", one) for one in found["groups"]]
            texts = [[str(line) for line in found[key]] for key in ("skipped", "failures")]
            return cls(dict(found["machine"]), found["began"], found["commit"], groups, *texts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotFigures(f"{path} is no run of the benchmarks: {error!r}") from error


def group_record(
    title: str, rows: Iterable[Samples], reference: Samples | None
) -> dict[str, object]:
    """What a module writes for one table: rows without a sample are left out."""
    return {
        "title": title,
        "reference": reference.name if reference is not None and reference.values else None,
        "rows": [row.record() for row in rows if row.values],
    }


def from_text(name: str, lines: Sequence[str]) -> list[Group]:
    """The groups of a module that only prints its tables: quantiles, as exact as they are printed.
    The reference is the first row with a ratio of 1."""
    groups: list[Group] = []
    title, reference, rows = "", None, list[Row]()

    def close() -> None:
        if rows:
            groups.append(Group(name, title, reference, tuple(rows)))

    for before, line in zip(["", *lines], lines, strict=False):
        if re.fullmatch(r" +n +p10 +median +p90 +p99 +ratio", line):
            close()
            title, reference, rows = before.strip(), None, []
        elif title and (found := _LINE.fullmatch(line.rstrip())):
            rows.append(Row.of(found.groupdict()))
            if reference is None and found["ratio"] == "1.00":
                reference = found["name"]
    close()
    return groups


def steps_of(text: str) -> list[Step]:
    """A timeline as `dockpy run --trace` prints it, amid other lines."""
    found = (_STEP.fullmatch(line) for line in text.splitlines())
    return [Step(one[3], one[4], float(one[1]), float(one[2])) for one in found if one]


def ticks_per_second() -> int | None:
    """The kernel's HZ; None where it does not tell. CLK_TCK is another thing: always 100."""
    for path in (Path(f"/boot/config-{platform.release()}"), Path("/proc/config.gz")):
        try:
            if path.suffix == ".gz":
                import gzip

                text = gzip.decompress(path.read_bytes()).decode()
            else:
                text = path.read_text()
        except OSError:
            continue
        if found := re.search(r"^CONFIG_HZ=(\d+)$", text, re.MULTILINE):
            return int(found[1])
    return None


def cgroup_version() -> str:
    """How container engines find cgroups here."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "v2"
    return "v1 beside v2" if Path("/sys/fs/cgroup/unified").exists() else "v1"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, Any]:
    """Facts that figures depend on; nothing that names the computer."""
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "kernel": platform.release(),
        "hz": ticks_per_second(),
        "processors": os.cpu_count(),
        "processor": processor(),
        "memory_mib": int(memory[1]) >> 10 if memory else None,
        "cgroups": cgroup_version(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit(directory: Path) -> str:
    """The commit of the sources, with a + when something was changed since; "" outside of git."""
    words = ["git", "-C", str(directory), "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return done.stdout.strip()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
