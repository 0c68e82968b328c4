"""Manifests and indexes: bytes to checked values and back. Pure.

Source: OCI image specification (manifest.md, image-index.md, descriptor.md), distribution project
"Image Manifest Version 2, Schema 2". The bytes come from anywhere. A media type must be the same
wherever it is told, and fit the content: the same bytes must not be a manifest to one reader and an
index to another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dockpy.errors import RegistryError, RequestError

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
ACCEPT = ", ".join((*MANIFESTS, *INDEXES))

_LAYERS = {
    DOCKER_LAYER: "tar",
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
    DOCKER_FOREIGN: "tar",
    f"{DOCKER_FOREIGN}.gzip": "gzip",
    OCI_LAYER: "tar",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    OCI_FOREIGN: "tar",
    f"{OCI_FOREIGN}+gzip": "gzip",
    f"{OCI_FOREIGN}+zstd": "zstd",
}
_CONFIGS = (OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COUNT_LIMIT = 10_000
_LAYER_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in Go's names; "" where it was not said."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(one for one in (self.os, self.architecture, self.variant) if one)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob or a manifest by its content. `size` in bytes; `digest` with its `sha256:`."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None

    @property
    def hex(self) -> str:
        return self.digest.partition(":")[2]

    @property
    def short(self) -> str:
        """Twelve digits for people."""
        return self.hex[:12]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """One image for many platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(data: bytes, content_type: str, where: str) -> Manifest | Index:
    """Check and take apart. `content_type` is the header's; RegistryError begins with `where`."""
    told = content_type.partition(";")[0].strip().lower()
    if told.startswith(SCHEMA_1):
        raise RegistryError(
            f"{where}: the image is in the format of 2015 (schema 1), which nobody reads any more; "
            "push it again with a current tool"
        )
    values = _object(data, told, where)
    inner = values.get("mediaType")
    if values.get("schemaVersion") != 2:
        raise RegistryError(f"{where}: not a manifest (schemaVersion is not 2)")
    if inner is not None and not isinstance(inner, str):
        raise RegistryError(f"{where}: its mediaType is not a text")
    if told not in (*MANIFESTS, *INDEXES):
        if told not in ("", "application/json", "text/plain", "application/octet-stream"):
            raise RegistryError(f"{where}: {told[:80]!r} is no image")
        told = inner or ""
    if inner is not None and inner != told:
        raise RegistryError(f"{where}: sent as {told!r}, but the content says {inner[:80]!r}")
    if "manifests" in values and ("layers" in values or "config" in values):
        raise RegistryError(f"{where}: a manifest and an index at once")
    if not told:
        told = OCI_INDEX if "manifests" in values else OCI_MANIFEST
    if told in INDEXES and "manifests" in values:
        return Index(
            told, _descriptors(values.get("manifests"), f"{where}: manifests", _COUNT_LIMIT)
        )
    if told in MANIFESTS and "manifests" not in values:
        return _manifest(values, told, where)
    raise RegistryError(f"{where}: its content is not {told[:80]!r}")


def _manifest(values: Mapping[str, object], media_type: str, where: str) -> Manifest:
    config = _descriptor(values.get("config"), f"{where}: config")
    if config.media_type not in _CONFIGS:
        raise RegistryError(
            f"{where}: not a container image (its configuration is {config.media_type[:80]!r})"
        )
    layers = _descriptors(values.get("layers"), f"{where}: layers", _LAYER_LIMIT)
    for layer in layers:
        if layer.media_type not in _LAYERS:
            what = "an encrypted layer" if "encrypted" in layer.media_type else "a layer of a kind"
            raise RegistryError(
                f"{where}: {what} this engine does not know ({layer.media_type[:80]!r})"
            )
    return Manifest(media_type, config, layers)


def _object(data: bytes, told: str, where: str) -> Mapping[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        values = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as failure:
        page = " (a web page: is that address a registry's?)" if "html" in told else ""
        why = str(failure) if "twice" in str(failure) else "not JSON"
        raise RegistryError(f"{where}: the manifest is {why}{page}") from failure
    if not isinstance(values, dict):
        raise RegistryError(f"{where}: the manifest is not an object")
    return values


def _descriptors(values: object, where: str, limit: int) -> tuple[Descriptor, ...]:
    if not isinstance(values, list) or len(values) > limit:
        raise RegistryError(f"{where}: not a list of at most {limit}")
    return tuple(_descriptor(one, where) for one in values)


def _descriptor(values: object, where: str) -> Descriptor:
    if not isinstance(values, dict):
        raise RegistryError(f"{where}: not a descriptor")
    media_type, digest, size = (values.get(one) for one in ("mediaType", "digest", "size"))
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise RegistryError(f"{where}: a descriptor without mediaType or digest")
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{where}: {digest[:80]!r} is not a sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise RegistryError(f"{where}: {str(size)[:40]!r} is not a size")
    return Descriptor(media_type, digest, size, _platform(values.get("platform")))


def _platform(values: object) -> Platform | None:
    if not isinstance(values, dict):
        return None
    texts = [values.get(one) for one in ("os", "architecture", "variant")]
    return Platform(*(one if isinstance(one, str) else "" for one in texts))


# -- platforms ---------------------------------------------------------------------------------

_VARIANTS = {"arm64": "v8", "arm": "v7"}
_SAME = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}


