"""What is on the disk of every container, for a start-up.

    <root>/containers/<id>/config.json    the record; never changes
    <root>/containers/<id>/state.json     the state after the last end; not there before the first
    <root>/containers/<id>/written        files are copied into it, and it does not run
    <root>/containers/<id>/work/work      made by the kernel when the root is mounted

Records of `--rm` containers are in the run directory instead. Ten thousand containers are read from
one index (`dockpy.index`) as far as it is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dockpy.container import Record
from dockpy.container_files import WRITTEN, record_of, state_of
from dockpy.errors import KernelError, TornRecord
from dockpy.index import Entry, RecordIndex
from dockpy.model import State, Status
from dockpy.records import TEMPORARY, Flusher, Trash, read_json, set_aside
from dockpy.spares import RECORD, STATE

LOST_WITH_HOST = 255
"""Exit code of a container that ran when the host went down: nobody saw its end."""

_FILES = (".", RECORD, STATE, "work/work")  # what a container's values depend on
_CONTENTS = (RECORD, STATE)


@dataclass(frozen=True, slots=True)
class Found:
    """A container as its records tell it.

    `before`: its state as written down, when it may have been started since. `marked`: the engine
    was killed while it wrote into the container's files.
    """

    record: Record
    state: State
    before: State | None = None
    marked: bool = False


class Loading:
    """One start-up's reading. It looks at the disk from now on, in the background.

    `after`: the index whose records are wanted first. `warn` gets one line for each torn record.
    """

    def __init__(
        self,
        root: Path,
        run: Path,
        trash: Trash,
        warn: Callable[[str], None],
        after: RecordIndex | None = None,
    ) -> None:
        self._directory = root / "containers"
        self._disposable = run / "containers"
        self._trash = trash
        self._warn = warn
        self._index = RecordIndex(
            root / "containers.index", self._directory, _FILES, _CONTENTS, after
        )

    def containers(self) -> Iterator[Found]:
        """Every container, by id. Torn records are told and set aside, leftovers removed."""
        disposable = set(os.listdir(self._disposable))
        for entry in self._index.entries():
            found = self._known(entry) or self._read(entry, disposable)
            if found is not None:
                yield found

    def save_index(self, flusher: Flusher) -> bool:
        """Write down what the next start-up need not read again; blocks. False: no need for it."""
        return self._index.save(flusher)

    def _known(self, entry: Entry) -> Found | None:
        if entry.values is None:
            return None
        try:
            record, state = entry.values
            found = Found(record_of(record, entry.name), state_of(state, entry.name))
        except (LookupError, TypeError, ValueError):
            return None  # the records will tell what is wrong
        self._index.keep(entry, entry.values)
        return found

    def _read(self, entry: Entry, disposable: set[str]) -> Found | None:
        directory = f"{self._directory}/{entry.name}"
        try:
            names = os.listdir(directory)
        except NotADirectoryError:
            return None  # not ours
        lasting = RECORD in names
        path = f"{directory if lasting else self._disposable / entry.name}/{RECORD}"
        if not lasting and (entry.name not in disposable or not os.path.exists(path)):
            if not any(one.startswith(f"{RECORD}.") for one in names):
                self._trash.discard(Path(directory))  # a create that never finished
            return None
        try:
            values = entry.read_json(0, path) if lasting else read_json(path)
            record = record_of(values, entry.name)
        except (OSError, TornRecord, LookupError, TypeError, ValueError) as error:
            torn = error
            if not isinstance(torn, TornRecord):
                torn = TornRecord(path, f"not a container's record ({error!r})")
            self._warn(f"{torn}; set aside as {set_aside(Path(path)).name}")
            return None
        for one in names:
            if one.startswith(TEMPORARY):
                os.unlink(f"{directory}/{one}")
        written = self._read_state(f"{directory}/{STATE}", entry) if STATE in names else None
        found = _judge(record, written, entry, marked=WRITTEN in names)
        if lasting and not found.marked and found.before is None:
            self._index.keep(entry, (values, written))
        return found

    def _read_state(self, path: str, entry: Entry) -> dict[str, Any] | None:
        try:
            values = entry.read_json(1, path)
            state_of(values, entry.name)
        except (OSError, TornRecord, LookupError, TypeError, ValueError) as error:
            self._warn(f"{path}: {error}; set aside as {set_aside(Path(path)).name}")
            return None
        return values  # type: ignore[no-any-return]


def _judge(record: Record, written: Any, entry: Entry, *, marked: bool) -> Found:
    """What the written state and the last mount say together.

    Raises as `state_of`, and KernelError when the last mount cannot be told.
    """
    state = state_of(written, record.id)
    _, _, state_file, mount = entry.sights
    if mount.error:
        raise KernelError("look at container", mount.error, f"{entry.name}/work/work")
    written_at = 0 if written is None else state_file.modified
    current = marked or mount.modified <= written_at
    if not mount.exists or (current and state.status is not Status.RUNNING):
        return Found(record, state, marked=marked)
    # It was started after that, and no record saw its end: a supervisor may have.
    lost = State(
        status=Status.EXITED,
        exit_code=LOST_WITH_HOST,
        error="it ran when the host went down; nobody saw its end",
        started_at=mount.modified / 1e9,
        finished_at=mount.modified / 1e9,
    )
    return Found(record, lost, before=state, marked=marked)
