# cython: language_level=3
"""Paths below a root directory whose content somebody else chose: opened, never left, removed.

Facts, and where they come from:

- openat2(2) with RESOLVE_IN_ROOT resolves a path as if the root were `/`: absolute links and `..`
  stay inside, whoever renames directories meanwhile (`_sys.pxd`: what EAGAIN means).
- Where a sandbox denies openat2 (EPERM, or ENOSYS as old filters say it), the same walk is done by
  hand, one O_NOFOLLOW step at a time. A `..` walks the real components again from the root, so
  nothing that is moved meanwhile leads out. Doubt: of directories that are moved while they are
  walked one may be found where it was, or not at all; it is still below the root.
- getdents64 tells a name's type, but for the file systems that do not (DT_UNKNOWN).
"""

from libc.errno cimport EACCES, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT
from libc.errno cimport ENOSYS, ENOTDIR, ENOTEMPTY, EPERM, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strcmp, strlen

from dockpy._sys cimport RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, open_how, openat2
from dockpy._walk cimport (
    AT_SYMLINK_NOFOLLOW,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
    c_fstat,
    close,
    fstatat,
    openat,
    readlinkat,
    set_errno,
    stat_s,
)

cdef extern from *:
    """
    #include <fcntl.h>
    static int db_same_again(int fd) {
        return fcntl(fd, F_DUPFD_CLOEXEC, 3);
    }
    """
    int db_same_again(int fd) nogil

cdef extern from "<dirent.h>" nogil:
    cdef struct dirent_s "dirent":
        unsigned char d_type
        char *d_name
    ctypedef struct DIR:
        pass
    int DT_DIR, DT_UNKNOWN
    DIR *fdopendir(int fd)
    dirent_s *c_readdir "readdir"(DIR *directory)
    void rewinddir(DIR *directory)
    int closedir(DIR *directory)

cdef extern from "<unistd.h>" nogil:
    int AT_REMOVEDIR
    int unlinkat(int directory, const char *name, int flags)
    int renameat(int from_, const char *old, int to, const char *new)

cdef enum:
    LINK_LIMIT = 40  # MAXSYMLINKS of the kernel
    STEP_LIMIT = 65536  # of one walk by hand: links full of `..` in a deep tree
    DEPTH_LIMIT = 24


# ---------------------------------------------------------------- opening

cdef int same_again(int fd) noexcept nogil:
    return db_same_again(fd)


cdef int reopen(int root, const char *path, int *steps) noexcept nogil:
    # `path` has real components only: any link met here was swapped in and is refused.
    cdef char name[NAME_LIMIT + 1]
    cdef size_t length
    cdef int here = same_again(root)
    cdef int below
    cdef int err
    while here >= 0 and path[0]:
        steps[0] += 1
        length = 0
        while path[length] and path[length] != c"/":
            length += 1
        memcpy(name, path, length)
        name[length] = 0
        below = openat(here, name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC)
        err = errno
        close(here)
        set_errno(err)
        here = below
        path += length
        while path[0] == c"/":
            path += 1
    return here


