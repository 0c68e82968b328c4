"""A tar stream to a tree of files, without Python per entry and without ever leaving the tree.

Facts, and where they come from:

- A tar archive is a row of 512-byte blocks: header, data padded to a block, ..., a block of zeros
  (POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar
  Format" and "Storing Sparse Files"). Links, devices, fifos and directories carry no data whatever
  their size field says.
- Names are hostile. Every path is resolved below the target's descriptor as if it were `/`
  (openat2(2), RESOLVE_IN_ROOT): a symbolic link of the archive leads to some place inside, never
  out. Where a sandbox denies openat2 the same walk is done by hand, one O_NOFOLLOW step at a time.
- The last component is never followed: files are made with O_EXCL | O_NOFOLLOW, and what is in the
  way is removed first. Owners, modes, times and attributes are set on descriptors.
- fchown(2) clears setuid bits and write(2) clears security.capability, so the order is data, owner,
  mode, attributes, times. A directory's owner, mode and mtime are set when everything is in it.
- overlayfs has character device 0:0 for a deleted name and trusted.overlay.opaque=y for a directory
  that hides the ones below (kernel, Documentation/filesystems/overlayfs.rst); an OCI layer says the
  same with `.wh.NAME` and `.wh..wh..opq` (OCI image spec, layer.md), about *lower* layers only.

`Unpacker` is pushed: `feed` takes any number of bytes and does what they allow. Nothing here raises
for what an archive or the kernel does: `feed` and `finish` answer False, and `problem`, `error` and
`name` tell. Doubt: PAX extended ACLs (SCHILY.acl.*) are ignored.
"""

