"""A start plan: the flat list of steps a child takes between clone and exec, and its packed form.

Packed, a plan is a header, fixed-size steps and an arena of NUL-terminated texts, all little-endian
and read in place by `_clone`:

    header  u32 magic, u32 steps, u64 clone flags, u32 arena offset, u32 arena size
    step    i32 op, i32 a, b, c, i64 n, m, u32 text, text, text (offsets or 0xffffffff), u32 0

Descriptors are named by slot: their index in the list that travels with the plan. Steps stand in
this order, which `_clone` checks before it clones: what joins namespaces and cgroups, private
mounts, the root, what is mounted below it, pivot, streams, closing of descriptors, working
directory, program. Pure.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence

from dockpy._clone import OPERATIONS
from dockpy.errors import (
    CannotExecute,
    CommandNotFound,
    DockpyError,
    KernelError,
    RequestError,
    UsageError,
)

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

_EXECUTE = "execute"
_ENTER = "enter working directory"
_MAKE_CWD = "make working directory"
_ATTACH = "bind mount"
_HOST_NAME = "set host name"
_DOMAIN_NAME = "set domain name"
_NAMES = (_HOST_NAME, _DOMAIN_NAME)
"""Steps about something that is no path."""

_NOT_EXECUTABLE = {
    errno.EACCES: "permission denied; make it executable for the container's user",
    errno.EISDIR: "is a directory; name a program",
    errno.ENOEXEC: "is no program this machine can execute; check its architecture and first line",
    errno.ELOOP: "too many symbolic links; name the program itself",
    errno.EPERM: "the kernel does not permit it",
    errno.ETXTBSY: "is open for writing; close it first",
    errno.E2BIG: "arguments and environment are too long; shorten them",
    errno.ENAMETOOLONG: "its name is too long",
}
"""execve(2). EISDIR is ours: the kernel says EACCES there too."""


class Plan:
    """Steps in order. `labels` and `paths` say what each is about, for errors.

    A plan made from `base` starts with the texts of `base`, whose steps it may `take` at any place:
    what is the same in every start is packed once.
    """

    def __init__(self, clone_flags: int = 0, base: Plan | None = None) -> None:
        self._flags = clone_flags
        self._steps: list[bytes] = []
        self._arena: bytearray = bytearray() if base is None else base._arena.copy()
        self._known: dict[str, int] = {} if base is None else base._known.copy()
        self.labels: list[str] = []
        self.paths: list[str | None] = []
        self._real: list[int] = []
        self._program = ""

    # -- joining -------------------------------------------------------------------------------

    def join_cgroup(self, slot: int) -> None:
        """Write 0 into a v1 `tasks` file: moves the single-threaded caller without waiting."""
        self._add("join cgroup", "write_fd", a=slot, s1=self._text("0"))

    def new_cgroup_namespace(self) -> None:
        """Its root is the cgroup the child is in by now."""
        self._add("make a cgroup namespace", "unshare", n=CLONE_NEWCGROUP)

    def join_namespace(self, slot: int, kind: int) -> None:
        self._add("join namespace", "setns", a=slot, n=kind)

    def enter(self, slot: int, root: int, *, own_memory: bool = False) -> None:
        """Enter the namespaces of the process behind a pidfd and its root directory; the program
        will be a child in its pid namespace.

        `own_memory`: the child gets a copy of the caller's memory instead of sharing it until exec,
        so that a process in there that may trace others finds nothing of the caller's.
        Source: setns(2), pid_namespaces(7), ptrace(2).
        """
        kinds = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP
        self._add("enter container", "enter", a=slot, b=root, n=kinds, m=own_memory)

    def loopback(self) -> None:
        """Bring `lo` up."""
        self._add("bring loopback up", "loopback")

    def hostname(self, name: str) -> None:
        self._add(_HOST_NAME, "hostname", name, s1=self._text(name))

    def domainname(self, name: str) -> None:
        self._add(_DOMAIN_NAME, "domainname", name, s1=self._text(name))

    def session(self) -> None:
        self._add("start a session", "setsid")

    def private_mounts(self) -> None:
        self._add("make mounts private", "private")

    # -- mounts, all below the root ------------------------------------------------------------

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
        """A new file system of `kind` on `target`, which is resolved inside the root.

        An option with an empty value is a flag.
        """
        if create == REAL_DIRECTORY:
            self._real.append(len(self.labels) + 1)
        self._add(
            f"mount {kind}",
            "mount",
            target,
            a=len(options),
            b=create,
            n=attributes,
            s1=self._text(kind),
            s2=self._text(target),
            s3=self._texts([part for option in options for part in option]),
        )

    def attach(self, slot: int, target: str, *, create: int) -> None:
        """A detached mount on `target`, which is resolved inside the root."""
        if create == REAL_DIRECTORY:
            self._real.append(len(self.labels) + 1)
        self._add(_ATTACH, "attach", target, a=slot, b=create, s1=self._text(target))

    def node(self, path: str, mode: int, device: int) -> None:
        """A device node; `path` has no links in it (it lies in a tmpfs of ours)."""
        self._add("make device", "node", path, a=mode, n=device, s1=self._text(path))

    def symlink(self, target: str, path: str) -> None:
        """A link in a directory of ours."""
        self._add("make link", "symlink", path, s1=self._text(target), s2=self._text(path))

    def mkdir(self, path: str, mode: int) -> None:
        """A directory in a directory of ours."""
        self._add("make directory", "mkdir", path, a=mode, s1=self._text(path))

    def write_file(self, path: str, text: str) -> None:
        self._add("write", "write_file", path, s1=self._text(path), s2=self._text(text))

    def console(self, slot: int) -> None:
        """The terminal on /dev/console too."""
        self._add("bind console", "console", "dev/console", a=slot)

    def read_only(self, path: str) -> None:
        """Make what is at `path` read-only, if it exists."""
        self._add("make read-only", "read_only", path, s1=self._text(path))

    def mask(self, path: str) -> None:
        """Hide what is at `path`, if it exists."""
        self._add("mask", "mask", path, s1=self._text(path))

    def mask_cpus(self) -> None:
        """Hide `thermal_throttle` of every cpu in sysfs."""
        self._add("mask", "mask_cpus", "sys/devices/system/cpu/cpu*/thermal_throttle")

    def set_read_only(self, path: str) -> None:
        """The mount whose root `path` is becomes read-only, none of those in it."""
        self._add("make mount read-only", "set_read_only", path, s1=self._text(path))

    def make_directory(self, path: str) -> None:
        """Make `path` with its parents if it is missing."""
        self._add(_MAKE_CWD, "make_directory", path, s1=self._text(path))

    def pivot(self) -> None:
        """pivot_root(".", ".") and let go of the old root."""
        self._add("pivot_root", "pivot")

    # -- the process ---------------------------------------------------------------------------

    def streams(self, stdin: int, stdout: int, stderr: int, owner: int) -> None:
        """Slots that become descriptors 0, 1 and 2; -1 is /dev/null. Pipes are given to `owner`."""
        self._add("connect streams", "stdio", a=stdin, b=stdout, c=stderr, n=owner)

    def terminal(self, slot: int, owner: int) -> None:
        """The controlling terminal, and descriptors 0, 1 and 2."""
        self._add("take terminal", "terminal", a=slot, n=owner)

    def close_descriptors(self, kept: int = -1) -> None:
        """Everything but 0, 1, 2; slot `kept` stays until `execute_slot`."""
        self._add("close descriptors", "close", a=kept)

    def limit(self, resource: int, soft: int, hard: int) -> None:
        """Resource limit; -1 is unlimited."""
        self._add("set resource limit", "rlimit", a=resource, n=soft, m=hard)

    def no_new_privileges(self) -> None:
        self._add("set no_new_privs", "no_new_privs")

    def seccomp(self, program: bytes) -> None:
        """Install a classic BPF filter (struct sock_filter[])."""
        self._add("install seccomp filter", "seccomp", a=len(program) // 8, s1=self._blob(program))

    def bound_capabilities(self, mask: int) -> None:
        """Drop all others from the bounding set."""
        self._add("drop capabilities", "bound", n=_signed(mask))

    def groups(self, groups: Sequence[int]) -> None:
        packed = struct.pack(f"<{len(groups)}I", *groups)
        self._add("set groups", "groups", a=len(groups), s1=self._blob(packed))

    def ids(self, uid: int, gid: int) -> None:
        """Real, effective and saved ids. UsageError for 2**32 - 1, which means no change."""
        self._add("set user", "ids", a=_id(uid), b=_id(gid))

    def capabilities(self, mask: int) -> None:
        """Effective and permitted; inheritable and ambient become empty."""
        self._add("set capabilities", "capabilities", n=_signed(mask))

    def chdir(self, path: str, *, early: bool = False) -> None:
        """Enter `path`; refused when it leads out of the root.

        `early`: without permission, leave it to a later step; one that succeeds is the last.
        """
        self._add(_ENTER, "chdir", path, a=early, s1=self._text(path))

    def reset_signals(self) -> None:
        """Default dispositions, nothing blocked."""
        self._add("reset signals", "signals")

    def umask(self, mask: int) -> None:
        self._add("set umask", "umask", a=mask)

    def execute(self, argv: Sequence[str], env: Sequence[str], candidates: Sequence[str]) -> None:
        """The last step: the first candidate that exists is executed."""
        self._program = argv[0]
        self._add(
            _EXECUTE,
            "exec",
            argv[0],
            a=len(argv),
            b=len(env),
            c=len(candidates),
            s1=self._texts(argv),
            s2=self._texts(env),
            s3=self._texts(candidates),
        )

    def execute_slot(self, argv: Sequence[str], env: Sequence[str]) -> None:
        """The last step: the program behind the slot that `close_descriptors` kept."""
        self._add(
            "execute init",
            "exec_fd",
            a=len(argv),
            b=len(env),
            s1=self._texts(argv),
            s2=self._texts(env),
        )

    def take(self, base: Plan, steps: slice) -> None:
        """Steps of the plan this one was made from."""
        shift = len(self.labels) - steps.start
        self._real += [one + shift for one in base._real if steps.start < one <= steps.stop]
        self._steps += base._steps[steps]
        self.labels += base.labels[steps]
        self.paths += base.paths[steps]

    # -- results -------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """The plan as the native interpreter reads it."""
        offset = _HEADER.size + len(self._steps) * _STEP.size
        size = len(self._arena) + 1
        header = _HEADER.pack(_MAGIC, len(self._steps), self._flags, offset, size)
        return b"".join((header, *self._steps, self._arena, b"\0"))

    def error(self, step: int, err: int) -> DockpyError:
        """The exception for a failed step; steps count from 1, 0 is the clone itself."""
        if step == 0:
            return KernelError("clone", err)
        label, path = self.labels[step - 1], self.paths[step - 1]
        if label == _EXECUTE:
            return self._cannot_execute(label, err)
        shown = path if path is None or label in _NAMES else f"/{path.lstrip('/')}"
        if label == _ENTER:
            return _cannot_enter(str(shown), err)
        if label == _MAKE_CWD:
            return _cannot_enter(str(shown), err)
        if step in self._real and err in (errno.ELOOP, errno.ENOTDIR):
            return RequestError(f"{shown} is not a directory in the image; make it one")
        if label == _ATTACH and err in (errno.ENOTDIR, errno.ELOOP):
            return RequestError(
                f"cannot mount on {shown}: one is a directory, the other is not, or a link on the "
                "way leads nowhere; choose another target"
            )
        return KernelError(label, err, shown)

    def _cannot_execute(self, label: str, err: int) -> DockpyError:
        if err in (errno.ENOENT, errno.ENOTDIR):
            return CommandNotFound(
                f"{self._program}: no such program in the container; check its name and PATH"
            )
        if err == errno.ELIBACC:
            return CommandNotFound(
                f"{self._program}: its interpreter is missing in the container; check its first "
                "line, or install the loader it is linked with"
            )
        if err in _NOT_EXECUTABLE:
            return CannotExecute(f"{self._program}: {_NOT_EXECUTABLE[err]}")
        return KernelError(label, err, self._program)

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
        self._steps.append(_STEP.pack(OPERATIONS[operation], a, b, c, n, m, s1, s2, s3, 0))
        self.labels.append(label)
        self.paths.append(path)

    def _text(self, text: str) -> int:
        """The offset of a text; the same text is kept once."""
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._append(encode(text))
        return known

    def _texts(self, texts: Iterable[str]) -> int:
        """Texts one after the other; the offset of the first, or none."""
        offset = len(self._arena)
        for text in texts:
            self._append(encode(text))
        return offset if len(self._arena) > offset else _NONE

    def _append(self, encoded: bytes) -> int:
        offset = len(self._arena)
        self._arena += encoded
        self._arena.append(0)
        return offset

    def _blob(self, data: bytes) -> int:
        """Bytes at an aligned offset; the arena itself starts at a multiple of 8."""
        self._arena += bytes(-len(self._arena) % 8)
        offset = len(self._arena)
        self._arena += data
        return offset


def _cannot_enter(path: str, err: int) -> DockpyError:
    if err in (errno.ENOENT, errno.EXDEV):
        return CannotExecute(f"working directory {path} is not inside the container")
    if err in (errno.EACCES, errno.EPERM):
        return CannotExecute(f"working directory {path}: permission denied to the container's user")
    if err in (errno.ENOTDIR, errno.ELOOP):
        return CannotExecute(f"working directory {path} is not a directory in the container")
    return KernelError(_ENTER, err, path)


def _id(number: int) -> int:
    """An id as the step's signed field holds it."""
    if not 0 <= number < 0xFFFFFFFF:
        raise UsageError(f"{number} is no user or group id; ids are 0 to 4294967294")
    return number - (1 << 32) if number >> 31 else number


def _signed(mask: int) -> int:
    """64 bits as the step's signed field holds them."""
    return mask - (1 << 64) if mask >> 63 else mask


def encode(text: str) -> bytes:
    """Bytes for the kernel; UsageError for a text with a NUL in it."""
    encoded = text.encode("utf-8", "surrogateescape")
    if 0 in encoded:
        raise UsageError(f"{text!r} has a NUL character in it; leave it out")
    return encoded