cdef int hand_walk(int root, const char *path) noexcept nogil:
    """openat2(root, path, O_PATH|O_DIRECTORY, RESOLVE_IN_ROOT) where the call is denied.

    Each step is O_NOFOLLOW; a link's text is put in front of what is left; `..` walks the real
    components again from the root, so nothing that is moved meanwhile leads out.
    """
    cdef char rest[2 * PATH_LIMIT]
    cdef char text[2 * PATH_LIMIT]
    cdef char done[PATH_LIMIT]
    cdef char name[NAME_LIMIT + 1]
    cdef size_t done_size = 0
    cdef size_t length
    cdef size_t left = strlen(path)
    cdef size_t target
    cdef char *at = rest
    cdef int links = 0
    cdef int steps = 0
    cdef int here
    cdef int below
    cdef int err
    cdef ssize_t got
    cdef stat_s info
    if left >= PATH_LIMIT:
        set_errno(ENAMETOOLONG)
        return -1
    memcpy(rest, path, left + 1)
    done[0] = 0
    here = same_again(root)
    while here >= 0:
        while at[0] == c"/":
            at += 1
        if at[0] == 0:
            return here
        length = 0
        while at[length] and at[length] != c"/":
            length += 1
        steps += 1
        if length > NAME_LIMIT or steps > STEP_LIMIT:
            close(here)
            set_errno(ENAMETOOLONG if length > NAME_LIMIT else ELOOP)
            return -1
        memcpy(name, at, length)
        name[length] = 0
        at += length
        if strcmp(name, b".") == 0:
            continue
        if strcmp(name, b"..") == 0:
            while done_size > 0 and done[done_size - 1] != c"/":
                done_size -= 1
            if done_size > 0:
                done_size -= 1
            done[done_size] = 0
            close(here)
            here = reopen(root, done, &steps)
            continue
        below = openat(here, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if below < 0 or c_fstat(below, &info) != 0:
            err = errno
            close(here)
            if below >= 0:
                close(below)
            set_errno(err)
            return -1
        if (info.st_mode & S_IFMT) == S_IFLNK:
            links += 1
            got = readlinkat(below, b"", text, PATH_LIMIT)
            err = errno
            close(below)
            left = strlen(at)
            target = got if got > 0 else 0
            if got <= 0 or links > LINK_LIMIT or target + left + 2 > PATH_LIMIT:
                close(here)
                set_errno(err if got < 0 else ELOOP if links > LINK_LIMIT
                          else ENOENT if got == 0 else ENAMETOOLONG)
                return -1
            text[target] = c"/"
            memcpy(text + target + 1, at, left + 1)
            memcpy(rest, text, target + left + 2)
            at = rest
            if rest[0] == c"/":
                done_size = 0
                done[0] = 0
                close(here)
                here = same_again(root)
            continue
        close(here)
        if (info.st_mode & S_IFMT) != S_IFDIR:
            close(below)
            set_errno(ENOTDIR)
            return -1
        if done_size + length + 2 > PATH_LIMIT:
            close(below)
            set_errno(ENAMETOOLONG)
            return -1
        if done_size:
            done[done_size] = c"/"
            done_size += 1
        memcpy(done + done_size, name, length + 1)
        done_size += length
        here = below
    return -1


cdef int beneath(int root, const char *path, int flags) noexcept nogil:
    """openat2 inside the root; -1 and errno."""
    cdef open_how how
    cdef long fd
    how.flags = <uint64_t>flags
    how.mode = 0
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    fd = openat2(root, path, &how)
    if fd < 0:
        set_errno(<int>-fd)
        return -1
    return <int>fd


cdef int open_directory(int root, const char *path, bint *by_hand) noexcept nogil:
    cdef int fd
    if path[0] == 0:
        return same_again(root)
    if not by_hand[0]:
        fd = beneath(root, path, O_PATH | O_DIRECTORY | O_CLOEXEC)
        if fd >= 0 or (errno != ENOSYS and errno != EPERM and errno != EACCES):
            return fd
        # EACCES is more often a directory's than a filter's.
        if errno != EACCES:
            by_hand[0] = True
    return hand_walk(root, path)


cdef int open_at(int root, const char *path, int flags, bint *by_hand) noexcept nogil:
    cdef char parent[PATH_LIMIT]
    cdef size_t cut = strlen(path)
    cdef int fd
    cdef int directory
    cdef int err
    if not by_hand[0]:
        fd = beneath(root, path, flags | O_CLOEXEC)
        if fd >= 0 or (errno != ENOSYS and errno != EPERM):
            return fd
    if cut >= PATH_LIMIT:
        set_errno(ENAMETOOLONG)
        return -1
    while cut > 0 and path[cut - 1] != c"/":
        cut -= 1
    memcpy(parent, path, cut)
    parent[cut] = 0
    directory = open_directory(root, parent, by_hand)
    if directory < 0:
        return -1
    fd = openat(directory, path + cut, flags | O_NOFOLLOW | O_CLOEXEC)
    err = errno
    close(directory)
    set_errno(err)
    return fd


# ---------------------------------------------------------------- removing

cdef int empty_directory(int directory, int top, int depth, uint64_t *serial) noexcept nogil:
    """Remove all that is in `directory` (owned, closed here); links are never followed.

    What lies deeper than DEPTH_LIMIT is renamed into `top` first, so neither the stack nor the
    number of descriptors grows with the tree. Gives 0 or errno; goes on after a failure.
    """
    cdef DIR *stream = fdopendir(directory)
    cdef dirent_s *entry
    cdef stat_s info
    cdef int first = 0
    cdef int err
    cdef int below
    cdef bint found
    cdef bint is_directory
    cdef char moved[48]
    if stream == NULL:
        err = errno
        close(directory)
        return err
    while True:
        found = False
        while True:
            entry = c_readdir(stream)
            if entry == NULL:
                break
            if strcmp(entry.d_name, b".") == 0 or strcmp(entry.d_name, b"..") == 0:
                continue
            is_directory = entry.d_type == DT_DIR
            if entry.d_type == DT_UNKNOWN:
                if fstatat(directory, entry.d_name, &info, AT_SYMLINK_NOFOLLOW) == 0:
                    is_directory = (info.st_mode & S_IFMT) == S_IFDIR
            if not is_directory:
                if unlinkat(directory, entry.d_name, 0) == 0:
                    found = True
                elif errno != ENOENT and first == 0:
                    first = errno
                continue
            if unlinkat(directory, entry.d_name, AT_REMOVEDIR) == 0:
                found = True
                continue
            if depth >= DEPTH_LIMIT:
                serial[0] += 1
                snprintf(moved, sizeof(moved), ".removing-%llu", <unsigned long long>serial[0])
                if renameat(directory, entry.d_name, top, moved) == 0:
                    found = True
                elif errno != EEXIST and errno != ENOTEMPTY:
                    if first == 0:
                        first = errno
                else:
                    found = True  # that name is taken by an earlier run; the next pass takes another
                continue
            below = openat(directory, entry.d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            if below < 0:
                if errno != ENOENT and first == 0:
                    first = errno
                continue
            err = empty_directory(below, top, depth + 1, serial)
            if err:
                if first == 0:
                    first = err
                continue
            if unlinkat(directory, entry.d_name, AT_REMOVEDIR) == 0:
                found = True
            elif errno != ENOENT and first == 0:
                first = errno
        # Names moved to the top while it was read may have been missed; removing may hide others.
        if not found or first:
            break
        rewinddir(stream)
    closedir(stream)
    return first


cdef int remove_entry(int directory, const char *name) noexcept nogil:
    """Remove one name and all below it. Gives 0 or errno; a missing name is fine."""
    cdef uint64_t serial = 0
    cdef int below
    cdef int err
    if unlinkat(directory, name, 0) == 0 or errno == ENOENT:
        return 0
    # EISDIR is Linux's answer for a directory, EPERM POSIX's.
    if errno != EISDIR and errno != EPERM:
        return errno
    if unlinkat(directory, name, AT_REMOVEDIR) == 0:
        return 0
    below = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if below < 0:
        return EPERM if errno == ENOTDIR else errno
    err = empty_directory(below, below, 0, &serial)
    if err:
        return err
    return 0 if unlinkat(directory, name, AT_REMOVEDIR) == 0 or errno == ENOENT else errno


# ---------------------------------------------------------------- doors for Python and for tests

def remove_tree(int directory, bytes name not None) -> int:
    """Remove `name` in the directory and all below it; 0 or errno. Links are not followed."""
    cdef const char *text = name
    cdef int err
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        return EINVAL
    with nogil:
        err = remove_entry(directory, text)
    return err


def remove_directories(list directories not None, bytes name not None) -> list:
    """Remove the empty directory `name` in each of at most 32: errno or 0 for each, all tried."""
    cdef const char *text = name
    cdef int inside[32]
    cdef int found[32]
    cdef Py_ssize_t count = len(directories)
    cdef Py_ssize_t i
    if count > 32:
        raise ValueError("too many directories")
    for i in range(count):
        inside[i] = directories[i]
    with nogil:
        for i in range(count):
            found[i] = 0 if unlinkat(inside[i], text, AT_REMOVEDIR) == 0 else errno
    return [found[i] for i in range(count)]


def open_below(int root, bytes path not None, bint by_hand) -> tuple[int, int]:
    """(O_PATH descriptor of a directory, 0) or (-1, errno): so tests can compare both walks."""
    cdef const char *text = path
    cdef bint hand = by_hand
    cdef int fd
    cdef int err = 0
    with nogil:
        fd = open_directory(root, text, &hand)
        if fd < 0:
            err = errno
    return fd, err
