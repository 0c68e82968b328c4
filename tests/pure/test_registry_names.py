"""Names, settings, proxies: where a registry is and how it may be spoken to."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from dockpy.errors import RequestError, UsageError
from dockpy.registry import settings as registry_settings
from dockpy.registry.connecting import Origin, untrusted
from dockpy.registry.names import endpoints, registry_host, resolve
from dockpy.registry.proxies import Proxy, proxy_for
from dockpy.registry.settings import DEFAULT_REGISTRY, RegistrySettings, is_loopback, parse

HERE = RegistrySettings()


@pytest.mark.parametrize(
    ("name", "host", "path", "familiar"),
    [
        ("base", DEFAULT_REGISTRY, "library/base", "base:latest"),
        ("me/base:1", DEFAULT_REGISTRY, "me/base", "me/base:1"),
        (f"{DEFAULT_REGISTRY}/base", DEFAULT_REGISTRY, "library/base", "base:latest"),
        (f"{DEFAULT_REGISTRY}/library/base", DEFAULT_REGISTRY, "library/base", "base:latest"),
        (f"{DEFAULT_REGISTRY}/library/a/b", DEFAULT_REGISTRY, "library/a/b", "library/a/b:latest"),
        (f"index.{DEFAULT_REGISTRY}/me/x", DEFAULT_REGISTRY, "me/x", "me/x:latest"),
        ("localhost:5000/a", "localhost:5000", "a", "localhost:5000/a:latest"),
        ("r.example/library/a", "r.example", "library/a", "r.example/library/a:latest"),
        ("localhost/a/b:2", "localhost", "a/b", "localhost/a/b:2"),
    ],
)  # fmt: skip
def test_a_name_means_a_repository_of_a_registry(
    name: str, host: str, path: str, familiar: str
) -> None:
    remote = resolve(name, HERE)
    assert (remote.repository.host, remote.repository.path) == (host, path)
    assert remote.familiar == familiar


def test_another_default_registry_has_no_library() -> None:
    settings = RegistrySettings(default_registry="registry.example")
    remote = resolve("base", settings)
    assert (remote.repository.host, remote.repository.path) == ("registry.example", "base")
    assert resolve("registry.example/me/x", settings).repository.familiar == "me/x"


def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{'a' * 64}"
    remote = resolve(f"localhost/x:1@{digest}", HERE)
    assert remote.selector == digest
    assert remote.familiar == f"localhost/x:1@{digest}"


def test_mirrors_come_first_when_pulling_and_not_at_all_when_pushing() -> None:
    settings = RegistrySettings(
        mirrors={"registry.example": ("https://mirror.example/at/",)}, insecure=("10.0.0.0/8",)
    )
    mirror, own = endpoints("registry.example", settings)
    assert (mirror.address, mirror.prefix, mirror.mirror) == ("mirror.example", "/at", True)
    assert (own.address, own.schemes, own.verify) == ("registry.example", ("https",), True)
    assert endpoints("registry.example", settings, pull=False) == [own]
    (private,) = endpoints("10.1.2.3:5000", settings)
    assert (private.schemes, private.verify) == (("https", "http"), False)
    (loopback,) = endpoints("127.0.0.9:5000", settings)
    assert (loopback.schemes, loopback.verify) == (("https", "http"), True)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.1.2.3:80", "[::1]:5000", "a.localhost"]
)
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "local", "[::2]:5000"])
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("", DEFAULT_REGISTRY),
        ("registry.example", "registry.example"),
        ("https://registry.example:5000/v2/", "registry.example:5000"),
        (f"https://index.{DEFAULT_REGISTRY}/v1/", DEFAULT_REGISTRY),
    ],
)
def test_login_takes_a_host_or_a_url(text: str, host: str) -> None:
    assert registry_host(text, HERE) == host


@pytest.mark.parametrize("text", ["https://", "a b", "-bad-", "ex_ample.com:port"])
def test_login_refuses_what_is_no_host(text: str) -> None:
    with pytest.raises(UsageError):
        registry_host(text, HERE)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (9, "see that the clock is right"),
        (10, "it must be renewed, unless the clock is wrong"),
        (20, "put its authority into /certs.d/r.example:5000/ca.crt"),
        (62, "call the registry as its certificate does"),
    ],
)
def test_what_to_do_about_a_certificate_depends_on_what_is_wrong(number: int, advice: str) -> None:
    failure = ssl.SSLCertVerificationError(1, "no")
    failure.verify_code, failure.verify_message = number, "as openssl says it."
    settings = RegistrySettings(certificates=("/certs.d",), file="/set.json")
    assert untrusted(Origin("https", "r.example", 5000), failure, settings) == (
        f"the certificate of r.example:5000 is not trusted (as openssl says it); {advice}, or "
        "list it in insecure-registries in /set.json and start the daemon again"
    )


# -- the settings' file --------------------------------------------------------------------------


def test_the_settings_file_is_docker_spelled() -> None:
    settings = parse(
        '{"registry-mirrors": ["https://m.example"], "insecure-registries": ["r.example:5000"],'
        ' "mirrors": {"r.example": ["http://n.example"]}}',
        "file",
        {"HTTP_PROXY": "x"},
    )
    assert settings.mirrors == {
        DEFAULT_REGISTRY: ("https://m.example",),
        "r.example": ("http://n.example",),
    }
    assert settings.is_insecure("r.example:5000")
    assert not settings.is_insecure("r.example:5001")
    assert settings.environment == {"HTTP_PROXY": "x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "file: not JSON"),
        ("[]", "not an object"),
        ('{"registry-mirror": []}', "unknown name 'registry-mirror'; known are"),
        ('{"insecure-registries": "x"}', "insecure-registries is not a list of texts"),
        ('{"registry-mirrors": ["m.example"]}', "does not begin with https://"),
        ('{"mirrors": []}', "mirrors is not an object"),
    ],
)
def test_a_settings_file_that_makes_no_sense_is_told_by_its_name(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse(text, "file", {})


def test_a_settings_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    named = {"DOCKPY_REGISTRIES": str(tmp_path / "absent")}
    with pytest.raises(RequestError, match="no such file"):
        registry_settings.load(named)
    (tmp_path / "absent").write_text('{"default-registry": "r.example"}')
    assert registry_settings.load(named).default_registry == "r.example"


# -- proxies -------------------------------------------------------------------------------------

PROXY = {"HTTPS_PROXY": "http://name:p%40ss@proxy.example:3128", "http_proxy": "proxy.example"}


def test_the_proxy_is_the_one_of_the_urls_scheme() -> None:
    proxy = proxy_for("https", "registry.example", 443, PROXY)
    assert proxy == Proxy("proxy.example", 3128, "Basic bmFtZTpwQHNz", "HTTPS_PROXY")
    assert "bmFtZTpw" not in repr(proxy)
    assert proxy_for("http", "registry.example", 80, PROXY) == Proxy(
        "proxy.example", 80, variable="HTTP_PROXY"
    )
    assert proxy_for("https", "registry.example", 443, {}) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.200.0.1", "::1"])
def test_this_machine_is_never_reached_through_a_proxy(host: str) -> None:
    assert proxy_for("https", host, 5000, PROXY) is None


@pytest.mark.parametrize(
    ("text", "host", "direct"),
    [
        ("*", "a.example", True),
        ("example", "a.example", True),
        (".example", "a.example", True),
        (".example", "example", False),
        ("*.example", "example", False),
        (".example:443", "a.example", True),
        (".example:80", "a.example", False),
        ("10.9.8.7", "10.9.8.7", True),
        ("10.9.8.7:443", "10.9.8.7", True),
        ("10.9.8.7:80", "10.9.8.7", False),
        ("fd00::/8", "fd00::1", True),
        ("fd00::1", "fd00:0::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("[fd00::1]:80", "fd00::1", False),
        ("[fd00::1]", "fd00::1", True),
        (":443,,", "a.example", False),
        ("*.example", "a.example", True),
        ("a.example:443", "a.example", True),
        ("a.example:80", "a.example", False),
        ("ample", "a.example", False),
        ("other, a.EXAMPLE ", "a.example", True),
        ("10.0.0.0/8", "10.9.8.7", True),
        ("10.0.0.0/8", "11.9.8.7", False),
        ("", "a.example", False),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(text: str, host: str, direct: bool) -> None:
    found = proxy_for("https", host, 443, {**PROXY, "no_proxy": text})
    assert (found is None) == direct


@pytest.mark.parametrize(
    "text",
    ["socks5://u:w@p.example:1", "http://", "http://p.example:port", "http://[::1", "https://p"],
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(text: str) -> None:
    with pytest.raises(RequestError, match="HTTPS_PROXY is not http://HOST:PORT; correct or unset"):
        proxy_for("https", "registry.example", 443, {"HTTPS_PROXY": text})
