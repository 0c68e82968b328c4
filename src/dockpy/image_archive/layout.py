"""Names and documents inside an image archive. Pure; what is read is hostile.

Sources: OCI image specification 1.1, "Image Layout" and "Image Index"; Docker's `save` archive with
its manifest.json, which since Docker 25 carries an OCI layout as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dockpy.errors import BadArchive, UsageError
from dockpy.references import parse

LAYOUT = "oci-layout"
INDEX = "index.json"
MANIFEST = "manifest.json"
BLOBS = "blobs/sha256/"
DOCUMENT_LIMIT = 4 << 20
IMAGE_LIMIT = 10_000
"""Images, and layers of one image, in an archive."""

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
LISTS = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as an archive tells it: paths inside the archive, and its names.

    `digest`: what the configuration's sha256 must be; empty: any.
    """

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob that another document speaks of."""

    media_type: str
    hex: str
    names: tuple[str, ...] = ()
    platform: tuple[str, str] = ("", "")
    """Operating system and architecture."""

    @property
    def is_note(self) -> bool:
        """About another image, not one: what build tools attest. Source: buildkit's
        attestation-storage.md, "Attestation Manifest Descriptor"."""
        return self.platform == ("unknown", "unknown")

    @property
    def path(self) -> str:
        return BLOBS + self.hex


def docker_entries(data: bytes) -> list[Entry]:
    """The images of a manifest.json. BadArchive."""
    listed = document(data, MANIFEST)
    if not isinstance(listed, list) or not 0 < len(listed) <= IMAGE_LIMIT:
        raise BadArchive(f"{MANIFEST} lists no images")
    return [_docker_entry(one) for one in listed]


def _docker_entry(values: object) -> Entry:
    if not isinstance(values, dict):
        raise BadArchive(f"{MANIFEST}: an image is no object")
    config = values.get("Config")
    if not isinstance(config, str):
        raise BadArchive(f"{MANIFEST}: an image has no Config")
    names = _texts(values, "RepoTags")
    for name in names:
        if not is_name(name):
            raise BadArchive(f"{MANIFEST}: {name[:80]!r} cannot be the name of an image")
    return Entry(config, _texts(values, "Layers"), names)


def is_name(text: str) -> bool:
    """Whether an image can be called so, by repository and tag."""
    try:
        return not parse(text).digest
    except UsageError:
        return False


def _texts(values: Mapping[str, object], key: str) -> tuple[str, ...]:
    found = values.get(key) or []
    if (
        not isinstance(found, list)
        or len(found) > IMAGE_LIMIT
        or not all(isinstance(one, str) for one in found)
    ):
        raise BadArchive(f"{MANIFEST}: {key} is no list of texts")
    return tuple(found)


def descriptors(data: bytes, what: str) -> list[Descriptor]:
    """What an index (index.json, or a manifest list) points to. BadArchive."""
    values = document(data, what)
    listed = values.get("manifests") if isinstance(values, dict) else None
    if not isinstance(listed, list) or len(listed) > IMAGE_LIMIT:
        raise BadArchive(f"{what} lists no manifests")
    return [descriptor(one, what) for one in listed]


def manifest(data: bytes, what: str) -> tuple[Descriptor, list[Descriptor]]:
    """The configuration and the layers, lowest first, of an OCI or Docker manifest. BadArchive."""
    values = document(data, what)
    layers = values.get("layers") if isinstance(values, dict) else None
    if not isinstance(layers, list) or len(layers) > IMAGE_LIMIT:
        raise BadArchive(f"{what} is no manifest of an image")
    return descriptor(values.get("config"), what), [descriptor(one, what) for one in layers]


def descriptor(values: object, what: str) -> Descriptor:
    """One descriptor. BadArchive."""
    if not isinstance(values, dict):
        raise BadArchive(f"{what}: a descriptor is no object")
    digest = values.get("digest")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise BadArchive(f"{what}: {str(digest)[:80]!r} is no sha256 digest")
    notes = values.get("annotations") or {}
    platform = values.get("platform") or {}
    if not isinstance(notes, dict) or not isinstance(platform, dict):
        raise BadArchive(f"{what}: annotations or platform are no objects")
    return Descriptor(
        str(values.get("mediaType", "")),
        match[1],
        _name(notes),
        (str(platform.get("os", "")), str(platform.get("architecture", ""))),
    )


def _name(notes: Mapping[str, object]) -> tuple[str, ...]:
    """The whole name if it is told; otherwise what is often one, and by OCI's rules any text."""
    told = str(notes.get(FULL_NAME) or notes.get(REF_NAME) or "")
    return (told,) if is_name(told) else ()


def document(data: bytes, what: str) -> Any:
    """The JSON value of a document. BadArchive."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as reason:
        raise BadArchive(f"{what} is not JSON: {reason}") from reason


def choose(found: Sequence[Descriptor], architecture: str) -> Descriptor | None:
    """The image for this machine among those of a list; the only one when there is one."""
    found = [one for one in found if not one.is_note]
    fitting = [one for one in found if one.platform == ("linux", architecture)]
    if fitting:
        return fitting[0]
    return found[0] if len(found) == 1 else None


def encode(values: object) -> bytes:
    """A document as we write it: the same values, the same bytes."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
