"""ps: the containers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from dockpy.cli import filters as filtering
from dockpy.cli.command import Option, Switch, command
from dockpy.cli.engine import Engine, EngineContainer
from dockpy.cli.flags import parse_count
from dockpy.cli.render import Listing, ago, created_at, ellipsis, label_method, status_text
from dockpy.cli.session import Session
from dockpy.errors import DockpyError, UsageError
from dockpy.model import Status
from dockpy.network.ports import column
from dockpy.network.values import Lease

COMMAND_WIDTH = 20
FILTERS = (
    "ancestor",
    "before",
    "exited",
    "id",
    "label",
    "name",
    "network",
    "since",
    "status",
    "volume",
)
CONTAINERS = Listing(
    headers={
        "Command": "COMMAND",
        "CreatedAt": "CREATED AT",
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Labels": "LABELS",
        "LocalVolumes": "LOCAL VOLUMES",
        "Mounts": "MOUNTS",
        "Names": "NAMES",
        "Networks": "NETWORKS",
        "Ports": "PORTS",
        "RunningFor": "CREATED",
        "State": "STATE",
        "Status": "STATUS",
    },
    default="{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
    quiet="ID",
)


@command(
    "ps",
    "List containers.",
    Switch("-a", "--all", help="Also those that do not run"),
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
    Option(
        "-n",
        "--last",
        help="The N newest, running or not (0: no limit)",
        parse=parse_count,
        metavar="N",
    ),
    Switch("-l", "--latest", help="The newest, running or not"),
    Switch("--no-trunc", help="Do not shorten ids and commands"),
    Switch("-q", "--quiet", help="Only ids"),
)
def ps(
    session: Session,
    *,
    all: bool,
    filters: Sequence[tuple[str, str]],
    form: str,
    last: int | None,
    latest: bool,
    no_trunc: bool,
    quiet: bool,
) -> int:
    wanted = filtering.group(filters, FILTERS)
    limit = 1 if latest else last
    if "status" in wanted or "exited" in wanted or limit:
        all = True
    found = select(session.runtime, wanted, only_running=not all)[: limit or None]
    now = time.time()
    leases = session.runtime.networks
    rows = [row(one, leases.lease(one.id), now, shorten=not no_trunc) for one in found]
    session.write(CONTAINERS.render(rows, form=form, quiet=quiet))
    return 0


def select(
    engine: Engine, wanted: filtering.Filters, *, only_running: bool
) -> list[EngineContainer]:
    """The containers that fit, newest first. UsageError for a value that cannot be one."""
    found = list(engine.list())
    if only_running:
        found = [one for one in found if one.state.running]
    if not wanted:
        return found
    check_statuses(wanted.get("status", ()))
    codes = exit_codes(wanted.get("exited", ()))
    if "before" in wanted:
        latest = min(engine.get(name).created for name in wanted["before"])
        found = [one for one in found if one.created < latest]
    if "since" in wanted:
        earliest = max(engine.get(name).created for name in wanted["since"])
        found = [one for one in found if one.created > earliest]
    if "ancestor" in wanted:
        images = descendants(engine, wanted["ancestor"])
        found = [one for one in found if one.record.image_id in images]
    return [one for one in found if fits(one, wanted, codes)]


def fits(container: EngineContainer, wanted: filtering.Filters, codes: set[int]) -> bool:
    """Whether a container matches the filters that need nothing but itself."""
    state, config = container.state, container.config
    return (
        ("id" not in wanted or any(container.id.startswith(one) for one in wanted["id"]))
        and ("name" not in wanted or filtering.matches_pattern(wanted["name"], container.name))
        and filtering.matches_labels(wanted.get("label", ()), config.labels)
        and ("status" not in wanted or state.status.value in wanted["status"])
        and ("exited" not in wanted or (state.status is Status.EXITED and state.exit_code in codes))
        and ("network" not in wanted or config.network_mode in wanted["network"])
        and (
            "volume" not in wanted
            or any(
                bind.source in wanted["volume"] or bind.target in wanted["volume"]
                for bind in config.binds
            )
        )
    )


def check_statuses(values: Sequence[str]) -> None:
    known = [one.value for one in Status]
    for value in values:
        if value not in known:
            raise UsageError(f"--filter status={value}: there are {', '.join(known)}")


def exit_codes(values: Sequence[str]) -> set[int]:
    try:
        return {int(value) for value in values}
    except ValueError as error:
        raise UsageError(f"--filter exited={values[0]}: an exit code expected") from error


def descendants(engine: Engine, names: Sequence[str]) -> set[str]:
    """Ids of the images of those names and of all made from them; unknown names have none."""
    found: set[str] = set()
    waiting = []
    for name in names:
        try:
            waiting.append(engine.tags.lookup_image(name).id)
        except DockpyError:
            continue
    children = engine.graph.by_parent()
    while waiting:
        image = waiting.pop()
        if image not in found:
            found.add(image)
            waiting.extend(child.id for child in children.get(image, ()))
    return found


def row(
    container: EngineContainer, lease: Lease | None, now: float, *, shorten: bool
) -> dict[str, Any]:
    """What a line of ps can show."""
    config = container.config
    words = " ".join((container.path, *container.args))
    image = container.image_name
    if shorten and len(image.removeprefix("sha256:")) == 64:
        image = image.removeprefix("sha256:")[:12]
    mounts = [bind.source for bind in config.binds]
    return {
        "Command": json.dumps(
            ellipsis(words, COMMAND_WIDTH) if shorten else words, ensure_ascii=False
        ),
        "CreatedAt": created_at(container.created),
        "ID": container.short_id if shorten else container.id,
        "Image": image,
        "Label": label_method(config.labels),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(config.labels.items())),
        "LocalVolumes": "0",
        "Mounts": ",".join(ellipsis(one, 15) if shorten else one for one in mounts),
        "Names": container.name,
        "Networks": ",".join(one.network_name for one in lease.endpoints)
        if lease is not None and lease.endpoints
        else config.network_mode,
        "Ports": ports_text(container, lease),
        "RunningFor": ago(container.created, now),
        "State": container.state.status.value,
        "Status": status_text(container.state, now),
    }


def ports_text(container: EngineContainer, lease: Lease | None) -> str:
    """The PORTS column: what a running container publishes and exposes."""
    if lease is None:
        return ""
    return column(lease.published, container.config.exposed_ports, ipv6=lease.ipv6)
