"""Images through a real registry: dockpy's, skopeo's, podman's and docker's are the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.peers import docker, podman

from end_to_end.client import Client, Result, eventually
from end_to_end.daemon import Daemon, running_daemon
from lying_registry import Exchange, LyingRegistry, lying_registry, stall
from needs import real_directory
from patience import patient
from real_registry import Certificate, TokenServer, make_certificate, real_registry, run
from reference.tarblocks import END, file, header

pytestmark = pytest.mark.needs("overlay", "busybox", "cgroups", "docker_registry", "openssl")

PASSWORDS = {"somebody": "a pass:word"}


@pytest.fixture(scope="module")
def settings(real_tmp: Path) -> Path:
    """A directory with the daemon's registries.json and its certs.d."""
    place = Path(tempfile.mkdtemp(prefix="registries-", dir=real_tmp))
    (place / "certs.d").mkdir()
    (place / "registries.json").write_text(json.dumps({"certs.d": [str(place / "certs.d")]}))
    return place


@pytest.fixture(scope="module")
def daemon(
    settings: Path,
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
    _module_leaves_nothing: None,
) -> Iterator[Daemon]:
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir=real_tmp))
    place = {"DOCKPY_REGISTRIES": str(settings / "registries.json")}
    with running_daemon(root, short_run(), tiny_archive, place) as running:
        yield running


@pytest.fixture(scope="module")
def registry(real_tmp: Path, _module_leaves_nothing: None) -> Iterator[str]:
    """An open registry over plain HTTP."""
    place = Path(tempfile.mkdtemp(prefix="registry-", dir=real_tmp))
    with real_registry(place) as address:
        yield address


@pytest.fixture(scope="module")
def certificate(real_tmp: Path) -> Certificate:
    return make_certificate(Path(tempfile.mkdtemp(prefix="certificate-", dir=real_tmp)))


@pytest.fixture
def config(tmp_path: Path, dockpy: Client) -> Iterator[Path]:
    """The caller's own config.json, in a directory of the test's."""
    dockpy.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    yield tmp_path / "docker" / "config.json"
    del dockpy.environment["DOCKER_CONFIG"]


def image_id(client: Client, name: str) -> str:
    return client.ok("images", "-q", "--no-trunc", name).out.strip()


def remote(reference: str) -> dict[str, object]:
    """What skopeo finds."""
    text = run("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}")
    return dict(json.loads(text))


def change(client: Client, name: str, line: str = "hello", image: str = "base") -> str:
    """Make an image with a file /said; its id."""
    container = client.ok("run", "-d", image, "sh", "-c", f"echo {line} > /said").out.strip()
    client.ok("wait", container)
    made = client.ok("commit", container, name).out.strip()
    client.ok("rm", container)
    return made


# -- pushed and pulled -------------------------------------------------------------------------


@pytest.mark.needs("skopeo")
def test_an_image_made_here_is_the_same_image_after_its_way_through_a_registry(
    dockpy: Client, registry: str, tmp_path: Path
) -> None:
    name = f"{registry}/me/changed"
    made = change(dockpy, name)
    pushed = dockpy.ok("push", name)
    digest = str(remote(name)["Digest"])
    assert f"latest: digest: {digest} size: " in pushed.out
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path}/copy")
    manifest = json.loads((tmp_path / "copy/manifest.json").read_text())
    assert manifest["config"]["digest"] == made
    dockpy.ok("rmi", name)
    pulled = dockpy.ok("pull", name)
    assert f"Digest: {digest}" in pulled.out
    assert image_id(dockpy, name) == made
    assert dockpy.ok("run", "--rm", name, "cat", "/said").out == "hello\n"
    known = dockpy.ok("inspect", "-f", '{{join .RepoDigests " "}}', name).out.strip()
    assert known == f"{name}@{digest}"
    by_digest = dockpy.ok("run", "--rm", f"{name}@{digest}", "cat", "/said")
    assert (by_digest.out, by_digest.err) == ("hello\n", "")


