"""Pulls and pushes through proxies: real sockets, a registry that only the proxy knows by name."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dockpy.errors import DockpyError, RegistryError
from dockpy.registry.settings import RegistrySettings
from forwarding_proxy import ForwardingProxy, forwarding_proxy
from kernel.test_registry_lies import QUICK, Place, layer
from lying_registry import LyingRegistry, lying_registry
from patience import patient
from real_registry import free_port, make_certificate, real_registry

NAME = "registry.example"
SECRET = "pass:w@rd"
QUOTED = "somebody:pass%3Aw%40rd"


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying_registry() as running:
        running.put_image("x", layer(b"f"), layer(b"g"))
        yield running


@pytest.fixture
def open_place(short_run: Callable[[], Path]) -> Iterator[Callable[..., Place]]:
    """Makes an engine's store whose environment is the one given."""
    opened: list[Place] = []

    def make(certificates: str = "", attempts: int = QUICK.attempts, **environment: str) -> Place:
        root = short_run()
        root.mkdir()
        settings = RegistrySettings(
            patience=replace(QUICK, attempts=attempts),
            environment=environment,
            insecure=() if certificates else (NAME,),
            certificates=(certificates,) if certificates else (),
        )
        opened.append(Place(root, settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
        shutil.rmtree(one.root)


@contextmanager
def on_the_way(registry: LyingRegistry, **options: object) -> Iterator[ForwardingProxy]:
    """A proxy that knows the registry by its name, at HTTP's port."""
    with forwarding_proxy({f"{NAME}:80": registry.host}, **options) as proxy:  # type: ignore[arg-type]
        yield proxy


def refusal(place: Place) -> str:
    """The one line a pull fails with; no secret is in it or behind it."""
    with pytest.raises(DockpyError) as caught:
        place.registries.pull_image(f"{NAME}/x")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in f"{chain} {chain!r}"
        assert QUOTED not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_plain_requests_are_forwarded_and_the_proxys_secret_ends_there(
    registry: LyingRegistry, open_place: Callable[..., Place], variable: str
) -> None:
    with on_the_way(registry, user=f"somebody:{SECRET}") as proxy:
        place = open_place(**{variable: f"http://{QUOTED}@{proxy.address}"})
        pulled = place.registries.pull_image(f"{NAME}/x")
        place.tags.set(f"{NAME}/y", "latest", pulled.image.id)
        place.registries.push_image(f"{NAME}/y")
    assert f"GET http://{NAME}/v2/x/manifests/latest HTTP/1.1" in proxy.lines("GET")
    assert proxy.lines("PUT")[-1] == f"PUT http://{NAME}/v2/y/manifests/latest HTTP/1.1"
    assert registry.asked
    for one in registry.asked:
        assert not {name.lower() for name in one.headers} & {"proxy-authorization"}
        assert one.headers["Host"] == NAME


@pytest.mark.needs("docker_registry", "openssl")
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_tls_goes_through_a_tunnel_and_is_checked_against_the_registrys_name(
    registry: LyingRegistry, open_place: Callable[..., Place], tmp_path: Path, variable: str
) -> None:
    trust = tmp_path / "certs.d" / NAME
    trust.mkdir(parents=True)
    certificate = make_certificate(tmp_path, NAME)
    with (
        real_registry(tmp_path, tls=certificate) as address,
        forwarding_proxy({f"{NAME}:443": address}, user=f"somebody:{SECRET}") as proxy,
    ):
        url = f"http://{QUOTED}@{proxy.address}"
        place = open_place(certificates=str(tmp_path / "certs.d"), **{variable: url})
        image = place.registries.pull_image(f"{registry.host}/x").image
        place.tags.set(f"{NAME}/x", "latest", image.id)
        with pytest.raises(RegistryError, match=f"the certificate of {NAME} is not trusted"):
            place.registries.push_image(f"{NAME}/x")
        shutil.copy(certificate.authority, trust / "ca.crt")
        pushed = place.registries.push_image(f"{NAME}/x")
        place.graph.delete(image.id)
        assert place.registries.pull_image(f"{NAME}/x").digest == pushed.digest
        for line, headers in proxy.asked:
            assert line == f"CONNECT {NAME}:443 HTTP/1.1"
            assert "authorization" not in headers


@pytest.mark.parametrize(
    "excluded", ["*", NAME, ".example", "*.example", f"other.example, {NAME}:80"]
)
def test_what_no_proxy_lists_is_asked_for_directly(
    registry: LyingRegistry, open_place: Callable[..., Place], excluded: str
) -> None:
    with on_the_way(registry) as proxy:
        url = f"http://{proxy.address}"
        place = open_place(HTTP_PROXY=url, no_proxy=excluded)
        assert "cannot find" in refusal(place)  # that name is known to the proxy alone
        assert proxy.asked == []
        other = open_place(HTTP_PROXY=url, no_proxy=f"{NAME}:81,x.{NAME},10.0.0.0/8")
        other.registries.pull_image(f"{NAME}/x")
        assert proxy.asked


def test_a_registry_on_this_machine_is_never_asked_through_a_proxy(
    registry: LyingRegistry, open_place: Callable[..., Place]
) -> None:
    place = open_place(HTTP_PROXY="http://127.0.0.1:1", HTTPS_PROXY="http://127.0.0.1:1")
    assert place.registries.pull_image(f"{registry.host}/x").new


# -- proxies that say no -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "wants a name and a password; restart the daemon with HTTP_PROXY=http://NAME:PASS"),
        (f"{QUOTED}@", "does not accept the name and the password of HTTP_PROXY"),
    ],
)
def test_a_proxy_that_wants_other_credentials_is_told_at_once_with_the_variable_to_set(
    registry: LyingRegistry, open_place: Callable[..., Place], given: str, words: str
) -> None:
    with on_the_way(registry, user="somebody:else") as proxy:
        text = refusal(open_place(HTTP_PROXY=f"http://{given}{proxy.address}"))
        assert f"the proxy {proxy.address} {words}" in text
        assert len(proxy.asked) == 1
    assert registry.asked == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(407, "wants a name and a password"), (403, f"does not allow {NAME}:443; have it allowed")],
)
def test_a_tunnel_that_is_refused_tells_why_even_when_plain_http_fails_as_well(
    registry: LyingRegistry, open_place: Callable[..., Place], status: int, words: str
) -> None:
    with forwarding_proxy({}, refuses={"CONNECT": status}) as proxy:
        assert words in refusal(open_place(HTTPS_PROXY=f"http://{proxy.address}"))
        assert len(proxy.asked) == 1


