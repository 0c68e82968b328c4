"""One container's cgroups: join, limits, counters, kill, freeze, remove.

Nothing is held open between calls: ten thousand containers cost no descriptors. Rules:
- On v1 the child itself writes 0 to `tasks`: moving a process through cgroup.procs waits 7 to 15 ms
  for RCU on a quiet host. On v2 CLONE_INTO_CGROUP puts it there at birth.
- rmdir of a group fails with EBUSY while a process in it lives or dies.
- cgroup.kill (Linux 5.14) reaches every process below the group, also those forking meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dockpy import devices
from dockpy._below import remove_directories
from dockpy.cgroups import files, stats
from dockpy.cgroups.limits import Limits, Setting, check, raise_swap_first, settings
from dockpy.cgroups.parent import SHARED, Branch, Parent, write_device_list
from dockpy.cgroups.stats import CgroupStats
from dockpy.errors import KernelError, RequestError

FREEZE_TIMEOUT = 10.0
KILL_TIMEOUT = 10.0
REMOVE_TIMEOUT = 10.0
REPLACE_TIMEOUT = 1.0
FIRST_SLEEP = 0.001
LONGEST_SLEEP = 0.1
MOVE_ROUNDS = 100
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
VIEWED = ("memory", "cpu", "cpuacct", "cpuset", "pids", "blkio")
"""What a container may see of v1: limits and counters."""
RECIPES = 256
"""Different limits to remember; most hosts have a handful."""


@dataclass(frozen=True, slots=True)
class Join:
    """Descriptors a new process joins with; the caller closes them all (`close`).

    `tasks`: the process writes `0` to each. `directory`: for CLONE_INTO_CGROUP, or None.
    """

    tasks: tuple[int, ...]
    directory: int | None

    def close(self) -> None:
        for fd in self.tasks:
            os.close(fd)
        if self.directory is not None:
            os.close(self.directory)


class Cgroup:
    """The groups named `name` below the parent, in every hierarchy where there is one."""

    def __init__(
        self, parent: Parent, name: str, branches: Mapping[int, Branch], owner: object
    ) -> None:
        """`branches`: by descriptor, where the groups are; `owner`: the one in `parent.owners`."""
        self.name = name
        self._parent = parent
        self._branches = branches
        self._owner = owner

    def __repr__(self) -> str:
        return f"Cgroup({self.name!r})"

    # joining

    def join(self) -> Join:
        """Open what a new process joins with. Raises KernelError (ENOENT: removed meanwhile)."""
        parent, path = self._parent, self.name + "/tasks"
        tasks: list[int] = []
        directory = None
        try:
            for fd, branch in self._branches.items():
                if branch is parent.v2:
                    directory = os.open(self.name, OPEN_DIRECTORY, dir_fd=fd)
                else:
                    tasks.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd))
            devices_v1 = parent.v1.get("devices")
            if devices_v1 is not None and devices_v1.fd not in self._branches:
                tasks.append(os.dup(parent.default_tasks))
        except OSError as error:
            Join(tuple(tasks), directory).close()
            raise self._refused("open cgroup", error, branch, self.name) from error
        return Join(tuple(tasks), directory)

    def _open_directory(self, v2: Branch) -> int:
        try:
            return os.open(self.name, OPEN_DIRECTORY, dir_fd=v2.fd)
        except OSError as error:
            raise self._refused("open cgroup", error, v2, self.name) from error

    def open_view(self) -> list[tuple[str, int]]:
        """v1: (name below /sys/fs/cgroup, O_PATH descriptor), for the caller to close.

        Where it has no group of its own, an empty group that has no limits stands for it: programs
        take no hierarchy for a container's when one of memory, cpu, cpuacct and cpuset is missing.
        KernelError.
        """
        parent = self._parent
        branches = {one.fd: one for name in VIEWED if (one := parent.v1.get(name)) is not None}
        found: list[tuple[str, int]] = []
        for branch in branches.values():
            name = self.name if branch.fd in self._branches else SHARED
            try:
                if name == SHARED:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=branch.fd)
                directory = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=branch.fd)
            except OSError as error:
                for _, opened in found:
                    os.close(opened)
                raise self._refused("show cgroup", error, branch, name) from error
            found.append((",".join(sorted(branch.controllers)), directory))
        return found

    # limits

    def update(self, limits: Limits) -> None:
        """Write what `limits` asks for; what it does not ask for stays.

        A group that a limit needs and that was not made at the start is made now and all
        processes are moved into it, which can take 15 ms for each. Raises RequestError (memory
        below what is in use among them) and KernelError; limits before the one named are in force.
        """
        host = self._parent.host
        check(limits, host)
        order = settings(limits, host)
        if limits.pids is None:
            order = [each for each in order if each.controller != "pids"]
        if any(each.files[0][0] == "memory.memsw.limit_in_bytes" for each in order):
            order = raise_swap_first(order, self._current_swap_limit())
        for setting in order:
            self._make_for(setting)
        self._write(order)
        if limits.devices or limits.privileged:
            self._update_devices(limits)

    def _current_swap_limit(self) -> int:
        text = files.read_or_empty(
            self._parent.v1["memory"].fd, f"{self.name}/memory.memsw.limit_in_bytes"
        )
        return int(text) if text.strip().isdecimal() else 0

    def _make_for(self, setting: Setting) -> None:
        if setting.controller == "cpuset" and setting.version == 2:
            self._parent.enable_cpuset()
        branch = self._parent.branch(setting.controller)
        if branch is not None:
            self._add(branch)

    def _add(self, branch: Branch, set_up: Callable[[], None] | None = None) -> None:
        """Make the group in one more v1 hierarchy, set it up, move every process into it."""
        if branch.fd in self._branches:
            if set_up is not None:
                set_up()
            return
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.name, 0o755, dir_fd=branch.fd)
            if set_up is not None:
                set_up()
            moved: set[int] = set()
            for _ in range(MOVE_ROUNDS):  # until no new one was forked meanwhile
                remaining = set(self.processes()) - moved
                if not remaining:
                    break
                for pid in remaining:
                    with contextlib.suppress(ProcessLookupError):
                        files.write(branch.fd, f"{self.name}/cgroup.procs", b"%d" % pid)
                moved |= remaining
        except OSError as error:
            raise self._refused("move into cgroup", error, branch, self.name) from error
        self._branches = {**self._branches, branch.fd: branch}

    def _write(self, order: Iterable[Setting]) -> None:
        for setting in order:
            branch = self._parent.branch(setting.controller)
            if branch is None:
                continue
            for file, value in setting.files:
                try:
                    files.write(branch.fd, f"{self.name}/{file}", value.encode("ascii"))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise self._limit_refused(setting, value, error, branch, file) from error
                break
            else:
                self._no_file(setting, branch)

    def _limit_refused(
        self, setting: Setting, value: str, error: OSError, branch: Branch, file: str
    ) -> RequestError | KernelError:
        if error.errno == errno.EBUSY:
            return RequestError(f"{setting.option} {value}: more than that is in use now")
        if error.errno in {errno.EINVAL, errno.ERANGE, errno.ENOSPC}:
            return RequestError(f"{setting.option} {value}: the kernel refuses this value")
        return self._refused("set limit", error, branch, f"{self.name}/{file}")

    def _no_file(self, setting: Setting, branch: Branch) -> None:
        if not files.exists(branch.fd, self.name):
            path = str(branch.directory / self.name)
            raise KernelError("set limit", errno.ENOENT, path)
        if setting.required:
            names = " or ".join(name for name, _ in setting.files)
            hint = "; boot with swapaccount=1" if "sw" in setting.files[0][0] else ""
            raise RequestError(f"{setting.option}: this kernel has no {names}{hint}")

    def _update_devices(self, limits: Limits) -> None:
        rules = (*devices.DEFAULT_RULES, *devices.requested_rules(limits.devices))
        branch = self._parent.v1.get("devices")
        if branch is not None:
            fd = branch.fd

            def set_up() -> None:
                if limits.privileged:
                    files.write(fd, f"{self.name}/devices.allow", b"a")
                else:
                    write_device_list(fd, self.name, rules)

            try:
                self._add(branch, set_up)
            except KernelError:
                raise
            except OSError as error:
                raise self._refused("set devices", error, branch, self.name) from error
            return
        v2 = self._v2()
        if v2 is not None:
            directory = self._open_directory(v2)
            program = None
            try:
                if not limits.privileged:
                    program = devices.load(devices.program(rules))
                devices.replace(directory, program)
            finally:
                os.close(directory)
                if program is not None:
                    os.close(program)

    # counters

    def stats(self) -> CgroupStats:
        """Read all counters now: about 15 small files. Zeros when the group is gone."""
        found: dict[str, int] = {}
        for controller, version1, version2 in (
            ("memory", self._memory_v1, self._memory_v2),
            ("cpu", self._cpu_v1, None),
            ("pids", self._pids, self._pids),
            ("io", self._io_v1, self._io_v2),
        ):
            version = self._parent.host.versions.get(controller)
            reader = version1 if version == 1 else version2 if version == 2 else None
            branch = self._parent.branch(controller)
            if reader is not None and branch is not None:
                found.update(reader(branch))
        found.update(self._cpu_time())
        return CgroupStats(**found)

    def oom_kills(self) -> int:
        """How many processes of this group the kernel killed for want of memory.

        Processes killed by a signal from elsewhere do not count. 0 where the kernel cannot tell.
        """
        branch = self._parent.branch("memory")
        if branch is None:
            return 0
        if branch is not self._parent.v2:
            text = self._text(branch, "memory.oom_control")
        else:
            text = self._text(branch, "memory.events.local") or self._text(branch, "memory.events")
        return stats.table(text).get("oom_kill", 0)

    def _text(self, branch: Branch, file: str) -> str:
        return files.read_or_empty(branch.fd, f"{self.name}/{file}")

    def _number(self, branch: Branch, file: str) -> int:
        return stats.number(self._text(branch, file))

    def _memory_v1(self, branch: Branch) -> dict[str, int]:
        table = stats.table(self._text(branch, "memory.stat"))
        usage = self._number(branch, "memory.usage_in_bytes")
        limit = self._number(branch, "memory.limit_in_bytes")
        both = self._number(branch, "memory.memsw.limit_in_bytes")
        return {
            "memory_usage": usage,
            "memory_limit": limit,
            "memory_peak": self._number(branch, "memory.max_usage_in_bytes"),
            "memory_inactive_file": table.get("total_inactive_file", 0),
            "swap_usage": table.get("total_swap", 0),
            "swap_limit": max(0, both - limit) if both else 0,
            "oom_kills": self.oom_kills(),
        }

    def _memory_v2(self, branch: Branch) -> dict[str, int]:
        return {
            "memory_usage": self._number(branch, "memory.current"),
            "memory_limit": self._number(branch, "memory.max"),
            "memory_peak": self._number(branch, "memory.peak"),
            "memory_inactive_file": stats.table(self._text(branch, "memory.stat")).get(
                "inactive_file", 0
            ),
            "swap_usage": self._number(branch, "memory.swap.current"),
            "swap_limit": self._number(branch, "memory.swap.max"),
            "oom_kills": self.oom_kills(),
        }

    def _cpu_v1(self, branch: Branch) -> dict[str, int]:
        table = stats.table(self._text(branch, "cpu.stat"))
        return {
            "periods": table.get("nr_periods", 0),
            "throttled_periods": table.get("nr_throttled", 0),
            "throttled_ns": table.get("throttled_time", 0),
        }

    def _cpu_time(self) -> dict[str, int]:
        v2, account = self._v2(), self._parent.v1.get("cpuacct")
        if v2 is not None:
            table = stats.table(self._text(v2, "cpu.stat"))
            found = {
                "cpu_ns": table.get("usage_usec", 0) * 1000,
                "cpu_user_ns": table.get("user_usec", 0) * 1000,
                "cpu_system_ns": table.get("system_usec", 0) * 1000,
            }
            if self._parent.host.versions.get("cpu") == 2:
                found["periods"] = table.get("nr_periods", 0)
                found["throttled_periods"] = table.get("nr_throttled", 0)
                found["throttled_ns"] = table.get("throttled_usec", 0) * 1000
            return found
        if account is not None:
            return {
                "cpu_ns": self._number(account, "cpuacct.usage"),
                "cpu_user_ns": self._number(account, "cpuacct.usage_user"),
                "cpu_system_ns": self._number(account, "cpuacct.usage_sys"),
            }
        return {}

    def _pids(self, branch: Branch) -> dict[str, int]:
        return {
            "pids": self._number(branch, "pids.current"),
            "pids_limit": self._number(branch, "pids.max"),
        }

    def _io_v1(self, branch: Branch) -> dict[str, int]:
        text = self._text(branch, "blkio.throttle.io_service_bytes_recursive")
        text = text or self._text(branch, "blkio.throttle.io_service_bytes")
        read, written = stats.blkio_bytes(text)
        return {"blkio_read": read, "blkio_write": written}

    def _io_v2(self, branch: Branch) -> dict[str, int]:
        read, written = stats.io_stat(self._text(branch, "io.stat"))
        return {"blkio_read": read, "blkio_write": written}

    # processes

    def processes(self) -> list[int]:
        """Process ids in the group and in groups made below it, in no order; [] when gone.

        Processes of another pid namespace than the caller's are not listed.
        """
        branch = self._listing_branch()
        if branch is None:
            return []
        found: set[int] = set()
        for path in _tree(branch.fd, self.name):
            words = files.read_or_empty(branch.fd, f"{path}/cgroup.procs").split()
            found.update(int(word) for word in words if word != "0")
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL every process in the group and below; does not wait for them to be gone.

        Without cgroup.kill: freezes, signals and thaws until none is left, up to `KILL_TIMEOUT`
        seconds; KernelError (ETIMEDOUT) then. A group that is gone is fine.
        """
        v2 = self._v2()
        if v2 is not None and self._parent.can_kill:
            try:
                files.write(v2.fd, f"{self.name}/cgroup.kill", b"1")
            except FileNotFoundError:
                return
            except OSError as error:
                raise self._refused("kill cgroup", error, v2, self.name) from error
            return
        self._kill_by_hand()

    def _kill_by_hand(self) -> None:
        deadline = time.monotonic() + KILL_TIMEOUT
        sleep = FIRST_SLEEP
        while self.processes():
            with contextlib.suppress(KernelError):  # the loop ends also without it
                self.freeze(1.0)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(KernelError):
                self.thaw()
            if time.monotonic() > deadline:
                raise KernelError("kill cgroup", errno.ETIMEDOUT, self.name)
            time.sleep(sleep)
            sleep = min(2 * sleep, LONGEST_SLEEP)

    def freeze(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Stop every process where it stands; waits until all are stopped.

        Raises KernelError; ETIMEDOUT after `timeout` seconds (a process in an uninterruptible
        wait), and the group is running again then.
        """
        try:
            if self._parent.can_freeze:
                self._freeze_v2(timeout)
            else:
                self._freeze_v1(timeout)
        except KernelError as error:
            if error.errno == errno.ETIMEDOUT:
                self.thaw()
            raise

    def thaw(self) -> None:
        """Let frozen processes go on; nothing happens to a group that is not frozen."""
        v2, freezer = self._v2(), self._parent.v1.get("freezer")
        if v2 is not None and self._parent.can_freeze:
            self._write_file(v2, "thaw", "cgroup.freeze", b"0")
        elif freezer is not None and freezer.fd in self._branches:
            self._write_file(freezer, "thaw", "freezer.state", b"THAWED")

    def _write_file(self, branch: Branch, step: str, file: str, value: bytes) -> None:
        try:
            files.write(branch.fd, f"{self.name}/{file}", value)
        except OSError as error:
            raise self._refused(step, error, branch, f"{self.name}/{file}") from error

    def _freeze_v2(self, timeout: float) -> None:
        v2 = self._v2()
        if v2 is None:
            raise KernelError("freeze", errno.ENOENT, self.name)
        self._write_file(v2, "freeze", "cgroup.freeze", b"1")
        if not self._wait_for_event(v2, "frozen", 1, timeout):
            raise KernelError("freeze", errno.ETIMEDOUT, str(v2.directory / self.name))

    def _freeze_v1(self, timeout: float) -> None:
        """The state stays FREEZING while a process was missed; writing again retries
        (cgroup-v1/freezer-subsystem.rst)."""
        freezer = self._parent.v1.get("freezer")
        if freezer is None or freezer.fd not in self._branches:
            raise KernelError("freeze", errno.EOPNOTSUPP, self.name)
        deadline = time.monotonic() + timeout
        sleep = FIRST_SLEEP
        while True:
            self._write_file(freezer, "freeze", "freezer.state", b"FROZEN")
            if self._text(freezer, "freezer.state").strip() == "FROZEN":
                return
            if time.monotonic() > deadline:
                raise KernelError("freeze", errno.ETIMEDOUT, str(freezer.directory / self.name))
            time.sleep(sleep)
            sleep = min(2 * sleep, LONGEST_SLEEP)

    def _wait_for_event(self, v2: Branch, key: str, value: int, timeout: float) -> bool:
        """Wait until a line of cgroup.events has `value`; True also when the group is gone."""
        try:
            fd = os.open(f"{self.name}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=v2.fd)
        except FileNotFoundError:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            deadline = time.monotonic() + timeout
            while True:
                try:
                    text = os.pread(fd, 4096, 0).decode("ascii", "replace")
                except OSError as error:
                    if error.errno == errno.ENODEV:  # removed while open
                        return True
                    raise self._refused("read cgroup.events", error, v2, self.name) from error
                if stats.table(text).get(key) == value:
                    return True
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                # a change is told at once; the cap is for kernels that tell some late
                poll.poll(min(remaining, 0.5) * 1000)
        finally:
            os.close(fd)

    # the end

    def remove(self, timeout: float = REMOVE_TIMEOUT) -> None:
        """Remove the groups and all that the container made below them; fine when they are gone.

        Blocks while processes are dying, up to `timeout` seconds in all; then KernelError (EBUSY).
        Kills nothing. Whatever could be removed is removed, and it can be called again. Groups
        that were made anew under this name by `CgroupTree.create` are left to their new owner.
        """
        deadline = time.monotonic() + timeout
        stuck: tuple[Branch, OSError] | None = None
        branches = self._parent.branches()[::-1]  # v2 tells when it is empty, v1 is asked
        for branch, refused in zip(branches, self._rmdir_all(branches), strict=True):
            if refused in (0, errno.ENOENT):
                continue
            error = self._remove_branch(branch, deadline)
            if error is not None:
                stuck = branch, error
        if stuck is not None:
            raise self._refused("remove cgroup", stuck[1], stuck[0], self.name)
        with self._parent.lock:
            if self._owns():
                del self._parent.owners[self.name]

    def _owns(self) -> bool:
        """Whether the groups of this name are still this object's; call with the lock held."""
        return self._parent.owners.get(self.name) is self._owner

    def _remove_branch(self, branch: Branch, deadline: float) -> OSError | None:
        sleep = FIRST_SLEEP
        while True:
            error = self._rmdir(branch)
            if error is None or error.errno != errno.EBUSY:
                return error
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return error
            if branch is self._parent.v2 and sleep == FIRST_SLEEP:
                self._wait_for_event(branch, "populated", 0, remaining)
            else:
                time.sleep(min(sleep, remaining))
            sleep = min(2 * sleep, LONGEST_SLEEP)

    def _rmdir_all(self, branches: Sequence[Branch]) -> list[int]:
        """One try for each in one call: as a rule they are empty, and it is done. errno or 0."""
        with self._parent.lock:
            if self._parent.closed:
                return [errno.EBADF] * len(branches)
            if not self._owns():
                return [0] * len(branches)
            return remove_directories([one.fd for one in branches], self.name.encode())

    def _rmdir(self, branch: Branch) -> OSError | None:
        """One try; the whole tree below first when the group alone does not go."""
        with self._parent.lock:
            if self._parent.closed:
                return OSError(errno.EBADF, "the cgroup tree was closed")
            return self._rmdir_tree(branch) if self._owns() else None

    def _rmdir_tree(self, branch: Branch) -> OSError | None:
        try:
            os.rmdir(self.name, dir_fd=branch.fd)
            return None
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY:
                return error
        for path in reversed(list(_tree(branch.fd, self.name))):
            try:
                os.rmdir(path, dir_fd=branch.fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                return error
        return None

    # places

    def _v2(self) -> Branch | None:
        v2 = self._parent.v2
        return v2 if v2 is not None and v2.fd in self._branches else None

    def _listing_branch(self) -> Branch | None:
        """A hierarchy that has every process of the container: v2 first, it has no other parts."""
        for branch in (self._v2(), *self._branches.values()):
            if branch is not None and files.exists(branch.fd, self.name):
                return branch
        return None

    def _refused(self, step: str, error: OSError, branch: Branch, path: str) -> KernelError:
        return KernelError(step, error.errno or 0, str(branch.directory / path))


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that is decided about new groups with certain limits."""

    branches: Mapping[int, Branch]
    writes: tuple[tuple[int, str, bytes, Setting], ...]
    needs_cpuset: bool


def recipe(parent: Parent, limits: Limits) -> Recipe:
    """Decide once for each kind of limits. Raises RequestError for limits that cannot be."""
    known = parent.recipes.get(limits)
    if isinstance(known, Recipe):
        return known
    check(limits, parent.host)
    order = settings(limits, parent.host)
    branches = {branch.fd: branch for branch in parent.always}
    writes = []
    for setting in order:
        branch = parent.branch(setting.controller)
        if branch is not None:
            branches[branch.fd] = branch
            file, value = setting.files[0]
            writes.append((branch.fd, f"/{file}", value.encode("ascii"), setting))
    device_branch = parent.v1.get("devices")
    if device_branch is not None and (limits.devices or limits.privileged):
        branches[device_branch.fd] = device_branch
    cpuset = any(each.controller == "cpuset" and each.version == 2 for each in order)
    made = Recipe(branches, tuple(writes), cpuset)
    with parent.lock:
        if len(parent.recipes) >= RECIPES:
            parent.recipes.clear()
        parent.recipes[limits] = made
    return made


def new_group(parent: Parent, name: str, limits: Limits) -> Cgroup:
    """Make the groups of a new container and write its limits.

    Raises RequestError for limits that cannot be before anything is made; on any later failure
    all that was made is removed again. On the path of every start: as little Python as can be,
    because after a quiet time each function costs microseconds to fetch.
    """
    made = recipe(parent, limits)
    if made.needs_cpuset:
        parent.enable_cpuset()
    owner = object()
    with parent.lock:  # earlier objects of that name remove nothing from now on
        before = parent.owners.get(name)
        parent.owners[name] = owner
    group = Cgroup(parent, name, made.branches, owner)
    try:
        for fd in made.branches:
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except OSError as error:
                _make_again(group, made.branches[fd], error)
        for fd, path, value, setting in made.writes:
            try:
                files.write(fd, name + path, value)
            except OSError:
                group._write([setting])
        if parent.default_program >= 0:
            _attach_program(group, parent, limits)
        elif limits.devices and not limits.privileged:
            group._update_devices(limits)
    except BaseException:
        try:
            group.remove(timeout=0)
        except KernelError:  # a group in use stood in the way, and stays its owner's
            with parent.lock:
                parent.owners[name] = before if before is not None else owner
        raise
    return group


def existing_group(parent: Parent, name: str, branches: Iterable[Branch]) -> Cgroup:
    """The object for groups that are there already."""
    with parent.lock:
        owner = parent.owners.setdefault(name, object())
    return Cgroup(parent, name, {branch.fd: branch for branch in branches}, owner)


def _make_again(group: Cgroup, branch: Branch, error: OSError) -> None:
    """mkdir failed: replace what an engine that was killed left behind, or say why not."""
    if error.errno != errno.EEXIST:
        raise group._refused("make cgroup", error, branch, group.name) from error
    group._remove_branch(branch, time.monotonic() + REPLACE_TIMEOUT)
    try:
        os.mkdir(group.name, 0o755, dir_fd=branch.fd)
    except OSError as again:
        raise group._refused("make cgroup", again, branch, group.name) from again


def _attach_program(group: Cgroup, parent: Parent, limits: Limits) -> None:
    if limits.privileged or parent.v2 is None:
        return
    if limits.devices:
        group._update_devices(limits)
        return
    directory = group._open_directory(parent.v2)
    try:
        devices.attach(directory, parent.default_program)
    finally:
        os.close(directory)


def _tree(fd: int, name: str) -> Iterator[str]:
    """The group and all groups below it, each before its children. Gone ones are left out."""
    try:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return
    try:
        with os.scandir(directory) as entries:
            children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        children = []
    finally:
        os.close(directory)
    yield name
    for child in children:
        yield from _tree(fd, f"{name}/{child}")