@pytest.mark.needs("skopeo")
def test_what_others_pushed_is_pulled_with_their_id_and_pushed_on_with_their_digest(
    dockpy: Client, registry: str, tiny_archive: Path
) -> None:
    name = f"{registry}/theirs"
    run("skopeo", "copy", "--dest-tls-verify=false", f"tarball:{tiny_archive}", f"docker://{name}")
    theirs = str(remote(name)["Digest"])
    dockpy.ok("pull", "-q", name)
    dockpy.ok("tag", name, f"{registry}/mine/copy")
    again = dockpy.ok("push", f"{registry}/mine/copy")
    assert "Mounted from theirs" in again.out
    assert remote(f"{registry}/mine/copy")["Digest"] == theirs
    assert "Layer already exists" in dockpy.ok("push", f"{registry}/mine/copy").out
    manifest = json.loads(
        run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    )
    assert image_id(dockpy, name) == manifest["config"]["digest"]


@pytest.mark.needs("podman", "mount_namespace")
def test_podman_and_dockpy_take_each_others_images(dockpy: Client, registry: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="pm-", dir=real_directory()))  # its paths must be short
    program = podman(place)
    assert program is not None
    command = ["unshare", "--mount", "--propagation", "private", *program]  # no mount stays
    try:
        made = change(dockpy, f"{registry}/ours")
        dockpy.ok("push", f"{registry}/ours")
        run(*command, "pull", "-q", "--tls-verify=false", f"{registry}/ours")
        theirs = run(*command, "inspect", "--type=image", "--format", "{{.Id}}", f"{registry}/ours")
        assert f"sha256:{theirs.decode().strip()}" == made
        run(*command, "tag", f"{registry}/ours", f"{registry}/podmans")
        run(*command, "push", "-q", "--tls-verify=false", f"{registry}/podmans")
        dockpy.ok("rmi", f"{registry}/ours")
        dockpy.ok("pull", f"{registry}/podmans")
        assert dockpy.ok("run", "--rm", f"{registry}/podmans", "cat", "/said").out == "hello\n"
    finally:
        shutil.rmtree(place)


@pytest.mark.needs("dockerd", "mount_namespace")
def test_docker_and_dockpy_take_each_others_images(
    dockpy: Client, registry: str, real_tmp: Path
) -> None:
    place = Path(tempfile.mkdtemp(prefix="docker-", dir=real_tmp))
    made = change(dockpy, f"{registry}/ours2")
    dockpy.ok("push", f"{registry}/ours2")
    with docker(place) as command:
        assert command is not None, (place / "docker.log").read_text()[-2000:]
        run(*command, "pull", "-q", f"{registry}/ours2")
        theirs = run(*command, "inspect", "--format", "{{.Id}}", f"{registry}/ours2")
        assert theirs.decode().strip() == made
        run(*command, "tag", f"{registry}/ours2", f"{registry}/dockers")
        run(*command, "push", "-q", f"{registry}/dockers")
    dockpy.ok("rmi", f"{registry}/ours2")
    dockpy.ok("pull", f"{registry}/dockers")
    assert image_id(dockpy, f"{registry}/dockers") == made
    assert dockpy.ok("run", "--rm", f"{registry}/dockers", "cat", "/said").out == "hello\n"
    shutil.rmtree(place)


def test_all_tags_go_there_and_come_back(dockpy: Client, registry: str) -> None:
    name = f"{registry}/many"
    ids = {tag: change(dockpy, f"{name}:{tag}", tag) for tag in ("one", "two")}
    dockpy.ok("push", "-a", name)
    dockpy.ok("rmi", *(f"{name}:{tag}" for tag in ids))
    assert dockpy.ok("pull", "-a", "-q", name).lines == [f"{name}:one", f"{name}:two"]
    assert {tag: image_id(dockpy, f"{name}:{tag}") for tag in ids} == ids


