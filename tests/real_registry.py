"""Debian's docker-registry, started by tests: plain or TLS, open, with passwords or with tokens."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from patience import patient

SERVICE, ISSUER = "the registry", "the token server"


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


def run(*command: str | Path, input: bytes = b"") -> bytes:
    done = subprocess.run(
        [str(one) for one in command], input=input, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout


def make_certificate(directory: Path, *names: str) -> Certificate:
    """An authority of the test's own, and its certificate for this machine and other names."""
    authority, key = directory / "authority.crt", directory / "server.key"
    new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-sha256")
    run(
        *(*new, "-x509", "-days", "2", "-subj", "/CN=test authority"),
        *("-keyout", directory / "authority.key", "-out", authority),
    )
    run(*new, "-subj", "/CN=localhost", "-keyout", key, "-out", directory / "server.csr")
    alternatives = ",".join(["DNS:localhost", "IP:127.0.0.1", *(f"DNS:{name}" for name in names)])
    (directory / "names").write_text(f"subjectAltName={alternatives}\n")
    run(
        *("openssl", "x509", "-req", "-days", "2", "-sha256", "-CAcreateserial"),
        *("-in", directory / "server.csr", "-extfile", directory / "names"),
        *("-CA", authority, "-CAkey", directory / "authority.key"),
        *("-out", directory / "server.crt"),
    )
    return Certificate(directory / "server.crt", key, authority)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def real_registry(
    directory: Path,
    *,
    tls: Certificate | None = None,
    clients: Path | None = None,
    passwords: dict[str, str] | None = None,
    tokens: TokenServer | None = None,
) -> Iterator[str]:
    """A docker-registry over `directory`, its address while it runs; ended by its pid.

    `clients`: the authority that certificates of clients must be from (with `tls`).
    """
    port = free_port()
    lines = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}",
        "http:",
        f"  addr: 127.0.0.1:{port}",
    ]
    if tls is not None:
        lines += ["  tls:", f"    certificate: {tls.certificate}", f"    key: {tls.key}"]
        lines += [f"    clientcas: [{clients}]"] if clients is not None else []
    if passwords is not None:
        file = directory / "htpasswd"
        file.write_bytes(
            b"".join(
                run("htpasswd", "-niB", "-C", "5", name, input=word.encode()).strip() + b"\n"
                for name, word in passwords.items()
            )
        )
        lines.append(f"auth: {{htpasswd: {{realm: here, path: {file}}}}}")
    if tokens is not None:
        lines += [
            "auth:",
            "  token:",
            f"    realm: {tokens.url}",
            f"    service: {SERVICE}",
            f"    issuer: {ISSUER}",
            f"    rootcertbundle: {tokens.signing.authority}",
        ]
    (directory / "config.yml").write_text("\n".join(lines) + "\n")
    program = shutil.which("docker-registry")
    assert program is not None
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(directory / "config.yml")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + patient(20)
        while True:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "docker-registry does not come up"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.02)
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait()


class TokenServer:
    """Gives tokens for what is asked, to those who know the password; plain HTTP on loopback."""

    def __init__(self, signing: Certificate, passwords: dict[str, str]) -> None:
        self.signing = signing
        self.passwords = passwords
        self.asked: list[list[str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
                server.asked.append(scopes)
                body, status = b"{}", 401
                if server.knows(self.headers.get("Authorization", "")):
                    body, status = json.dumps({"token": server.token(scopes)}).encode(), 200
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/token"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def knows(self, header: str) -> bool:
        kind, _, packed = header.partition(" ")
        name, _, word = base64.b64decode(packed or "").decode().partition(":")
        return kind == "Basic" and self.passwords.get(name) == word

    def token(self, scopes: list[str]) -> str:
        """A JSON web token (RFC 7519), RS256, with the signer's certificate in it."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        der = run("openssl", "x509", "-in", self.signing.certificate, "-outform", "DER")
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": "somebody",
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": str(len(self.asked)),
            "access": access,
        }
        text = ".".join(_packed(json.dumps(part).encode()) for part in (head, claims))
        signature = run(
            "openssl", "dgst", "-sha256", "-sign", self.signing.key, input=text.encode()
        )
        return f"{text}.{_packed(signature)}"


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
