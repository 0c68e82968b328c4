# cython: language_level=3
"""What a process does to itself before it becomes a parent of containers: name, dumpable, subreaper, a root of its own."""

from libc.errno cimport errno

from dockpy._sys cimport EMPTY

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, ...)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_NAME
        PR_SET_DUMPABLE
        PR_GET_CHILD_SUBREAPER
        PR_SET_CHILD_SUBREAPER

cdef extern from "<sched.h>" nogil:
    int unshare(int flags)
    enum:
        CLONE_NEWNS

cdef extern from "<sys/mount.h>" nogil:
    int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data)
    int umount2(const char *target, int flags)
    enum:
        MS_REC
        MS_PRIVATE
        MS_BIND
        MS_NOSUID
        MS_NODEV
        MS_NOEXEC
        MNT_DETACH

cdef extern from "<sys/stat.h>" nogil:
    int mkdir(const char *path, unsigned int mode)
    int chmod(const char *path, unsigned int mode)

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_pivot_root

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int chdir(const char *path)
    int close(int fd)

cdef enum RootStep:
    STEP_UNSHARE = 1
    STEP_PRIVATE
    STEP_TMPFS
    STEP_MKDIR
    STEP_BIND
    STEP_CHDIR
    STEP_PIVOT
    STEP_DETACH

ROOT_STEPS = {
    STEP_UNSHARE: "make a mount namespace",
    STEP_PRIVATE: "make mounts private",
    STEP_TMPFS: "mount the supervisor's root",
    STEP_MKDIR: "make a mount point",
    STEP_BIND: "bind into the supervisor's root",
    STEP_CHDIR: "enter the supervisor's root",
    STEP_PIVOT: "pivot_root",
    STEP_DETACH: "detach the host's root",
}


def close_all(object descriptors):
    """Close many at once. Each takes no time to speak of, so the GIL is kept: giving it up and
    asking for it again for every one is what takes long in a process of many threads."""
    cdef int fd
    for one in descriptors:
        fd = one
        close(fd)


def out_of_the_way(int descriptor):
    """The same open file under a number of at least 1024, or the number it has when there is no room.

    What a process keeps for long lies there, so that a clone, which gets the numbers up to the
    highest it was given, is not given thousands. Close-on-exec; the old number is closed.
    """
    cdef int high = fcntl(descriptor, F_DUPFD_CLOEXEC, 1024)
    if high < 0:
        return descriptor
    close(descriptor)
    return high


def set_name(bytes name not None):
    cdef const char *text = name
    return errno if prctl(PR_SET_NAME, <unsigned long> text, 0, 0, 0) != 0 else 0


def set_undumpable():
    return errno if prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 else 0


def set_child_subreaper(bint on):
    """Whether it was one before, and errno."""
    cdef int before = 0
    if prctl(PR_GET_CHILD_SUBREAPER, <unsigned long> &before, 0, 0, 0) != 0:
        return False, errno
    if prctl(PR_SET_CHILD_SUBREAPER, on, 0, 0, 0) != 0:
        return bool(before), errno
    return bool(before), 0


def try_enter_private_root(bytes source not None, bytes name not None):
    """Step and errno; `name` is the one directory of the new root, `source` shown there."""
    cdef const char *from_path = source
    cdef const char *to_path
    target = b"/proc/" + name
    to_path = target
    with nogil:
        step, err = enter(from_path, to_path)
    return step, err


cdef (int, int) enter(const char *source, const char *target) noexcept nogil:
    # The new root is a small tmpfs over /proc, which every host has; it becomes "/" below.
    if unshare(CLONE_NEWNS) != 0:
        return STEP_UNSHARE, errno
    if mount(NULL, b"/", NULL, MS_REC | MS_PRIVATE, NULL) != 0:
        return STEP_PRIVATE, errno
    if mount(b"dockpy", b"/proc", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"size=64k,mode=0700") != 0:
        return STEP_TMPFS, errno
    if mkdir(target, 0o700) != 0:
        return STEP_MKDIR, errno
    if mount(source, target, NULL, MS_BIND, NULL) != 0:
        return STEP_BIND, errno
    if chdir(b"/proc") != 0:
        return STEP_CHDIR, errno
    if syscall(SYS_pivot_root, b".", b".") != 0:
        return STEP_PIVOT, errno
    if umount2(b".", MNT_DETACH) != 0:
        return STEP_DETACH, errno
    if chdir(b"/") != 0:
        return STEP_CHDIR, errno
    if mkdir(EMPTY, 0o755) != 0 or chmod(EMPTY, 0o755) != 0:
        return STEP_MKDIR, errno
    return 0, 0
