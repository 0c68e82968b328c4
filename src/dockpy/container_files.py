"""A container's directories and records: made, written, discarded.

    <root>/containers/<id>/config.json        the record; never changes
    <root>/containers/<id>/state.json         the state, not there before the first end
    <root>/containers/<id>/upper/, work/      its overlay's
    <run>/containers/<id>/                    files of its /etc, while it runs

The record of an `--rm` container is in its run directory and its state nowhere: after a reboot
both are gone, which is right for it.

Paths with a container's id in them are texts here, and wherever every start comes by: pathlib
interns each part of a path, and the interpreter's table of such names is made anew, 2 MiB at a
time, for every few thousand names that came and went (docs/decisions/0022-paths-of-a-start.md).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dockpy._below import remove_tree
from dockpy.container import Record
from dockpy.errors import KernelError
from dockpy.model import State, Status
from dockpy.records import Flusher, Trash, write
from dockpy.settings import from_json, to_json
from dockpy.spares import RECORD, STATE, WORN, Spare

WRITTEN = "written"
"""In a container's directory while files are copied into it and it does not run."""

Give = Callable[[str], object]


class ContainerFiles:
    """The files of all containers of one engine. Errors are KernelError or OSError."""

    def __init__(self, root: Path, run: Path, flusher: Flusher, trash: Trash) -> None:
        self._lasting = f"{root}/containers"
        self._passing = f"{run}/containers"
        self._passing_directory = os.open(self._passing, os.O_RDONLY | os.O_DIRECTORY)
        self._flusher = flusher
        self._trash = trash
        self._withdrawn: dict[str, str] = {}

    def close(self) -> None:
        os.close(self._passing_directory)

    def make(self, record: Record, top: os.stat_result, spare: Spare | None = None) -> None:
        """The directories and the record, the record last. On failure `discard` what there is.

        `top`: the root directory of its image; an overlay shows the mode and owner of its upper.
        `spare` has directories of the same image's.
        """
        directory = f"{self._lasting}/{record.id}"
        if spare is None:
            make_directories(directory, top)
        else:
            os.rename(spare.place, directory)
            spare.place = directory
        if record.config.auto_remove:
            os.mkdir(f"{self._passing}/{record.id}", 0o700)
            write(f"{self._passing}/{record.id}/{RECORD}", encode_record(record))
        else:
            self._write(record, RECORD, encode_record(record))

    def write_state(self, record: Record, state: State) -> None:
        """Put the state down, at one moment."""
        self._write(record, STATE, encode_state(record.id, state))

    def _write(self, record: Record, name: str, data: bytes) -> None:
        """Each record says whose it is: written over another's, it may be that one's after a
        power cut."""
        path = f"{self._lasting}/{record.id}/{name}"
        write(path, data, self._flusher, worn=WORN.format(name))

    def mark(self, record: Record) -> None:
        """From now on its files are written although it does not run; see `WRITTEN`."""
        write(f"{self._lasting}/{record.id}/{WRITTEN}", b"")

    def unmark(self, record: Record) -> None:
        os.unlink(f"{self._lasting}/{record.id}/{WRITTEN}")

    def place(self, record: Record) -> str:
        """Where its directory is, unless it is moved just now."""
        return self._withdrawn.get(record.id) or f"{self._lasting}/{record.id}"

    def withdraw(self, record: Record) -> str | None:
        """What it wrote disappears, and lies where this says until `discard`. None: there is
        nothing. KernelError when it stays where it is."""
        place = self._withdrawn.get(record.id)
        if place is None:
            place = self._trash.take(f"{self._lasting}/{record.id}")
            if place is not None:
                self._withdrawn[record.id] = place
        return place

    def discard(self, record: Record, spare: Give | None = None) -> None:
        """What it wrote disappears; the bytes are deleted in the background. None is fine too.

        `spare` gets its directory instead.
        """
        place = self.withdraw(record)
        if place is not None:
            del self._withdrawn[record.id]
            (spare or self._trash.delete)(place)

    def clear_run(self, identifier: str, *, keep: Sequence[str] = ()) -> None:
        """Remove its run directory, which holds plain files only, but for the files to `keep`;
        none is fine too."""
        if not keep:
            err = remove_tree(self._passing_directory, identifier.encode())
            if err:
                raise KernelError("remove", err, f"{self._passing}/{identifier}")
            return
        directory = f"{self._passing}/{identifier}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in names:
            if name not in keep:
                os.unlink(f"{directory}/{name}")
        if not set(names) & set(keep):
            os.rmdir(directory)


def make_directories(directory: str, top: os.stat_result) -> None:
    """A container's directory with those of its overlay; `top`: see `ContainerFiles.make`."""
    os.mkdir(directory, 0o710)
    os.mkdir(f"{directory}/upper", 0o700)
    if top.st_uid or top.st_gid:
        os.chown(f"{directory}/upper", top.st_uid, top.st_gid)
    os.chmod(f"{directory}/upper", stat.S_IMODE(top.st_mode))
    os.mkdir(f"{directory}/work", 0o700)


def encode_record(record: Record) -> bytes:
    """config.json."""
    values = {
        "id": record.id,
        "name": record.name,
        "created": record.created,
        "image": record.image_id,
        "image_name": record.image_name,
        "config": to_json(record.config),
    }
    return json.dumps(values).encode()


def record_of(values: Any, identifier: str) -> Record:
    """What `encode_record` wrote for that container. Raises LookupError, TypeError, ValueError."""
    if values["id"] != identifier:
        raise ValueError(f"the record of another container, {values['id']!r}")
    return Record(
        values["id"],
        values["name"],
        float(values["created"]),
        from_json(values["config"]),
        values["image"],
        values["image_name"],
    )


def encode_state(identifier: str, state: State) -> bytes:
    """state.json."""
    values = {"id": identifier} | asdict(state) | {"status": state.status.value}
    return json.dumps(values).encode()


def state_of(values: Any, identifier: str) -> State:
    """What `encode_state` wrote for that container; of None, that it was never started.

    Raises LookupError, TypeError, ValueError.
    """
    if values is None:
        return State()
    said = dict(**values)  # TypeError for anything else
    owner = said.pop("id", identifier)  # an earlier one says no id
    if owner != identifier:
        raise ValueError(f"the state of another container, {owner!r}")
    return State(**(said | {"status": Status(said["status"])}))