def test_an_insecure_registry_whose_tunnel_is_refused_is_asked_plainly(
    registry: LyingRegistry, open_place: Callable[..., Place]
) -> None:
    with on_the_way(registry, refuses={"CONNECT": 403}) as proxy:
        url = f"http://{proxy.address}"
        assert open_place(HTTP_PROXY=url, HTTPS_PROXY=url).registries.pull_image(f"{NAME}/x").new


@pytest.mark.parametrize(("status", "attempts"), [(403, 2), (502, 1 + QUICK.attempts)])
def test_the_proxys_own_page_is_not_taken_for_the_registrys_answer(
    registry: LyingRegistry, open_place: Callable[..., Place], status: int, attempts: int
) -> None:
    with on_the_way(registry, refuses={"GET": status}) as proxy:
        text = refusal(open_place(HTTP_PROXY=f"http://{proxy.address}"))
        assert f"the proxy {proxy.address} " in text
        assert "dockpy login" not in text
        assert len(proxy.asked) == attempts


def test_a_dead_proxy_is_named_with_the_variable_that_names_it(
    open_place: Callable[..., Place],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    text = refusal(open_place(HTTP_PROXY=f"http://{QUOTED}@{dead}"))
    assert f"cannot reach the proxy {dead}: Connection refused" in text
    assert "correct HTTP_PROXY in the daemon's environment" in text


@pytest.mark.parametrize("said", [b"", b"hello\r\n\r\n", b"HTTP/1.1\r\n\r\n"])
def test_what_does_not_talk_as_a_proxy_is_named(
    open_place: Callable[..., Place], said: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        place = open_place(certificates="/nowhere", HTTPS_PROXY=f"http://{address}")
        server.settimeout(20)

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        text = refusal(place)
        thread.join()
    assert f"{NAME} cannot be reached: the proxy {address} does not answer as a proxy" in text


# -- a proxy of others ---------------------------------------------------------------------------

TINYPROXY = """
mount --bind "$1/hosts" /etc/hosts && exec tinyproxy -d -c "$1/tinyproxy.conf"
"""


@contextmanager
def tinyproxy(directory: Path, *lines: str) -> Iterator[str]:
    """Debian's tinyproxy, for which NAME is this machine; its address. Ended by its pid."""
    port = free_port()
    (directory / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
    (directory / "tinyproxy.conf").write_text(
        "\n".join((f"Port {port}", "Listen 127.0.0.1", "LogLevel Connect", *lines)) + "\n"
    )
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", TINYPROXY, "sh", str(directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + patient(20)
        while True:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "tinyproxy does not come up"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.needs("tinyproxy", "mount_namespace", "docker_registry", "openssl")
def test_tinyproxy_takes_images_to_a_registry_and_back(
    registry: LyingRegistry, open_place: Callable[..., Place], tmp_path: Path
) -> None:
    """Plain and under TLS; with wrong credentials, and to a port it does not connect to."""
    certificate = make_certificate(tmp_path, NAME)
    (tmp_path / "plain").mkdir()
    with (
        real_registry(tmp_path, tls=certificate) as safe,
        real_registry(tmp_path / "plain") as plain,
    ):
        port, plain_port = safe.partition(":")[2], plain.partition(":")[2]
        trust = tmp_path / "certs.d" / f"{NAME}:{port}"
        trust.mkdir(parents=True)
        shutil.copy(certificate.authority, trust / "ca.crt")
        with tinyproxy(tmp_path, "BasicAuth somebody word", f"ConnectPort {port}") as address:
            both = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://somebody:word@{address}")
            for name, place in (
                (f"{NAME}:{port}", open_place(certificates=str(tmp_path / "certs.d"), **both)),
                # It loses the answer to a PATCH now and then: more attempts than QUICK has.
                (f"{NAME}:{plain_port}", open_place(attempts=10, **both)),
            ):
                image = place.registries.pull_image(f"{registry.host}/x").image
                place.tags.set(f"{name}/x", "latest", image.id)
                pushed = place.registries.push_image(f"{name}/x")
                place.graph.delete(image.id)
                assert place.registries.pull_image(f"{name}/x").digest == pushed.digest
            given = {"HTTPS_PROXY": f"http://{QUOTED}@{address}"}
            wrong = open_place(certificates=str(tmp_path / "certs.d"), **given)
            with pytest.raises(RegistryError, match="does not accept the name and the password"):
                wrong.registries.pull_image(f"{NAME}:{port}/x")
            closed = open_place(certificates="/nowhere", **both)
            with pytest.raises(RegistryError, match=f"does not allow {NAME}:{plain_port}"):
                closed.registries.pull_image(f"{NAME}:{plain_port}/x")
