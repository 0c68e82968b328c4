"""What a test may need of the machine, each with a probe that tries it.

`@pytest.mark.needs("overlay", "mknod")` runs every named probe once per session. A probe ends in
one of three ways: it returns (the test runs), it is refused (the test is skipped with the reason,
or fails when DOCKPY_REQUIRE_ALL=1), or it breaks in any other way (the test fails: nobody knows
what such a machine can do). A refusal is `Refused` or an OSError whose number is in REFUSALS.

Probes that change the calling process run in a forked child, and leave nothing on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

REFUSALS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODEV}
)
PROBE_SECONDS = 30
"""How long a child may try before it is ended and the probe counts as broken."""

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x20000000, 0x40000000, 0x02000000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SYS_BPF = {"x86_64": 321, "aarch64": 280}
SYS_CACHESTAT = 451
SYS_OPEN_TREE, SYS_PIDFD_OPEN, SYS_OPENAT2, SYS_MOVE_MOUNT = 428, 434, 437, 429

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """This machine does not have what the probe looked for; the text says what."""


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")
    if flags & CLONE_NEWNS:
        _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / private")


def _mount(kind: str, target: Path, options: str) -> None:
    _check(
        _libc.mount(kind.encode(), os.fsencode(target), kind.encode(), 0, options.encode()),
        f"mount {kind}",
    )


def in_child(action: Callable[[], None]) -> None:
    """Run `action` in a forked child; its OSError or Refused is raised here again.

    RuntimeError when the child ends in any other way. Blocks at most PROBE_SECONDS.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            signal.alarm(PROBE_SECONDS)
            action()
            code = 0
        except OSError as error:
            os.write(writer, f"{error.errno} {error}".encode())
        except BaseException as error:
            kind = "refused" if isinstance(error, Refused) else "broken"
            os.write(writer, f"{kind} {error!r}".encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return
    kind, _, text = told.partition(" ")
    if kind.isdigit():
        raise OSError(int(kind), text)
    if kind == "refused":
        raise Refused(text)
    raise RuntimeError(f"the probe's child broke (status {status:#x}): {text}")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dockpy-probe-", dir=real_directory()) as name:
        yield Path(name)


def dirty_pages(file: int) -> int:
    """How many pages of a file are not on the disk, nor on the way. Source: cachestat(2), 6.5."""
    whole = struct.pack("QQ", 0, 0)
    found = ctypes.create_string_buffer(5 * 8)
    _check(_libc.syscall(SYS_CACHESTAT, file, whole, found, 0), "cachestat")
    return int(struct.unpack("5Q", found)[1])


def _write_back() -> None:
    with _directory() as directory, open(directory / "file", "wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        if not dirty_pages(file.fileno()):
            raise Refused("the file system for tests does not wait with write-back")
        os.fsync(file.fileno())
        if dirty_pages(file.fileno()):
            raise Refused("the file system for tests writes nothing to a disk")


def real_directory() -> Path:
    """A directory for tests whose file system can be an overlay's upper: not a tmpfs.

    DOCKPY_TEST_DIR, else /var/tmp.
    """
    return Path(os.environ.get("DOCKPY_TEST_DIR") or "/var/tmp")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Refused(f"{name} is not installed")
    return path


# -- probes: privileges and namespaces ---------------------------------------------------------


def _root() -> None:
    if os.geteuid() != 0:
        raise Refused("not root")


def _namespace(flag: int) -> Callable[[], None]:
    return lambda: in_child(lambda: _unshare(flag))


def _overlay() -> None:
    with _directory() as place:
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir()

        def action() -> None:
            _unshare(CLONE_NEWNS)
            options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
            _mount("overlay", place / "merged", options)

        in_child(action)


def _devpts() -> None:
    with _directory() as place:

        def action() -> None:
            _unshare(CLONE_NEWNS)
            _mount("devpts", place, "newinstance,ptmxmode=0666,mode=0620")

        in_child(action)


def _user_attributes() -> None:
    """Attributes named user.* where tests' temporary directories are: tmpfs has them since 6.6."""
    with tempfile.NamedTemporaryFile(prefix="dockpy-probe-") as file:
        os.setxattr(file.name, "user.dockpy", b"1")


def _spread_directories() -> None:
    """The flag T of ext2, ext3 and ext4 (chattr(1)) where container roots are."""
    with _directory() as place:
        done = subprocess.run(
            [_tool("chattr"), "+T", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Refused(f"no directories that are spread here: {done.stderr.strip()[-200:]}")


def _mknod() -> None:
    with _directory() as place:
        os.mknod(place / "null", 0o020600, os.makedev(1, 3))


def _system_call(number: int, name: str) -> Callable[[], None]:
    def probe() -> None:
        # Bad arguments on purpose: a kernel that has the call says EINVAL, EBADF or ENOENT.
        if _libc.syscall(number, -1, -1, -1, -1) < 0:
            found = ctypes.get_errno()
            if found in REFUSALS:
                raise OSError(found, f"{name}: {os.strerror(found)}")

    return probe


def _seccomp() -> None:
    def action() -> None:
        allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(allow))
        _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "PR_SET_SECCOMP")

    in_child(action)


def _bpf_device() -> None:
    os.close(_device_program())


def _device_program() -> int:
    """A loaded cgroup device program that allows everything, as a descriptor. bpf(2)."""
    number = SYS_BPF.get(os.uname().machine)
    if number is None:
        raise Refused("the bpf system call's number on this machine is not known here")
    allow = ctypes.create_string_buffer(
        struct.pack("BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)  # r0 = 1; exit
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack("IIQQ", 15, 2, ctypes.addressof(allow), ctypes.addressof(licence)), 128
    )
    return _check(_libc.syscall(number, 5, attributes, len(attributes)), "load device program")


def _cgroup_bpf() -> None:
    """A device program can be loaded and attached to a group of the v2 hierarchy."""
    program = _device_program()
    try:
        with _group(_v2()) as group:
            directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                attach = struct.pack("IIII", directory, program, 6, 0).ljust(128, b"\0")
                number = SYS_BPF[os.uname().machine]
                _check(_libc.syscall(number, 8, attach, len(attach)), "attach device program")
            finally:
                os.close(directory)
    finally:
        os.close(program)


def _cgroups() -> None:
    """Some cgroup hierarchy in which groups can be made."""
    v1, v2 = _cgroup_mounts()
    for top in dict.fromkeys([*v1.values(), *([v2] if v2 else [])]):
        with _group(top):
            return
    raise Refused("no cgroup hierarchy is mounted")


# -- probes: cgroups ---------------------------------------------------------------------------


def _cgroup_mounts() -> tuple[dict[str, Path], Path | None]:
    """Directories of v1 controllers, and of v2."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point, kind = before.split()[4], after.split()[0]
        if kind == "cgroup2":
            v2 = v2 or Path(point)
        elif kind == "cgroup":
            for controller in after.split()[2].split(","):
                v1.setdefault(controller, Path(point))
    return v1, v2


@contextlib.contextmanager
def _group(parent: Path) -> Iterator[Path]:
    group = parent / f"dockpy-probe-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        if error.errno == errno.EROFS:
            raise Refused(f"{parent} is read-only") from error
        raise
    try:
        yield group
    finally:
        group.rmdir()


def _cgroup_v1() -> None:
    v1, _ = _cgroup_mounts()
    if "memory" not in v1:
        raise Refused("no cgroup v1 memory hierarchy is mounted")
    with _group(v1["memory"]):
        pass


def _v2() -> Path:
    _, v2 = _cgroup_mounts()
    if v2 is None:
        raise Refused("no cgroup v2 is mounted")
    return v2


def _cgroup_v2() -> None:
    with _group(_v2()):
        pass


def _cgroup_v2_controllers() -> None:
    offered = (_v2() / "cgroup.controllers").read_text().split()
    missing = {"memory", "pids", "cpu"} - set(offered)
    if missing:
        raise Refused(f"cgroup v2 here lacks {' '.join(sorted(missing))}")


def _cgroup_file(name: str) -> Callable[[], None]:
    def probe() -> None:
        with _group(_v2()) as group:
            if not (group / name).exists():
                raise Refused(f"this kernel's cgroup v2 has no {name}")

    return probe


def _controller(name: str, v1_file: str, v2_file: str) -> Callable[[], None]:
    """A controller with a certain limit, on whichever version of cgroups has it."""

    def probe() -> None:
        v1, v2 = _cgroup_mounts()
        if name in v1:
            with _group(v1[name]) as group:
                if not (group / v1_file).exists():
                    raise Refused(f"cgroup v1 here has no {v1_file}")
            return
        if v2 is None or name not in (v2 / "cgroup.controllers").read_text().split():
            raise Refused(f"no {name} controller is mounted")
        if v2_file.startswith("memory.swap") and not Path("/proc/swaps").exists():
            raise Refused("this kernel has no swap")

    return probe


# -- probes: tools and files -------------------------------------------------------------------


def is_static(program: Path) -> bool:
    """Whether a 64-bit ELF program has no PT_INTERP header, so that it runs in an empty root."""
    data = program.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return all(
        struct.unpack_from("<I", data, offset + index * size)[0] != 3 for index in range(count)
    )


def busybox_path() -> Path:
    """The static busybox that tiny container roots are made of. Refused when there is none."""
    path = Path(_tool("busybox")).resolve()
    if not is_static(path):
        raise Refused(f"{path} is not static; install busybox-static")
    return path


def docker_profile_path() -> Path:
    """The published seccomp profile to compare ours with, outside the repository.

    DOCKPY_DOCKER_PROFILE, else shared/data/ beside the checkout.
    """
    beside = Path(__file__).resolve().parents[2] / "shared/data/docker-seccomp-default.json"
    path = Path(os.environ.get("DOCKPY_DOCKER_PROFILE") or beside)
    if not path.exists():
        raise Refused("no published seccomp profile; name one in DOCKPY_DOCKER_PROFILE")
    return path


def debian_root_path() -> Path:
    """A Debian root directory: DOCKPY_DEBIAN_ROOT, else one made once and kept in the cache.

    Making it takes about a minute and needs debootstrap and a package mirror.
    """
    _root()
    given = os.environ.get("DOCKPY_DEBIAN_ROOT")
    if given:
        if not os.path.lexists(f"{given}/bin/nc"):
            raise RuntimeError(f"DOCKPY_DEBIAN_ROOT={given} is not made by tools/debian-root")
        return Path(given)
    _tool("debootstrap")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dockpy"
    root = cache / "debian-with-netcat"
    if (root / "etc/debian_version").exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    maker = Path(__file__).resolve().parents[1] / "tools" / "debian-root"
    made = subprocess.run(
        [str(maker), str(root)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode == 3:  # its word for: no mirror could be reached
        raise Refused(made.stderr.strip().splitlines()[-1])
    if made.returncode != 0:
        raise RuntimeError(f"tools/debian-root failed: {made.stderr.strip()[-500:]}")
    return root


def _kvm() -> None:
    if not Path("/dev/kvm").exists():
        raise Refused("no /dev/kvm")
    os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))


def _run_tool(*command: str) -> Callable[[], None]:
    def probe() -> None:
        program = [_tool(command[0]), *command[1:]]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(f"{' '.join(command)}: {done.stderr.strip()[-200:]}")

    return probe


def _found(find: Callable[[], object]) -> Callable[[], None]:
    def probe() -> None:
        find()

    return probe


def _ctnetlink() -> None:
    """Tracked connections can be listed (nf_conntrack_netlink)."""
    from dockpy.errors import KernelError
    from dockpy.network.conntrack import GET, SUBSYSTEM
    from dockpy.network.nfnetlink import Netfilter
    from dockpy.network.nft import Family

    asked = Netfilter()
    try:
        asked.dump(GET, Family.IPV4, b"", "list tracked connections", SUBSYSTEM)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Refused(f"{error}: the kernel has no nf_conntrack_netlink") from error
    finally:
        asked.close()


PROBES: Mapping[str, Callable[[], None]] = {
    "root": _root,
    "mount_namespace": _namespace(CLONE_NEWNS),
    "uts_namespace": _namespace(CLONE_NEWUTS),
    "pid_namespace": _namespace(CLONE_NEWPID),
    "cgroup_namespace": _namespace(CLONE_NEWCGROUP),
    "userns": _namespace(CLONE_NEWUSER),
    "netns": _namespace(CLONE_NEWNET),
    "ctnetlink": _ctnetlink,
    "overlay": _overlay,
    "write_back": _write_back,
    "devpts": _devpts,
    "mknod": _mknod,
    "user_attributes": _user_attributes,
    "spread_directories": _spread_directories,
    "mount_api": _system_call(SYS_MOVE_MOUNT, "move_mount"),
    "open_tree": _system_call(SYS_OPEN_TREE, "open_tree"),
    "openat2": _system_call(SYS_OPENAT2, "openat2"),
    "pidfd": _system_call(SYS_PIDFD_OPEN, "pidfd_open"),
    "seccomp": _seccomp,
    "bpf_device": _bpf_device,
    "cgroup_bpf": _cgroup_bpf,
    "cgroups": _cgroups,
    "cgroup_v1": _cgroup_v1,
    "cgroup_v2": _cgroup_v2,
    "cgroup_v2_controllers": _cgroup_v2_controllers,
    "cgroup_kill": _cgroup_file("cgroup.kill"),
    "memory_limit": _controller("memory", "memory.limit_in_bytes", "memory.max"),
    "swap_limit": _controller("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
    "pids_limit": _controller("pids", "pids.max", "pids.max"),
    "cpu_limit": _controller("cpu", "cpu.cfs_quota_us", "cpu.max"),
    "cpuset": _controller("cpuset", "cpuset.cpus", "cpuset.cpus"),
    "kvm": _kvm,
    "musl": _found(lambda: _tool("musl-gcc")),
    "busybox": _found(busybox_path),
    "docker_profile": _found(docker_profile_path),
    "debian_root": _found(debian_root_path),
    "cc": _found(lambda: _tool("cc")),
    "tar": _found(lambda: _tool("tar")),
    "docker_registry": _found(lambda: _tool("docker-registry")),
    "htpasswd": _found(lambda: _tool("htpasswd")),
    "openssl": _found(lambda: _tool("openssl")),
    "tinyproxy": _found(lambda: _tool("tinyproxy")),
    "skopeo": _found(lambda: _tool("skopeo")),
    "podman": _found(lambda: _tool("podman")),
    "umoci": _found(lambda: _tool("umoci")),
    "dockerd": _found(lambda: _tool("dockerd")),
    "nft": _run_tool("nft", "list", "tables"),
    "ip": _run_tool("ip", "link", "show", "lo"),
    "iptables": _run_tool("iptables-nft", "--version"),
}


class Needs:
    """Runs each probe at most once and remembers what it found."""

    def __init__(self, probes: Mapping[str, Callable[[], None]], *, require_all: bool) -> None:
        self._probes = probes
        self._require_all = require_all
        self._found: dict[str, str | None] = {}

    @property
    def known(self) -> frozenset[str]:
        return frozenset(self._probes)

    @property
    def require_all(self) -> bool:
        return self._require_all

    def missing(self, name: str) -> str | None:
        """Why `name` is not to be had here; None when it is. Other failures are raised."""
        if name not in self._found:
            self._found[name] = self._try(name)
        return self._found[name]

    def _try(self, name: str) -> str | None:
        try:
            self._probes[name]()
        except Refused as refused:
            return str(refused)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return str(error)
        return None
