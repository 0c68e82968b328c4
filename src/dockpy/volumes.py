"""Mounts as users write them: `-v`, `--mount` and `--tmpfs`. Pure.

Source: Docker's documentation of "Bind mounts" and "tmpfs mounts". Mounts of a container never
reach the host, nor later ones of the host the container: all are private, and words that ask for
anything else are refused rather than passed over.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator

from dockpy.errors import UsageError
from dockpy.model import Bind

_READ_ONLY = {"ro": True, "rw": False}
_NO_EFFECT = frozenset({"z", "Z", "consistent", "cached", "delegated", "default", "nocopy"})
_PRIVATE = frozenset({"private", "rprivate"})
_SHARED = frozenset({"slave", "rslave", "shared", "rshared"})
_TRUTH = {"": True, "1": True, "true": True, "0": False, "false": False}
_KEYS = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "consistency": "",
    "bind-propagation": "propagation",
}
"""Other spellings of keys of --mount; those with none mean nothing here."""
_SIZE = re.compile(r"\d{1,15}[kmg]?b?", re.ASCII)
_MODE = re.compile(r"0?[0-7]{1,4}", re.ASCII)


def parse_volume(text: str) -> Bind:
    """`/source:/target[:ro|rw,...]`. UsageError with what is wrong.

    Words for SELinux labels and caching are taken and mean nothing here.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1]:
        raise _bad("volume", text, "write /SOURCE:/TARGET[:ro]")
    source, target = _source("volume", text, parts[0]), _target("volume", text, parts[1])
    access: set[str] = set()
    recursive = True
    for word in filter(None, parts[2].split(",") if len(parts) == 3 else ()):
        if word in _READ_ONLY:
            access.add(word)
        elif word == "norecursive":
            recursive = False
        elif word in _SHARED:
            raise _bad("volume", text, f"propagation {word} is not supported")
        elif word not in _NO_EFFECT | _PRIVATE:
            raise _bad("volume", text, f"unknown option {word!r}")
    if len(access) > 1:
        raise _bad("volume", text, "both ro and rw")
    return Bind(source, target, "ro" in access, recursive)


def parse_tmpfs(text: str) -> tuple[str, str]:
    """`/target[:options]` as (target, options). What options there are is the mount's to say."""
    target, _, options = text.partition(":")
    if "\0" in options:
        raise _bad("tmpfs", text, "it holds a NUL")
    return _target("tmpfs", text, target), options


def parse_mount(text: str) -> Bind | tuple[str, str]:
    """`type=bind,source=/a,target=/b[,readonly]` or `type=tmpfs,target=/c[,tmpfs-size=64m]`.

    A bind as `parse_volume`, a tmpfs as `parse_tmpfs` gives it. UsageError.
    """
    found: dict[str, str] = {}
    for key, value in _pairs(text):
        if key in found:
            raise _bad("mount", text, f"{key} is there twice")
        found[key] = value
    kind = found.pop("type", "")
    if kind not in ("bind", "tmpfs"):
        raise _bad("mount", text, "write type=bind or type=tmpfs")
    if not found.get("target"):
        raise _bad("mount", text, "write target=/TARGET")
    target = _target("mount", text, found.pop("target"))
    read_only = _truth(text, "readonly", found.pop("readonly", "0"))
    if kind == "bind":
        return _bind(text, found, target, read_only)
    return target, ",".join(_tmpfs_words(text, found, read_only))


def _bind(text: str, found: dict[str, str], target: str, read_only: bool) -> Bind:
    if not found.get("source"):
        raise _bad("mount", text, "write source=/SOURCE")
    source = _source("mount", text, found.pop("source"))
    flat = _truth(text, "bind-nonrecursive", found.pop("bind-nonrecursive", "0"))
    recursive = found.pop("bind-recursive", "enabled")
    if recursive not in ("enabled", "disabled"):
        raise _bad("mount", text, f"bind-recursive={recursive} is not supported")
    propagation = found.pop("propagation", "rprivate")
    if propagation not in _PRIVATE:
        raise _bad("mount", text, f"propagation {propagation} is not supported")
    _none_left(text, found)
    return Bind(source, target, read_only, not flat and recursive == "enabled")


def _tmpfs_words(text: str, found: dict[str, str], read_only: bool) -> Iterator[str]:
    if read_only:
        yield "ro"
    if "tmpfs-size" in found:
        size = found.pop("tmpfs-size").lower()
        if not _SIZE.fullmatch(size):
            raise _bad("mount", text, "tmpfs-size is bytes, or a number with k, m or g")
        yield f"size={size.removesuffix('b')}"
    if "tmpfs-mode" in found:
        mode = found.pop("tmpfs-mode")
        if not _MODE.fullmatch(mode):
            raise _bad("mount", text, "tmpfs-mode is an octal number such as 1777")
        yield f"mode={mode}"
    _none_left(text, found)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keys in their first spelling, with their values; fields are quoted as in CSV files."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise _bad("mount", text, str(error)) from error
    if len(rows) != 1:
        raise _bad("mount", text, "write type=bind,source=/SOURCE,target=/TARGET")
    for field in rows[0]:
        key, _, value = field.partition("=")
        key = key.strip().lower()
        if not key:
            raise _bad("mount", text, "an empty field")
        if name := _KEYS.get(key, key):
            yield name, value


def _truth(text: str, key: str, value: str) -> bool:
    if value.lower() not in _TRUTH:
        raise _bad("mount", text, f"{key} is true or false, not {value!r}")
    return _TRUTH[value.lower()]


def _none_left(text: str, found: dict[str, str]) -> None:
    for key in found:
        raise _bad("mount", text, f"unknown option {key!r}")


def _source(what: str, text: str, source: str) -> str:
    if not source.startswith("/"):
        raise _bad(what, text, "the source must be an absolute path")
    if "\0" in source:
        raise _bad(what, text, "it holds a NUL")
    return source


def _target(what: str, text: str, target: str) -> str:
    """A normalised mount point."""
    if not target.startswith("/"):
        raise _bad(what, text, "the target must be an absolute path")
    if "\0" in target:
        raise _bad(what, text, "it holds a NUL")
    clean = posixpath.normpath("/" + target.lstrip("/"))
    if clean == "/":
        raise _bad(what, text, "the target cannot be the root itself")
    return clean


def _bad(what: str, text: str, why: str) -> UsageError:
    return UsageError(f"bad {what} {text[:200]!r}: {why}")
