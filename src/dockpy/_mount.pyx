# cython: language_level=3
"""Mounts made by the parent: detached trees that live as long as a descriptor does.

Nothing here appears in any mount table until a child attaches it. Source: fsopen(2), fsmount(2),
open_tree(2), mount_setattr(2), openat2(2), ioctl_tty(2).
"""

from libc.errno cimport EEXIST, EINVAL, errno
from libc.string cimport memset

from dockpy._sys cimport *

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char *path, int flags, ...)
    enum:
        AT_EMPTY_PATH
        AT_FDCWD
        AT_RECURSIVE
        O_CLOEXEC
        O_CREAT
        O_DIRECTORY
        O_NOCTTY
        O_NONBLOCK
        O_PATH
        O_RDWR
        O_TRUNC
        O_WRONLY

cdef extern from "<sys/stat.h>" nogil:
    int mkdirat(int directory, const char *path, unsigned int mode)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t write(int fd, const void *data, size_t size)
    ssize_t read(int fd, void *buffer, size_t size)

cdef extern from "<sched.h>" nogil:
    int unshare(int flags)
    enum:
        CLONE_NEWNS

cdef extern from "<sys/mount.h>" nogil:
    int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data)
    enum:
        MS_NODEV
        MS_PRIVATE
        MS_REC

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<asm/ioctls.h>" nogil:
    enum:
        TIOCGPTPEER
        TIOCSPTLCK

cdef enum MountStep:
    STEP_OPEN = 1
    STEP_OPTION
    STEP_CREATE
    STEP_MOUNT
    STEP_CLONE
    STEP_ATTRIBUTES
    STEP_MASTER
    STEP_UNLOCK
    STEP_PEER
    STEP_DIRECTORY
    STEP_FILE
    STEP_UNSHARE
    STEP_PRIVATE

MOUNT_STEPS = {
    STEP_OPEN: "open file system", STEP_OPTION: "set mount option", STEP_CREATE: "create file system",
    STEP_MOUNT: "make detached mount", STEP_CLONE: "clone mount", STEP_ATTRIBUTES: "set mount attributes",
    STEP_MASTER: "open terminal master", STEP_UNLOCK: "unlock terminal", STEP_PEER: "open terminal",
    STEP_DIRECTORY: "make directory", STEP_FILE: "write file",
    STEP_UNSHARE: "make mount namespace", STEP_PRIVATE: "make mounts private",
}


cdef str said(int context):
    # The kernel explains itself in messages of the context: "e overlay: ..."; the last one counts.
    cdef char buffer[512]
    cdef ssize_t size
    cdef str text = ""
    while True:
        size = read(context, buffer, sizeof(buffer))
        if size <= 0:
            return text
        text = (<bytes> buffer[:size]).decode("utf-8", "replace").strip()


def try_new(bytes kind not None, list options not None, unsigned int attributes):
    """A detached new file system: (descriptor, step, errno, kernel's words, option index)."""
    cdef const char *name = kind
    cdef const char *key
    cdef const char *value
    cdef int context
    cdef int tree
    cdef int err
    cdef int index = 0
    cdef long done
    with nogil:
        context = <int> syscall(SYS_fsopen, name, FSOPEN_CLOEXEC)
    if context < 0:
        return -1, STEP_OPEN, errno, "", 0
    try:
        for one, text in options:
            key = one
            if text is None:
                done = syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, key, NULL, 0)
            else:
                value = text
                done = syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, value, 0)
            if done != 0:
                err = errno
                return -1, STEP_OPTION, err, said(context), index
            index += 1
        with nogil:
            done = syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0)
        if done != 0:
            err = errno
            return -1, STEP_CREATE, err, said(context), 0
        with nogil:
            tree = <int> syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes)
        if tree < 0:
            err = errno
            return -1, STEP_MOUNT, err, said(context), 0
        return tree, 0, 0, "", 0
    finally:
        close(context)


