"""A registry that does as it is told: the protocol as it should be, and every way to get it wrong.

A lie is a function of the request (`Exchange`) that answers it, or returns False to let the honest
answer happen. It is asked for every request whose "METHOD path" its pattern matches.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dockpy.registry.manifests import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_INDEX,
)

_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")
_UPLOADS = re.compile(r"/v2/(.+)/blobs/uploads/(.*)")
_TAGS = re.compile(r"/v2/(.+)/tags/list")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Asked:
    """A request, as it came."""

    method: str
    path: str
    headers: dict[str, str]


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    last = False
    """Whether answers say that the connection ends behind them."""

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    @property
    def registry(self) -> LyingRegistry:
        return self.server.registry

    def answer(
        self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str
    ) -> bool:
        """Send an answer; underscores in header names are hyphens. Always True."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self.last:
            self.send_header("Connection", "close")  # BaseHTTPRequestHandler acts on it
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def refuse(self, status: int, code: str, message: str = "", **headers: Any) -> bool:
        errors = {"errors": [{"code": code, "message": message or code.lower()}]}
        return self.answer(
            status, json.dumps(errors).encode(), Content_Type="application/json", **headers
        )

    def hang_up(self) -> bool:
        """Close the connection in the middle of whatever it is."""
        self.wfile.flush()
        self.close_connection = True
        return True

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _serve(self) -> None:
        registry = self.registry
        with registry.lock:
            registry.asked.append(Asked(self.command, self.path, dict(self.headers.items())))
            lies = list(registry.lies)
        for pattern, lie in lies:
            if pattern.search(f"{self.command} {self.path}") and lie(self):
                return
        self._honest()

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _serve  # noqa: N815

    def _honest(self) -> None:
        registry, path = self.registry, urlsplit(self.path).path
        if path == "/v2/":
            self.answer(200, b"{}")
        elif found := _UPLOADS.fullmatch(path):
            self._upload(found[1], found[2])
        elif found := _BLOB.fullmatch(path):
            self._blob(registry.blobs.get(found[2]))
        elif found := _TAGS.fullmatch(path):
            tags = sorted(t for name, t in registry.manifests if name == found[1] and ":" not in t)
            self.answer(200, json.dumps({"name": found[1], "tags": tags}).encode())
        elif found := _MANIFEST.fullmatch(path):
            self._manifest(found[1], found[2])
        else:
            self.refuse(404, "NAME_UNKNOWN")

    def _blob(self, data: bytes | None) -> None:
        if data is None:
            self.refuse(404, "BLOB_UNKNOWN")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], Content_Range=span)
        else:
            self.answer(200, data)

    def _manifest(self, name: str, selector: str) -> None:
        registry = self.registry
        if self.command == "PUT":
            data = self.body()
            kind = self.headers["Content-Type"]
            registry.manifests[name, selector] = kind, data
            registry.manifests[name, digest_of(data)] = kind, data
            self.answer(201, Docker_Content_Digest=digest_of(data))
            return
        found = registry.manifests.get((name, selector))
        if found is None:
            self.refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        else:
            self.answer(200, found[1], Content_Type=found[0])

    def _upload(self, name: str, session: str) -> None:
        registry = self.registry
        query = {key: one[0] for key, one in parse_qs(urlsplit(self.path).query).items()}
        if self.command == "POST":
            self.body()
            if "mount" in query and (query["from"], query["mount"]) in registry.mountable:
                self.answer(201, Location=f"/v2/{name}/blobs/{query['mount']}")
                return
            session = uuid.uuid4().hex
            registry.uploads[session] = b""
        elif session not in registry.uploads:
            self.body()
            self.refuse(404, "BLOB_UPLOAD_UNKNOWN")
            return
        elif self.command in ("PATCH", "PUT"):
            registry.uploads[session] += self.body()
        data = registry.uploads[session]
        if self.command == "PUT":
            if digest_of(data) != query["digest"]:
                self.refuse(400, "DIGEST_INVALID")
                return
            registry.blobs[query["digest"]] = registry.uploads.pop(session)
            self.answer(201, Docker_Content_Digest=query["digest"])
            return
        status = 204 if self.command == "GET" else 202
        self.answer(
            status,
            Location=f"/v2/{name}/blobs/uploads/{session}",
            Range=f"0-{max(len(data) - 1, 0)}",
        )


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    registry: LyingRegistry


