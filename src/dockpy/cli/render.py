"""Text for people: tables, lists by template, durations, times. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dockpy.cli.template import compile_template, to_text
from dockpy.humantime import human_duration, human_size
from dockpy.image_config import format_time
from dockpy.model import State, Status

LEAST_WIDTH = 10
GAP = 3
"""Docker's tables: columns of at least 10 characters with the 3 of the gap."""
ZERO_TIME = "0001-01-01T00:00:00Z"
"""How Go writes a time that never came."""


@dataclass(frozen=True, slots=True)
class Listing:
    """How rows are shown. `headers`: what a template may name, with the column's head.

    `default` is the template of the table without --format, `quiet` the field -q shows.
    """

    headers: Mapping[str, str]
    default: str
    quiet: str

    def render(
        self, rows: Sequence[Mapping[str, Any]], *, form: str = "", quiet: bool = False
    ) -> str:
        """The whole text.

        `form`: "" or `table` for the default, `table TEMPLATE`, `json`, or TEMPLATE.
        Raises TemplateError.
        """
        form = form.strip(" ").replace(r"\t", "\t").replace(r"\n", "\n")
        if quiet and form in ("", "table"):
            return "".join(f"{row[self.quiet]}\n" for row in rows)
        if form == "json":
            return "".join(f"{self._json(row)}\n" for row in rows)
        if form in ("", "table") or form.startswith("table "):
            chosen = form.removeprefix("table").strip(" ") or self.default
            template = compile_template(chosen)
            heads: dict[str, Any] = {**self.headers, "Label": lambda name: str(name).upper()}
            lines = [template.render(one) for one in (heads, *rows)]
            return columns([line.split("\t") for line in lines])
        template = compile_template(form)
        return "".join(f"{template.render(row)}\n" for row in rows)

    def _json(self, row: Mapping[str, Any]) -> str:
        values = {name: to_text(row[name]) for name in sorted(self.headers)}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines whose cells stand below each other; the last cell of a row is as long as it is."""
    widths: dict[int, int] = {}
    for row in rows:
        for number, cell in enumerate(row[:-1]):
            widths[number] = max(widths.get(number, LEAST_WIDTH), len(cell) + GAP)
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[number]) for number, cell in enumerate(row[:-1])]
        lines.append("".join((*cells, row[-1])) + "\n")
    return "".join(lines)


def ellipsis(text: str, length: int) -> str:
    """At most `length` characters, the last one an ellipsis when some are missing."""
    return text if len(text) <= length else text[: length - 1] + "…"


def ago(moment: float, now: float) -> str:
    """Such as `2 hours ago`; `N/A` for never."""
    return f"{human_duration(max(now - moment, 0.0))} ago" if moment else "N/A"


def status_text(state: State, now: float) -> str:
    """The STATUS column, in Docker's words."""
    if state.status is Status.RUNNING:
        return f"Up {human_duration(max(now - state.started_at, 0.0))}"
    if state.status is Status.EXITED:
        return f"Exited ({state.exit_code}) {ago(state.finished_at, now)}"
    if state.status is Status.REMOVING:
        return "Removal In Progress"
    return "Dead" if state.status is Status.DEAD else "Created"


def created_at(moment: float) -> str:
    """Local time as Docker's lists have it: 2026-01-02 15:04:05 +0000 UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(moment))


def json_time(moment: float) -> str:
    """RFC 3339 in UTC; 0.0 is never."""
    return format_time(moment) if moment else ZERO_TIME


def size_text(size: int) -> str:
    """Such as 117MB."""
    return human_size(size)


def pretty_json(value: object) -> str:
    """As `docker inspect` indents it."""
    return json.dumps(value, indent=4, ensure_ascii=False) + "\n"


def label_method(labels: Mapping[str, str]) -> Callable[[str], str]:
    """What `{{.Label "key"}}` calls."""
    return lambda key: labels.get(key, "")