def test_run_pulls_what_is_missing_and_its_output_stays_its_own(
    dockpy: Client, registry: str
) -> None:
    name = f"{registry}/for-run"
    change(dockpy, name)
    dockpy.ok("push", name)
    dockpy.ok("rmi", name)
    assert "no such image" in dockpy("run", "--pull=never", name, "true").err
    first = dockpy.ok("run", "--rm", name, "cat", "/said")
    assert first.out == "hello\n"
    assert f"Status: Downloaded newer image for {name}:latest" in first.err
    assert dockpy.ok("run", "--rm", name, "cat", "/said").err == ""
    newer = change(dockpy, f"{registry}/other", "newer")
    dockpy.ok("tag", newer, name)
    dockpy.ok("push", name)
    dockpy.ok("rmi", name)
    always = dockpy.ok("run", "--rm", "--pull=always", "-q", name, "cat", "/said")
    assert (always.out, always.err) == ("newer\n", "")


@pytest.mark.needs("htpasswd")
def test_share_your_own_image(
    real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path, tmp_path: Path
) -> None:
    """The worked example of 0.1.5's README, with a default registry that is here and asks who."""
    place = Path(tempfile.mkdtemp(prefix="share-", dir=real_tmp))
    environment = {"DOCKPY_REGISTRIES": str(place / "registries.json")}
    with real_registry(tmp_path, passwords=PASSWORDS) as registry:
        (place / "registries.json").write_text(json.dumps({"default-registry": registry}))
        with running_daemon(place / "root", short_run(), tiny_archive, environment) as daemon:
            dockpy = daemon.client
            dockpy.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
            container = dockpy.detached("base", "sh", "-c", "echo curl > /installed")
            dockpy.ok("wait", container)
            made = dockpy.ok("commit", "-m", "Installed curl", container, "somebody/betterbase")
            assert "dockpy login" in dockpy("push", "somebody/betterbase").err
            dockpy.ok("login", "-u", "somebody", "--password-stdin", input=PASSWORDS["somebody"])
            dockpy.ok("push", "somebody/betterbase")
            dockpy.ok("rm", container)
            dockpy.ok("rmi", "somebody/betterbase")
            assert "somebody/betterbase" not in dockpy.ok("images").out
            dockpy.ok("pull", "somebody/betterbase")
            told = dockpy.ok("run", "--rm", "somebody/betterbase", "cat", "/installed")
            assert (told.out, told.err) == ("curl\n", "")
            assert image_id(dockpy, "somebody/betterbase") == made.out.strip()
            history = dockpy.ok("history", "--no-trunc", "somebody/betterbase").out
            assert "Installed curl" in history
            long = f"{registry}/somebody/betterbase"  # means the same, and asks nobody
            told = dockpy.ok("run", "--rm", "--pull=never", long, "cat", "/installed")
            assert told.out == "curl\n"
            dockpy.ok("tag", long, f"{registry}/somebody/more:1")
            dockpy.ok("push", f"{registry}/somebody/more:1")
            dockpy.ok("push", "-a", f"{registry}/somebody/more")
            assert dockpy.ok("save", long).raw == dockpy.ok("save", "somebody/betterbase").raw
            assert dockpy.ok("rmi", f"{registry}/somebody/more:1").out == (
                "Untagged: somebody/more:1\n"
            )
            dockpy.ok("rmi", long)
            again = dockpy.ok("run", "--rm", "somebody/betterbase", "cat", "/installed")
            assert again.out == "curl\n"
            assert "Downloaded newer image for somebody/betterbase:latest" in again.err


# -- who may -----------------------------------------------------------------------------------


@pytest.mark.needs("htpasswd")
def test_a_registry_with_tls_and_passwords(
    dockpy: Client, certificate: Certificate, settings: Path, config: Path, tmp_path: Path
) -> None:
    with real_registry(tmp_path, tls=certificate, passwords=PASSWORDS) as address:
        name = f"{address}/private"
        change(dockpy, name)
        untrusted = dockpy("push", name)
        assert untrusted.code == 1
        assert f"the certificate of {address} is not trusted" in untrusted.err
        assert f"{settings}/certs.d/{address}/ca.crt" in untrusted.err
        trust = settings / "certs.d" / address
        trust.mkdir()
        shutil.copy(certificate.authority, trust / "ca.crt")
        assert f"dockpy login {address}" in dockpy("push", name).err
        wrong = dockpy("login", "-u", "somebody", "--password-stdin", address, input="guess")
        assert wrong.code == 1
        assert "does not accept the credentials of 'somebody'" in wrong.err
        assert not config.exists()
        word = PASSWORDS["somebody"]
        dockpy.ok("login", "-u", "somebody", "--password-stdin", address, input=f"{word}\n")
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert list(json.loads(config.read_text())["auths"]) == [address]
        dockpy.ok("push", name)
        dockpy.ok("rmi", name)
        dockpy.ok("pull", name)
        dockpy.ok("logout", address)
        assert json.loads(config.read_text())["auths"] == {}
        refused = dockpy("pull", name)
        assert (refused.code, word in refused.err) == (1, False)


