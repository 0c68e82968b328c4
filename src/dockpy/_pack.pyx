"""A tree of files to a tar stream, without Python per entry; and an overlayfs upper to a layer.

Facts, and where they come from:

- ustar's fields hold 100 bytes of name (255 when a slash lies right), 100 of link, ids up to
  2,097,151, sizes below 8 GiB and times from 1970 in seconds (POSIX.1-2017 pax, "ustar Interchange
  Format"). What does not fit goes into a PAX record before the entry; its field then holds what
  fits of a name, and 0 for a number. Names that are not ASCII are PAX records too, as raw bytes: GNU
  tar and Go's archive/tar write them so, and no reader agrees on what they mean in a ustar field.
- Extended attributes are records `SCHILY.xattr.NAME` with the raw value; GNU tar writes `=` and `%`
  of a name as %3D and %25, and reads any other `%` as it is: so only one that would be misread is
  coded, which Go and others do not know. Other than security.capability, labels of `security.` belong to the host.
- overlayfs has character device 0:0, or an empty file with trusted.overlay.whiteout, for a deleted
  name, and trusted.overlay.opaque=y for a directory that hides the ones below (kernel,
  Documentation/filesystems/overlayfs.rst); a layer says `.wh.NAME` and `.wh..wh..opq` (OCI image
  spec, layer.md).
- A container may change the tree while it is read. A name that is gone is left out; a file is cut
  or filled with zeros to the size its header told. Opening a device has effects: on a mount
  without nodev every file is first opened with O_PATH and looked at (open(2)).

The same tree gives the same bytes: names sorted by bytes within a directory, records in a fixed
order, no user names, no access or change times, and marks for deleted names without owner or time.

`Packer` is pulled: `fill` writes the next bytes of the stream into any buffer. Nothing here raises
for what the kernel does: `fill` answers -1, and `problem`, `error` and `name` tell.
"""

from libc.errno cimport EACCES, EEXIST, EINTR, EINVAL, ELOOP, ENODATA, ENODEV, ENOENT, ENOMEM, ENOTDIR
from libc.errno cimport ENXIO, EOPNOTSUPP, EPERM, ERANGE, ESTALE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strcmp, strlen, strncmp

from dockpy._walk cimport (
    AT_SYMLINK_NOFOLLOW, Buffer, DENTS_SIZE, DT_CHR, DT_DIR, DT_REG, DT_UNKNOWN, KEPT_OPEN, Names,
    O_CLOEXEC, O_DIRECTORY, O_NOATIME, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY,
    PATH_LIMIT, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, append,
    c_fstat, c_read, close, cut_path, dev_t, fgetxattr, flistxattr, free_names, fstatat, ino_t,
    lgetxattr, llistxattr, major, minor, open_directory, openat, read_names, readlinkat, reserve,
    sort_texts, stat_s, type_of,
)

cdef extern from *:
    """
    #include <sys/statvfs.h>

    static int dp_has_devices(int fd) {
        struct statvfs of;
        return fstatvfs(fd, &of) != 0 || !(of.f_flag & ST_NODEV);
    }

    static unsigned dp_sum(const unsigned char *block) {
        unsigned all = 0;
        for (int i = 0; i < 512; i++)
            all += block[i];
        return all;
    }

    static int dp_is_ascii(const char *text, size_t size) {
        unsigned char all = 0;
        for (size_t i = 0; i < size; i++)
            all |= (unsigned char)text[i];
        return all < 128;
    }
    """
    int dp_has_devices(int fd) nogil
    unsigned int dp_sum(const uint8_t *block) nogil
    bint dp_is_ascii(const char *text, size_t size) nogil

cdef enum Problem:
    FINE = 0
    # The tree holds what the archive cannot say.
    NAME_LIKE_WHITEOUT = 1
    REDIRECTED
    ONLY_SOCKET
    MOVED
    # The kernel's refusal; `error` holds errno.
    STEP_MEMORY = 100
    STEP_DIRECTORY
    STEP_NAMES
    STEP_LOOK
    STEP_OPEN
    STEP_READ
    STEP_LINK
    STEP_ATTRIBUTES

TREE_PROBLEMS = {
    NAME_LIKE_WHITEOUT: "a layer cannot hold a name that begins with .wh.: that says a file is"
                        " deleted; rename or remove it",
    REDIRECTED: "a layer cannot hold what overlayfs stored as a reference to another layer"
                " (mount with redirect_dir=off,metacopy=off)",
    ONLY_SOCKET: "an archive cannot hold a socket",
    MOVED: "a directory was moved while it was read; stop or pause what changes it",
}
KERNEL_STEPS = {
    STEP_MEMORY: "allocate memory",
    STEP_DIRECTORY: "open directory",
    STEP_NAMES: "read directory",
    STEP_LOOK: "look at file",
    STEP_OPEN: "open file",
    STEP_READ: "read file",
    STEP_LINK: "read link",
    STEP_ATTRIBUTES: "read extended attributes",
}

