"""A real distribution as ./install makes it: what README.md shows with the image `base`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from patience import patient
from roots import pack

pytestmark = pytest.mark.needs("root", "netns", "overlay", "debian_root")

CONTROL = """Package: greeting
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: a file that greets
"""


@pytest.fixture(scope="module")
def base_archive(real_tmp: Path, debian_root: Path) -> Path:
    return pack(debian_root, real_tmp / "debian.tar")


def answered(port: int) -> str:
    """The host's end of the example: a line in, the server's end out."""
    with socket.create_connection(("127.0.0.1", port), patient(2)) as client:
        client.sendall(b"hello world\n")
        client.shutdown(socket.SHUT_WR)
        return client.makefile().read()


def test_the_netcat_example_as_it_is_written(dockpy: Client) -> None:
    job = dockpy.detached("-p", "4444", "base", "/bin/nc", "-l", "-p", "4444")
    port = int(dockpy.ok("port", job, "4444").out)

    def heard() -> bool:
        with contextlib.suppress(OSError):
            answered(port)
        return dockpy.ok("logs", job).out == "hello world\n"

    eventually(heard, "hello world in the log")
    assert dockpy.ok("wait", job).out == "0\n"


def test_users_and_limits(dockpy: Client) -> None:
    limits = "-m 64m --cpus 0.5 --pids-limit 50 -u nobody --read-only --tmpfs /tmp"
    told = dockpy.ok("run", "--rm", *limits.split(), "base", "id").out
    assert told == "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n"


@contextlib.contextmanager
def mirror(directory: Path) -> Iterator[int]:
    """A host that serves one package; gives its port."""
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL)
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/greeting").write_text("hello from a package\n")
    served = directory / "served"
    served.mkdir()
    package = served / "greeting.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, package],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    data = package.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    place = f"Filename: ./{package.name}\nSize: {len(data)}\nSHA256: {digest}\n"
    (served / "Packages").write_text(CONTROL + place)
    handler = functools.partial(Silent, directory=str(served))
    with http.server.ThreadingHTTPServer(("", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_apt_get_over_the_bridge_and_what_is_made_of_it(dockpy: Client, tmp_path: Path) -> None:
    gateway = "{{.NetworkSettings.Gateway}}"
    host = dockpy.field(dockpy.detached("base", "sleep", "100"), gateway)
    with mirror(tmp_path) as port:
        source = f"deb [trusted=yes] http://{host}:{port}/ ./"
        script = (
            f"rm -f sources.list.d/*; echo '{source}' > sources.list;"
            "apt-get -q update && apt-get -q install -y greeting && cat /usr/share/greeting"
        )
        done = dockpy.ok("run", "--name", "inst", "-w", "/etc/apt", "base", "sh", "-c", script)
    assert done.lines[-1] == "hello from a package"
    assert "A /usr/share/greeting" in dockpy.ok("diff", "inst").lines
    dockpy.ok("commit", "-m", "Installed greeting", "inst", "me/better")
    assert "Installed greeting" in dockpy.ok("history", "me/better").out
    told = dockpy.ok("run", "--rm", "me/better", "dpkg-query", "-W", "greeting").out
    assert told == "greeting\t1.0\n"
