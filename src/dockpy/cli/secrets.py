"""The caller's `config.json` and credential helpers, used with the caller's rights.

The file is DOCKER_CONFIG/config.json, or .docker/config.json in the caller's home. Helpers are
found in the caller's PATH and run as the caller, in a session of their own, with nothing of ours
but the pipes; secrets go through those, never through arguments or the environment.
"""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess

from dockpy.cli.rights import rights_of
from dockpy.cli.session import Session
from dockpy.errors import RequestError
from dockpy.registry import credentials
from dockpy.registry.auth import Credentials

LIMIT = 1 << 20
HELPER_SECONDS = 60.0


class CallersKeeper:
    """`credentials.Keeper` for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = session.env.get("DOCKER_CONFIG") or f"{home_of(session)}/.docker"

    @property
    def place(self) -> str:
        return f"{self._directory}/config.json"

    def read(self) -> str:
        try:
            return self._session.read_file(self.place, LIMIT)
        except RequestError as failure:
            if isinstance(failure.__cause__, FileNotFoundError | NotADirectoryError):
                return ""
            raise

    def write(self, text: str) -> None:
        session = self._session
        try:
            with rights_of(session.uid, session.gid, session.groups):
                directory = os.path.join(session.directory(), self._directory)
                os.makedirs(directory, 0o700, exist_ok=True)
                target = os.path.realpath(f"{directory}/config.json")
                fresh = f"{target}.{secrets.token_hex(4)}"
                fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    with os.fdopen(fd, "wb") as file:
                        file.write(text.encode())
                        file.flush()
                        os.fsync(fd)
                    os.rename(fresh, target)
                except BaseException:
                    os.unlink(fresh)
                    raise
        except OSError as failure:
            raise RequestError(f"cannot write {self.place}: {failure.strerror}") from failure

    def run(self, program: str, action: str, text: str) -> tuple[int, str]:
        session = self._session
        other = session.uid != os.geteuid()
        try:
            done = subprocess.run(
                [program, action],
                input=text.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=dict(session.env),
                user=session.uid if other else None,
                group=session.gid if other else None,
                extra_groups=list(session.groups) if other else None,
                start_new_session=True,
                timeout=HELPER_SECONDS,
                check=False,
            )
        except FileNotFoundError as missing:
            raise RequestError(
                f"{program}, which {self.place} names, is not in your PATH; install it"
            ) from missing
        except subprocess.TimeoutExpired:
            raise RequestError(f"{program} does not answer") from None
        except OSError as failure:
            raise RequestError(f"cannot run {program}: {failure.strerror}") from failure
        return done.returncode, done.stdout[:LIMIT].decode(errors="replace")


def home_of(session: Session) -> str:
    """The caller's home directory."""
    home = session.env.get("HOME", "")
    if home:
        return home
    try:
        return pwd.getpwuid(session.uid).pw_dir
    except KeyError:
        raise RequestError("HOME is not set, so there is no place for credentials") from None


def asking(session: Session) -> credentials.Asking:
    """A function that gives the caller's credentials for a registry's host."""
    keeper = CallersKeeper(session)

    def ask(host: str) -> Credentials:
        return credentials.look_up(keeper, host)

    return ask
