"""Which modules make up a run, and how each is called."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user of the whole run said. `rootfs`: None for a small one of busybox."""

    rootfs: Path | None
    short: bool


@dataclass(frozen=True, slots=True)
class Module:
    """A group. `arguments` gives the words, or why it cannot run; `usual`: runs unless others are
    named; `short`: runs in CI; `writes`: it has --json."""

    name: str
    says: str
    module: str
    arguments: Callable[[Asked], Sequence[str] | str]
    usual: bool = True
    short: bool = False
    writes: bool = True


def _plain(asked: Asked, *words: str) -> list[str]:
    """For modules that take --short and --rootfs."""
    rootfs = ["--rootfs", str(asked.rootfs)] if asked.rootfs else []
    return [*words, *(["--short"] if asked.short else []), *rootfs]


def _short_only(asked: Asked) -> list[str]:
    return ["--short"] if asked.short else []


def _rooted(option: str, full: str, short: str) -> Callable[[Asked], list[str] | str]:
    """For modules that measure with a distribution's files."""

    def words(asked: Asked) -> list[str] | str:
        if asked.rootfs is None:
            return "needs a distribution's root: give --rootfs a tar, or set DOCKPY_DEBIAN_ROOT"
        return [option, str(asked.rootfs), *(short if asked.short else full).split()]

    return words


def _sized(full: str, short: str) -> Callable[[Asked], list[str]]:
    return lambda asked: (short if asked.short else full).split()


def _part(name: str) -> Callable[[Asked], list[str]]:
    return lambda asked: _plain(asked, name)


def _pull(asked: Asked) -> list[str] | str:
    words = _rooted("--root", "--rounds 2", "--rounds 1 --layers 2")(asked)
    program = shutil.which("dockpy", path=str(Path(sys.executable).parent))
    return words if isinstance(words, str) or not program else [*words, "--command", program]


def _webs(asked: Asked) -> list[str] | str:
    missing = peers.lacking("nginx", "iperf3", "wrk", "busybox")
    return f"needs {', '.join(missing)}" if missing else _short_only(asked)


def _waterfall(asked: Asked) -> list[str]:
    rootfs = ["--rootfs", str(asked.rootfs)] if asked.rootfs else []
    return [*rootfs, "--runs", "20" if asked.short else "100"]


_COMPARE = "benchmarks.compare"
GROUPS = (
    Module("start", "create to removal through the API", _COMPARE, _part("start"), short=True),
    Module("cli", "run --rm, command line", _COMPARE, _part("cli"), short=True),
    Module("clients", "run --rm by 1, 8 and 16 clients", _COMPARE, _part("clients")),
    Module("runtimes", "runc, crun, bwrap", _COMPARE, _part("runtimes"), short=True),
    Module("exec", "one more program in a container", _COMPARE, _part("exec"), short=True),
    Module("waterfall", "one start, step by step", "benchmarks.waterfall", _waterfall),
    Module("burst", "starts a second, 8 threads", _COMPARE, _part("burst"), short=True),
    Module("density", "among many containers", _COMPARE, _part("density"), short=True),
    Module(
        "scaling",
        "a start beside layers and ports, a log's end beside its length",
        "benchmarks.scaling",
        _plain,
    ),
    Module("streams", "output, log, log read back", _COMPARE, _part("streams"), short=True),
    Module(
        "images",
        "import, diff, commit, export",
        "benchmarks.images",
        _rooted("--rootfs", "--rounds 2 --files 5000 --deleted 500", "--rounds 1 --files 1000"),
    ),
    Module(
        "pull",
        "pull and push through a registry",
        "benchmarks.registry",
        _pull,
        writes=False,
    ),
    Module("ports", "published ports", "benchmarks.wire", _short_only),
    Module(
        "webs",
        "published ports by wrk and iperf3",
        "benchmarks.webs",
        _webs,
    ),
    Module("firewall", "the firewall's entries", "benchmarks.firewall", _short_only),
    Module(
        "pump",
        "a container's output, the pump alone",
        "benchmarks.pump",
        _sized("--rounds 3", "--size 50 --rounds 1"),
    ),
    Module(
        "logs",
        "a log read back, alone",
        "benchmarks.logs",
        _sized("", "--size 50 --rounds 1"),
    ),
    Module(
        "store",
        "an engine of many images",
        "benchmarks.store",
        _sized("--counts 10,1000 --rounds 3", "--counts 10,100 --rounds 1"),
        usual=False,
    ),
    Module(
        "commit",
        "commit, and the first start then",
        "benchmarks.commit",
        _rooted("--rootfs", "--rounds 5", "--rounds 1 --files 1000"),
        usual=False,
    ),
)
