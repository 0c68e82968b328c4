"""Manifests and indexes: what is taken, what is refused, what is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dockpy.errors import RegistryError, RequestError
from dockpy.registry import manifests
from dockpy.registry.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    make,
    normal,
    parse,
    parse_platform,
)

DIGEST = f"sha256:{'a' * 64}"
CONFIG = {"mediaType": manifests.OCI_CONFIG, "digest": DIGEST, "size": 2}
LAYER = {"mediaType": f"{manifests.OCI_LAYER}+gzip", "digest": DIGEST, "size": 3}
GOOD: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def read(values: object, kind: str = OCI_MANIFEST) -> Manifest | Index:
    return parse(json.dumps(values).encode(), kind, "x")


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST, "", "text/plain; charset=utf-8"])
def test_a_manifest_is_taken_apart(kind: str) -> None:
    found = read(GOOD, kind)
    assert isinstance(found, Manifest)
    assert (found.config.digest, found.layers[0].size) == (DIGEST, 3)
    assert found.media_type == (kind if kind.startswith("application") else OCI_MANIFEST)


WRONG = [
    ({"schemaVersion": 1}, "schemaVersion is not 2"),
    ({"config": None}, "config: not a descriptor"),
    ({"config": {**CONFIG, "digest": "md5:0"}}, "is not a sha256 digest"),
    ({"config": {**CONFIG, "digest": f"sha256:{'A' * 64}"}}, "is not a sha256 digest"),
    ({"config": {**CONFIG, "size": -1}}, "is not a size"),
    ({"config": {**CONFIG, "size": True}}, "is not a size"),
    ({"config": {**CONFIG, "size": "2"}}, "is not a size"),
    ({"config": {**CONFIG, "mediaType": "application/vnd.chart"}}, "not a container image"),
    ({"layers": {}}, "layers: not a list"),
    ({"layers": [LAYER] * 501}, "layers: not a list of at most 500"),
    ({"layers": [{**LAYER, "mediaType": f"{manifests.OCI_LAYER}+lz4"}]}, "does not know"),
    ({"layers": [{**LAYER, "mediaType": f"{manifests.OCI_LAYER}+gzip+encrypted"}]}, "encrypted"),
    ({"mediaType": DOCKER_MANIFEST}, "sent as .* but the content says"),
    ({"manifests": []}, "a manifest and an index at once"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_with_a_manifest_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        read({**GOOD, **change})


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(RegistryError, match="twice"):
        parse(b'{"schemaVersion": 2, "schemaVersion": 2}', OCI_MANIFEST, "x")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(RegistryError, match="not JSON"):
        parse(json.dumps(GOOD).encode("utf-16"), OCI_MANIFEST, "x")


def test_the_media_type_of_an_index_fits_an_index_only() -> None:
    with pytest.raises(RegistryError, match="its content is not"):
        read(GOOD, OCI_INDEX)
    with pytest.raises(RegistryError, match="its content is not"):
        read({"schemaVersion": 2, "manifests": []}, OCI_MANIFEST)


def entry(platform: str, digit: str) -> Descriptor:
    parts = [*platform.split("/"), "", ""][:3]
    return Descriptor(OCI_MANIFEST, f"sha256:{digit * 64}", 1, Platform(*parts))


INDEX = Index(
    DOCKER_LIST,
    (
        entry("unknown/unknown", "0"),
        entry("linux/amd64", "1"),
        entry("linux/arm/v5", "2"),
        entry("linux/arm/v7", "3"),
        entry("linux/arm64/v8", "4"),
        entry("windows/amd64", "5"),
    ),
)


@pytest.mark.parametrize(
    ("wanted", "digit"),
    [
        ("linux/amd64", "1"),
        ("linux/x86_64", "1"),
        ("linux/amd64/v3", "1"),
        ("amd64", "1"),
        ("linux", "1"),
        ("linux/arm64", "4"),
        ("linux/aarch64/v8", "4"),
        ("linux/arm", "3"),
        ("linux/arm/v8", "3"),
        ("linux/arm/v6", "2"),
        ("windows/amd64", "5"),
    ],
)
def test_the_best_image_for_a_platform_is_chosen(wanted: str, digit: str) -> None:
    platform = parse_platform(wanted, Platform("linux", "amd64"))
    assert choose(INDEX, platform, "x").digest == f"sha256:{digit * 64}"


def test_what_there_is_instead_is_named() -> None:
    with pytest.raises(RegistryError, match=r"only for linux/amd64, linux/arm, linux/arm/v5, linu"):
        choose(INDEX, Platform("linux", "s390x"), "x")


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/am d64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not a platform"):
        parse_platform(text, Platform("linux", "amd64"))


def test_one_platform_has_one_spelling() -> None:
    assert normal(Platform("linux", "armhf")) == normal(Platform("linux", "arm", "7"))
    assert str(normal(Platform("linux", "armel"))) == "linux/arm/v6"


def test_a_manifest_is_dockers_unless_a_layer_is_ocis() -> None:
    config = Descriptor("", DIGEST, 10)
    gzip = Descriptor(f"{manifests.DOCKER_LAYER}.gzip", DIGEST, 20)
    zstd = Descriptor(f"{manifests.OCI_LAYER}+zstd", DIGEST, 30)
    data, kind = make(config, [gzip])
    found = parse(data, kind, "x")
    assert kind == DOCKER_MANIFEST
    assert isinstance(found, Manifest)
    assert found.layers == (gzip,)
    data, kind = make(config, [gzip, zstd])
    found = parse(data, kind, "x")
    assert kind == OCI_MANIFEST
    assert isinstance(found, Manifest)
    assert [one.media_type for one in found.layers] == [
        f"{manifests.OCI_LAYER}+gzip",
        f"{manifests.OCI_LAYER}+zstd",
    ]
    assert make(config, [gzip]) == make(config, [gzip])
