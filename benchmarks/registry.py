"""Pulling and pushing an image beside docker and podman, through a registry on loopback.

    python -m benchmarks.registry --root TAR [--layers N] [--rounds N] [--only NAME ...] [--no-push]
                                  [--command DOCKPY] [--own-ext4 GIB]

The image has N layers, each the archive of a root file system under a directory of its own, gzip
level 6 as docker makes them. The registry is Debian's docker-registry. Contestants take turns in
every round; every round has an image of its own and nothing is removed before the end, because
creating files is slower for minutes after a mass delete. `floor` is two of a pull's parts, each
alone: the transfer of all blobs, and inflating all of them one after another. Pushes go to an empty
registry; `dockpy, packed` is a push of an image whose blobs are not kept, so that every layer is
packed and compressed as docker does it. `everything present` is a pull right after the first one;
`the registry's two answers` are what it asks for, asked by this program. Processor seconds are
those of client and daemon together, without the registry's: neighbours do not change them much. The
memory is the daemon's VmHWM above idle. `--command`: an installed dockpy, for the client's side;
`python -m dockpy` else. `--own-ext4`: on a new file system in a file, where nothing was ever
deleted. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.images import own_ext4
from benchmarks.peers import docker, podman, scratch, wall
from benchmarks.processors import spent
from benchmarks.samples import Samples, table

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SOURCE = Path(__file__).resolve().parents[1] / "src"
CONFIGURATION = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[tuple[str, int]]:
    """docker-registry over an empty directory; its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory.mkdir()
    (directory / "config.yml").write_text(CONFIGURATION.format(data=directory / "data", port=port))
    program = shutil.which("docker-registry")
    if program is None:
        raise SystemExit("docker-registry is not installed")
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(directory / "config.yml")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"localhost:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def make_image(archive: Path, layers: int, place: Path, serial: int) -> int:
    """An OCI layout at `place`, tag `latest`, unlike those of other serials; bytes of its tars."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    described, diff_ids, unpacked = [], [], 0
    for number in range(layers):
        plain = place / f"{number}.tar"
        with tarfile.open(archive) as source, tarfile.open(plain, "w|") as target:
            for member in source:
                data = source.extractfile(member) if member.isreg() else None
                member.name = moved(member.name, serial, number)
                if member.islnk():
                    member.linkname = moved(member.linkname, serial, number)
                target.addfile(member, data)
        packed = place / f"{number}.tar.gz"
        with open(packed, "wb") as out:
            subprocess.run(["gzip", "-n", "-6", "-c", plain], stdout=out, check=True)
        unpacked += plain.stat().st_size
        diff_ids.append(f"sha256:{digest_of(plain)}")
        described.append(store(blobs, packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
        plain.unlink()
    config = place / "config"
    config.write_text(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        )
    )
    manifest = place / "manifest"
    manifest.write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": store(blobs, config, "application/vnd.oci.image.config.v1+json"),
                "layers": described,
            }
        )
    )
    entry = store(blobs, manifest, MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return unpacked


def moved(name: str, serial: int, number: int) -> str:
    """A name of an archive, below a directory of its own."""
    return f"./{serial}-{number}/{name.removeprefix('./')}".rstrip("./")


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store(blobs: Path, path: Path, kind: str) -> dict[str, object]:
    """Move a file to its place in a layout; its descriptor."""
    digest, size = digest_of(path), path.stat().st_size
    path.rename(blobs / digest)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


class Dockpy:
    """A daemon of our own."""

    def __init__(self, directory: Path, command: str | None) -> None:
        self.root = directory / "dockpy"
        self.environment = {
            **os.environ,
            "DOCKPY_ROOT": str(self.root),
            "DOCKPY_RUN": f"/dev/shm/dockpy-bench-{os.getpid()}",
            "PYTHONPATH": str(SOURCE),
        }
        sources = [sys.executable, "-m", "dockpy"]
        self.command = [command] if command else sources
        os.environ.update(self.environment)  # for `wall`
        self.process = subprocess.Popen([*sources, "daemon"], stderr=subprocess.DEVNULL)
        self._await()
        self.run("images")
        self.idle = self.peak()

    def _await(self) -> None:
        """Until it is there: a client that finds none would start another."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if (self.root / "lock").read_text().strip() == str(self.process.pid):
                    self.run("version")
                    return
            time.sleep(0.05)
        raise SystemExit("dockpy's daemon does not come up")

    def run(self, *words: str) -> None:
        subprocess.run([*self.command, *words], check=True, stdout=subprocess.DEVNULL)

    def peak(self) -> int:
        """The most memory it had so far, in KiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    def forget_blobs(self) -> None:
        """As if the image had been made here."""
        shutil.rmtree(self.root / "blobs", ignore_errors=True)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.environment["DOCKPY_RUN"], ignore_errors=True)


def floor(layout: Path, host: str) -> dict[str, float]:
    """Milliseconds of a pull's parts, each alone."""
    from isal import igzip

    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"][7:]
    layers = json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    buffer = memoryview(bytearray(1 << 20))
    found = {}
    began = time.perf_counter()
    for layer in layers:
        with opener.open(f"http://{host}/v2/bench/blobs/{layer['digest']}") as answer:
            while answer.readinto(buffer):
                pass
    found["floor: transfer"] = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    for layer in layers:
        path = layout / "blobs/sha256" / layer["digest"][7:]
        with igzip.open(path) as file:  # type: ignore[no-untyped-call]
            while file.readinto(buffer):
                pass
    found["floor: inflate, one after another"] = (time.perf_counter() - began) * 1e3
    return found