def try_clone(int path, bint recursive, unsigned int attributes):
    """A detached copy of the mount below an open path: (descriptor, step, errno)."""
    cdef mount_attr wanted
    cdef int depth = AT_RECURSIVE if recursive else 0
    cdef int tree
    cdef int err
    with nogil:
        tree = <int> syscall(SYS_open_tree, path, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | depth)
    if tree < 0:
        return -1, STEP_CLONE, errno
    if attributes:
        memset(&wanted, 0, sizeof(wanted))
        wanted.attr_set = attributes
        if syscall(SYS_mount_setattr, tree, b"", AT_EMPTY_PATH | depth, &wanted, sizeof(wanted)) != 0:
            err = errno
            close(tree)
            return -1, STEP_ATTRIBUTES, err
    return tree, 0, 0


def try_leave_mounts():
    """The calling thread gets mounts (and a working directory) of its own: (step, errno)."""
    with nogil:
        if unshare(CLONE_NEWNS) != 0:
            with gil:
                return STEP_UNSHARE, errno
        if mount(NULL, b"/", NULL, MS_REC | MS_PRIVATE, NULL) != 0:
            with gil:
                return STEP_PRIVATE, errno
    return 0, 0


def try_mount(bytes kind not None, bytes target not None, bytes options not None):
    """mount(2) without device nodes, and a detached copy of it: (descriptor, step, errno)."""
    cdef const char *name = kind
    cdef const char *place = target
    cdef const char *data = options
    cdef int tree
    with nogil:
        if mount(name, place, name, MS_NODEV, data) != 0:
            with gil:
                return -1, STEP_CREATE, errno
        tree = <int> syscall(SYS_open_tree, AT_FDCWD, place, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    if tree < 0:
        return -1, STEP_CLONE, errno
    return tree, 0, 0


cdef int write_and_clone(int directory, const char *name, const char *data, ssize_t size, int *err) noexcept nogil:
    cdef int tree
    cdef int fd = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    if fd < 0:
        err[0] = errno
        return -STEP_FILE
    if write(fd, data, size) != size:
        err[0] = errno
        close(fd)
        return -STEP_FILE
    tree = <int> syscall(SYS_open_tree, fd, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    err[0] = errno
    close(fd)
    return tree if tree >= 0 else -STEP_CLONE


def try_files(bytes directory not None, list files not None):
    """Write (name, bytes) files in a directory, made if missing, and clone a mount of each.

    (descriptors, step, errno); after a failure the descriptors made so far are in the list.
    """
    cdef const char *path = directory
    cdef const char *name
    cdef const char *data
    cdef ssize_t size
    cdef int parent
    cdef int err = 0
    cdef int tree
    made = []
    with nogil:
        if mkdirat(AT_FDCWD, path, 0o700) != 0 and errno != EEXIST:
            err = errno
        parent = openat(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC) if err == 0 else -1
        if err == 0 and parent < 0:
            err = errno
    if err != 0:
        return made, STEP_DIRECTORY, err
    try:
        for one, text in files:
            name = one
            data = text
            size = len(text)
            with nogil:
                tree = write_and_clone(parent, name, data, size, &err)
            if tree < 0:
                return made, -tree, err
            made.append(tree)
        return made, 0, 0
    finally:
        close(parent)


def try_terminal(int devpts):
    """Master (non-blocking) and slave of the first terminal of a devpts mount, step, errno."""
    cdef int unlocked = 0
    cdef int master
    cdef int slave
    cdef int err
    master = openat(devpts, b"ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK)
    if master < 0:
        return -1, -1, STEP_MASTER, errno
    if ioctl(master, TIOCSPTLCK, &unlocked) != 0:
        err = errno
        close(master)
        return -1, -1, STEP_UNLOCK, err
    slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)
    if slave < 0:
        err = errno
        close(master)
        return -1, -1, STEP_PEER, err
    return master, slave, 0, 0


def try_open(int root, bytes path not None, unsigned long flags, unsigned long mode):
    """openat2 that cannot leave `root` nor follow a magic link: (descriptor, errno)."""
    cdef open_how how
    cdef const char *name = path
    cdef int fd
    if b"\0" in path:
        return -1, EINVAL
    how.flags = flags | O_CLOEXEC
    how.mode = mode
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    with nogil:
        fd = <int> openat2(root, name, &how)
    if fd < 0:
        return -1, -fd
    return fd, 0