from libc.errno cimport EACCES, EAGAIN, EEXIST, EINTR, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT
from libc.errno cimport ENOMEM, ENOSYS, ENOTDIR, ENOTEMPTY, EOPNOTSUPP, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strcmp, strlen, strncmp

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <sys/types.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    #include <linux/openat2.h>

    static void dp_set_errno(int value) {
        errno = value;
    }

    static int dp_openat2(int root, const char *path, int flags) {
        struct open_how how;
        memset(&how, 0, sizeof how);
        how.flags = (uint64_t)flags;
        how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
        return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    }

    /* The two sums old and new tars wrote: bytes taken as unsigned and as signed. */
    static void dp_sums(const unsigned char *block, int64_t *plain, int64_t *with_sign) {
        int64_t a = 0, b = 0;
        for (int i = 0; i < 512; i++) {
            a += block[i];
            b += (signed char)block[i];
        }
        for (int i = 148; i < 156; i++) {
            a += 32 - block[i];
            b += 32 - (signed char)block[i];
        }
        *plain = a;
        *with_sign = b;
    }

    static int dp_is_zero(const unsigned char *block) {
        uint64_t all = 0, word;
        for (int i = 0; i < 512; i += 8) {
            memcpy(&word, block + i, 8);
            all |= word;
        }
        return all == 0;
    }
    """
    int64_t UINT32_MAX
    int O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, O_CLOEXEC, O_DIRECTORY, O_PATH
    int AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH, AT_REMOVEDIR
    int S_IFMT, S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFLNK, S_IFREG
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
        uid_t st_uid
        gid_t st_gid
        dev_t st_rdev
    cdef struct dirent_s "dirent":
        unsigned char d_type
        char *d_name
    ctypedef struct DIR:
        pass
    int DT_DIR, DT_UNKNOWN
    void set_errno "dp_set_errno"(int value) nogil
    int dp_openat2(int root, const char *path, int flags) nogil
    void dp_sums(const unsigned char *block, int64_t *plain, int64_t *with_sign) nogil
    int dp_is_zero(const unsigned char *block) nogil
    int openat(int directory, const char *path, int flags, ...) nogil
    int close(int fd) nogil
    int dup(int fd) nogil
    ssize_t c_write "write"(int fd, const void *data, size_t size) nogil
    ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) nogil
    int ftruncate(int fd, off_t size) nogil
    int mkdirat(int directory, const char *name, mode_t mode) nogil
    int mknodat(int directory, const char *name, mode_t mode, dev_t device) nogil
    int symlinkat(const char *target, int directory, const char *name) nogil
    int linkat(int from_, const char *old, int to, const char *new, int flags) nogil
    int unlinkat(int directory, const char *name, int flags) nogil
    int renameat(int from_, const char *old, int to, const char *new) nogil
    ssize_t readlinkat(int directory, const char *name, char *buffer, size_t size) nogil
    int c_fstat "fstat"(int fd, stat_s *result) nogil
    int fstatat(int directory, const char *name, stat_s *result, int flags) nogil
    int fchown(int fd, uid_t uid, gid_t gid) nogil
    int fchmod(int fd, mode_t mode) nogil
    int c_chmod "chmod"(const char *path, mode_t mode) nogil
    int fchownat(int directory, const char *name, uid_t uid, gid_t gid, int flags) nogil
    int utimensat(int directory, const char *name, const timespec *times, int flags) nogil
    int futimens(int fd, const timespec *times) nogil
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags) nogil
    int c_setxattr "setxattr"(const char *path, const char *name, const void *value, size_t size, int flags) nogil
    DIR *fdopendir(int fd) nogil
    dirent_s *c_readdir "readdir"(DIR *directory) nogil
    void rewinddir(DIR *directory) nogil
    int closedir(DIR *directory) nogil
    int dirfd(DIR *directory) nogil
    dev_t makedev(unsigned int major, unsigned int minor) nogil

cdef enum Problem:
    FINE = 0
    # The archive's fault.
    NOT_TAR = 1
    EMPTY
    DAMAGED
    TRUNCATED
    BAD_NUMBER
    NEGATIVE_SIZE
    BAD_PAX
    GLOBAL_OVERRIDE
    NAME_EMPTY
    NAME_ABSOLUTE
    NAME_DOT
    NAME_DOTDOT
    NAME_NUL
    NAME_TOO_LONG
    LINK_EMPTY
    BARE_WHITEOUT
    ROOT_NOT_DIRECTORY
    PARENT_NOT_DIRECTORY
    PARENT_LOOP
    TARGET_MISSING
    TARGET_DIRECTORY
    UNKNOWN_TYPE
    BAD_ID
    BAD_DEVICE
    BAD_SPARSE
    BAD_ATTRIBUTE
    TOO_MANY_ENTRIES
    TOO_MANY_BYTES
    TOO_MUCH_METADATA
    TOO_MUCH_PADDING
    DIRECTORY_THERE
    FILE_THERE
    DEVICE
    # The kernel's refusal; `error` holds errno.
    STEP_MEMORY = 100
    STEP_PARENT
    STEP_MKDIR
    STEP_CREATE
    STEP_WRITE
    STEP_SYMLINK
    STEP_LINK
    STEP_NODE
    STEP_REMOVE
    STEP_OWNER
    STEP_MODE
    STEP_TIMES
    STEP_ATTRIBUTE
    STEP_WHITEOUT

ARCHIVE_PROBLEMS = {
    DIRECTORY_THERE: "cannot overwrite a directory with something else",
    FILE_THERE: "cannot overwrite a file with a directory",
    DEVICE: "a device is not copied unless owners are kept (-a)",
    NOT_TAR: "not a tar archive, plain or compressed with gzip, bzip2, xz or zstd",
    EMPTY: "the archive is empty",
    DAMAGED: "damaged archive: a header does not match its checksum",
    TRUNCATED: "the archive ends in the middle of an entry",
    BAD_NUMBER: "damaged archive: a number in a header does not parse",
    NEGATIVE_SIZE: "an entry has a negative or impossible size",
    BAD_PAX: "damaged archive: a PAX record does not parse",
    GLOBAL_OVERRIDE: "a global PAX header sets names, sizes or attributes, which dockpy refuses",
    NAME_EMPTY: "an entry has an empty name or an empty part in its name",
    NAME_ABSOLUTE: "an entry or a hard link has an absolute name",
    NAME_DOT: "an entry has '.' inside its name",
    NAME_DOTDOT: "an entry or a hard link has '..' in its name",
    NAME_NUL: "a name contains a NUL byte",
    NAME_TOO_LONG: "a name is too long",
    LINK_EMPTY: "a link has no target",
    BARE_WHITEOUT: "a whiteout names nothing that can be deleted",
    ROOT_NOT_DIRECTORY: "the root of the archive is not a directory",
    PARENT_NOT_DIRECTORY: "something in the entry's path is not a directory",
    PARENT_LOOP: "the entry's path goes through too many symbolic links",
    TARGET_MISSING: "a hard link's target is not in the archive before it",
    TARGET_DIRECTORY: "a hard link's target is a directory",
    UNKNOWN_TYPE: "an entry has an unknown type",
    BAD_ID: "an entry has an impossible user or group id",
    BAD_DEVICE: "an entry has an impossible device number",
    BAD_SPARSE: "damaged archive: a sparse file's map is wrong",
    BAD_ATTRIBUTE: "an extended attribute has an impossible name or size",
    TOO_MANY_ENTRIES: "the archive has more entries than allowed",
    TOO_MANY_BYTES: "the archive unpacks to more bytes than allowed",
    TOO_MUCH_METADATA: "an entry has more metadata than allowed",
    TOO_MUCH_PADDING: "the archive does not stop after its end mark",
}
KERNEL_STEPS = {
    STEP_MEMORY: "allocate memory",
    STEP_PARENT: "open parent directory",
    STEP_MKDIR: "make directory",
    STEP_CREATE: "create file",
    STEP_WRITE: "write file",
    STEP_SYMLINK: "make symbolic link",
    STEP_LINK: "make hard link",
    STEP_NODE: "make device or fifo",
    STEP_REMOVE: "remove what was there",
    STEP_OWNER: "set owner",
    STEP_MODE: "set mode",
    STEP_TIMES: "set times",
    STEP_ATTRIBUTE: "set extended attribute",
    STEP_WHITEOUT: "make whiteout",
}

cdef enum:
    PATH_LIMIT = 4096  # PATH_MAX of the kernel, the NUL included
    LINK_LIMIT = 40  # MAXSYMLINKS of the kernel
    NAME_LIMIT = 255
    PADDING_LIMIT = 16 << 20
    SEGMENT_LIMIT = 1 << 20
    DEPTH_LIMIT = 24

cdef enum State:
    AT_HEADER
    AT_METADATA
    AT_DATA
    AT_SKIP
    AT_SPARSE_BLOCK
    AT_SPARSE_MAP
    AT_END

cdef struct Buffer:
    char *data
    size_t size
    size_t room

cdef struct Segment:
    int64_t offset
    int64_t size

cdef struct Time:
    int64_t seconds
    long nanoseconds

cdef struct Overrides:
    # What extended headers say about the next entry. A set flag per value.
    bint has_path
    bint has_link
    bint has_size
    bint has_uid
    bint has_gid
    bint has_mtime
    bint has_real_size
    bint has_map
    int64_t size
    int64_t uid
    int64_t gid
    int64_t real_size
    Time mtime
    int64_t sparse_major
    int64_t sparse_minor
    int64_t half_segment  # PAX 0.0: an offset that waits for its numbytes

cdef struct DirectoryRecord:
    size_t path  # offset of its NUL-terminated path in the arena
    dev_t device
    ino_t inode
    mode_t mode
    uid_t uid
    gid_t gid
    Time mtime


# ---------------------------------------------------------------- memory

cdef int reserve(Buffer *buffer, size_t more) noexcept nogil:
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


cdef int append(Buffer *buffer, const void *data, size_t size) noexcept nogil:
    if reserve(buffer, size) != 0:
        return -1
    if size:
        memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size
    return 0


cdef int set_text(Buffer *buffer, const void *data, size_t size) noexcept nogil:
    # The bytes and a NUL that is not counted.
    buffer.size = 0
    if append(buffer, data, size) != 0 or append(buffer, b"\0", 1) != 0:
        return -1
    buffer.size -= 1
    return 0


# ---------------------------------------------------------------- numbers

cdef int parse_field(const uint8_t *field, int width, int64_t *result) noexcept nogil:
    """A number of a header block: octal text, or base-256 when the first bit is set."""
    cdef int i = 0
    cdef uint64_t value = 0
    cdef bint negative
    if field[0] & 0x80:
        # Two's complement, big-endian, of width*8-1 bits; GNU tar manual, "Extensions".
        negative = (field[0] & 0x40) != 0
        value = <uint64_t>-1 if negative else 0
        for i in range(width):
            if i < width - 8:
                if field[i] != (0xFF if negative else (0x80 if i == 0 else 0)):
                    return -1
                continue
            if i == 0:
                value = (value << 8) | (field[0] if negative else field[0] & 0x7F)
            else:
                value = (value << 8) | field[i]
        if ((<int64_t>value) < 0) != negative:
            return -1
        result[0] = <int64_t>value
        return 0
    while i < width and field[i] == c" ":
        i += 1
    while i < width and field[i] != c" " and field[i] != 0:
        if field[i] < c"0" or field[i] > c"7" or value >> 60:
            return -1
        value = (value << 3) | <uint64_t>(field[i] - c"0")
        i += 1
    while i < width:
        if field[i] != c" " and field[i] != 0:
            return -1
        i += 1
    result[0] = <int64_t>value
    return 0


cdef int parse_decimal(const char *text, size_t size, int64_t *result) noexcept nogil:
    cdef size_t i
    cdef int64_t value = 0
    if size == 0 or size > 18:
        return -1
    for i in range(size):
        if text[i] < c"0" or text[i] > c"9":
            return -1
        value = value * 10 + (text[i] - c"0")
    result[0] = value
    return 0


cdef int parse_time(const char *text, size_t size, Time *result) noexcept nogil:
    """PAX time: [-]seconds[.fraction]; rounded down to the nanosecond."""
    cdef bint negative = size > 0 and text[0] == c"-"
    cdef size_t start = 1 if negative else 0
    cdef size_t dot = start
    cdef size_t i
    cdef long fraction = 0
    cdef long scale = 100000000
    cdef int64_t seconds = 0
    cdef bint rest = False
    while dot < size and text[dot] != c".":
        dot += 1
    if parse_decimal(text + start, dot - start, &seconds) != 0:
        return -1
    i = dot + 1
    while i < size:
        if text[i] < c"0" or text[i] > c"9":
            return -1
        fraction += (text[i] - c"0") * scale
        if scale == 0 and text[i] != c"0":
            rest = True
        scale //= 10
        i += 1
    if negative:
        seconds = -seconds
        if rest:
            fraction += 1
        if fraction:
            seconds -= 1
            fraction = 1000000000 - fraction
    result.seconds = seconds
    result.nanoseconds = fraction
    return 0


# ---------------------------------------------------------------- paths

cdef int normalise(const char *raw, size_t size, size_t limit, Buffer *result) noexcept nogil:
    """Check a name and bring it to `a/b/c`; the root is "". Gives a Problem."""
    cdef size_t start = 0
    cdef size_t end = size
    cdef size_t i
    cdef size_t length
    if size == 0:
        return NAME_EMPTY
    if memchr(raw, 0, size) != NULL:
        return NAME_NUL
    if raw[0] == c"/":
        return NAME_ABSOLUTE
    while end > 0 and raw[end - 1] == c"/":
        end -= 1
    while start < end and raw[start] == c"." and (start + 1 == end or raw[start + 1] == c"/"):
        start += 2
    if start >= end:
        return STEP_MEMORY if set_text(result, b"", 0) != 0 else FINE
    if end - start > limit or end - start >= PATH_LIMIT:
        return NAME_TOO_LONG
    i = start
    while i <= end:
        length = 0
        while i + length < end and raw[i + length] != c"/":
            length += 1
        if length == 0:
            return NAME_EMPTY
        if length > NAME_LIMIT:
            return NAME_TOO_LONG
        if length == 1 and raw[i] == c".":
            return NAME_DOT
        if length == 2 and raw[i] == c"." and raw[i + 1] == c".":
            return NAME_DOTDOT
        i += length + 1
    return STEP_MEMORY if set_text(result, raw + start, end - start) != 0 else FINE


cdef int reopen(int root, const char *path) noexcept nogil:
    # `path` has real components only: any link met here was swapped in and is refused.
    cdef char name[NAME_LIMIT + 1]
    cdef size_t length
    cdef int here = dup(root)
    cdef int below
    cdef int err
    while here >= 0 and path[0]:
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
    here = dup(root)
    while here >= 0:
        while at[0] == c"/":
            at += 1
        if at[0] == 0:
            return here
        length = 0
        while at[length] and at[length] != c"/":
            length += 1
        if length > NAME_LIMIT:
            close(here)
            set_errno(ENAMETOOLONG)
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
            here = reopen(root, done)
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
                here = dup(root)
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


cdef int open_directory(int root, const char *path, bint *by_hand) noexcept nogil:
    """A directory below `root` as an O_PATH descriptor; -1 and errno."""
    cdef int fd
    cdef int attempts = 0
    if path[0] == 0:
        return dup(root)
    if not by_hand[0]:
        while True:
            fd = dp_openat2(root, path, O_PATH | O_DIRECTORY | O_CLOEXEC)
            if fd >= 0:
                return fd
            attempts += 1
            # EAGAIN: something was renamed while `..` was resolved.
            if errno != EINTR and (errno != EAGAIN or attempts > 32):
                break
        if errno != ENOSYS and errno != EPERM and errno != EACCES:
            return -1
        if errno != EACCES:
            by_hand[0] = True
    return hand_walk(root, path)


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


# ---------------------------------------------------------------- the unpacker

cdef class Unpacker:
    """One archive being unpacked into one directory. Not for two threads at a time."""

    cdef int root
    cdef bint by_hand
    cdef bint whiteouts
    cdef int64_t max_bytes
    cdef int64_t max_entries
    cdef size_t max_path
    cdef int64_t max_metadata

    cdef State state
    cdef uint8_t block[512]
    cdef size_t block_fill
    cdef int64_t skip_left
    cdef int64_t padding
    cdef char meta_type
    cdef int64_t meta_left
    cdef Buffer meta
    cdef bint seen_header
    cdef bint seen_bytes
    cdef bint extended_pending

    cdef Overrides local
    cdef Overrides everywhere
    cdef Buffer pax_path
    cdef Buffer pax_link
    cdef Buffer gnu_path
    cdef Buffer gnu_link
    cdef bint has_gnu_path
    cdef bint has_gnu_link
    cdef Buffer attributes
    cdef Buffer segments
    cdef size_t segment_at

    cdef Buffer path
    cdef Buffer link
    cdef const char *leaf
    cdef char type
    cdef mode_t mode
    cdef uid_t uid
    cdef gid_t gid
    cdef Time mtime
    cdef int64_t size
    cdef int64_t real_size
    cdef bint sparse
    cdef int file
    cdef int64_t segment_left
    cdef int64_t segment_offset
    cdef int64_t map_lines
    cdef int64_t map_needed

    cdef int parent
    cdef Buffer parent_path
    cdef bint parent_valid
    cdef Buffer scratch
    cdef Buffer records
    cdef Buffer arena

    cdef bint merges
    cdef bint tame
    cdef int file_parent
    cdef const char *file_leaf
    cdef int64_t owner
    cdef int64_t group
    cdef bint keep_skeleton
    cdef Buffer tape
    cdef Buffer raw
    cdef readonly bint replaced

    cdef readonly int problem
    cdef readonly int error
    cdef readonly int64_t entries
    cdef readonly int64_t bytes_written
    cdef readonly int64_t ignored_attributes

    def __cinit__(self, int directory, *, int64_t max_bytes, int64_t max_entries, int max_path,
                  int64_t max_metadata, bint whiteouts, bint by_hand=False, bint skeleton=False, bint merges=False,
                  int64_t owner=-1, int64_t group=-1, bint tame=False):
        self.root = dup(directory)
        self.file = -1
        self.parent = -1
        self.by_hand = by_hand
        self.whiteouts = whiteouts
        self.keep_skeleton = skeleton
        self.merges = merges
        self.tame = tame
        self.owner = owner
        self.group = group
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_path = max_path
        self.max_metadata = max_metadata
        if self.root < 0:
            raise OSError(errno, "dup")

    def __dealloc__(self):
        self.shut()
        free(self.meta.data)
        free(self.pax_path.data)
        free(self.pax_link.data)
        free(self.gnu_path.data)
        free(self.gnu_link.data)
        free(self.attributes.data)
        free(self.segments.data)
        free(self.path.data)
        free(self.link.data)
        free(self.parent_path.data)
        free(self.scratch.data)
        free(self.records.data)
        free(self.arena.data)
        free(self.tape.data)
        free(self.raw.data)

    cdef void shut(self) noexcept nogil:
        if self.file >= 0:
            if self.merges:
                self.remove_half()
            close(self.file)
        if self.root >= 0:
            close(self.root)
        if self.parent >= 0:
            close(self.parent)
        self.root = self.file = self.parent = -1

    cdef void remove_half(self) noexcept nogil:
        """Nobody takes away what was merged so far; half a file is nothing to keep."""
        cdef stat_s ours
        cdef stat_s there
        if (c_fstat(self.file, &ours) == 0
                and fstatat(self.file_parent, self.file_leaf, &there, AT_SYMLINK_NOFOLLOW) == 0
                and ours.st_ino == there.st_ino and ours.st_dev == there.st_dev):
            unlinkat(self.file_parent, self.file_leaf, 0)

    def close(self):
        self.shut()

    @property
    def name(self) -> bytes:
        """The entry that was at work when the problem arose, as the archive spells it."""
        return b"" if self.path.data == NULL else self.path.data[:self.path.size]

    @property
    def walks_by_hand(self) -> bool:
        return self.by_hand

    def feed(self, const uint8_t[::1] data not None) -> bool:
        cdef size_t size = data.shape[0]
        if self.problem or self.root < 0:
            return False
        if size == 0:
            return True
        with nogil:
            self.take(&data[0], size)
        return self.problem == FINE

    def finish(self) -> bool:
        if self.problem or self.root < 0:
            return False
        with nogil:
            self.end()
        return self.problem == FINE

    def take_skeleton(self) -> bytes:
        """What the stream held besides the contents of files, since the last time. Format: `_skeleton`."""
        if self.flush_raw() != 0:
            raise MemoryError
        found = b"" if self.tape.data == NULL else self.tape.data[:self.tape.size]
        self.tape.size = 0
        return found

    # -- the skeleton

    cdef int keep_raw(self, const uint8_t *data, size_t size) noexcept nogil:
        if self.keep_skeleton and append(&self.raw, data, size) != 0:
            return self.no_memory()
        return 0

    cdef int flush_raw(self) noexcept nogil:
        cdef uint64_t size = self.raw.size
        if size == 0:
            return 0
        if append(&self.tape, b"R", 1) or append(&self.tape, &size, 8) or append(&self.tape, self.raw.data, size):
            return self.no_memory()
        self.raw.size = 0
        return 0

    cdef int keep_file(self) noexcept nogil:
        cdef uint64_t size = <uint64_t>self.size
        cdef uint64_t length = self.path.size
        if self.flush_raw() != 0:
            return -1
        if (append(&self.tape, b"F", 1) or append(&self.tape, &size, 8) or append(&self.tape, &length, 8)
                or append(&self.tape, self.path.data, length)):
            return self.no_memory()
        return 0

    # -- failures

    cdef int fail(self, int problem) noexcept nogil:
        if self.problem == FINE:
            self.problem = problem
            self.error = 0
        return -1

    cdef int refused(self, int step, int err) noexcept nogil:
        if self.problem == FINE:
            self.problem = step
            self.error = err
        return -1

    cdef int no_memory(self) noexcept nogil:
        return self.refused(STEP_MEMORY, ENOMEM)

    # -- the stream

    cdef void take(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef size_t part
        self.seen_bytes = True
        while size and self.problem == FINE:
            if self.state == AT_DATA:
                part = size if <int64_t>size < self.segment_left else <size_t>self.segment_left
                if self.sparse and self.keep_raw(data, part) != 0:
                    return
                if self.write_data(data, part) != 0:
                    return
                if self.segment_left == 0 and self.next_segment() != 0:
                    return
            elif self.state == AT_SKIP:
                part = size if <int64_t>size < self.skip_left else <size_t>self.skip_left
                if self.keep_raw(data, part) != 0:
                    return
                self.skip_left -= part
                if self.skip_left == 0:
                    self.state = AT_HEADER
            elif self.state == AT_METADATA:
                part = size if <int64_t>size < self.meta_left else <size_t>self.meta_left
                if append(&self.meta, data, part) != 0:
                    self.no_memory()
                    return
                if self.keep_raw(data, part) != 0:
                    return
                self.meta_left -= part
                if self.meta_left == 0:
                    if self.metadata_done() != 0:
                        return
                    self.skip(self.padding)
            elif self.state == AT_END:
                part = size
                if self.keep_raw(data, part) != 0:
                    return
                self.skip_left += part
                if self.skip_left > PADDING_LIMIT:
                    self.fail(TOO_MUCH_PADDING)
                    return
            elif self.block_fill == 0 and size >= 512:
                part = 512
                if self.keep_raw(data, part) != 0 or self.take_block(data) != 0:
                    return
            else:
                part = 512 - self.block_fill
                if part > size:
                    part = size
                if self.keep_raw(data, part) != 0:
                    return
                memcpy(self.block + self.block_fill, data, part)
                self.block_fill += part
                if self.block_fill == 512:
                    self.block_fill = 0
                    if self.take_block(self.block) != 0:
                        return
            data += part
            size -= part

    cdef int take_block(self, const uint8_t *block) noexcept nogil:
        if self.state == AT_SPARSE_BLOCK:
            return self.sparse_block(block)
        if self.state == AT_SPARSE_MAP:
            return self.sparse_map(block)
        return self.header(block)

    cdef void skip(self, int64_t size) noexcept nogil:
        self.skip_left = size
        self.state = AT_SKIP if size > 0 else AT_HEADER

    cdef void forget_overrides(self) noexcept nogil:
        memset(&self.local, 0, sizeof(Overrides))
        self.local.half_segment = -1
        self.has_gnu_path = self.has_gnu_link = False
        self.attributes.size = 0
        self.segments.size = 0
        self.extended_pending = False

    cdef int header(self, const uint8_t *block) noexcept nogil:
        cdef int64_t stored = 0
        cdef int64_t plain = 0
        cdef int64_t with_sign = 0
        cdef int64_t size = 0
        cdef char kind
        if dp_is_zero(block):
            if self.extended_pending:
                return self.fail(TRUNCATED)
            self.seen_header = True
            self.state = AT_END
            self.skip_left = 0
            return 0
        dp_sums(block, &plain, &with_sign)
        if parse_field(block + 148, 8, &stored) != 0 or (stored != plain and stored != with_sign):
            return self.fail(DAMAGED if self.seen_header else NOT_TAR)
        if not self.seen_header:
            self.forget_overrides()
        self.seen_header = True
        if parse_field(block + 124, 12, &size) != 0:
            return self.fail(BAD_NUMBER)
        if size < 0:
            return self.fail(NEGATIVE_SIZE)
        kind = <char>block[156]
        if kind == c"x" or kind == c"X" or kind == c"g" or kind == c"L" or kind == c"K":
            if size > self.max_metadata:
                return self.fail(TOO_MUCH_METADATA)
            if kind != c"g":
                self.extended_pending = True
            self.meta_type = kind
            self.meta.size = 0
            self.meta_left = size
            self.padding = (-size) & 511
            self.state = AT_METADATA
            return self.metadata_done() if size == 0 else 0
        return self.entry(block, size, kind)

    cdef int metadata_done(self) noexcept nogil:
        cdef size_t size = self.meta.size
        cdef const char *nul
        cdef int failed
        self.state = AT_HEADER
        if self.meta_type == c"L" or self.meta_type == c"K":
            if size:
                nul = <const char *>memchr(self.meta.data, 0, size)
                if nul != NULL:
                    size = nul - self.meta.data
            if self.meta_type == c"L":
                failed = set_text(&self.gnu_path, self.meta.data, size)
                self.has_gnu_path = True
            else:
                failed = set_text(&self.gnu_link, self.meta.data, size)
                self.has_gnu_link = True
            return self.no_memory() if failed else 0
        return self.pax(self.meta.data, size, self.meta_type == c"g")

    # -- PAX records

    cdef int pax(self, const char *data, size_t size, bint everywhere) noexcept nogil:
        cdef size_t at = 0
        cdef size_t digits
        cdef size_t key
        cdef int64_t length = 0
        cdef const char *equals
        while at < size:
            digits = 0
            while at + digits < size and data[at + digits] != c" ":
                digits += 1
            if digits > 10 or parse_decimal(data + at, digits, &length) != 0:
                return self.fail(BAD_PAX)
            if <size_t>length > size - at or <size_t>length < digits + 4:
                return self.fail(BAD_PAX)
            if data[at + length - 1] != c"\n":
                return self.fail(BAD_PAX)
            key = at + digits + 1
            equals = <const char *>memchr(data + key, c"=", at + length - 1 - key)
            if equals == NULL or equals == data + key:
                return self.fail(BAD_PAX)
            if memchr(data + key, 0, equals - (data + key)) != NULL:
                return self.fail(BAD_PAX)
            if self.pax_record(data + key, equals - (data + key), equals + 1,
                               (data + at + length - 1) - (equals + 1), everywhere) != 0:
                return -1
            at += length
        return 0

    cdef int pax_record(self, const char *key, size_t key_size, const char *value, size_t size,
                        bint everywhere) noexcept nogil:
        cdef Overrides *to = &self.everywhere if everywhere else &self.local
        cdef bint given = size > 0  # an empty value takes the override back
        if same(key, key_size, b"path") or same(key, key_size, b"GNU.sparse.name"):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            to.has_path = given
            return self.no_memory() if set_text(&self.pax_path, value, size) else 0
        if same(key, key_size, b"linkpath"):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            to.has_link = given
            return self.no_memory() if set_text(&self.pax_link, value, size) else 0
        if same(key, key_size, b"size"):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            to.has_size = given
            if given and parse_decimal(value, size, &to.size) != 0:
                return self.fail(NEGATIVE_SIZE)
            return 0
        if same(key, key_size, b"uid"):
            to.has_uid = given
            return self.fail(BAD_ID) if given and parse_decimal(value, size, &to.uid) != 0 else 0
        if same(key, key_size, b"gid"):
            to.has_gid = given
            return self.fail(BAD_ID) if given and parse_decimal(value, size, &to.gid) != 0 else 0
        if same(key, key_size, b"mtime"):
            to.has_mtime = given
            return self.fail(BAD_PAX) if given and parse_time(value, size, &to.mtime) != 0 else 0
        if begins(key, key_size, b"SCHILY.xattr."):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            return self.keep_attribute(key + 13, key_size - 13, value, size)
        if begins(key, key_size, b"GNU.sparse."):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            return self.pax_sparse(key + 11, key_size - 11, value, size)
        return 0

    cdef int keep_attribute(self, const char *name, size_t name_size, const char *value,
                            size_t size) noexcept nogil:
        cdef uint32_t sizes[2]
        # How overlayfs sees a directory is decided by dockpy, never by an archive.
        if begins(name, name_size, b"trusted.overlay.") or begins(name, name_size, b"user.overlay."):
            return 0
        if name_size == 0 or name_size > NAME_LIMIT or size > 65536:
            return self.fail(BAD_ATTRIBUTE)
        sizes[0] = <uint32_t>name_size
        sizes[1] = <uint32_t>size
        if (append(&self.attributes, sizes, sizeof(sizes)) or append(&self.attributes, name, name_size)
                or append(&self.attributes, b"\0", 1) or append(&self.attributes, value, size)):
            return self.no_memory()
        if <int64_t>self.attributes.size > self.max_metadata:
            return self.fail(TOO_MUCH_METADATA)
        return 0

    cdef int pax_sparse(self, const char *key, size_t key_size, const char *value,
                        size_t size) noexcept nogil:
        cdef int64_t number = 0
        cdef size_t at = 0
        cdef size_t digits
        if same(key, key_size, b"map"):
            while at <= size:
                digits = 0
                while at + digits < size and value[at + digits] != c",":
                    digits += 1
                if parse_decimal(value + at, digits, &number) != 0 or self.sparse_number(number):
                    return self.fail(BAD_SPARSE)
                at += digits + 1
            self.local.has_map = True
            return 0
        if parse_decimal(value, size, &number) != 0:
            return self.fail(BAD_SPARSE)
        if same(key, key_size, b"size") or same(key, key_size, b"realsize"):
            self.local.has_real_size = True
            self.local.real_size = number
        elif same(key, key_size, b"major"):
            self.local.sparse_major = number
        elif same(key, key_size, b"minor"):
            self.local.sparse_minor = number
        elif same(key, key_size, b"offset") or same(key, key_size, b"numbytes"):
            if (self.local.half_segment < 0) != same(key, key_size, b"offset"):
                return self.fail(BAD_SPARSE)
            self.local.has_map = True
            return self.sparse_number(number)
        return 0

    cdef int sparse_number(self, int64_t number) noexcept nogil:
        # Offset and size by turns.
        cdef Segment segment
        if self.local.half_segment < 0:
            self.local.half_segment = number
            return 0
        segment.offset = self.local.half_segment
        segment.size = number
        self.local.half_segment = -1
        if self.segments.size // sizeof(Segment) >= SEGMENT_LIMIT:
            return self.fail(BAD_SPARSE)
        return self.no_memory() if append(&self.segments, &segment, sizeof(segment)) else 0

    # -- one entry

    cdef int entry(self, const uint8_t *block, int64_t size, char kind) noexcept nogil:
        cdef char raw[257 + 2]
        cdef const char *name = raw
        cdef const char *target = <const char *>(block + 157)
        cdef size_t name_size
        cdef size_t target_size = bounded(<const char *>(block + 157), 100)
        cdef int64_t mode = 0
        cdef int64_t uid = 0
        cdef int64_t gid = 0
        cdef int64_t seconds = 0
        cdef int64_t major = 0
        cdef int64_t minor = 0
        cdef size_t prefix_size
        cdef int problem
        cdef bint slash
        cdef bint has_data
        cdef bint is_ustar = memcmp(block + 257, b"ustar\0", 6) == 0

        # The name: PAX, then GNU long name, then prefix/name of ustar (star: shorter prefix).
        name_size = 0
        if is_ustar:
            prefix_size = bounded(<const char *>(block + 345), 131 if memcmp(block + 508, b"tar\0", 4) == 0 else 155)
            if prefix_size:
                memcpy(raw, block + 345, prefix_size)
                raw[prefix_size] = c"/"
                name_size = prefix_size + 1
        prefix_size = bounded(<const char *>block, 100)
        memcpy(raw + name_size, block, prefix_size)
        name_size += prefix_size
        if self.local.has_path:
            name = self.pax_path.data
            name_size = self.pax_path.size
        elif self.has_gnu_path:
            name = self.gnu_path.data
            name_size = self.gnu_path.size
        if self.local.has_link:
            target = self.pax_link.data
            target_size = self.pax_link.size
        elif self.has_gnu_link:
            target = self.gnu_link.data
            target_size = self.gnu_link.size
        slash = name_size > 0 and name[name_size - 1] == c"/"

        if (parse_field(block + 100, 8, &mode) or parse_field(block + 108, 8, &uid)
                or parse_field(block + 116, 8, &gid) or parse_field(block + 136, 12, &seconds)):
            return self.named(name, name_size, BAD_NUMBER)
        self.mtime.seconds = seconds
        self.mtime.nanoseconds = 0
        if self.everywhere.has_uid:
            uid = self.everywhere.uid
        if self.everywhere.has_gid:
            gid = self.everywhere.gid
        if self.everywhere.has_mtime:
            self.mtime = self.everywhere.mtime
        if self.local.has_uid:
            uid = self.local.uid
        if self.local.has_gid:
            gid = self.local.gid
        if self.local.has_mtime:
            self.mtime = self.local.mtime
        if self.local.has_size:
            size = self.local.size
        # The largest id means "leave it" to chown(2).
        if uid < 0 or gid < 0 or uid >= UINT32_MAX or gid >= UINT32_MAX:
            return self.named(name, name_size, BAD_ID)
        self.mode = <mode_t>(mode & (0o1777 if self.tame else 0o7777))
        self.uid = <uid_t>(uid if self.owner < 0 else self.owner)
        self.gid = <gid_t>(gid if self.group < 0 else self.group)
        if kind == c"3" or kind == c"4":
            if self.tame:
                return self.named(name, name_size, DEVICE)
            if parse_field(block + 329, 8, &major) or parse_field(block + 337, 8, &minor):
                return self.named(name, name_size, BAD_NUMBER)
            # The kernel keeps 12 bits of major and 20 of minor.
            if major < 0 or minor < 0 or major >= 1 << 12 or minor >= 1 << 20:
                return self.named(name, name_size, BAD_DEVICE)

        if kind == 0 or kind == c"7":
            kind = c"0"
        elif kind == c"D":
            kind = c"5"
            slash = True
        has_data = kind == c"0" or kind == c"S" or block[156] == c"D" or kind == c"V" or kind == c"A"
        self.size = size if has_data else 0
        self.real_size = self.size
        self.padding = (-self.size) & 511
        self.sparse = False
        if kind == c"V" or kind == c"A":
            # A volume's label and Solaris ACLs: nothing that belongs in a tree.
            self.forget_overrides()
            self.skip(self.size + self.padding)
            return 0
        if kind == c"0" and slash:
            kind = c"5"
        self.type = kind

        problem = normalise(name, name_size, self.max_path, &self.path)
        if problem:
            return self.named(name, name_size, problem)
        self.entries += 1
        if self.entries > self.max_entries:
            return self.fail(TOO_MANY_ENTRIES)
        if self.path.size == 0 and kind != c"5":
            return self.named(name, name_size, ROOT_NOT_DIRECTORY)
        if self.whiteouts:
            problem = self.whiteout()
            if problem < 0:
                return -1
            if problem > 0:
                self.forget_overrides()
                self.skip(self.size + self.padding)
                return 0

        if kind == c"0" or kind == c"S":
            return self.regular(block)
        if kind == c"5":
            problem = self.directory()
        elif kind == c"1":
            problem = self.hard_link(target, target_size)
        elif kind == c"2":
            problem = self.symbolic_link(target, target_size)
        elif kind == c"3":
            problem = self.node(S_IFCHR, makedev(<unsigned int>major, <unsigned int>minor))
        elif kind == c"4":
            problem = self.node(S_IFBLK, makedev(<unsigned int>major, <unsigned int>minor))
        elif kind == c"6":
            problem = self.node(S_IFIFO, 0)
        else:
            problem = self.fail(UNKNOWN_TYPE)
        if problem:
            return -1
        self.forget_overrides()
        self.skip(self.size + self.padding)
        return 0

    cdef int named(self, const char *name, size_t size, int problem) noexcept nogil:
        # For names that never became a path.
        if self.problem == FINE:
            set_text(&self.path, name, size if size < 256 else 256)
        return self.refused(problem, ENOMEM) if problem == STEP_MEMORY else self.fail(problem)

    # -- where it goes

    cdef int open_parent(self, const char *path, size_t size, const char **leaf) noexcept nogil:
        """The descriptor of the directory that `path` is in (kept open for the next entry)."""
        cdef size_t cut = size
        cdef int fd
        while cut > 0 and path[cut - 1] != c"/":
            cut -= 1
        leaf[0] = path + cut
        if cut == 0:
            return self.root
        cut -= 1
        if self.parent_valid and self.parent_path.size == cut and memcmp(self.parent_path.data, path, cut) == 0:
            return self.parent
        if set_text(&self.scratch, path, cut) != 0:
            return self.no_memory()
        fd = open_directory(self.root, self.scratch.data, &self.by_hand)
        if fd < 0 and errno == ENOENT:
            fd = self.make_parents()
        if fd < 0:
            return self.bad_parent(errno)
        return self.remember(fd, path, cut)

    cdef int bad_parent(self, int err) noexcept nogil:
        if err == ENOTDIR or err == EEXIST:
            return self.fail(PARENT_NOT_DIRECTORY)
        if err == ELOOP:
            return self.fail(PARENT_LOOP)
        if err == ENAMETOOLONG:
            return self.fail(NAME_TOO_LONG)
        return self.refused(STEP_PARENT, err)

    cdef int remember(self, int fd, const char *path, size_t size) noexcept nogil:
        self.forget_parent()
        if set_text(&self.parent_path, path, size) != 0:
            close(fd)
            return self.no_memory()
        self.parent = fd
        self.parent_valid = True
        return fd

    cdef void forget_parent(self) noexcept nogil:
        if self.parent >= 0:
            close(self.parent)
        self.parent = -1
        self.parent_valid = False

    cdef int make_parents(self) noexcept nogil:
        """Directories the archive uses but does not list: root's, 0755. Answers like open."""
        cdef char *text = self.scratch.data
        cdef size_t cut = 0
        cdef size_t start = 0
        cdef int here = dup(self.root)
        cdef int below
        cdef int err
        cdef char end
        while here >= 0:
            while text[cut] and text[cut] != c"/":
                cut += 1
            end = text[cut]
            text[cut] = 0
            below = open_directory(self.root, text, &self.by_hand)
            if below < 0 and errno == ENOENT:
                # EEXIST here is a symbolic link that leads nowhere.
                if mkdirat(here, text + start, 0o755) == 0:
                    below = openat(here, text + start, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            err = errno
            text[cut] = end
            close(here)
            set_errno(err)
            here = below
            if end == 0:
                break
            cut += 1
            start = cut
        return here

    cdef int displace(self, int parent, const char *name, bint *was_whiteout) noexcept nogil:
        """Remove what has the name now."""
        cdef stat_s info
        cdef int err
        was_whiteout[0] = False
        if fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0:
            return 0 if errno == ENOENT else self.refused(STEP_REMOVE, errno)
        was_whiteout[0] = (info.st_mode & S_IFMT) == S_IFCHR and info.st_rdev == 0
        if self.merges and (info.st_mode & S_IFMT) == S_IFDIR:
            return self.fail(DIRECTORY_THERE)
        if not was_whiteout[0]:
            self.replaced = True  # what the stream said before can no longer be read from the tree
        err = remove_entry(parent, name)
        if err:
            return self.refused(STEP_REMOVE, err)
        return 0

    cdef void forget_displaced(self, int parent) noexcept nogil:
        # The kept descriptor may have been reached through what is gone.
        if parent != self.parent:
            self.forget_parent()

    cdef int create_failed(self, int step, int err) noexcept nogil:
        if err == ENAMETOOLONG:
            return self.fail(NAME_TOO_LONG)
        return self.refused(step, err)

    # -- kinds of entries

    cdef int whiteout(self) noexcept nogil:
        """1: the entry was a whiteout and is done; 0: it is something else; -1: failed."""
        cdef const char *path = self.path.data
        cdef const char *leaf = NULL
        cdef const char *at = path
        cdef const char *end
        cdef int parent
        cdef int fd
        cdef bint was_whiteout = False
        cdef bint bookkeeping = False
        cdef bint inside = False
        cdef stat_s info
        while True:
            end = at
            while end[0] and end[0] != c"/":
                end += 1
            if strncmp(at, b".wh..wh.", 8) == 0:
                bookkeeping = True
            elif end[0] and strncmp(at, b".wh.", 4) == 0:
                inside = True
            if end[0] == 0:
                break
            at = end + 1
        if strcmp(at, b".wh..wh..opq") == 0 and not inside:
            parent = self.open_parent(path, self.path.size, &leaf)
            if parent < 0:
                return -1
            return -1 if self.make_opaque(parent) else 1
        if bookkeeping:
            return 1  # aufs kept its own files under such names
        if inside:
            return self.fail(BARE_WHITEOUT)
        if strncmp(at, b".wh.", 4) != 0:
            return 0
        if at[4] == 0 or strcmp(at + 4, b".") == 0 or strcmp(at + 4, b"..") == 0:
            return self.fail(BARE_WHITEOUT)
        parent = self.open_parent(path, self.path.size, &leaf)
        if parent < 0:
            return -1
        if mknodat(parent, leaf + 4, S_IFCHR, 0) == 0:
            return 1
        if errno != EEXIST:
            return self.create_failed(STEP_WHITEOUT, errno)
        # A whiteout speaks of lower layers: what this layer brought stays, and a directory of
        # this layer no longer shows what lies below it.
        fd = openat(parent, leaf + 4, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            return 1
        if fsetxattr(fd, b"trusted.overlay.opaque", b"y", 1, 0) != 0:
            self.refused(STEP_WHITEOUT, errno)
        close(fd)
        return -1 if self.problem else 1

    cdef int make_opaque(self, int directory) noexcept nogil:
        # `directory` may be an O_PATH descriptor, which fsetxattr does not take.
        cdef int fd = openat(directory, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if fd < 0:
            return self.refused(STEP_WHITEOUT, errno)
        if fsetxattr(fd, b"trusted.overlay.opaque", b"y", 1, 0) != 0:
            self.refused(STEP_WHITEOUT, errno)
        close(fd)
        return -1 if self.problem else 0

    cdef int directory(self) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent
        cdef int fd
        cdef bint was_whiteout = False
        cdef bint kept = self.merges
        cdef stat_s info
        cdef DirectoryRecord record
        if self.path.size == 0:
            fd = openat(self.root, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        else:
            parent = self.open_parent(self.path.data, self.path.size, &leaf)
            if parent < 0:
                return -1
            if mkdirat(parent, leaf, 0o700) == 0:
                kept = False
            else:
                if errno != EEXIST:
                    return self.create_failed(STEP_MKDIR, errno)
                if fstatat(parent, leaf, &info, AT_SYMLINK_NOFOLLOW) != 0:
                    return self.refused(STEP_MKDIR, errno)
                if (info.st_mode & S_IFMT) != S_IFDIR:
                    if self.merges:
                        return self.fail(FILE_THERE)
                    if self.displace(parent, leaf, &was_whiteout) != 0:
                        return -1
                    if mkdirat(parent, leaf, 0o700) != 0:
                        return self.create_failed(STEP_MKDIR, errno)
                    self.forget_displaced(parent)
            fd = openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            return self.refused(STEP_MKDIR, errno)
        if c_fstat(fd, &info) != 0:
            self.refused(STEP_MKDIR, errno)
        elif self.whiteouts and was_whiteout and fsetxattr(fd, b"trusted.overlay.opaque", b"y", 1, 0) != 0:
            self.refused(STEP_WHITEOUT, errno)
        elif self.attributes.size and not kept:
            self.set_attributes(fd, False)
        if self.problem:
            close(fd)
            return -1
        if kept:
            # It was there before: its owner, mode and times are not the archive's business.
            if self.path.size == 0:
                close(fd)
                return 0
            return -1 if self.remember(fd, self.path.data, self.path.size) < 0 else 0
        record.path = self.arena.size
        record.device = info.st_dev
        record.inode = info.st_ino
        record.mode = self.mode
        record.uid = self.uid
        record.gid = self.gid
        record.mtime = self.mtime
        if (append(&self.arena, self.path.data, self.path.size + 1)
                or append(&self.records, &record, sizeof(record))):
            close(fd)
            return self.no_memory()
        if self.path.size == 0:
            close(fd)
            return 0
        return -1 if self.remember(fd, self.path.data, self.path.size) < 0 else 0

    cdef int hard_link(self, const char *target, size_t size) noexcept nogil:
        cdef const char *leaf = NULL
        cdef const char *target_leaf = NULL
        cdef int parent
        cdef int fd
        cdef int problem
        cdef bint was_whiteout = False
        cdef stat_s from_
        cdef stat_s to
        if size == 0:
            return self.fail(LINK_EMPTY)
        problem = normalise(target, size, self.max_path, &self.link)
        if problem:
            return self.refused(problem, ENOMEM) if problem == STEP_MEMORY else self.fail(problem)
        if self.link.size == 0:
            return self.fail(TARGET_DIRECTORY)
        parent = self.open_target_parent(&target_leaf)
        if parent < 0:
            return -1
        fd = openat(parent, target_leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        problem = errno
        close(parent)
        if fd < 0:
            return self.fail(TARGET_MISSING) if problem == ENOENT else self.refused(STEP_LINK, problem)
        if c_fstat(fd, &from_) != 0:
            self.refused(STEP_LINK, errno)
        elif (from_.st_mode & S_IFMT) == S_IFDIR:
            self.fail(TARGET_DIRECTORY)
        else:
            parent = self.open_parent(self.path.data, self.path.size, &leaf)
            if parent >= 0 and self.link_to(fd, parent, leaf) != 0:
                if errno != EEXIST:
                    self.create_failed(STEP_LINK, errno)
                elif (fstatat(parent, leaf, &to, AT_SYMLINK_NOFOLLOW) != 0 or to.st_ino != from_.st_ino
                        or to.st_dev != from_.st_dev):
                    if self.displace(parent, leaf, &was_whiteout) == 0:
                        if self.link_to(fd, parent, leaf) != 0:
                            if errno == ENOENT:
                                self.fail(TARGET_MISSING)
                            else:
                                self.refused(STEP_LINK, errno)
                        self.forget_displaced(parent)
        close(fd)
        return -1 if self.problem else 0

    cdef int open_target_parent(self, const char **leaf) noexcept nogil:
        # Does not disturb the kept parent: links to one far directory come in long rows.
        cdef size_t cut = self.link.size
        cdef int fd
        while cut > 0 and self.link.data[cut - 1] != c"/":
            cut -= 1
        leaf[0] = self.link.data + cut
        if set_text(&self.scratch, self.link.data, cut - 1 if cut else 0) != 0:
            return self.no_memory()
        fd = open_directory(self.root, self.scratch.data, &self.by_hand)
        if fd < 0:
            return self.fail(TARGET_MISSING) if errno == ENOENT else self.bad_parent(errno)
        return fd

    cdef int link_to(self, int fd, int parent, const char *leaf) noexcept nogil:
        cdef char source[40]
        if linkat(fd, b"", parent, leaf, AT_EMPTY_PATH) == 0:
            return 0
        if errno != ENOENT and errno != EPERM:
            return -1
        # Without CAP_DAC_READ_SEARCH; linkat(2) names this way.
        snprintf(source, sizeof(source), "/proc/self/fd/%d", fd)
        return linkat(AT_FDCWD, source, parent, leaf, AT_SYMLINK_FOLLOW)

    cdef int symbolic_link(self, const char *target, size_t size) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent
        cdef bint was_whiteout = False
        cdef timespec times[2]
        if size == 0:
            return self.fail(LINK_EMPTY)
        if memchr(target, 0, size) != NULL:
            return self.fail(NAME_NUL)
        if size >= PATH_LIMIT:
            return self.fail(NAME_TOO_LONG)
        if set_text(&self.link, target, size) != 0:
            return self.no_memory()
        parent = self.open_parent(self.path.data, self.path.size, &leaf)
        if parent < 0:
            return -1
        if symlinkat(self.link.data, parent, leaf) != 0:
            if errno != EEXIST:
                return self.create_failed(STEP_SYMLINK, errno)
            if self.displace(parent, leaf, &was_whiteout) != 0:
                return -1
            if symlinkat(self.link.data, parent, leaf) != 0:
                return self.refused(STEP_SYMLINK, errno)
            self.finish_by_name(parent, leaf, False)
            self.forget_displaced(parent)
            return -1 if self.problem else 0
        return self.finish_by_name(parent, leaf, False)

    cdef int node(self, mode_t kind, dev_t device) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent = self.open_parent(self.path.data, self.path.size, &leaf)
        cdef bint was_whiteout = False
        if parent < 0:
            return -1
        if mknodat(parent, leaf, kind | (self.mode & 0o777), device) != 0:
            if errno != EEXIST:
                return self.create_failed(STEP_NODE, errno)
            if self.displace(parent, leaf, &was_whiteout) != 0:
                return -1
            if mknodat(parent, leaf, kind | (self.mode & 0o777), device) != 0:
                return self.refused(STEP_NODE, errno)
            self.finish_by_name(parent, leaf, True)
            self.forget_displaced(parent)
            return -1 if self.problem else 0
        return self.finish_by_name(parent, leaf, True)

    cdef int finish_by_name(self, int parent, const char *leaf, bint with_mode) noexcept nogil:
        """Owner, mode, attributes and times of what cannot be opened for writing."""
        cdef char by_fd[40]
        cdef timespec times[2]
        cdef int fd
        if fchownat(parent, leaf, self.uid, self.gid, AT_SYMLINK_NOFOLLOW) != 0:
            return self.refused(STEP_OWNER, errno)
        if with_mode or self.attributes.size:
            fd = openat(parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            if fd < 0:
                return self.refused(STEP_MODE, errno)
            snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", fd)
            if with_mode and c_chmod(by_fd, self.mode) != 0:
                self.refused(STEP_MODE, errno)
            elif self.attributes.size:
                self.set_attributes(fd, True)
            close(fd)
            if self.problem:
                return -1
        times[0].tv_sec = times[1].tv_sec = self.mtime.seconds
        times[0].tv_nsec = times[1].tv_nsec = self.mtime.nanoseconds
        if utimensat(parent, leaf, times, AT_SYMLINK_NOFOLLOW) != 0:
            return self.refused(STEP_TIMES, errno)
        return 0

    cdef int set_attributes(self, int fd, bint path_only) noexcept nogil:
        cdef char by_fd[40]
        cdef size_t at = 0
        cdef uint32_t sizes[2]
        cdef const char *name
        cdef const char *value
        cdef int result
        snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", fd)
        while at < self.attributes.size:
            memcpy(sizes, self.attributes.data + at, sizeof(sizes))
            name = self.attributes.data + at + sizeof(sizes)
            value = name + sizes[0] + 1
            at += sizeof(sizes) + sizes[0] + 1 + sizes[1]
            if self.tame and (strncmp(name, b"security.", 9) == 0 or strncmp(name, b"trusted.", 8) == 0):
                self.ignored_attributes += 1
                continue
            if path_only:
                result = c_setxattr(by_fd, name, value, sizes[1], 0)
            else:
                result = fsetxattr(fd, name, value, sizes[1], 0)
            if result == 0:
                continue
            # Labels of another system (SELinux, ...) are no reason to refuse an image; a
            # file capability that is silently missing would be.
            if (errno == EOPNOTSUPP or errno == EPERM or errno == EINVAL) and strcmp(name, b"security.capability") != 0:
                self.ignored_attributes += 1
                continue
            return self.refused(STEP_ATTRIBUTE, errno)
        return 0

    # -- regular files

    cdef int regular(self, const uint8_t *block) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent
        cdef int i
        cdef int64_t offset = 0
        cdef int64_t size = 0
        cdef int64_t real = 0
        cdef bint was_whiteout = False
        cdef int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC
        if self.size > self.max_bytes - self.bytes_written:
            return self.fail(TOO_MANY_BYTES)
        parent = self.open_parent(self.path.data, self.path.size, &leaf)
        if parent < 0:
            return -1
        self.file = openat(parent, leaf, flags, self.mode & 0o777)
        if self.file < 0:
            if errno != EEXIST:
                return self.create_failed(STEP_CREATE, errno)
            if self.displace(parent, leaf, &was_whiteout) != 0:
                return -1
            self.file = openat(parent, leaf, flags, self.mode & 0o777)
            if self.file < 0:
                return self.create_failed(STEP_CREATE, errno)
            self.forget_displaced(parent)
        self.file_parent = parent
        self.file_leaf = leaf

        if self.type == c"S":
            self.sparse = True
            self.segments.size = 0
            self.local.half_segment = -1
            if parse_field(block + 483, 12, &real) != 0:
                return self.fail(BAD_NUMBER)
            self.real_size = real
            for i in range(4):
                if self.sparse_pair(block + 386 + 24 * i) != 0:
                    return -1
            if block[482]:
                self.state = AT_SPARSE_BLOCK
                return 0
            return self.start_data()
        if self.local.has_real_size and (self.local.has_map or self.local.sparse_major == 1):
            self.sparse = True
            self.real_size = self.local.real_size
            if self.local.sparse_major == 1:
                self.segments.size = 0
                self.local.half_segment = -1
                self.meta.size = 0
                self.map_lines = 0
                self.map_needed = -1
                self.state = AT_SPARSE_MAP
                return 0 if self.size >= 512 else self.fail(BAD_SPARSE)
            if self.local.half_segment >= 0:
                return self.fail(BAD_SPARSE)
        return self.start_data()

    cdef int sparse_pair(self, const uint8_t *pair) noexcept nogil:
        cdef int64_t offset = 0
        cdef int64_t size = 0
        if pair[0] == 0 and pair[12] == 0:
            return 0
        if parse_field(pair, 12, &offset) or parse_field(pair + 12, 12, &size):
            return self.fail(BAD_SPARSE)
        if offset < 0 or self.sparse_number(offset) or self.sparse_number(size):
            return self.fail(BAD_SPARSE)
        return 0

    cdef int sparse_block(self, const uint8_t *block) noexcept nogil:
        # GNU's old format: 21 more pairs and a flag whether yet more follow.
        cdef int i
        for i in range(21):
            if self.sparse_pair(block + 24 * i) != 0:
                return -1
        return 0 if block[504] else self.start_data()

    cdef int sparse_map(self, const uint8_t *block) noexcept nogil:
        # PAX format 1.0: the map is decimal lines at the start of the data, padded to a block.
        cdef int i
        cdef size_t at = 0
        cdef size_t length
        cdef int64_t number = 0
        if append(&self.meta, block, 512) != 0:
            return self.no_memory()
        self.size -= 512
        if <int64_t>self.meta.size > SEGMENT_LIMIT * 40:
            return self.fail(BAD_SPARSE)
        for i in range(512):
            if block[i] != c"\n":
                continue
            self.map_lines += 1
            if self.map_lines == 1:
                length = 0
                while self.meta.data[length] != c"\n":
                    length += 1
                if parse_decimal(self.meta.data, length, &number) != 0 or number > SEGMENT_LIMIT:
                    return self.fail(BAD_SPARSE)
                self.map_needed = 2 * number + 1
            if self.map_lines == self.map_needed:
                break
        if self.map_needed < 0 or self.map_lines < self.map_needed:
            return 0 if self.size >= 512 else self.fail(BAD_SPARSE)
        self.map_lines = 0
        while self.map_lines < self.map_needed:
            length = 0
            while self.meta.data[at + length] != c"\n":
                length += 1
            if parse_decimal(self.meta.data + at, length, &number) != 0:
                return self.fail(BAD_SPARSE)
            if self.map_lines > 0 and self.sparse_number(number) != 0:
                return self.fail(BAD_SPARSE)
            self.map_lines += 1
            at += length + 1
        return self.start_data()

    cdef int start_data(self) noexcept nogil:
        cdef Segment *segments = <Segment *>self.segments.data
        cdef size_t count = self.segments.size // sizeof(Segment)
        cdef size_t i
        cdef int64_t end = 0
        cdef int64_t total = 0
        self.state = AT_DATA
        self.segment_at = 0
        if not self.sparse:
            self.segment_left = self.size
            if self.keep_skeleton and self.size > 0 and self.keep_file() != 0:
                return -1
            return self.next_segment() if self.size == 0 else 0
        if self.real_size < 0 or self.real_size > self.max_bytes:
            return self.fail(TOO_MANY_BYTES)
        for i in range(count):
            if segments[i].size < 0 or segments[i].offset < end or segments[i].offset > self.real_size:
                return self.fail(BAD_SPARSE)
            if segments[i].size > self.real_size - segments[i].offset:
                return self.fail(BAD_SPARSE)
            end = segments[i].offset + segments[i].size
            total += segments[i].size
        if total != self.size:
            return self.fail(BAD_SPARSE)
        self.segment_left = 0
        return self.next_segment()

    cdef int next_segment(self) noexcept nogil:
        """Go on with the next stored piece, or end the file."""
        cdef Segment *segments = <Segment *>self.segments.data
        cdef size_t count = self.segments.size // sizeof(Segment)
        if self.sparse:
            while self.segment_at < count:
                self.segment_offset = segments[self.segment_at].offset
                self.segment_left = segments[self.segment_at].size
                self.segment_at += 1
                if self.segment_left > 0:
                    return 0
            if ftruncate(self.file, self.real_size) != 0:
                return self.refused(STEP_WRITE, errno)
        if self.end_file() != 0:
            return -1
        self.forget_overrides()
        self.skip(self.padding)
        return 0

    cdef int write_data(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef ssize_t done
        while size:
            if self.sparse:
                done = pwrite(self.file, data, size, self.segment_offset)
            else:
                done = c_write(self.file, data, size)
            if done < 0:
                if errno == EINTR:
                    continue
                return self.refused(STEP_WRITE, errno)
            self.segment_offset += done
            self.segment_left -= done
            self.bytes_written += done
            data += done
            size -= done
        return 0

    cdef int end_file(self) noexcept nogil:
        cdef stat_s info
        cdef timespec times[2]
        if c_fstat(self.file, &info) != 0:
            return self.refused(STEP_MODE, errno)
        if info.st_uid != self.uid or info.st_gid != self.gid:
            if fchown(self.file, self.uid, self.gid) != 0:
                return self.refused(STEP_OWNER, errno)
        # The umask took bits away, or there are bits that only chmod gives and chown takes away.
        if (info.st_mode & 0o7777) != self.mode or self.mode & 0o7000:
            if fchmod(self.file, self.mode) != 0:
                return self.refused(STEP_MODE, errno)
        if self.attributes.size and self.set_attributes(self.file, False) != 0:
            return -1
        times[0].tv_sec = times[1].tv_sec = self.mtime.seconds
        times[0].tv_nsec = times[1].tv_nsec = self.mtime.nanoseconds
        if futimens(self.file, times) != 0:
            return self.refused(STEP_TIMES, errno)
        # close(2) may tell what write-back could not do (NFS, quota).
        if close(self.file) != 0 and errno != EINTR:
            self.file = -1
            return self.refused(STEP_WRITE, errno)
        self.file = -1
        return 0

    # -- the end

    cdef void end(self) noexcept nogil:
        if not self.seen_bytes:
            self.path.size = 0
            self.fail(EMPTY)
        elif self.block_fill and not self.seen_header:
            self.fail(NOT_TAR)
        elif self.state != AT_END and (self.state != AT_HEADER or self.block_fill or self.extended_pending):
            self.fail(TRUNCATED)
        else:
            self.finish_directories()

    cdef int finish_directories(self) noexcept nogil:
        cdef DirectoryRecord *records = <DirectoryRecord *>self.records.data
        cdef size_t count = self.records.size // sizeof(DirectoryRecord)
        cdef size_t i
        cdef size_t length
        cdef const char *path
        cdef const char *leaf = NULL
        cdef int parent
        cdef int fd
        cdef stat_s info
        cdef timespec times[2]
        for i in range(count):
            path = self.arena.data + records[i].path
            length = strlen(path)
            if length == 0:
                fd = openat(self.root, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            else:
                fd = -1
                parent = self.existing_parent(path, length, &leaf)
                if parent >= 0:
                    fd = openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            if fd < 0:
                if errno == ENOENT or errno == ENOTDIR or errno == ELOOP:
                    continue  # a later entry took its place
                return self.refused(STEP_PARENT, errno)
            if c_fstat(fd, &info) != 0:
                self.refused(STEP_MODE, errno)
            elif info.st_ino == records[i].inode and info.st_dev == records[i].device:
                times[0].tv_sec = times[1].tv_sec = records[i].mtime.seconds
                times[0].tv_nsec = times[1].tv_nsec = records[i].mtime.nanoseconds
                if ((info.st_uid != records[i].uid or info.st_gid != records[i].gid)
                        and fchown(fd, records[i].uid, records[i].gid) != 0):
                    self.refused(STEP_OWNER, errno)
                elif fchmod(fd, records[i].mode) != 0:
                    self.refused(STEP_MODE, errno)
                elif futimens(fd, times) != 0:
                    self.refused(STEP_TIMES, errno)
            close(fd)
            if self.problem:
                set_text(&self.path, path, length)
                return -1
        return 0

    cdef int existing_parent(self, const char *path, size_t size, const char **leaf) noexcept nogil:
        # Like open_parent, but makes nothing and leaves errno to the caller.
        cdef size_t cut = size
        cdef int fd
        while cut > 0 and path[cut - 1] != c"/":
            cut -= 1
        leaf[0] = path + cut
        if cut == 0:
            return self.root
        cut -= 1
        if self.parent_valid and self.parent_path.size == cut and memcmp(self.parent_path.data, path, cut) == 0:
            return self.parent
        if set_text(&self.scratch, path, cut) != 0:
            set_errno(ENOMEM)
            return -1
        fd = open_directory(self.root, self.scratch.data, &self.by_hand)
        return fd if fd < 0 else self.remember(fd, path, cut)


cdef size_t bounded(const char *text, size_t limit) noexcept nogil:
    cdef size_t size = 0
    while size < limit and text[size]:
        size += 1
    return size


cdef bint same(const char *text, size_t size, const char *word) noexcept nogil:
    return size == strlen(word) and memcmp(text, word, size) == 0


cdef bint begins(const char *text, size_t size, const char *word) noexcept nogil:
    cdef size_t length = strlen(word)
    return size >= length and memcmp(text, word, length) == 0


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