cdef enum:
    BLOCK = 512
    ATTRIBUTE_LIMIT = 64 << 10  # XATTR_SIZE_MAX and XATTR_LIST_MAX of the kernel
    TRIES = 8  # of a name whose type changes between a look and the opening

cdef enum Found:
    # What came of trying to open a name as a file or a directory.
    OPENED
    ANOTHER_TYPE
    VANISHED
    BROKEN

cdef struct Frame:
    # A directory that is being read; `path_size`: of its path, with the slash, in the archive.
    Names names
    size_t next
    size_t path_size
    dev_t device
    ino_t inode
    int fd
    bint careful

cdef struct Link:
    dev_t device
    ino_t inode
    size_t name  # offset of its first name in `link_names`, plus one; 0 is a free place
    size_t name_size


# ---------------------------------------------------------------- numbers and records

cdef void put_octal(uint8_t *field, int width, uint64_t value) noexcept nogil:
    """`width - 1` digits and a NUL; what does not fit is 0, a PAX record tells it."""
    cdef int i = width - 2
    if value >> (3 * (width - 1)):
        value = 0
    field[width - 1] = 0
    while i >= 0:
        field[i] = c"0" + (value & 7)
        value >>= 3
        i -= 1


cdef int add_record(Buffer *out, const char *key, size_t key_size, const char *value,
                    size_t size) noexcept nogil:
    """`LENGTH KEY=VALUE` and a newline; the length counts its own digits."""
    cdef size_t rest = key_size + size + 3
    cdef size_t total = rest + 1
    cdef char digits[24]
    cdef int count = snprintf(digits, sizeof(digits), b"%zu", total)
    while rest + <size_t>count != total:
        total = rest + <size_t>count
        count = snprintf(digits, sizeof(digits), b"%zu", total)
    return (append(out, digits, <size_t>count) or append(out, b" ", 1)
            or append(out, key, key_size) or append(out, b"=", 1)
            or append(out, value, size) or append(out, b"\n", 1))


cdef int add_number(Buffer *out, const char *key, int64_t value) noexcept nogil:
    cdef char digits[24]
    cdef int count = snprintf(digits, sizeof(digits), b"%lld", <long long>value)
    return add_record(out, key, strlen(key), digits, <size_t>count)


cdef int add_time(Buffer *out, int64_t seconds, long nanoseconds) noexcept nogil:
    """`mtime` in seconds with as many decimals as it needs. Times before 1970 are -(s - ns)."""
    cdef char text[48]
    cdef int count
    cdef bint negative = seconds < 0
    cdef uint64_t whole = <uint64_t>seconds
    if negative:
        whole = 0 - <uint64_t>seconds
        if nanoseconds:
            whole -= 1
            nanoseconds = 1000000000 - nanoseconds
    count = snprintf(text, sizeof(text), b"%s%llu", b"-" if negative else b"",
                     <unsigned long long>whole)
    if nanoseconds:
        count += snprintf(text + count, sizeof(text) - <size_t>count, b".%09ld", nanoseconds)
        while text[count - 1] == c"0":
            count -= 1
    return add_record(out, b"mtime", 5, text, <size_t>count)


cdef int add_attribute(Buffer *out, Buffer *key, const char *name, const void *value,
                       size_t size) noexcept nogil:
    cdef size_t i, length = strlen(name)
    key.size = 0
    if append(key, b"SCHILY.xattr.", 13):
        return -1
    for i in range(length):
        if name[i] == c"=":
            if append(key, b"%3D", 3):
                return -1
        elif name[i] == c"%" and (strncmp(name + i, b"%3D", 3) == 0 or strncmp(name + i, b"%25", 3) == 0):
            if append(key, b"%25", 3):
                return -1
        elif append(key, name + i, 1):
            return -1
    return add_record(out, key.data, key.size, <const char *>value, size)


cdef size_t split_at(const char *path, size_t size) noexcept nogil:
    """Where ustar may cut a name in two: the offset of a slash, or 0."""
    cdef size_t i = size - 101 if size > 101 else 1
    while i <= 155 and i + 1 < size:
        if path[i] == c"/":
            return i
        i += 1
    return 0


cdef bint begins(const char *text, const char *start) noexcept nogil:
    return strncmp(text, start, strlen(start)) == 0


