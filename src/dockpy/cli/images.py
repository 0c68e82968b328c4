"""images import tag: what containers are made from."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from dockpy.cli import filters as filtering
from dockpy.cli.change import apply_changes
from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.engine import Engine
from dockpy.cli.interrupting import Work, interruptible
from dockpy.cli.render import Listing, ago, created_at, size_text
from dockpy.cli.session import Session
from dockpy.download import is_url, open_url
from dockpy.errors import RequestError, UsageError
from dockpy.model import Config, Image
from dockpy.references import check_tag, parse

NONE = "<none>"
FILTERS = ("before", "dangling", "label", "reference", "since")
IMAGES = Listing(
    headers={
        "CreatedAt": "CREATED AT",
        "CreatedSince": "CREATED",
        "Digest": "DIGEST",
        "ID": "IMAGE ID",
        "Repository": "REPOSITORY",
        "Size": "SIZE",
        "Tag": "TAG",
    },
    default="{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    quiet="ID",
)
IMAGES_WITH_DIGESTS = replace(
    IMAGES,
    default="{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
)


@command(
    "images",
    "List images.",
    Switch("-a", "--all", help="Also those without a name that others are made from"),
    Switch("--digests", help="Show the digest a registry knows each by"),
    Option(
        "-f",
        "--filter",
        "filters",
        help=f"Only those that fit: {', '.join(FILTERS)}",
        parse=filtering.parse_filter,
        metavar="KEY=VALUE",
        multiple=True,
    ),
    Option(
        "--format",
        "form",
        help="table TEMPLATE, a Go template, or json",
        metavar="FORMAT",
        default="",
    ),
    Switch("--no-trunc", help="Do not shorten ids"),
    Switch("-q", "--quiet", help="Only ids"),
    Switch("--tree", help="Show what was made from what"),
    Switch("--viz", help="The same as a graph for dot (graphviz)"),
    Operand("name", "repository[:tag]", required=False),
)
def images(
    session: Session,
    *,
    all: bool,
    digests: bool,
    filters: Sequence[tuple[str, str]],
    form: str,
    no_trunc: bool,
    quiet: bool,
    tree: bool,
    viz: bool,
    name: str | None,
) -> int:
    if tree or viz:
        if quiet or filters or form or name or digests or (tree and viz):
            raise UsageError("--tree and --viz show all images; leave out the rest")
        session.write((tree_text if tree else viz_text)(session.runtime, shorten=not no_trunc))
        return 0
    wanted = filtering.group(filters, FILTERS)
    found = select(session.runtime, wanted, everything=all)
    if name is not None:
        found = [one for one in found if is_asked(session.runtime, *one, name)]
    now = time.time()
    rows = [row(image, label, now, shorten=not no_trunc) for image, label in found]
    if digests or "Digest" in form or form == "json":
        for each, (image, label) in zip(rows, found, strict=True):
            each["Digest"] = digest_of(session.runtime, image, label)
    if quiet:
        rows = list({each["ID"]: each for each in rows}.values())
    listing = IMAGES_WITH_DIGESTS if digests else IMAGES
    session.write(listing.render(rows, form=form, quiet=quiet))
    return 0


def tree_text(engine: Engine, *, shorten: bool) -> str:
    """Every image below the one it was made from, newest last."""
    names = engine.tags.by_id()
    images = {image.id: image for image in engine.graph.all()}
    children: dict[str, list[Image]] = {}
    for image in sorted(images.values(), key=lambda one: (one.created, one.id)):
        children.setdefault(image.parent if image.parent in images else "", []).append(image)
    lines: list[str] = []
    waiting = [("", one, number == 0) for number, one in enumerate(children.get("", [])[::-1])]
    while waiting:
        lead, image, last = waiting.pop()
        below = children.get(image.id, [])
        fork = ("\u2514" if last else "\u251c") + "\u2500" + ("\u252c" if below else "\u2500")
        tags = f" Tags: {', '.join(sorted(names[image.id]))}" if names.get(image.id) else ""
        shown = image.short_id if shorten else image.id
        lines.append(f"{lead}{fork}{shown} Size: {size_text(image.size)}{tags}\n")
        deeper = lead + (" " if last else "\u2502")
        waiting += [(deeper, one, number == 0) for number, one in enumerate(below[::-1])]
    return "".join(lines)


def viz_text(engine: Engine, *, shorten: bool) -> str:
    """The same as a graph in graphviz's language."""
    names = engine.tags.by_id()
    lines = ["digraph docker {\n"]
    for image in sorted(engine.graph.all(), key=lambda one: (one.created, one.id)):
        shown = image.short_id if shorten else image.id
        parent = image.parent[:12] if shorten else image.parent
        if parent:
            lines.append(f' "{parent}" -> "{shown}"\n')
        else:
            lines.append(f' base -> "{shown}" [style=invis]\n')
        if names.get(image.id):
            label = "\\n".join((shown, *sorted(names[image.id])))
            shape = 'shape=box,fillcolor="paleturquoise",style="filled,rounded"'
            lines.append(f' "{shown}" [label="{label}",{shape}];\n')
    lines.append(" base [style=invisible]\n}\n")
    return "".join(lines)