def parse_platform(text: str, own: Platform) -> Platform:
    """`os`, `arch`, `os/arch` or `os/arch/variant`; what is left out is `own`. RequestError."""
    parts = text.lower().split("/")
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", one) for one in parts):
        raise RequestError(f"{text!r} is not a platform; write for example linux/arm64")
    if len(parts) == 1:
        if parts[0] in ("linux", "windows", "darwin", "freebsd"):
            return normal(Platform(parts[0], own.architecture, own.variant))
        return normal(Platform(own.os, parts[0]))
    return normal(Platform(*parts))


def normal(platform: Platform) -> Platform:
    """One spelling for each platform; a variant that goes without saying is left out."""
    architecture = _SAME.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if platform.architecture == "armel" and not variant:
        variant = "v6"
    if variant and not variant.startswith("v") and variant[:1].isdigit():
        variant = f"v{variant}"
    if variant == _VARIANTS.get(architecture) or (architecture == "amd64" and variant == "v1"):
        variant = ""
    return Platform(platform.os, architecture, variant)


def choose(index: Index, wanted: Platform, where: str) -> Descriptor:
    """The manifest for a platform: the first that fits, newer variants of arm before older ones.

    RegistryError names what there is instead.
    """
    wanted = normal(wanted)
    offers = [one for one in index.manifests if one.media_type in (*MANIFESTS, *INDEXES)]
    for exact in accepted(wanted):
        for one in offers:
            if one.platform is not None and normal(one.platform) == exact:
                return one
    if len(offers) == 1 and offers[0].platform is None:
        return offers[0]
    names = sorted({str(normal(one.platform)) for one in offers if one.platform is not None})
    there = ", ".join(name for name in names if "unknown" not in name)[:300] or "no platform at all"
    raise RegistryError(f"{where}: there is no image for {wanted}, only for {there}")


def accepted(wanted: Platform) -> Sequence[Platform]:
    """What runs on a platform, best first."""
    if wanted.architecture == "arm":
        newest = int(wanted.variant[1:] or 7) if wanted.variant[1:].isdigit() else 7
        return [normal(Platform(wanted.os, "arm", f"v{number}")) for number in range(newest, 4, -1)]
    if wanted.architecture == "amd64" and wanted.variant[1:].isdigit():
        return [
            normal(Platform(wanted.os, "amd64", f"v{number}"))
            for number in range(int(wanted.variant[1:]), 0, -1)
        ]
    return [wanted]


# -- making ------------------------------------------------------------------------------------


def layer_type(compression: str, *, oci: bool) -> str:
    """The media type of a layer: `tar`, `gzip` or `zstd`."""
    base = OCI_LAYER if oci else DOCKER_LAYER
    joiner = "+" if oci else "."
    return base if compression == "tar" else f"{base}{joiner}{compression}"


def compression_of(media_type: str) -> str:
    """`tar`, `gzip` or `zstd` of a layer's media type."""
    return _LAYERS[media_type]


def make(config: Descriptor, layers: Sequence[Descriptor]) -> tuple[bytes, str]:
    """A manifest and its media type: Docker's when all layers can be told so, else OCI's.

    The same bytes for the same values.
    """
    oci = any(
        one.media_type.startswith("application/vnd.oci") or compression_of(one.media_type) == "zstd"
        for one in layers
    )
    media_type = OCI_MANIFEST if oci else DOCKER_MANIFEST
    values = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _told(OCI_CONFIG if oci else DOCKER_CONFIG, config),
        "layers": [
            _told(layer_type(compression_of(one.media_type), oci=oci), one) for one in layers
        ],
    }
    return json.dumps(values, indent=3).encode(), media_type


def _told(media_type: str, one: Descriptor) -> dict[str, object]:
    return {"mediaType": media_type, "size": one.size, "digest": one.digest}