cdef bint is_portable(const char *name) noexcept nogil:
    """Whether an attribute belongs to the file, and not to this host or to overlayfs."""
    if begins(name, b"user."):
        return not begins(name, b"user.overlay.")
    if begins(name, b"trusted."):
        return not begins(name, b"trusted.overlay.")
    return (strcmp(name, b"security.capability") == 0
            or strcmp(name, b"system.posix_acl_access") == 0
            or strcmp(name, b"system.posix_acl_default") == 0)


# ---------------------------------------------------------------- the stream

cdef class Packer:
    """The tar stream of a directory, or of one name in it. See the module's text for the rules.

    `directory` stays the caller's and must live as long as this; `leaf`: what to pack in it, empty
    for itself. `name`: what the entries are called, a directory's own name and all below it;
    empty: `./` for the root and relative names below. `layer`: an overlayfs upper as a layer.
    """
    cdef readonly int problem
    cdef readonly int error
    cdef readonly uint64_t entries
    cdef readonly uint64_t size  # bytes of the stream until now
    cdef readonly uint64_t content  # of it of files, those that are announced included
    cdef readonly uint64_t metadata  # most bytes of PAX records that an entry had
    cdef readonly uint64_t longest  # most bytes of a name
    cdef int directory
    cdef bint layer
    cdef bint careful  # devices could be opened by mistake in the directory at hand
    cdef bint root_careful
    cdef bint started
    cdef bint ended
    cdef int no_atime
    cdef Buffer leaf
    cdef Buffer path  # of the entry at hand, as the archive calls it
    cdef size_t root_size  # how much of it stands for the root directory
    cdef Buffer records
    cdef Buffer key
    cdef Buffer location  # where attributes are read by name: /proc/self/fd/N/NAME
    cdef Buffer pending  # headers that are not yet delivered, from `delivered` on
    cdef size_t delivered
    cdef Frame *frames
    cdef size_t depth
    cdef size_t frame_room
    cdef int file
    cdef int64_t remaining  # bytes of the file at hand
    cdef int64_t filler  # zeros that follow
    cdef stat_s info
    cdef char *space  # for names of directories
    cdef char *listed  # names of attributes, one after the other
    cdef char *value
    cdef const char **attributes
    cdef size_t attribute_count
    cdef size_t attribute_room
    cdef bint is_opaque
    cdef bint is_whiteout
    cdef bint is_redirected
    cdef Link *links
    cdef size_t link_count
    cdef size_t link_room
    cdef Buffer link_names

    def __cinit__(self, int directory, *, bytes name not None, bytes leaf not None = b"",
                  bint layer):
        self.directory = directory
        self.layer = layer
        self.file = -1
        self.no_atime = O_NOATIME
        self.root_careful = dp_has_devices(directory)
        self.careful = True  # of the one name, which may be a mount; the root directory decides
        self.space = <char *>malloc(DENTS_SIZE)
        self.listed = <char *>malloc(ATTRIBUTE_LIMIT)
        self.value = <char *>malloc(ATTRIBUTE_LIMIT)
        if self.space == NULL or self.listed == NULL or self.value == NULL:
            raise MemoryError
        name = name.strip(b"/")
        if (append(&self.path, <const char *>name, len(name)) or append(&self.path, b"\0", 1)
                or append(&self.leaf, <const char *>leaf, len(leaf))
                or append(&self.leaf, b"\0", 1)):
            raise MemoryError
        self.path.size -= 1
        self.leaf.size -= 1

    def __dealloc__(self):
        cdef size_t i
        self.close()
        for i in range(self.frame_room):
            free_names(&self.frames[i].names)
        for data in (<size_t>self.frames, <size_t>self.space, <size_t>self.listed,
                     <size_t>self.value, <size_t>self.attributes, <size_t>self.links,
                     <size_t>self.leaf.data, <size_t>self.path.data, <size_t>self.records.data,
                     <size_t>self.key.data, <size_t>self.location.data, <size_t>self.pending.data,
                     <size_t>self.link_names.data):
            free(<void *><size_t>data)

    def close(self) -> None:
        """Give up the descriptors. `fill` must not be called again."""
        self.ended = True
        if self.file >= 0:
            close(self.file)
            self.file = -1
        while self.depth:
            self.depth -= 1
            if self.frames[self.depth].fd >= 0:
                close(self.frames[self.depth].fd)

    @property
    def name(self) -> bytes:
        """The entry at hand, as the archive calls it."""
        return self.path.data[:self.path.size]

    @property
    def is_careful(self) -> bool:
        """Whether files of the root are looked at before they are opened: devices work there."""
        return self.root_careful

    def fill(self, uint8_t[::1] buffer not None) -> int:
        """Write the next bytes; how many: less than the buffer holds only at the end, then 0.

        -1 when something failed; the stream is then of no use.
        """
        cdef size_t size = buffer.shape[0]
        cdef int64_t count = 0
        if self.problem:
            return -1
        if size:
            with nogil:
                count = self.produce(&buffer[0], size)
        return count

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

    # -- bytes out

    cdef int64_t produce(self, uint8_t *buffer, size_t size) noexcept nogil:
        cdef size_t done = 0, count
        cdef ssize_t got
        while done < size:
            if self.delivered < self.pending.size:
                count = min(size - done, self.pending.size - self.delivered)
                memcpy(buffer + done, self.pending.data + self.delivered, count)
                self.delivered += count
                done += count
            elif self.remaining:
                count = size - done
                if <int64_t>count > self.remaining:
                    count = <size_t>self.remaining
                got = c_read(self.file, buffer + done, count)
                if got < 0:
                    if errno == EINTR:
                        continue
                    return self.refused(STEP_READ, errno)
                if got == 0:  # it has become shorter
                    self.filler += self.remaining
                    self.remaining = 0
                done += <size_t>got
                if got:
                    self.remaining -= got
            elif self.file >= 0:
                close(self.file)
                self.file = -1
            elif self.filler:
                count = size - done
                if <int64_t>count > self.filler:
                    count = <size_t>self.filler
                memset(buffer + done, 0, count)
                self.filler -= count
                done += count
            elif self.ended:
                break
            else:
                self.pending.size = 0
                self.delivered = 0
                if self.advance() != 0:
                    return -1
        self.size += done
        return <int64_t>done

    cdef int advance(self) noexcept nogil:
        """One name more: its headers are pending then, or it was left out, or all is done."""
        cdef Frame *frame
        cdef const char *name
        if not self.started:
            self.started = True
            if self.leaf.size:
                if self.path.size == 0 and cut_path(&self.path, 0, self.leaf.data, False):
                    return self.no_memory()
                return self.entry(self.directory, self.leaf.data, DT_UNKNOWN)
            if self.path.size == 0 and cut_path(&self.path, 0, b".", False):
                return self.no_memory()
            if self.enter(self.directory, b".", True) != OPENED:
                return -1
            return 0
        if self.depth == 0:
            self.ended = True
            self.filler = 2 * BLOCK
            return 0
        frame = &self.frames[self.depth - 1]
        if frame.next == frame.names.count:
            return self.leave()
        name = frame.names.list[frame.next]
        frame.next += 1
        if cut_path(&self.path, frame.path_size, name, False):
            return self.no_memory()
        self.careful = frame.careful
        return self.entry(frame.fd, name, type_of(name))

    # -- directories

    cdef int enter(self, int parent, const char *name, bint is_root) noexcept nogil:
        """Open the directory, describe it and read its names. A `Found`."""
        cdef Frame *frame
        cdef Frame *grown
        cdef size_t room
        cdef int err, fd
        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | self.no_atime)
        if fd < 0 and errno == EPERM and self.no_atime:
            self.no_atime = 0  # not ours, and we are not root
            fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            if errno == ENOENT and not is_root:
                return VANISHED
            if (errno == ENOTDIR or errno == ELOOP) and not is_root:
                return ANOTHER_TYPE
            self.refused(STEP_DIRECTORY, errno)
            return BROKEN
        if self.depth == self.frame_room:
            room = self.frame_room * 2 + 16
            grown = <Frame *>realloc(self.frames, room * sizeof(Frame))
            if grown == NULL:
                close(fd)
                self.no_memory()
                return BROKEN
            memset(grown + self.frame_room, 0, (room - self.frame_room) * sizeof(Frame))
            self.frames = grown
            self.frame_room = room
        frame = &self.frames[self.depth]
        frame.fd = fd
        frame.next = 0
        self.depth += 1
        if append(&self.path, b"/\0", 2):
            self.no_memory()
            return BROKEN
        self.path.size -= 1
        if c_fstat(fd, &self.info) != 0:
            self.refused(STEP_LOOK, errno)
            return BROKEN
        frame.device = self.info.st_dev
        frame.inode = self.info.st_ino
        if self.depth == 1 and not self.leaf.size:
            frame.careful = self.root_careful
        elif self.depth > 1 and frame.device == self.frames[self.depth - 2].device:
            frame.careful = self.frames[self.depth - 2].careful
        else:  # something is mounted here
            frame.careful = dp_has_devices(fd)
        if self.list_attributes(fd) != 0:
            return BROKEN
        if self.layer and self.is_redirected:
            self.fail(REDIRECTED)
            return BROKEN
        if self.header(c"5", NULL, 0, 0, fd) != 0:
            return BROKEN
        if self.depth == 1 and strcmp(self.path.data, b"./") == 0:
            self.path.size = 0
        frame.path_size = self.path.size
        if self.depth == 1:
            self.root_size = frame.path_size
        if self.layer and self.is_opaque and self.mark(frame.path_size, b".wh..wh..opq") != 0:
            return BROKEN
        err = read_names(fd, &frame.names, self.space, True)
        if err:
            self.refused(STEP_NAMES, err)
            return BROKEN
        if self.depth > KEPT_OPEN and self.frames[self.depth - KEPT_OPEN].fd >= 0:
            # Never the root: all others can be found again from it.
            close(self.frames[self.depth - KEPT_OPEN].fd)
            self.frames[self.depth - KEPT_OPEN].fd = -1
        return OPENED

    cdef int leave(self) noexcept nogil:
        cdef Frame *frame
        cdef stat_s found
        cdef char *end
        cdef char kept
        self.depth -= 1
        close(self.frames[self.depth].fd)
        if self.depth == 0:
            return 0
        frame = &self.frames[self.depth - 1]
        if frame.fd >= 0:
            return 0
        # Its path is still the beginning of the one at hand.
        end = self.path.data + frame.path_size
        kept = end[0]
        end[0] = 0
        frame.fd = open_directory(self.frames[0].fd, self.path.data + self.root_size, False)
        end[0] = kept
        if frame.fd < 0:
            if errno == ENOENT or errno == ENOTDIR or errno == ELOOP:
                return self.fail(MOVED)
            return self.refused(STEP_DIRECTORY, errno)
        if c_fstat(frame.fd, &found) != 0:
            return self.refused(STEP_LOOK, errno)
        if found.st_dev != frame.device or found.st_ino != frame.inode:
            return self.fail(MOVED)
        return 0

    # -- names

    cdef int entry(self, int parent, const char *name, uint8_t kind) noexcept nogil:
        cdef int found = ANOTHER_TYPE, tries, fd = -1
        cdef size_t path_size = self.path.size
        for tries in range(TRIES):
            self.path.size = path_size
            if kind == DT_REG:
                found = self.open_file(parent, name, &fd)
            elif kind == DT_DIR:
                if self.layer and begins(name, b".wh."):
                    return self.fail(NAME_LIKE_WHITEOUT)
                found = self.enter(parent, name, False)
            else:
                found = self.look(parent, name)
            if found == OPENED:
                if kind == DT_DIR:
                    return 0
                if kind == DT_REG:
                    return self.regular(fd)
                return self.special(parent, name)
            if found == BROKEN:
                return -1
            if found == VANISHED:
                break
            if fstatat(parent, name, &self.info, AT_SYMLINK_NOFOLLOW) != 0:
                if errno == ENOENT:
                    break
                return self.refused(STEP_LOOK, errno)
            if (self.info.st_mode & S_IFMT) == S_IFREG:
                kind = DT_REG
            elif (self.info.st_mode & S_IFMT) == S_IFDIR:
                kind = DT_DIR
            else:
                kind = DT_UNKNOWN
        if self.depth == 0:  # what was asked for by name
            return self.refused(STEP_LOOK, ENOENT)
        return 0

    cdef int look(self, int parent, const char *name) noexcept nogil:
        """What is neither file nor directory. A `Found`."""
        if fstatat(parent, name, &self.info, AT_SYMLINK_NOFOLLOW) != 0:
            if errno == ENOENT:
                return VANISHED
            self.refused(STEP_LOOK, errno)
            return BROKEN
        if (self.info.st_mode & S_IFMT) == S_IFREG or (self.info.st_mode & S_IFMT) == S_IFDIR:
            return ANOTHER_TYPE
        return OPENED

    cdef int open_file(self, int parent, const char *name, int *result) noexcept nogil:
        """A regular file, to be read, with `info` about it. A `Found`."""
        cdef int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC
        cdef int fd, looked = -1
        cdef char by_number[32]
        if self.careful:
            looked = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            if looked < 0:
                if errno == ENOENT:
                    return VANISHED
                self.refused(STEP_OPEN, errno)
                return BROKEN
            if c_fstat(looked, &self.info) != 0 or (self.info.st_mode & S_IFMT) != S_IFREG:
                close(looked)
                return ANOTHER_TYPE
            snprintf(by_number, sizeof(by_number), b"/proc/self/fd/%d", looked)
            parent = -1
            name = by_number
            flags &= ~O_NOFOLLOW
        fd = openat(parent, name, flags | self.no_atime)
        if fd < 0 and errno == EPERM and self.no_atime:
            self.no_atime = 0
            fd = openat(parent, name, flags)
        if fd < 0:
            if looked >= 0:
                self.refused(STEP_OPEN, errno)
                close(looked)
                return BROKEN
            if errno == ENOENT:
                return VANISHED
            # A link, a device or a socket has taken its place; a file that may not be read has not.
            if (errno == ELOOP or errno == ENXIO or errno == ENODEV) or (
                    errno == EACCES and fstatat(parent, name, &self.info, AT_SYMLINK_NOFOLLOW) == 0
                    and (self.info.st_mode & S_IFMT) != S_IFREG):
                return ANOTHER_TYPE
            self.refused(STEP_OPEN, errno)
            return BROKEN
        if looked >= 0:
            close(looked)
        if c_fstat(fd, &self.info) != 0:
            self.refused(STEP_LOOK, errno)
            close(fd)
            return BROKEN
        if (self.info.st_mode & S_IFMT) != S_IFREG:
            close(fd)
            return ANOTHER_TYPE
        result[0] = fd
        return OPENED

    cdef int regular(self, int fd) noexcept nogil:
        cdef int linked
        self.file = fd
        if self.list_attributes(fd) != 0:
            return -1
        if self.layer:
            if self.is_redirected:
                return self.fail(REDIRECTED)
            if self.is_whiteout and self.info.st_size == 0:
                return self.deleted()
            if self.is_mark():
                return self.fail(NAME_LIKE_WHITEOUT)
        linked = self.link_to_first()
        if linked != 0:
            return 0 if linked > 0 else -1
        if self.header(c"0", NULL, 0, self.info.st_size, fd) != 0:
            return -1
        self.content += <uint64_t>self.info.st_size
        self.remaining = self.info.st_size
        self.filler = -self.info.st_size & (BLOCK - 1)
        return 0

    cdef int special(self, int parent, const char *name) noexcept nogil:
        cdef int linked
        cdef ssize_t size = 0
        cdef unsigned int kind = self.info.st_mode & S_IFMT
        cdef char typeflag
        if kind == S_IFSOCK:
            return 0 if self.depth else self.fail(ONLY_SOCKET)
        if self.layer and kind == S_IFCHR and self.info.st_rdev == 0:
            return self.deleted()
        if self.layer and self.is_mark():
            return self.fail(NAME_LIKE_WHITEOUT)
        linked = self.locate(parent, name)
        if linked != 0:
            return 0 if linked > 0 else -1
        linked = self.link_to_first()
        if linked != 0:
            return 0 if linked > 0 else -1
        if kind == S_IFLNK:
            size = readlinkat(parent, name, self.space, DENTS_SIZE)
            if size < 0:
                # It is gone, or something else by now.
                return 0 if errno == ENOENT or errno == EINVAL else self.refused(STEP_LINK, errno)
            typeflag = c"2"
        elif kind == S_IFCHR:
            typeflag = c"3"
        elif kind == S_IFBLK:
            typeflag = c"4"
        elif kind == S_IFIFO:
            typeflag = c"6"
        else:
            return 0
        return self.header(typeflag, self.space, <size_t>size, 0, -1)

    cdef bint is_mark(self) noexcept nogil:
        """Whether the last part of the name begins as the marks of layers do."""
        cdef size_t start = self.path.size
        while start and self.path.data[start - 1] != c"/":
            start -= 1
        return begins(self.path.data + start, b".wh.")

    cdef int deleted(self) noexcept nogil:
        """The mark for a deleted name: `.wh.` before it."""
        cdef size_t start = self.path.size
        if self.is_mark():
            return self.fail(NAME_LIKE_WHITEOUT)
        while start and self.path.data[start - 1] != c"/":
            start -= 1
        self.key.size = 0
        if (append(&self.key, b".wh.", 4)
                or append(&self.key, self.path.data + start, self.path.size - start + 1)):
            return self.no_memory()
        return self.mark(start, self.key.data)

    cdef int mark(self, size_t directory_size, const char *name) noexcept nogil:
        """An empty file that means something: no owner, no time, so that equal layers are equal."""
        cdef size_t before = self.path.size
        if cut_path(&self.path, directory_size, name, False):
            return self.no_memory()
        memset(&self.info, 0, sizeof(self.info))
        self.info.st_mode = S_IFREG | 0o600
        self.attribute_count = 0
        if self.header(c"0", NULL, 0, 0, -1) != 0:
            return -1
        if before <= directory_size:  # of an opaque directory: its own name is needed again
            self.path.size = before
            self.path.data[before] = 0
        return 0

    # -- hard links

    cdef int link_to_first(self) noexcept nogil:
        """1: the same inode was packed before, and a link to it is written; 0: it was not."""
        cdef size_t at
        cdef Link *link
        if self.info.st_nlink < 2:
            return 0
        if self.link_count * 2 >= self.link_room and self.more_links() != 0:
            return -1
        at = place_of(self.links, self.link_room, self.info.st_dev, self.info.st_ino)
        link = &self.links[at]
        if link.name:
            self.attribute_count = 0
            if self.header(c"1", self.link_names.data + link.name - 1, link.name_size, 0, -1) != 0:
                return -1
            return 1
        link.device = self.info.st_dev
        link.inode = self.info.st_ino
        link.name = self.link_names.size + 1
        link.name_size = self.path.size
        self.link_count += 1
        if append(&self.link_names, self.path.data, self.path.size):
            return self.no_memory()
        return 0

    cdef int more_links(self) noexcept nogil:
        cdef size_t i, at, room = self.link_room * 2 + 256
        cdef Link *grown = <Link *>calloc(room, sizeof(Link))
        if grown == NULL:
            return self.no_memory()
        for i in range(self.link_room):
            if self.links[i].name:
                at = place_of(grown, room, self.links[i].device, self.links[i].inode)
                grown[at] = self.links[i]
        free(self.links)
        self.links = grown
        self.link_room = room
        return 0

    # -- extended attributes

    cdef int locate(self, int parent, const char *name) noexcept nogil:
        """The attributes of what cannot be opened, by its name in the directory. 1: it is gone."""
        cdef char number[40]
        cdef stat_s found
        snprintf(number, sizeof(number), b"/proc/self/fd/%d/", parent)
        self.location.size = 0
        if (append(&self.location, number, strlen(number))
                or append(&self.location, name, strlen(name) + 1)):
            return self.no_memory()
        if self.list_attributes(-1) == 0:
            return 0
        if self.error == ENOENT and fstatat(parent, name, &found, AT_SYMLINK_NOFOLLOW) != 0:
            self.problem = FINE
            self.error = 0
            return 1
        return -1

    cdef int list_attributes(self, int fd) noexcept nogil:
        """Names that go into the archive, sorted; and what overlayfs says. -1: `location` counts."""
        cdef ssize_t size
        cdef char *name
        cdef char *end
        cdef const char **grown
        self.attribute_count = 0
        self.is_opaque = False
        self.is_whiteout = False
        self.is_redirected = False
        if fd >= 0:
            size = flistxattr(fd, self.listed, ATTRIBUTE_LIMIT)
        else:
            size = llistxattr(self.location.data, self.listed, ATTRIBUTE_LIMIT)
        if size <= 0:
            if size == 0 or errno == EOPNOTSUPP:
                return 0
            return self.refused(STEP_ATTRIBUTES, errno)
        name = self.listed
        end = self.listed + size
        while name < end:
            if is_portable(name):
                if self.attribute_count == self.attribute_room:
                    self.attribute_room = self.attribute_room * 2 + 16
                    grown = <const char **>realloc(
                        self.attributes, self.attribute_room * sizeof(char *))
                    if grown == NULL:
                        return self.no_memory()
                    self.attributes = grown
                self.attributes[self.attribute_count] = name
                self.attribute_count += 1
            elif self.layer and begins(name, b"trusted.overlay."):
                if strcmp(name, b"trusted.overlay.opaque") == 0:
                    self.is_opaque = self.get(fd, name) == 1 and self.value[0] == c"y"
                elif strcmp(name, b"trusted.overlay.whiteout") == 0:
                    self.is_whiteout = True
                elif (strcmp(name, b"trusted.overlay.redirect") == 0
                        or strcmp(name, b"trusted.overlay.metacopy") == 0):
                    self.is_redirected = True
            name += strlen(name) + 1
        if self.attribute_count > 1:
            sort_texts(self.attributes, self.attribute_count)
        return 0

    cdef ssize_t get(self, int fd, const char *name) noexcept nogil:
        if fd >= 0:
            return fgetxattr(fd, name, self.value, ATTRIBUTE_LIMIT)
        return lgetxattr(self.location.data, name, self.value, ATTRIBUTE_LIMIT)

    # -- headers

    cdef int header(self, char typeflag, const char *link, size_t link_size, int64_t size,
                    int fd) noexcept nogil:
        """Headers of the entry at hand: PAX records as far as needed, and the ustar block."""
        cdef uint8_t *block
        cdef size_t cut = 0, i
        cdef ssize_t got
        cdef bint long_name = False
        self.records.size = 0
        self.longest = max(self.longest, <uint64_t>self.path.size)
        if not dp_is_ascii(self.path.data, self.path.size):
            long_name = True
        elif self.path.size > 100:
            cut = split_at(self.path.data, self.path.size)
            long_name = cut == 0
        if long_name and add_record(&self.records, b"path", 4, self.path.data, self.path.size):
            return self.no_memory()
        if (link_size > 100 or (link_size and not dp_is_ascii(link, link_size))) and add_record(
                &self.records, b"linkpath", 8, link, link_size):
            return self.no_memory()
        if (size >> 33 and add_number(&self.records, b"size", size)
                or self.info.st_uid >> 21 and add_number(&self.records, b"uid", self.info.st_uid)
                or self.info.st_gid >> 21 and add_number(&self.records, b"gid", self.info.st_gid)):
            return self.no_memory()
        if (self.info.st_mtim.tv_nsec or self.info.st_mtim.tv_sec < 0
                or self.info.st_mtim.tv_sec >> 33) and add_time(
                &self.records, self.info.st_mtim.tv_sec, self.info.st_mtim.tv_nsec):
            return self.no_memory()
        for i in range(self.attribute_count):
            got = self.get(fd, self.attributes[i])
            if got < 0:
                if errno == ENODATA or (fd < 0 and errno == ENOENT):
                    continue
                return self.refused(STEP_ATTRIBUTES, errno)
            if add_attribute(&self.records, &self.key, self.attributes[i], self.value, <size_t>got):
                return self.no_memory()
        if self.records.size:
            self.metadata = max(self.metadata, <uint64_t>self.records.size)
            block = self.new_block()
            if block == NULL:
                return -1
            memcpy(block, b"././@PaxHeader", 14)
            put_numbers(block, 0o644, 0, 0, <int64_t>self.records.size, 0)
            block[156] = c"x"
            seal(block)
            if (append(&self.pending, self.records.data, self.records.size)
                    or reserve(&self.pending, BLOCK)):
                return self.no_memory()
            cut_to_block(&self.pending)
        block = self.new_block()
        if block == NULL:
            return -1
        if cut:
            memcpy(block, self.path.data + cut + 1, self.path.size - cut - 1)
            memcpy(block + 345, self.path.data, cut)
        else:
            memcpy(block, self.path.data, min(self.path.size, <size_t>100))
        put_numbers(block, self.info.st_mode & 0o7777, self.info.st_uid, self.info.st_gid, size,
                    self.info.st_mtim.tv_sec)
        block[156] = <uint8_t>typeflag
        if link_size:
            memcpy(block + 157, link, min(link_size, <size_t>100))
        if typeflag == c"3" or typeflag == c"4":
            put_octal(block + 329, 8, major(self.info.st_rdev))
            put_octal(block + 337, 8, minor(self.info.st_rdev))
        seal(block)
        self.entries += 1
        return 0

    cdef uint8_t *new_block(self) noexcept nogil:
        cdef uint8_t *block
        if reserve(&self.pending, BLOCK):
            self.no_memory()
            return NULL
        block = <uint8_t *>self.pending.data + self.pending.size
        self.pending.size += BLOCK
        memset(block, 0, BLOCK)
        memcpy(block + 257, b"ustar\x0000", 8)
        return block