def is_asked(engine: Engine, image: Image, label: str, name: str) -> bool:
    """Whether a name `repository:tag` of an image is the one asked for, which may be a pattern;
    without a tag any is. UsageError."""
    if set(name) & set("*?["):
        return fits_reference(label, [name])
    asked = parse(name)
    repository, _, tag = label.rpartition(":")
    known = engine.registries.digests(image.id) if asked.digest else ()
    return (
        repository == engine.tags.kept(asked.repository)
        and (not asked.tag or tag == asked.tag)
        and (not asked.digest or f"{repository}@{asked.digest}" in known)
    )


def select(
    engine: Engine, wanted: filtering.Filters, *, everything: bool
) -> list[tuple[Image, str]]:
    """Images with each of their names ("" when there is none), newest first."""
    names = engine.tags.by_id()
    parents = set() if everything else set(engine.graph.by_parent())
    before = [engine.tags.lookup_image(one).created for one in wanted.get("before", ())]
    since = [engine.tags.lookup_image(one).created for one in wanted.get("since", ())]
    found: list[tuple[Image, str]] = []
    for image in sorted(engine.graph.all(), key=lambda one: one.created, reverse=True):
        labels = sorted(names.get(image.id, ()))
        if not labels and image.id in parents:
            continue
        if before and image.created >= min(before):
            continue
        if since and image.created <= max(since):
            continue
        if not filtering.matches_labels(wanted.get("label", ()), image.config.labels):
            continue
        if "dangling" in wanted and filtering.parse_flag("dangling", wanted["dangling"]) is bool(
            labels
        ):
            continue
        if "reference" in wanted:
            labels = [one for one in labels if fits_reference(one, wanted["reference"])]
            if not labels:
                continue
        found += [(image, label) for label in labels or [""]]
    return found


def digest_of(engine: Engine, image: Image, label: str) -> str:
    """The digest the registry of that name knows the image by, or NONE."""
    repository = label.rpartition(":")[0]
    return (engine.registries.digest(image.id, repository) if repository else "") or NONE


def fits_reference(label: str, patterns: Sequence[str]) -> bool:
    """Whether `repository:tag`, or its repository, fits one of the shell patterns.

    A star does not match a slash, as in Go's path.Match.
    """
    repository = label.rpartition(":")[0]
    return any(
        pattern.count("/") == text.count("/")
        and all(map(fnmatch.fnmatchcase, text.split("/"), pattern.split("/")))
        for pattern in patterns
        for text in (label, repository)
    )


def row(image: Image, label: str, now: float, *, shorten: bool) -> dict[str, Any]:
    """What a line of images can show."""
    repository, _, tag = label.rpartition(":") if label else (NONE, "", NONE)
    return {
        "CreatedAt": created_at(image.created),
        "CreatedSince": ago(image.created, now),
        "Digest": NONE,
        "ID": image.short_id if shorten else f"sha256:{image.id}",
        "Repository": repository,
        "Size": size_text(image.size),
        "Tag": tag,
    }


@command(
    "import",
    "Make an image from a root file system archive.\n\n"
    "tar, also compressed by gzip, bzip2, xz or zstd, from a file, a URL or - for stdin.",
    Option(
        "-c",
        "--change",
        help="Preset as a Dockerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER ...",
        metavar="INSTRUCTION",
        multiple=True,
    ),
    Option("-m", "--message", help="Comment kept with the image", metavar="TEXT", default=""),
    Operand("source", "file|url|-"),
    Operand("name", "repository[:tag]", required=False),
    Operand("tag", "tag", required=False),
    interruptible=True,
)
def import_(
    session: Session,
    *,
    source: str,
    name: str | None,
    tag: str | None,
    change: tuple[str, ...],
    message: str,
) -> int:
    config = apply_changes(Config(), change)
    repository, chosen = name_of(name, tag)
    with interruptible(session) as work, archive(session, source, work) as stream:
        image = session.runtime.import_image(
            stream, repository, chosen, config=config, comment=message or f"Imported from {source}"
        )
    session.write(f"sha256:{image.id}\n")
    return 0


def name_of(name: str | None, tag: str | None) -> tuple[str, str]:
    """Repository and tag of `REPOSITORY[:TAG]`, or the old form with the tag beside it."""
    if name is None:
        return "", ""
    reference = parse(name)
    if reference.digest or (reference.tag and tag):
        raise UsageError(f"{name}: give REPOSITORY[:TAG]")
    return reference.repository, reference.tag or (check_tag(tag) if tag else "")


@contextmanager
def archive(session: Session, source: str, work: Work) -> Iterator[BinaryIO | int]:
    """The archive's bytes: a descriptor, or the body of a URL."""
    if source == "-":
        if session.stdin < 0:
            raise RequestError("stdin is closed; pipe an archive into it, or name a file")
        if session.stdin_tty:
            raise UsageError("stdin is a terminal; pipe an archive into it, or name a file")
        yield work.source(session.stdin)
    elif is_url(source):
        with closing(open_url(source)) as body:
            yield work.body(body)
    else:
        descriptor = session.open(source)
        try:
            yield work.source(descriptor)
        finally:
            os.close(descriptor)


@command(
    "tag",
    "Give an image another name.",
    Switch("-f", "--force", help="Move the name if another image has it (always on)"),
    Operand("image", "image"),
    Operand("name", "repository[:tag]"),
    Operand("tag", "tag", required=False),
)
def tag(session: Session, *, image: str, name: str, tag: str | None, force: bool) -> int:
    del force  # a name always moves, as in Docker since 1.12; scripts pass -f all the same
    repository, chosen = name_of(name, tag)
    session.runtime.tags.set(repository, chosen, image, force=True)
    return 0
