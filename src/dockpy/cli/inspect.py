"""inspect: everything known about containers and images."""

from __future__ import annotations

from typing import Any

from dockpy.cli import options
from dockpy.cli.command import Operand, Option, command
from dockpy.cli.engine import Engine
from dockpy.cli.inspection import container_values, image_values
from dockpy.cli.render import pretty_json
from dockpy.cli.session import Session
from dockpy.cli.template import compile_template, to_json
from dockpy.errors import DockpyError, NotFound, UsageError

TYPES = ("container", "image")


def parse_type(text: str) -> str:
    """`container` or `image`."""
    if text not in TYPES:
        raise UsageError("container or image expected")
    return text


@command(
    "inspect",
    "Show all about containers and images, as JSON.",
    options.format_(),
    Option(
        "--type",
        "kind",
        help="Look for a container or an image only",
        parse=parse_type,
        metavar="container|image",
        default="",
    ),
    Operand("names", "container or image", many=True),
)
def inspect(session: Session, *, names: tuple[str, ...], format: str | None, kind: str) -> int:
    template = None if format in (None, "", "json") else compile_template(str(format))
    found: list[dict[str, Any]] = []
    errors: list[DockpyError] = []
    for name in names:
        try:
            found.append(look_up(session.runtime, name, kind))
        except DockpyError as missing:
            errors.append(missing)
    if template is not None:
        for values in found:
            session.write(template.render(values) + "\n")
    elif format == "json":
        session.write("".join(f"{to_json(values)}\n" for values in found))
    elif found:
        session.write(pretty_json(found))
    for error in errors:
        session.error(f"dockpy: {error}")
    return 1 if errors else 0


def look_up(engine: Engine, name: str, kind: str) -> dict[str, Any]:
    """A container or else an image, in Docker's shape. NotFound, AmbiguousPrefix."""
    if kind != "image":
        try:
            container = engine.get(name)
        except NotFound:
            if kind:
                raise
        else:
            lease = engine.networks.lease(container.id)
            return container_values(container, engine.run, engine.root, lease)
    try:
        image = engine.tags.lookup_image(name)
    except (NotFound, UsageError) as error:
        raise NotFound(kind or "object", name) from error
    layers = engine.graph.directory_names(image)
    names = engine.tags.by_id().get(image.id, ())
    return image_values(image, names, engine.registries.digests(image.id), layers)
