"""The default network of a host that only asks itself for names: the engine asks for containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dockpy import Config, Runtime, etcfiles
from nameserver import NameServer, always, serving
from netns import Namespace

pytestmark = pytest.mark.needs("root", "netns", "ip", "overlay")

SERVER = "127.0.0.7"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the engine takes for /etc/resolv.conf."""
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {SERVER}\n")
    monkeypatch.setattr(etcfiles, "RESOLV", str(path))
    monkeypatch.setattr(etcfiles, "SYSTEMD_RESOLV", str(tmp_path / "none"))
    return path


@pytest.fixture
def server() -> Iterator[NameServer]:
    """The host's own name server, on its loopback."""
    with closing(Namespace(own=False)) as here, serving(here, SERVER, always("192.0.2.77")) as one:
        yield one


def output(runtime: Runtime, script: str) -> str:
    container = runtime.create(Config(image="base", cmd=("sh", "-c", script)))
    try:
        return container.output().decode()
    finally:
        runtime.destroy(container, force=True)


def gateway(runtime: Runtime) -> str:
    return output(runtime, "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'").strip()


def test_a_server_on_the_hosts_loopback_answers_containers_through_the_engine(
    host: Path, server: NameServer, engine: Runtime
) -> None:
    assert output(engine, "cat /etc/resolv.conf") == f"nameserver {gateway(engine)}\n"
    assert "192.0.2.77" in output(engine, "busybox nslookup name.test")
    assert {query.name for query in server.heard} >= {"name.test"}


def test_public_servers_are_named_while_another_program_has_the_port(
    host: Path, engine: Runtime
) -> None:
    with closing(Namespace(own=False)) as here, closing(here.listen(53)):
        lines = output(engine, "cat /etc/resolv.conf").splitlines()
    assert lines
    assert gateway(engine) not in "".join(lines)
    assert "127." not in "".join(lines)


def test_a_server_that_containers_can_ask_is_asked_by_themselves(
    host: Path, engine: Runtime
) -> None:
    host.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.1\n")
    assert output(engine, "cat /etc/resolv.conf") == "nameserver 192.0.2.1\n"
