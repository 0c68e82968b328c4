"""dockpy: a container engine for hosts that run many short containers.

`Runtime` is the engine; everything else is what it takes and gives. Names are imported on first
use, so that the command line's client pays for none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dockpy.container import Container as Container
    from dockpy.execution import Execution as Execution
    from dockpy.graph import Graph as Graph
    from dockpy.humantime import human_duration as human_duration
    from dockpy.logs import LogEntry as LogEntry
    from dockpy.model import DEFAULT_TAG as DEFAULT_TAG
    from dockpy.model import VERSION as VERSION
    from dockpy.model import Bind as Bind
    from dockpy.model import Change as Change
    from dockpy.model import ChangeKind as ChangeKind
    from dockpy.model import Config as Config
    from dockpy.model import Exec as Exec
    from dockpy.model import Image as Image
    from dockpy.model import State as State
    from dockpy.model import Status as Status
    from dockpy.model import Ulimit as Ulimit
    from dockpy.names import generate_id as generate_id
    from dockpy.names import truncate_id as truncate_id
    from dockpy.names import validate_id as validate_id
    from dockpy.runtime import Info as Info
    from dockpy.runtime import Runtime as Runtime
    from dockpy.stdio import copy_escapable as copy_escapable
    from dockpy.supervision import Attachment as Attachment
    from dockpy.supervision import AttachmentEnd as AttachmentEnd
    from dockpy.supervision import Streams as Streams
    from dockpy.tags import TagStore as TagStore
    from dockpy.trace import Trace as Trace
    from dockpy.truncindex import TruncIndex as TruncIndex

_HOME = {
    "Attachment": "supervision",
    "AttachmentEnd": "supervision",
    "Bind": "model",
    "Change": "model",
    "ChangeKind": "model",
    "Config": "model",
    "Container": "container",
    "DEFAULT_TAG": "model",
    "Exec": "model",
    "Execution": "execution",
    "Graph": "graph",
    "Image": "model",
    "Info": "runtime",
    "LogEntry": "logs",
    "Runtime": "runtime",
    "State": "model",
    "Status": "model",
    "Streams": "supervision",
    "TagStore": "tags",
    "Trace": "trace",
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