def test_a_registry_that_wants_a_certificate_of_ours_is_shown_the_one_of_certs_d(
    dockpy: Client, certificate: Certificate, settings: Path, tmp_path: Path
) -> None:
    with real_registry(tmp_path, tls=certificate, clients=certificate.authority) as address:
        name = f"{address}/closed"
        made = change(dockpy, name)
        trust = settings / "certs.d" / address
        trust.mkdir()
        shutil.copy(certificate.authority, trust / "ca.crt")
        refused = dockpy("push", name)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert f"{address} wants to see a certificate of ours that it trusts" in refused.err
        assert f"put it into {trust}/client.cert and its key into {trust}/client.key" in refused.err
        shutil.copy(certificate.certificate, trust / "client.cert")
        assert "client.cert: not a usable certificate" in dockpy("push", name).err
        shutil.copy(certificate.key, trust / "client.key")
        dockpy.ok("push", name)
        dockpy.ok("rmi", name)
        dockpy.ok("pull", name)
        assert image_id(dockpy, name) == made


def by_another_name(address: str) -> str:
    """The same registry by an address that is neither this machine's to us nor in certificates."""
    return f"[::ffff:7f00:1]:{address.rpartition(':')[2]}"


def test_a_registry_without_tls_or_with_a_certificate_for_another_name_says_what_to_do(
    dockpy: Client, certificate: Certificate, registry: str, settings: Path, tmp_path: Path
) -> None:
    trust = f"list it in insecure-registries in {settings}/registries.json"
    plain = dockpy("pull", f"{by_another_name(registry)}/x")
    assert "does not speak TLS, or not as we do: wrong version number; if plain" in plain.err
    assert trust in plain.err
    with real_registry(tmp_path, tls=certificate) as address:
        name = by_another_name(address)
        (settings / "certs.d" / name).mkdir()
        shutil.copy(certificate.authority, settings / "certs.d" / name / "ca.crt")
        other = dockpy("pull", f"{name}/x")
        assert "call the registry as its certificate does, or list it in" in other.err
        assert "authority" not in other.err
        assert trust in other.err
    assert (plain.err.count("\n"), other.err.count("\n")) == (1, 1)


def test_a_registry_with_tokens(
    dockpy: Client, certificate: Certificate, config: Path, tmp_path: Path
) -> None:
    with (
        TokenServer(certificate, PASSWORDS) as tokens,
        real_registry(tmp_path, tokens=tokens) as address,
    ):
        name = f"{address}/team/private"
        change(dockpy, name)
        assert f"dockpy login {address}" in dockpy("push", name).err
        word = PASSWORDS["somebody"]
        dockpy.ok("login", "-u", "somebody", "--password-stdin", address, input=word)
        dockpy.ok("push", name)
        dockpy.ok("rmi", name)
        dockpy.ok("pull", name)
        assert ["repository:team/private:pull,push"] in tokens.asked
        assert tokens.asked[-1] == ["repository:team/private:pull"]


def test_login_asks_for_the_password_without_showing_it(
    dockpy: Client, config: Path, registry: str
) -> None:
    with dockpy.terminal("login", registry) as terminal:
        terminal.expect(f"Username for {registry}: ")
        terminal.type("somebody\n")
        terminal.expect("Password: ")
        terminal.type("secreX\x7ft\r")
        shown = terminal.expect("Login Succeeded")
        assert "secre" not in shown
        assert terminal.wait() == 0
        assert terminal.settings() == terminal.before
    assert json.loads(config.read_text())["auths"][registry]["auth"] == "c29tZWJvZHk6c2VjcmV0"


