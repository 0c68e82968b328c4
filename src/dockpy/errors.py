"""Every exception dockpy raises, with the exit code and the HTTP status it stands for.

Three families: the request is wrong (`RequestError`), the kernel refused (`KernelError`), the
stored data is broken (`StoreError`). Callers choose by class, never by text.
"""

from __future__ import annotations

import errno
import os


class DockpyError(Exception):
    """Root of all errors dockpy raises on purpose."""

    exit_code = 125
    http_status = 500


class RequestError(DockpyError):
    """What was asked for cannot be done as asked; the text says what to change."""

    http_status = 400


class UsageError(RequestError):
    """A flag or argument that does not parse."""


class NotFound(RequestError):
    """No object of that name."""

    http_status = 404

    def __init__(self, kind: str, reference: str, hint: str = "") -> None:
        self.kind = kind
        self.reference = reference
        super().__init__(f"no such {kind}: {reference}" + (f" ({hint})" if hint else ""))


class NoSuchContainer(NotFound):
    """No container has that id, unique prefix or name."""

    def __init__(self, reference: str) -> None:
        super().__init__("container", reference)


class NoSuchImage(NotFound):
    """No image has that id, unique prefix or tag."""

    def __init__(self, reference: str, hint: str = "") -> None:
        super().__init__("image", reference, hint)


class AmbiguousPrefix(RequestError):
    """An id prefix that fits more than one object."""

    def __init__(self, prefix: str, matches: int) -> None:
        self.prefix = prefix
        self.matches = matches
        super().__init__(f"{prefix} is ambiguous: {matches} ids start with it; give more of the id")


class Conflict(RequestError):
    """The object's state, or another object, stands against the request."""

    http_status = 409


class NameInUse(Conflict):
    """Another container has that name already."""

    def __init__(self, name: str, owner: str) -> None:
        self.name = name
        self.owner = owner
        super().__init__(
            f"the name {name!r} is in use by container {owner[:12]}; remove or rename it first"
        )


class CannotExecute(RequestError):
    """The program exists in the container but the kernel will not execute it."""

    exit_code = 126


class CommandNotFound(RequestError):
    """The program does not exist in the container."""

    exit_code = 127


class Locked(RequestError):
    """Another engine owns the state directory."""

    def __init__(self, root: str, pid: int) -> None:
        self.root = root
        self.pid = pid
        super().__init__(f"{root} is in use by the dockpy engine with pid {pid}")


class KernelError(DockpyError, OSError):
    """A system call the kernel refused, and the step of the plan it belonged to."""

    def __init__(self, step: str, err: int, path: str | None = None) -> None:
        OSError.__init__(self, err, os.strerror(err), path)
        self.step = step

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        target = f" on {self.filename}" if self.filename else ""
        return f"{self.step}{target}: {name} ({self.strerror})"


class StoreError(DockpyError):
    """Stored data that is missing, torn or not what its name promises."""


class TornRecord(StoreError):
    """A record on disk that does not parse; it is set aside, never guessed at."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"{path}: {why}")


class BadArchive(RequestError):
    """An archive that is damaged, hostile or of an unknown format."""


class SupervisorLost(DockpyError):
    """A supervisor died before it answered; its containers are handed to a new one."""


class RegistryError(RequestError):
    """A registry that cannot be reached, refuses, or answers what makes no sense."""

    http_status = 502


class Unauthorized(RegistryError):
    """A registry wants other credentials than it got, or any at all."""

    http_status = 401


class NotInRegistry(RegistryError):
    """A registry does not have what was asked for."""

    http_status = 404


class Cancelled(RequestError):
    """The caller wanted a transfer to end before it was done."""
