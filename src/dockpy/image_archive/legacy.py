"""Images as Docker saved them before 1.10: a directory per layer, each an image of its own. Pure.

    repositories                      {"name": {"tag": "layer id"}}
    <layer id>/{VERSION,json,layer.tar}

A layer's json says its parent and what a container of it would be; the configuration that OCI
images have is made of all of them. Source: "Image v1" of the Docker image specification
(moby, image/spec/v1.md). What is read is hostile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dockpy.errors import BadArchive
from dockpy.image_archive import layout

REPOSITORIES = "repositories"
_ID = re.compile(r"[0-9a-f]{64}")
_GOES = ("id", "parent", "parent_id", "layer_id", "Size", "throwaway", "rootfs", "history")
"""What a layer's document has and a configuration has not, or has otherwise."""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer. `values`: its document."""

    id: str
    parent: str
    values: Mapping[str, Any]


def repositories(data: bytes) -> dict[str, tuple[str, ...]]:
    """Each top layer with its names, `repository:tag`. BadArchive."""
    values = layout.document(data, REPOSITORIES)
    if not isinstance(values, dict) or not values:
        raise BadArchive(f"{REPOSITORIES} lists no images")
    found: dict[str, tuple[str, ...]] = {}
    for repository, tags in values.items():
        if not isinstance(tags, dict):
            raise BadArchive(f"{REPOSITORIES}: the tags of {repository[:80]!r} are no object")
        for tag, top in tags.items():
            name = f"{repository}:{tag}"
            if not layout.is_name(name):
                raise BadArchive(f"{REPOSITORIES}: {name[:80]!r} cannot be the name of an image")
            found[_checked(top)] = (*found.get(top, ()), name)
    if len(found) > layout.IMAGE_LIMIT:
        raise BadArchive(f"{REPOSITORIES} lists too many images")
    return found


def step(identifier: str, data: bytes) -> Step:
    """The layer of that id by its document. BadArchive."""
    values = layout.document(data, f"{identifier}/json")
    if not isinstance(values, dict):
        raise BadArchive(f"{identifier}/json is no object")
    parent = values.get("parent") or ""
    return Step(identifier, _checked(parent) if parent else "", values)


def _checked(identifier: object) -> str:
    if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
        raise BadArchive(f"{str(identifier)[:80]!r} is not the id of a layer")
    return identifier


def configuration(line: Sequence[Step], diff_ids: Sequence[str]) -> bytes:
    """The configuration of the image with these layers, lowest first. Still to be checked."""
    kept = {key: value for key, value in line[-1].values.items() if key not in _GOES}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{one}" for one in diff_ids]}
    history = [_entry(one.values) for one in line]
    return layout.encode({**kept, "rootfs": rootfs, "history": history})


def _entry(values: Mapping[str, Any]) -> dict[str, Any]:
    made_by = values.get("container_config") or {}
    command = made_by.get("Cmd") if isinstance(made_by, dict) else None
    words = command if isinstance(command, list) else []
    entry = {
        "created": values.get("created"),
        "created_by": " ".join(str(word) for word in words),
        "author": values.get("author"),
        "comment": values.get("comment"),
    }
    return {key: value for key, value in entry.items() if value}