cdef size_t place_of(Link *links, size_t room, dev_t device, ino_t inode) noexcept nogil:
    """Where the inode is, or the free place where it belongs. Never full."""
    cdef size_t at = <size_t>((inode ^ (device << 40)) * <uint64_t>0x9E3779B97F4A7C15 >> 20) % room
    while links[at].name and (links[at].inode != inode or links[at].device != device):
        at += 1
        if at == room:
            at = 0
    return at


cdef void put_numbers(uint8_t *block, uint64_t mode, uint64_t uid, uint64_t gid, int64_t size,
                      int64_t mtime) noexcept nogil:
    put_octal(block + 100, 8, mode)
    put_octal(block + 108, 8, uid)
    put_octal(block + 116, 8, gid)
    put_octal(block + 124, 12, <uint64_t>size)
    put_octal(block + 136, 12, 0 if mtime < 0 else <uint64_t>mtime)


cdef void seal(uint8_t *block) noexcept nogil:
    memset(block + 148, c" ", 8)
    put_octal(block + 148, 7, dp_sum(block))
    # Six digits, NUL, blank: the field's oldest form, which every reader knows.


cdef void cut_to_block(Buffer *buffer) noexcept nogil:
    """Zeros up to a whole block; there is room for one."""
    cdef size_t more = -buffer.size & (BLOCK - 1)
    memset(buffer.data + buffer.size, 0, more)
    buffer.size += more


def open_below(int root, bytes path not None, bint by_hand):
    """A directory by its relative path, for tests: (descriptor, 0), or (-1, errno)."""
    cdef const char *text = path
    cdef int fd
    with nogil:
        fd = open_directory(root, text, by_hand)
    if fd < 0:
        return -1, errno
    return fd, 0