def answers(host: str, tag: str) -> float:
    """Milliseconds until the registry has answered what a pull asks that has everything."""
    connection = http.client.HTTPConnection(host)
    connection.connect()
    began = time.perf_counter()
    for path in ("/v2/", f"/v2/bench/manifests/{tag}"):
        connection.request("GET", path, headers={"Accept": MANIFEST})
        connection.getresponse().read()
    took = (time.perf_counter() - began) * 1e3
    connection.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, required=True, help="tar of a root file system")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--no-push", action="store_true")
    parser.add_argument("--command", help="an installed dockpy")
    parser.add_argument("--own-ext4", type=int, default=0, metavar="GIB", help="see images")
    options = parser.parse_args()
    pulls: dict[str, Samples] = {}
    pushes: dict[str, Samples] = {}
    again, asked = Samples("dockpy, everything present"), Samples("the registry's two answers")
    processors: dict[str, Samples] = {}
    parts: dict[str, Samples] = {}
    pulled_peak = 0
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(scratch())
        place = stack.enter_context(own_ext4(place, options.own_ext4))
        host, served_by = stack.enter_context(registry(place / "registry"))
        for serial in range(options.rounds):
            layout = place / f"layout{serial}"
            unpacked = make_image(options.root, options.layers, layout, serial)
            subprocess.run(
                [
                    *("skopeo", "copy", "-q", "--dest-tls-verify=false"),
                    *(f"oci:{layout}:latest", f"docker://{host}/bench:{serial}"),
                ],
                check=True,
            )
        ours = Dockpy(place, options.command)
        stack.callback(ours.close)
        contestants: dict[str, list[str]] = {"dockpy": ours.command}
        moby = stack.enter_context(docker(place))
        if moby is not None:
            contestants["docker"] = moby
        if (pod := podman(place)) is not None:
            contestants["podman"] = pod
        contestants = {
            name: command
            for name, command in contestants.items()
            if not options.only or name in options.only
        }
        plain = {"podman": ["--tls-verify=false"]}
        for serial in range(options.rounds):
            image = f"{host}/bench:{serial}"
            for name, took in floor(place / f"layout{serial}", host).items():
                parts.setdefault(name, Samples(name)).values.append(took)
            for name, command in contestants.items():
                os.sync()
                pull = [shutil.which(command[0]) or command[0], *command[1:], "pull", "-q"]
                before = spent(without=(served_by,))
                took = wall([*pull, *plain.get(name, []), image])
                cost = spent(without=(served_by,)) - before
                pulls.setdefault(name, Samples(f"{name} pull")).values.append(took)
                processors.setdefault(name, Samples(name, unit="s")).values.append(cost)
                if name == "dockpy":
                    again.values.extend(wall([*pull, image]) for _ in range(5))
                    asked.values.extend(answers(host, str(serial)) for _ in range(5))
                    pulled_peak = ours.peak() - ours.idle
            if not options.no_push:
                push_round(contestants, plain, place, image, ours, pushes)
        peak = ours.peak() - ours.idle
        reference = pulls.get("docker")
        print(f"{options.layers} layers, {unpacked / 1e6:.0f} MB of tar streams")
        print(table("pull", [*pulls.values(), *parts.values(), again, asked], reference))
        costs = list(processors.values())
        print(table("pull: processor seconds", costs, processors.get("docker")))
        if pushes:
            print(table("push to an empty registry", list(pushes.values()), pushes.get("docker")))
        print(
            f"dockpy's daemon: {peak / 1024:.0f} MiB above idle at most, "
            f"{pulled_peak / 1024:.0f} before the last round's pushes"
        )


def push_round(
    contestants: dict[str, list[str]],
    plain: dict[str, list[str]],
    place: Path,
    image: str,
    ours: Dockpy,
    pushes: dict[str, Samples],
) -> None:
    """Every contestant once, each to a registry of its own."""
    variants: list[tuple[str, list[str], Callable[[], None]]] = []
    for name, command in contestants.items():
        variants.append((name, command, lambda: None))
        if name == "dockpy":
            variants.append(("dockpy, packed", command, ours.forget_blobs))
    for name, command, prepare in variants:
        prepare()
        directory = place / "pushed"
        with registry(directory) as (host, _):
            target = f"{host}/bench:latest"
            subprocess.run([*command, "tag", image, target], check=True)
            os.sync()
            push = [shutil.which(command[0]) or command[0], *command[1:], "push"]
            quiet = [] if name.startswith("podman") else ["-q"]
            took = wall([*push, *quiet, *plain.get(name, []), target])
            pushes.setdefault(name, Samples(f"{name} push")).values.append(took)
        shutil.rmtree(directory)  # a few large files


if __name__ == "__main__":
    main()