@pytest.mark.parametrize("typed", ["\x03", "somebody\nsec\x03"])
def test_ctrl_c_ends_a_login_at_either_question(
    dockpy: Client, config: Path, registry: str, typed: str
) -> None:
    with dockpy.terminal("login", registry) as terminal:
        terminal.expect(f"Username for {registry}: ")
        first, _, rest = typed.partition("\n")
        terminal.type(f"{first}\n" if rest else first)
        if rest:
            terminal.expect("Password: ")
            terminal.type(rest)
        assert terminal.wait() == 130
        assert terminal.settings() == terminal.before
    assert not config.exists()


def test_a_credential_helper_is_asked_and_a_missing_one_is_an_error(
    dockpy: Client, config: Path, certificate: Certificate, tmp_path: Path
) -> None:
    helper = tmp_path / "docker-credential-fake"
    answer = json.dumps({"Username": "somebody", "Secret": PASSWORDS["somebody"]})
    helper.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/asked.$1\n[ $1 = get ] && echo '{answer}'\ntrue\n"
    )
    helper.chmod(0o755)
    config.parent.mkdir()
    (tmp_path / "registry").mkdir()
    with (
        TokenServer(certificate, PASSWORDS) as tokens,
        real_registry(tmp_path / "registry", tokens=tokens) as address,
    ):
        config.write_text(json.dumps({"credHelpers": {address: "fake"}}))
        name = f"{address}/x"
        change(dockpy, name)
        missing = dockpy("push", name)
        assert "docker-credential-fake, which" in missing.err
        path = f"{tmp_path}:{os.environ['PATH']}"
        pushed = dockpy("push", name, env={"PATH": path})
        assert pushed.code == 0, pushed.err
        assert (tmp_path / "asked.get").read_text() == address
        stored = dockpy(
            *("login", "-u", "somebody", "--password-stdin", address),
            input=PASSWORDS["somebody"],
            env={"PATH": path},
        )
        assert stored.code == 0, stored.err
        assert json.loads((tmp_path / "asked.store").read_text())["Username"] == "somebody"
        assert json.loads(config.read_text())["auths"] == {address: {}}


# -- people, and what goes wrong ----------------------------------------------------------------


@pytest.fixture
def liar() -> Iterator[LyingRegistry]:
    with lying_registry() as running:
        yield running


def layer_of_noise() -> bytes:
    noise = random.Random(1).randbytes(3_000_000)
    return header(b"./", b"5", mode=0o755) + file(b"noise", noise) + END


