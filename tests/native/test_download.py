"""Downloads from a server in this process, on a loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dockpy.download import is_url, open_url
from dockpy.errors import RequestError

BODY = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/good":
            self._answer(200, {"Content-Length": str(len(BODY))}, BODY)
        elif self.path == "/no-length":
            self._answer(200, {}, BODY)
        elif self.path == "/short":
            self._answer(200, {"Content-Length": str(len(BODY) + 5)}, BODY)
        elif self.path == "/moved":
            self._answer(302, {"Location": "/good"}, b"")
        elif self.path == "/to-file":
            self._answer(302, {"Location": "file:///etc/passwd"}, b"")
        elif self.path == "/to-ftp":
            self._answer(302, {"Location": "ftp://127.0.0.1/x"}, b"")
        elif self.path == "/loop":
            self._answer(302, {"Location": "/loop"}, b"")
        elif self.path == "/silent":
            self.server.silence.wait(10)  # type: ignore[attr-defined]
        else:
            self._answer(404, {}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.silence = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.silence.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/good", "/no-length", "/moved"])
def test_a_body_arrives_whole(path: str, address: str) -> None:
    with open_url(address + path) as body:
        assert body.read() == BODY


def test_a_body_that_ends_early_is_an_error(address: str) -> None:
    with (
        open_url(address + "/short") as body,
        pytest.raises(RequestError, match="5 bytes too early"),
    ):
        body.read()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none", "404"),
        ("/to-file", "not http"),
        ("/to-ftp", "not http"),
        ("/loop", "in circles"),
    ],
)
def test_each_refusal_is_one_clear_line(path: str, words: str, address: str) -> None:
    with pytest.raises(RequestError) as caught:
        open_url(address + path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_given_up(address: str) -> None:
    with pytest.raises(RequestError, match="timed out"):
        open_url(address + "/silent", timeout=0.1)


def test_a_server_without_tls_is_told_in_plain_words(address: str) -> None:
    secure = address.replace("http:", "https:")
    with pytest.raises(RequestError) as caught:
        open_url(f"{secure}/good")
    assert str(caught.value) == f"{secure}/good: no TLS with it: wrong version number"


def test_a_dead_port_and_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(RequestError) as dead:
        open_url("http://127.0.0.1:1/")
    assert str(dead.value) == "http://127.0.0.1:1/: Connection refused"
    for url in ("file:///etc/passwd", "ftp://x/y", "/etc/passwd", "https:/x"):
        with pytest.raises(RequestError):
            open_url(url)
    assert [is_url(u) for u in ("HTTP://x", "https://x", "-", "file")] == [True, True, False, False]
