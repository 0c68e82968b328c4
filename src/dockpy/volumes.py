"""Mounts as users write them. Pure."""

from __future__ import annotations

import posixpath

from dockpy.errors import UsageError
from dockpy.model import Bind

_READ_ONLY = {"ro": True, "rw": False}
_NO_EFFECT = frozenset({"z", "Z", "consistent", "cached", "delegated", "nocopy"})
_PROPAGATION = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})


def parse_volume(text: str) -> Bind:
    """`/source:/target[:ro|rw,...]`. UsageError with what is wrong.

    Words for SELinux labels and caching are taken and mean nothing here; propagation other than
    private is refused, since mounts inside containers never reach the host.
    """
    source, target, words = _split(text)
    read_only, recursive = False, True
    for word in filter(None, words.split(",")):
        if word in _READ_ONLY:
            read_only = _READ_ONLY[word]
        elif word == "norecursive":
            recursive = False
        elif word in _PROPAGATION:
            if not word.endswith("private"):
                raise UsageError(f"bad volume {text!r}: propagation {word} is not supported")
        elif word not in _NO_EFFECT:
            raise UsageError(f"bad volume {text!r}: unknown option {word!r}")
    return Bind(source, checked_target(text, target), read_only, recursive)


def _split(text: str) -> tuple[str, str, str]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1]:
        raise UsageError(f"bad volume {text!r}; write /SOURCE:/TARGET[:ro]")
    if not parts[0].startswith("/"):
        raise UsageError(f"bad volume {text!r}: the source must be an absolute path")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else ""


def checked_target(text: str, target: str) -> str:
    """A normalised mount point; UsageError when it cannot be one."""
    if not target.startswith("/"):
        raise UsageError(f"bad volume {text!r}: the target must be an absolute path")
    clean = posixpath.normpath("/" + target.lstrip("/"))
    if clean == "/":
        raise UsageError(f"bad volume {text!r}: the target cannot be the root itself")
    return clean


def parse_tmpfs(text: str) -> tuple[str, str]:
    """`/target[:options]` as (target, options)."""
    target, _, options = text.partition(":")
    return checked_target(text, target), options