Lie = Callable[[Exchange], bool]


@dataclass
class LyingRegistry:
    """What it has, what it was asked, and how it lies."""

    host: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    mountable: set[tuple[str, str]] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    lies: list[tuple[re.Pattern[str], Lie]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lie(self, pattern: str, lie: Lie, times: int = 1 << 30) -> None:
        """Answer so to requests like `pattern`, the first `times` of them."""
        left = [times]

        def limited(exchange: Exchange) -> bool:
            with self.lock:
                if left[0] <= 0:
                    return False
                left[0] -= 1
            return lie(exchange)

        self.lies.append((re.compile(pattern), limited))

    def requests(self, pattern: str) -> list[Asked]:
        """What was asked like `pattern`."""
        with self.lock:
            asked = list(self.asked)
        return [one for one in asked if re.search(pattern, f"{one.method} {one.path}")]

    def put_blob(self, data: bytes) -> dict[str, Any]:
        """Take in a blob; its descriptor without a media type."""
        self.blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    def put_manifest(self, name: str, tag: str, values: dict[str, Any], kind: str = "") -> str:
        """Take in a manifest under a tag; its digest."""
        data = json.dumps(values).encode()
        kind = kind or values["mediaType"]
        self.manifests[name, tag] = self.manifests[name, digest_of(data)] = kind, data
        return digest_of(data)

    def put_image(
        self,
        name: str,
        *tars: bytes,
        tag: str = "latest",
        config: dict[str, Any] | None = None,
        compress: Callable[[bytes], bytes] = lambda data: gzip.compress(data, 1, mtime=0),
        kind: str = f"{DOCKER_LAYER}.gzip",
    ) -> tuple[str, list[str]]:
        """An image of tar streams; its id and the digests of its blobs."""
        layers = [{"mediaType": kind, **self.put_blob(compress(one))} for one in tars]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(one) for one in tars]},
            **(config or {}),
        }
        described = self.put_blob(json.dumps(document).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, **described},
            "layers": layers,
        }
        self.put_manifest(name, tag, manifest)
        return described["digest"].partition(":")[2], [str(one["digest"]) for one in layers]

    def put_index(self, name: str, tag: str, platforms: dict[str, str]) -> str:
        """An index of images under other tags: platform to tag."""
        entries = []
        for platform, other in platforms.items():
            kind, data = self.manifests[name, other]
            parts = [*platform.split("/"), ""]
            entries.append(
                {
                    "mediaType": kind,
                    "digest": digest_of(data),
                    "size": len(data),
                    "platform": {"os": parts[0], "architecture": parts[1], "variant": parts[2]},
                }
            )
        values = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return self.put_manifest(name, tag, values)


@contextmanager
def lying_registry() -> Iterator[LyingRegistry]:
    """A registry on a free port of this machine, plain HTTP; ended with its threads."""
    server = Server(("127.0.0.1", 0), Exchange)
    server.registry = registry = LyingRegistry(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- lies ----------------------------------------------------------------------------------------


def stall(seconds: float) -> Lie:
    """Say nothing for so long, then hang up."""

    def lie(exchange: Exchange) -> bool:
        time.sleep(seconds)
        return exchange.hang_up()

    return lie


def cut(count: int) -> Lie:
    """Send so many bytes of the blob (from where it was asked for), promise all, and hang up."""

    def lie(exchange: Exchange) -> bool:
        found = _BLOB.fullmatch(urlsplit(exchange.path).path)
        assert found is not None
        data = exchange.registry.blobs[found[2]]
        wanted = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        span = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        rest = len(data) - start
        exchange.answer(206 if wanted else 200, data[start : start + count], length=rest, **span)
        return exchange.hang_up()

    return lie
