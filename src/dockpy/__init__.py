"""dockpy: a container engine for hosts that run many short containers.

`Runtime` is the engine; everything else is what it takes and gives. Names are imported on first
use, so that the command line's client pays for none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dockpy.container import Container
    from dockpy.graph import Graph
    from dockpy.humantime import human_duration
    from dockpy.logs import LogEntry
    from dockpy.model import (
        DEFAULT_TAG,
        VERSION,
        Bind,
        Change,
        ChangeKind,
        Config,
        Image,
        State,
        Status,
        Ulimit,
    )
    from dockpy.names import generate_id, truncate_id, validate_id
    from dockpy.runtime import Info, Runtime
    from dockpy.stdio import copy_escapable
    from dockpy.supervision import Attachment, AttachmentEnd, Streams
    from dockpy.tags import TagStore
    from dockpy.truncindex import TruncIndex

_HOME = {
    "Attachment": "supervision",
    "AttachmentEnd": "supervision",
    "Bind": "model",
    "Change": "model",
    "ChangeKind": "model",
    "Config": "model",
    "Container": "container",
    "DEFAULT_TAG": "model",
    "Graph": "graph",
    "Image": "model",
    "Info": "runtime",
    "LogEntry": "logs",
    "Runtime": "runtime",
    "State": "model",
    "Status": "model",
    "Streams": "supervision",
    "TagStore": "tags",
    "TruncIndex": "truncindex",
    "Ulimit": "model",
    "VERSION": "model",
    "copy_escapable": "stdio",
    "generate_id": "names",
    "human_duration": "humantime",
    "truncate_id": "names",
    "validate_id": "names",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'dockpy' has no attribute {name!r}") from None
    return getattr(import_module(f"dockpy.{home}"), name)
