# What the modules that walk trees share: growing memory, the names of a directory in order, and
# directories found again by a path of any length. Inline, no state; every function may be called
# without the GIL.
#
# - getdents64(2) gives names in the file system's order; deterministic output sorts them by bytes.
# - A path may be longer than PATH_MAX (4,096 with its NUL): the kernel refuses it in one piece only.
# - A directory that a container may change is entered without following a link: O_NOFOLLOW for the
#   last part, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS for the rest (openat2(2)), and part by part
#   where a sandbox denies openat2.

from libc.errno cimport ENOENT, ENOMEM, ENOSYS, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, strlen

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <sys/types.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    #include <linux/openat2.h>

    #ifndef DOCKPY_WALK
    #define DOCKPY_WALK
    static int dw_openat2(int root, const char *path, int flags) {
        struct open_how how;
        memset(&how, 0, sizeof how);
        how.flags = (uint64_t)flags;
        how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
        return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    }

    static void dw_set_errno(int value) {
        errno = value;
    }

    static int dw_by_bytes(const void *a, const void *b) {
        return strcmp(*(const char *const *)a, *(const char *const *)b);
    }

    static void dw_sort(const char **names, size_t count) {
        qsort(names, count, sizeof *names, dw_by_bytes);
    }
    #endif
    """
    int O_RDONLY, O_NOFOLLOW, O_CLOEXEC, O_DIRECTORY, O_PATH, O_NOATIME, O_NONBLOCK, O_NOCTTY
    int AT_SYMLINK_NOFOLLOW
    int S_IFMT, S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK
    uint8_t DT_UNKNOWN, DT_DIR, DT_REG, DT_CHR
    int SYS_getdents64
    ctypedef unsigned int mode_t
    ctypedef unsigned int uid_t
    ctypedef unsigned int gid_t
    ctypedef uint64_t dev_t
    ctypedef uint64_t ino_t
    ctypedef int64_t off_t
    cdef struct timespec:
        int64_t tv_sec
        long tv_nsec
    cdef struct stat_s "stat":
        dev_t st_dev
        ino_t st_ino
        mode_t st_mode
        uint64_t st_nlink
        uid_t st_uid
        gid_t st_gid
        dev_t st_rdev
        off_t st_size
        timespec st_mtim
    cdef struct dirent64_s "dirent64":
        uint16_t d_reclen
        uint8_t d_type
        char *d_name
    void set_errno "dw_set_errno"(int value) nogil
    void sort_texts "dw_sort"(const char **names, size_t count) nogil
    int dw_openat2(int root, const char *path, int flags) nogil
    long c_syscall "syscall"(long number, ...) nogil
    int openat(int directory, const char *path, int flags, ...) nogil
    int close(int fd) nogil
    int dup3(int old, int new, int flags) nogil
    off_t lseek(int fd, off_t offset, int whence) nogil
    ssize_t c_read "read"(int fd, void *data, size_t size) nogil
    ssize_t readlinkat(int directory, const char *name, char *buffer, size_t size) nogil
    int c_fstat "fstat"(int fd, stat_s *result) nogil
    int fstatat(int directory, const char *name, stat_s *result, int flags) nogil
    ssize_t flistxattr(int fd, char *list, size_t size) nogil
    ssize_t llistxattr(const char *path, char *list, size_t size) nogil
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size) nogil
    ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size) nogil
    unsigned int major(dev_t device) nogil
    unsigned int minor(dev_t device) nogil

cdef enum:
    PATH_LIMIT = 4096  # PATH_MAX of the kernel, the NUL included
    DENTS_SIZE = 64 << 10
    KEPT_OPEN = 48  # levels whose descriptors stay open; deeper ones are opened again

cdef struct Buffer:
    char *data
    size_t size
    size_t room

cdef struct Names:
    # One directory's names, each after a byte with its type (DT_*). `list` points at the names.
    Buffer arena
    const char **list
    size_t count
    size_t room


# ---------------------------------------------------------------- memory

cdef inline int reserve(Buffer *buffer, size_t more) noexcept nogil:
    cdef size_t room = buffer.room
    cdef char *grown
    if buffer.size + more <= room:
        return 0
    if room < 256:
        room = 256
    while room < buffer.size + more:
        room *= 2
    grown = <char *>realloc(buffer.data, room)
    if grown == NULL:
        return -1
    buffer.data = grown
    buffer.room = room
    return 0


cdef inline int append(Buffer *buffer, const void *data, size_t size) noexcept nogil:
    if reserve(buffer, size) != 0:
        return -1
    if size:
        memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size
    return 0


cdef inline int cut_path(Buffer *path, size_t size, const char *name, bint directory) noexcept nogil:
    """The first `size` bytes, then `name`, then a slash for a directory; NUL-terminated."""
    path.size = size
    if append(path, name, strlen(name)) or (directory and append(path, b"/", 1)):
        return -1
    if append(path, b"\0", 1):
        return -1
    path.size -= 1
    return 0


# ---------------------------------------------------------------- the names of a directory

cdef inline int read_names(int fd, Names *names, char *space, bint in_order) noexcept nogil:
    """All names but `.` and `..`; `in_order`: sorted by their bytes. `space`: DENTS_SIZE bytes.
    0 or an errno."""
    cdef long got, at
    cdef dirent64_s *entry
    cdef size_t i, offset
    cdef const char **grown
    cdef uint8_t kind
    names.arena.size = 0
    names.count = 0
    while True:
        got = c_syscall(SYS_getdents64, fd, space, DENTS_SIZE)
        if got < 0 and errno != ENOENT:
            return errno
        if got <= 0:  # ENOENT: it was removed meanwhile
            break
        at = 0
        while at < got:
            entry = <dirent64_s *>(space + at)
            at += entry.d_reclen
            if entry.d_name[0] == c"." and (entry.d_name[1] == 0 or (
                    entry.d_name[1] == c"." and entry.d_name[2] == 0)):
                continue
            kind = entry.d_type
            if (append(&names.arena, &kind, 1)
                    or append(&names.arena, entry.d_name, strlen(entry.d_name) + 1)):
                return ENOMEM
            names.count += 1
    if names.count > names.room:
        grown = <const char **>realloc(names.list, names.count * sizeof(char *))
        if grown == NULL:
            return ENOMEM
        names.list = grown
        names.room = names.count
    offset = 0
    for i in range(names.count):
        names.list[i] = names.arena.data + offset + 1
        offset += strlen(names.list[i]) + 2
    if in_order and names.count > 1:
        sort_texts(names.list, names.count)
    return 0


cdef inline uint8_t type_of(const char *name) noexcept nogil:
    """DT_*, of a name out of `Names.list`."""
    return (<const uint8_t *>(name - 1))[0]


cdef inline void free_names(Names *names) noexcept nogil:
    free(names.arena.data)
    free(names.list)


# ---------------------------------------------------------------- directories by their path

cdef inline int open_piece(int root, const char *path, int flags, bint by_hand) noexcept nogil:
    """A path shorter than PATH_LIMIT, no link followed in any part of it."""
    cdef int fd, parent, err
    cdef size_t start = 0, end
    cdef char part[PATH_LIMIT]
    if not by_hand:
        fd = dw_openat2(root, path, flags)
        if fd >= 0 or (errno != ENOSYS and errno != EPERM):
            return fd
    parent = root
    while True:
        end = start
        while path[end] and path[end] != c"/":
            end += 1
        memcpy(part, path + start, end - start)
        part[end - start] = 0
        while path[end] == c"/":
            end += 1
        fd = openat(parent, part, flags if path[end] == 0 else (
            O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC))
        err = errno
        if parent != root:
            close(parent)
            set_errno(err)
        if fd < 0 or path[end] == 0:
            return fd
        parent = fd
        start = end


cdef inline int open_directory(int root, const char *path, bint by_hand) noexcept nogil:
    """A directory below `root` by a relative path of any length (`""` is the root itself), to be
    read. `by_hand`: part by part, as where openat2 is denied. A descriptor, or -1 and errno."""
    cdef int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
    cdef int parent = root, fd, err
    cdef size_t start = 0, end, size = strlen(path)
    cdef char piece[PATH_LIMIT]
    if size == 0:
        return openat(root, b".", flags)
    while size - start >= PATH_LIMIT:
        end = start + PATH_LIMIT - 1
        while path[end] != c"/":  # a name has at most 255 bytes: there is one
            end -= 1
        memcpy(piece, path + start, end - start)
        piece[end - start] = 0
        fd = open_piece(parent, piece, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                        by_hand)
        err = errno
        if parent != root:
            close(parent)
        if fd < 0:
            set_errno(err)
            return -1
        parent = fd
        start = end + 1
    if path[start] == 0:
        fd = openat(parent, b".", flags)
    else:
        fd = open_piece(parent, path + start, flags, by_hand)
    err = errno
    if parent != root:
        close(parent)
    set_errno(err)
    return fd
