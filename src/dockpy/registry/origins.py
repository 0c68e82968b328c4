"""Where images came from and went to: which registry knows an image by which manifest.

    <root>/origins/<image id>.json     {"origins": [{"host", "path", "digests", "manifest", ...}]}

It answers three questions: which image is `name@sha256:...`; which bytes were the manifest, so that
an unchanged image is pushed as it came; and which repositories have a layer already, so that it
need not be sent. All of it is a memory, not a need: a record that is lost or torn costs bytes on
the wire, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dockpy.errors import KernelError, RegistryError, StoreError
from dockpy.records import Flusher, read_json, write
from dockpy.registry.manifests import Descriptor, Manifest, digest_of, parse

_NAME = re.compile(r"([0-9a-f]{64})\.json")
_KEPT = 64
"""Origins of one image."""


@dataclass(frozen=True, slots=True)
class Origin:
    """An image in a repository. `digest`: what people know it by, an index's perhaps; `manifest`:
    its own manifest's bytes; `diff_ids`: hex, one for each layer of the manifest."""

    host: str
    path: str
    digest: str
    media_type: str
    manifest: bytes
    diff_ids: tuple[str, ...]

    @property
    def manifest_digest(self) -> str:
        return digest_of(self.manifest)

    def parsed(self) -> Manifest:
        """The manifest taken apart. RegistryError."""
        found = parse(self.manifest, self.media_type, f"{self.host}/{self.path}")
        if not isinstance(found, Manifest) or len(found.layers) != len(self.diff_ids):
            raise RegistryError(f"{self.host}/{self.path}: the record of it makes no sense")
        return found

    def layers(self) -> Iterator[tuple[str, Descriptor]]:
        """Diff id and blob of each layer; nothing when the record makes no sense."""
        with contextlib.suppress(RegistryError):
            yield from zip(self.diff_ids, self.parsed().layers, strict=True)


class Origins:
    """The memory of one engine. Thread-safe; read from the disk when it is first asked."""

    def __init__(self, root: Path, flusher: Flusher, exists: Callable[[str], bool]) -> None:
        """`exists`: whether an image with that id is here."""
        self._directory = root / "origins"
        self._flusher = flusher
        self._exists = exists
        self._lock = threading.RLock()
        self._known: dict[str, tuple[Origin, ...]] | None = None

    def of(self, image_id: str) -> tuple[Origin, ...]:
        """Where an image is, the newest last."""
        with self._lock:
            return self._load().get(image_id, ())

    def add(self, image_id: str, origin: Origin) -> None:
        """An image is there too. A disk that refuses is not the caller's trouble."""
        with self._lock:
            known = self._load()
            before = known.get(image_id, ())
            if before and before[-1] == origin:
                return
            rest = tuple(
                one
                for one in before
                if (one.host, one.path, one.digest) != (origin.host, origin.path, origin.digest)
            )
            known.pop(image_id, None)  # the newest image is the last one
            known[image_id] = (*rest, origin)[-_KEPT:]
            self._forget_removed(known)
            if image_id not in known:  # the image was removed meanwhile
                return
            with contextlib.suppress(KernelError, OSError):
                self._directory.mkdir(mode=0o700, exist_ok=True)
                write(self._path(image_id), dump(known[image_id]), self._flusher)

    def find(self, host: str, path: str, digest: str) -> str | None:
        """The image that repository knows by a digest, of its manifest or of an index."""
        with self._lock:
            for image_id, origins in reversed(self._load().items()):
                for one in origins:
                    if (one.host, one.path) == (host, path) and digest in (
                        one.digest,
                        one.manifest_digest,
                    ):
                        return image_id if self._exists(image_id) else None
        return None

    def forget(self) -> None:
        """Forget everything, on the disk too."""
        with self._lock:
            for image_id in self._load():
                with contextlib.suppress(OSError):
                    os.unlink(self._path(image_id))
            self._known = {}

    def digests_kept(self) -> set[str]:
        """The digests of all layers of images that are here."""
        with self._lock:
            known = self._load()
            self._forget_removed(known)
            return {
                blob.digest
                for origins in known.values()
                for one in origins
                for _, blob in one.layers()
            }

    def manifest(self, host: str, path: str, digest: str) -> Origin | None:
        """The origin with that manifest of that repository."""
        image_id = self.find(host, path, digest)
        for one in self.of(image_id) if image_id else ():
            if one.manifest_digest == digest and (one.host, one.path) == (host, path):
                return one
        return None

    def layer(self, diff_id: str) -> list[tuple[Origin, Descriptor]]:
        """Everywhere a layer is known to be, the newest first."""
        with self._lock:
            found = [
                (origin, blob)
                for origins in self._load().values()
                for origin in origins
                if diff_id in origin.diff_ids
                for each, blob in origin.layers()
                if each == diff_id
            ]
        return found[::-1]

    def _load(self) -> dict[str, tuple[Origin, ...]]:
        if self._known is None:
            self._known = {}
            try:
                names = sorted(os.listdir(self._directory))
            except OSError:
                names = []
            for name in names:
                if found := _NAME.fullmatch(name):
                    with contextlib.suppress(OSError, StoreError):
                        if origins := read(read_json(self._directory / name)):
                            self._known[found[1]] = origins
            self._forget_removed(self._known)
        return self._known

    def _forget_removed(self, known: dict[str, tuple[Origin, ...]]) -> None:
        for image_id in [one for one in known if not self._exists(one)]:
            del known[image_id]
            with contextlib.suppress(OSError):
                os.unlink(self._path(image_id))

    def _path(self, image_id: str) -> Path:
        return self._directory / f"{image_id}.json"


def dump(origins: tuple[Origin, ...]) -> bytes:
    """A record's bytes."""
    values = [
        {
            "host": one.host,
            "path": one.path,
            "digest": one.digest,
            "media_type": one.media_type,
            "manifest": one.manifest.decode(),
            "diff_ids": list(one.diff_ids),
        }
        for one in origins
    ]
    return json.dumps({"origins": values}).encode()


def read(values: object) -> tuple[Origin, ...]:
    """What `dump` wrote; what makes no sense is left out."""
    found = []
    listed = values.get("origins") if isinstance(values, dict) else None
    for one in listed if isinstance(listed, list) else ():
        try:
            texts = [one[name] for name in ("host", "path", "digest", "media_type", "manifest")]
            diff_ids = tuple(one["diff_ids"])
        except (LookupError, TypeError):
            continue
        if all(isinstance(text, str) for text in (*texts, *diff_ids)):
            host, path, digest, media_type, manifest = texts
            found.append(Origin(host, path, digest, media_type, manifest.encode(), diff_ids))
    return tuple(found)
