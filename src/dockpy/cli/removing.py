"""rmi: names and images go.

The rules are Docker's: by name, the name goes, and with its last name the image; by id, all its
names and it. What goes takes along the images it was made from that have no name and no use left.
An image stays while a container, also a stopped one, or another image is made from it: its files
are theirs. Then by name only the name goes (with -f when it is a container that needs it), and by
id it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from dockpy.cli.command import Operand, Switch, command
from dockpy.cli.engine import Engine, EngineContainer
from dockpy.cli.session import Session
from dockpy.errors import Conflict, DockpyError, UsageError
from dockpy.model import DEFAULT_TAG, Image
from dockpy.references import parse


@command(
    "rmi",
    "Remove images.\n\n"
    "By name: the name, and the image with its last name. By id: all of it. The images it was made "
    "from go along when they have no name and no use left. An image that a container or an image "
    "was made from stays, as its files are theirs too.",
    Switch("-f", "--force", help="By id also with several names; by name also in use: the name"),
    Switch("--no-prune", help="Keep the images without a name that it was made from"),
    Operand("images", "image", many=True),
)
def rmi(session: Session, *, images: tuple[str, ...], force: bool, no_prune: bool) -> int:
    code = 0
    for name in images:
        try:
            with session.runtime.graph.steady_users():
                lines = remove(session.runtime, name, force=force, prune=not no_prune)
            session.write("".join(f"{line}\n" for line in lines))
        except DockpyError as error:
            session.error(f"dockpy: {error}")
            code = 1
    return code


def remove(engine: Engine, name: str, *, force: bool, prune: bool) -> list[str]:
    """Remove a name, or an image; the lines that tell what was removed. Conflict when in use."""
    image = engine.tags.lookup_image(name)
    labels = sorted(engine.tags.by_id().get(image.id, ()))
    named = label_of(engine, name, labels)
    if named is not None and len(labels) > 1:
        return [untag(engine, named)]
    if len(labels) > 1 and not force:
        raise Conflict(f"image {name} has {len(labels)} names; remove them, or use rmi -f")
    user = first_user(engine, image)
    children = engine.graph.by_parent().get(image.id, ())
    if named is not None and (user is None or force) and (user is not None or children):
        return [untag(engine, named)]
    if user is not None:
        how = "running" if user.state.running else "stopped"
        what = "stop" if user.state.running else "remove"
        raise Conflict(f"image {name} is used by {how} container {user.short_id}; {what} it first")
    if children:
        raise Conflict(f"image {name} has {len(children)} images made from it; remove them first")
    lines = [untag(engine, label) for label in labels]
    while True:
        parent = image.parent
        engine.graph.delete(image.id)
        lines.append(f"Deleted: sha256:{image.id}")
        if not prune or not parent or not idle(engine, parent):
            break
        image = engine.graph.get(parent)
    engine.registries.sweep()
    return lines


def idle(engine: Engine, image_id: str) -> bool:
    """Whether an image is there and has no name, no container and no image made from it."""
    found = next((one for one in engine.graph.all() if one.id == image_id), None)
    return not (
        found is None
        or engine.tags.by_id().get(image_id)
        or engine.graph.by_parent().get(image_id)
        or engine.containers_of(found)
    )


def first_user(engine: Engine, image: Image) -> EngineContainer | None:
    """A container made from it, a running one rather than a stopped one."""
    containers = engine.containers_of(image)
    return next((one for one in containers if one.state.running), next(iter(containers), None))


def label_of(engine: Engine, name: str, labels: Sequence[str]) -> str | None:
    """The name `repository:tag` the user meant; None when it was an id or a digest."""
    try:
        reference = parse(name)
    except UsageError:  # an id
        return None
    label = f"{engine.tags.kept(reference.repository)}:{reference.tag or DEFAULT_TAG}"
    return label if label in labels and not reference.digest else None


def untag(engine: Engine, label: str) -> str:
    """Remove one name; the line that tells it."""
    repository, _, tag = label.rpartition(":")
    engine.tags.delete(repository, tag)
    return f"Untagged: {label}"