@contextlib.contextmanager
def half_a_layer(liar: LyingRegistry, archive: Path) -> Iterator[str]:
    """An image `slow` whose second layer comes to a half, once; the layer's digest."""
    _, (_, blob) = liar.put_image("slow", archive.read_bytes(), layer_of_noise())
    held = threading.Event()

    def half(exchange: Exchange) -> bool:
        data = liar.blobs[blob]
        exchange.answer(200, data[: len(data) // 2], length=len(data))
        exchange.wfile.flush()
        held.wait(patient(30))
        return exchange.hang_up()

    liar.lie(f"GET .*/blobs/{blob}", half, times=1)
    try:
        yield blob
    finally:
        held.set()


def test_a_terminal_shows_bars_and_ctrl_c_ends_at_once(
    dockpy: Client, liar: LyingRegistry, tiny_archive: Path
) -> None:
    with half_a_layer(liar, tiny_archive) as blob:
        place = dockpy.root / "downloads" / blob[7:]
        half = len(liar.blobs[blob]) // 2
        with dockpy.terminal("pull", f"{liar.host}/slow", columns=100) as terminal:
            terminal.expect("Pulling from slow")
            terminal.expect(f"{blob[7:19]}: Downloading [")
            terminal.expect("=>")
            eventually(lambda: place.stat().st_size == half, "half of it is here")
            terminal.type("\x03")
            assert terminal.wait() == 130
        dockpy.ok("pull", f"{liar.host}/slow")
        last = liar.requests(f"GET .*/blobs/{blob}")[-1]
        assert last.headers["Range"] == f"bytes={half}-"


def test_ctrl_c_ends_a_push_at_once_and_the_next_one_sends_only_what_is_missing(
    dockpy: Client, liar: LyingRegistry
) -> None:
    name = f"{liar.host}/pushed"
    change(dockpy, name)
    held = threading.Event()

    def hold(exchange: Exchange) -> bool:
        held.wait(patient(30))
        return exchange.hang_up()

    liar.lie("PATCH .*/uploads/", hold, times=1)
    uploads = dockpy.root / "uploads"
    try:
        with dockpy.terminal("push", name, columns=100) as terminal:
            terminal.expect("Pushing")
            eventually(lambda: len(liar.blobs) == 1, "one of two layers is there")
            assert os.listdir(uploads)
            terminal.type("\x03")
            assert terminal.wait() == 130
            assert not held.is_set()
        eventually(lambda: not os.listdir(uploads), "what was packed for it is gone")
    finally:
        held.set()
    assert ("pushed", "latest") not in liar.manifests
    (there,) = liar.blobs
    before = len(liar.requests("PUT .*/uploads/"))
    told = dockpy.ok("push", name)
    assert "Layer already exists" in told.out
    again = liar.requests("PUT .*/uploads/")[before:]
    assert len(again) == 2  # the other layer and the configuration
    assert not any(there[7:] in one.path for one in again)
    dockpy.ok("rmi", name)
    dockpy.ok("pull", name)
    assert dockpy.ok("run", "--rm", name, "cat", "/said").out == "hello\n"


def test_a_pull_whose_daemon_was_killed_goes_on_with_the_next_one(
    own_daemon: Daemon, liar: LyingRegistry, tiny_archive: Path
) -> None:
    client = own_daemon.client
    with half_a_layer(liar, tiny_archive) as blob:
        place = client.root / "downloads" / blob[7:]
        half = len(liar.blobs[blob]) // 2
        with client.started("pull", f"{liar.host}/slow") as process:
            eventually(lambda: place.exists() and place.stat().st_size == half, "half is here")
            own_daemon.stop(signal.SIGKILL)
            assert process.wait(patient(20)) == 125
        own_daemon.start()
        client.ok("pull", f"{liar.host}/slow")
        last = liar.requests(f"GET .*/blobs/{blob}")[-1]
        assert last.headers["Range"] == f"bytes={half}-"
        told = client.ok("run", "--rm", f"{liar.host}/slow", "wc", "-c", "/noise")
        assert told.out == "3000000 /noise\n"


def test_errors_are_one_line_that_says_what_to_do(dockpy: Client, registry: str) -> None:
    def line(result: Result) -> str:
        assert result.err.count("\n") == 1, result.err
        assert result.err.startswith("dockpy: ")
        return result.err

    assert "there is no such image" in line(dockpy("pull", f"{registry}/nothing"))
    assert "check that it runs" in line(dockpy("pull", "localhost:1/x"))
    assert "dockpy tag IMAGE" in line(dockpy("push", f"{registry}/nothing"))
    unknown = dockpy("run", "localhost:1/x", "true")
    assert unknown.code == 125
    assert "no such image: localhost:1/x (cannot pull it: cannot reach" in line(unknown)


def test_removing_an_image_gives_its_kept_blobs_back(dockpy: Client, registry: str) -> None:
    name = f"{registry}/given-back"
    change(dockpy, name, "given back")
    dockpy.ok("push", name)
    dockpy.ok("rmi", name)
    dockpy.ok("pull", name)
    place = dockpy.root / "blobs/sha256"
    kept = set(os.listdir(place))
    assert kept
    dockpy.ok("rmi", name)
    assert not kept & set(os.listdir(place))


def test_the_password_is_in_no_list_of_processes(
    dockpy: Client, config: Path, liar: LyingRegistry
) -> None:
    liar.lie("GET /v2/", stall(1.0))
    with dockpy.started(
        "login", "-u", "u", "--password-stdin", liar.host, stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"find-me-not")
        process.stdin.close()
        eventually(lambda: liar.requests("GET /v2/"), "the registry is asked")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                shown = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                assert b"find-me-not" not in shown
