"""A start plan: the flat list of steps a child takes between clone and exec, and its packed form.

Packed, a plan is a header, fixed-size steps and an arena of NUL-terminated texts, all little-endian
and read in place by `_clone`:

    header  u32 magic, u32 steps, u64 clone flags, u32 arena offset, u32 arena size
    step    i32 op, i32 a, b, c, i64 n, m, u32 text, text, text (offsets or 0xffffffff), u32 0

Descriptors are named by slot: their index in the list that travels with the plan. Pure.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence

from dockpy._clone import OPERATIONS
from dockpy.errors import CannotExecute, CommandNotFound, DockpyError, KernelError, UsageError

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
"""Mount attributes, mount_setattr(2)."""

NO_TARGET, FILE, DIRECTORY, REAL_DIRECTORY = 0, 1, 2, 3
"""What to make when a mount point is missing; a real directory is one no link stands for."""

_MAGIC = 0x31595044
_HEADER = struct.Struct("<IIQII")
_STEP = struct.Struct("<iiiiqqIIII")
_NONE = 0xFFFFFFFF

_NOT_EXECUTABLE = frozenset(
    {errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ELOOP, errno.EPERM, errno.ETXTBSY}
)


class Plan:
    """Steps in order. `labels` and `paths` say what each is about, for errors."""

    def __init__(self, clone_flags: int) -> None:
        self._flags = clone_flags
        self._steps: list[bytes] = []
        self._arena = bytearray()
        self._known: dict[bytes, int] = {}
        self.labels: list[str] = []
        self.paths: list[str | None] = []
        self._program = ""

    # -- steps ---------------------------------------------------------------------------------

    def join_cgroup(self, slot: int) -> None:
        """Write 0 into a v1 `tasks` file: moves the single-threaded caller without waiting."""
        self._add("join cgroup", "write_fd", a=slot, s1=self._text("0"))

    def unshare(self, flags: int, label: str) -> None:
        self._add(label, "unshare", n=flags)

    def join_namespace(self, slot: int, kind: int) -> None:
        self._add("join namespace", "setns", a=slot, n=kind)

    def loopback(self) -> None:
        """Bring `lo` up."""
        self._add("bring loopback up", "loopback")

    def hostname(self, name: str) -> None:
        self._add("set host name", "hostname", name, s1=self._text(name))

    def domainname(self, name: str) -> None:
        self._add("set domain name", "domainname", name, s1=self._text(name))

    def session(self) -> None:
        self._add("start a session", "setsid")

    def private_mounts(self) -> None:
        self._add("make mounts private", "private")

    def root(self, slot: int) -> None:
        """Attach the detached root and enter it; later paths are below it."""
        self._add("attach root", "root", a=slot)

    def mount(
        self,
        kind: str,
        target: str,
        *,
        options: Sequence[tuple[str, str]] = (),
        attributes: int = 0,
        create: int = DIRECTORY,
    ) -> None:
        """A new file system of `kind` on `target`, which is resolved inside the root."""
        self._add(
            f"mount {kind}",
            "mount",
            target,
            a=len(options),
            b=create,
            n=attributes,
            s1=self._text(kind),
            s2=self._own_text(target),
            s3=self._texts([part for option in options for part in option]),
        )

    def attach(self, slot: int, target: str, *, create: int) -> None:
        """A detached mount on `target`, which is resolved inside the root."""
        self._add("bind mount", "attach", target, a=slot, b=create, s1=self._own_text(target))

    def node(self, path: str, mode: int, device: int) -> None:
        """A device node; `path` has no links in it (it lies in a tmpfs of ours)."""
        self._add("make device", "node", path, a=mode, n=device, s1=self._text(path))

    def symlink(self, target: str, path: str) -> None:
        self._add("make link", "symlink", path, s1=self._text(target), s2=self._text(path))

    def mkdir(self, path: str, mode: int) -> None:
        self._add("make directory", "mkdir", path, a=mode, s1=self._text(path))

    def read_only(self, path: str) -> None:
        """Make what is at `path` read-only, if it exists."""
        self._add("make read-only", "read_only", path, s1=self._text(path))

    def mask(self, path: str) -> None:
        """Hide what is at `path`, if it exists."""
        self._add("mask", "mask", path, s1=self._text(path))

    def root_read_only(self) -> None:
        self._add("make root read-only", "root_read_only")

    def pivot(self) -> None:
        """pivot_root(".", ".") and let go of the old root."""
        self._add("pivot_root", "pivot")

    def limit(self, resource: int, soft: int, hard: int) -> None:
        """Resource limit; -1 is unlimited."""
        self._add("set resource limit", "rlimit", a=resource, n=soft, m=hard)

    def write_file(self, path: str, text: str) -> None:
        self._add("write", "write_file", path, s1=self._text(path), s2=self._text(text))

    def no_new_privileges(self) -> None:
        self._add("set no_new_privs", "no_new_privs")

    def seccomp(self, program: bytes) -> None:
        """Install a classic BPF filter (struct sock_filter[])."""
        self._add("install seccomp filter", "seccomp", a=len(program) // 8, s1=self._blob(program))

    def bound_capabilities(self, mask: int, last: int = 40) -> None:
        self._add("drop capabilities", "bound", a=last, n=mask)

    def groups(self, groups: Sequence[int]) -> None:
        packed = struct.pack(f"<{len(groups)}I", *groups)
        self._add("set groups", "groups", a=len(groups), s1=self._blob(packed))

    def ids(self, uid: int, gid: int) -> None:
        self._add("set user", "ids", a=uid, b=gid)

    def capabilities(self, mask: int) -> None:
        """Effective and permitted; inheritable and ambient become empty."""
        self._add("set capabilities", "capabilities", n=mask)

    def make_directory(self, path: str) -> None:
        """Make `path` with its parents if it is missing."""
        self._add("make working directory", "make_directory", path, s1=self._own_text(path))

    def chdir(self, path: str) -> None:
        """Enter `path`; refused when it leads out of the root."""
        self._add("enter working directory", "chdir", path, s1=self._text(path))

    def streams(self, stdin: int, stdout: int, stderr: int, owner: int) -> None:
        """Slots that become descriptors 0, 1 and 2; -1 is /dev/null. Given to `owner` if not 0."""
        self._add("connect streams", "stdio", a=stdin, b=stdout, c=stderr, n=owner)

    def terminal(self, slot: int, owner: int) -> None:
        """The controlling terminal, and descriptors 0, 1 and 2."""
        self._add("take terminal", "terminal", a=slot, n=owner)

    def console(self) -> None:
        """The terminal on /dev/console too."""
        self._add("bind console", "console")

    def close_descriptors(self) -> None:
        self._add("close descriptors", "close")

    def reset_signals(self) -> None:
        self._add("reset signals", "signals")

    def umask(self, mask: int) -> None:
        self._add("set umask", "umask", a=mask)

    def execute(self, argv: Sequence[str], env: Sequence[str], candidates: Sequence[str]) -> None:
        """The last step: the first candidate that exists is executed."""
        self._program = argv[0]
        self._add(
            "execute",
            "exec",
            argv[0],
            a=len(argv),
            b=len(env),
            c=len(candidates),
            s1=self._texts(argv),
            s2=self._texts(env),
            s3=self._texts(candidates),
        )

    def execute_slot(self, slot: int, argv: Sequence[str], env: Sequence[str]) -> None:
        """The last step: the program behind a descriptor."""
        self._program = argv[0]
        self._add(
            "execute init",
            "exec_fd",
            argv[0],
            a=len(argv),
            b=len(env),
            c=slot,
            s1=self._texts(argv),
            s2=self._texts(env),
        )

    # -- results -------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """The plan as the native interpreter reads it."""
        arena = bytes(self._arena) + b"\0"
        offset = _HEADER.size + len(self._steps) * _STEP.size
        header = _HEADER.pack(_MAGIC, len(self._steps), self._flags, offset, len(arena))
        return b"".join((header, *self._steps, arena))

    def error(self, step: int, err: int) -> DockpyError:
        """The exception for a failed step; steps count from 1, 0 is the clone itself."""
        if step == 0:
            return KernelError("clone", err)
        label, path = self.labels[step - 1], self.paths[step - 1]
        if label == "execute":
            if err in (errno.ENOENT, errno.ENOTDIR):
                return CommandNotFound(
                    f"{self._program}: no such program in the container; check its name and PATH"
                )
            if err in _NOT_EXECUTABLE:
                reason = KernelError(label, err)
                return CannotExecute(f"{self._program}: cannot be executed: {reason.strerror}")
        if label == "enter working directory" and err in (errno.ENOENT, errno.ELOOP):
            return CannotExecute(f"working directory {path} is not inside the container")
        return KernelError(label, err, path)

    # -- packing -------------------------------------------------------------------------------

    def _add(
        self,
        label: str,
        operation: str,
        path: str | None = None,
        *,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        n: int = 0,
        m: int = 0,
        s1: int = _NONE,
        s2: int = _NONE,
        s3: int = _NONE,
    ) -> None:
        self.labels.append(label)
        self.paths.append(path)
        self._steps.append(_STEP.pack(OPERATIONS[operation], a, b, c, n, m, s1, s2, s3, 0))

    def _text(self, text: str) -> int:
        """The offset of a text; the same text is kept once."""
        encoded = encode(text)
        known = self._known.get(encoded)
        if known is None:
            known = self._known[encoded] = self._append(encoded)
        return known

    def _own_text(self, text: str) -> int:
        """A copy of its own: the child cuts paths at their slashes while it walks them."""
        return self._append(encode(text))

    def _texts(self, texts: Iterable[str]) -> int:
        """Texts one after the other; the offset of the first."""
        offset = len(self._arena)
        for text in texts:
            self._append(encode(text))
        return offset if len(self._arena) > offset else _NONE if not self._arena else 0

    def _append(self, encoded: bytes) -> int:
        offset = len(self._arena)
        self._arena += encoded
        self._arena.append(0)
        return offset

    def _blob(self, data: bytes) -> int:
        """Bytes at an aligned offset."""
        self._arena += bytes(-(len(self._arena) + _HEADER.size) % 8)
        offset = len(self._arena)
        self._arena += data
        return offset


def encode(text: str) -> bytes:
    """Bytes for the kernel; UsageError for a text with a NUL in it."""
    encoded = text.encode("utf-8", "surrogateescape")
    if 0 in encoded:
        raise UsageError(f"{text!r} has a NUL character in it; leave it out")
    return encoded
