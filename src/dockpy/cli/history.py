"""history: how an image came to be, layer by layer."""

from __future__ import annotations

import time
from typing import Any

from dockpy import image_config
from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.engine import Engine
from dockpy.cli.render import Listing, ago, created_at, size_text
from dockpy.cli.session import Session
from dockpy.model import Image

MISSING = "<missing>"
"""What stands for an image that is only known by what was made of it."""
WIDTH = 45
HISTORY = Listing(
    headers={
        "Comment": "COMMENT",
        "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY",
        "CreatedSince": "CREATED",
        "ID": "IMAGE",
        "Size": "SIZE",
    },
    default="{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    quiet="ID",
)


@command(
    "history",
    "Show how an image was made, the last step first.",
    Option(
        "--format",
        "form",
        help="table TEMPLATE, a Go template, or json",
        metavar="FORMAT",
        default="",
    ),
    Switch("-H", "--human", help="Sizes and times for people (on unless =false)", default=True),
    Switch("--no-trunc", help="Do not shorten anything"),
    Switch("-q", "--quiet", help="Only ids"),
    Operand("image", "image"),
)
def history(
    session: Session, *, image: str, form: str, human: bool, no_trunc: bool, quiet: bool
) -> int:
    found = session.runtime.tags.lookup_image(image)
    rows = steps(session.runtime, found, shorten=not no_trunc, human=human)
    session.write(HISTORY.render(rows, form=form, quiet=quiet))
    return 0


def steps(engine: Engine, image: Image, *, shorten: bool, human: bool) -> list[dict[str, Any]]:
    """One row per step, newest first; a layer without a step gets one."""
    parsed = image_config.parse(engine.graph.configuration(image))
    entries = list(parsed.history)
    layered = sum(not one.empty_layer for one in entries)
    entries += [image_config.HistoryEntry(created=image.created)] * (len(image.layers) - layered)
    ids = known_ids(engine, image, len(entries))
    now = time.time()
    rows = []
    layers = iter(image.layers)
    for number, entry in enumerate(entries, start=1):
        chain = None if entry.empty_layer else next(layers, None)
        layer = engine.graph.layer(chain) if chain is not None else None
        size = layer.size if layer is not None else 0
        identifier = ids.get(number, MISSING)
        made_by = " ".join(entry.created_by.split())
        rows.append(
            {
                "Comment": entry.comment,
                "CreatedAt": created_at(entry.created),
                "CreatedBy": cut(made_by) if shorten else made_by,
                "CreatedSince": ago(entry.created, now) if human else created_at(entry.created),
                "ID": identifier[:12] if shorten and identifier != MISSING else named(identifier),
                "Size": size_text(size) if human else str(size),
            }
        )
    return rows[::-1]


def known_ids(engine: Engine, image: Image, last: int) -> dict[int, str]:
    """Which image was there after how many steps."""
    found = {last: image.id}
    for one in engine.graph.history(image)[1:]:
        parsed = image_config.parse(engine.graph.configuration(one))
        found.setdefault(len(parsed.history), one.id)
    return found


def named(identifier: str) -> str:
    return identifier if identifier == MISSING else f"sha256:{identifier}"


def cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
