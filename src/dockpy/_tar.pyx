# cython: language_level=3
"""A tar stream to a tree of files, without Python per entry and without ever leaving the tree.

Facts, and where they come from:

- Every path is resolved below the target's descriptor as if it were `/` (`_below`): a symbolic link
  of the archive leads to some place inside, never out.
- The last component is never followed: files are made with O_EXCL | O_NOFOLLOW, and what is in the
  way is removed first. Owners, modes, times and attributes are set on descriptors.
- fchown(2) clears setuid bits and write(2) clears security.capability, so the order is data, owner,
  mode, attributes, times. A directory's own values are set when everything is in it: its mode may
  lock it, its mtime would change, and a default access control list would be inherited (acl(5)).
- A hard link's own mode, owner and times are its target's, whatever its header says.
- overlayfs has character device 0:0 for a deleted name and trusted.overlay.opaque=y for a directory
  that hides the ones below (kernel, Documentation/filesystems/overlayfs.rst); an OCI layer says the
  same with `.wh.NAME` and `.wh..wh..opq` (OCI image spec, layer.md), about *lower* layers only.

- sync_file_range(2) with SYNC_FILE_RANGE_WRITE begins to write a file's pages and waits for none;
  syncfs(2) later finds them written, or under way, and tells of what failed.

`_tarread` reads; here is what becomes of the entries. Memory does not grow with the archive: what is
to be done to directories at the end goes to a file without a name (`_spill`) when it is much.
"""

from libc.errno cimport EDQUOT, EEXIST, EINTR, EINVAL, EIO, EISDIR, ELOOP, ENAMETOOLONG, ENOENT
from libc.errno cimport ENOMEM, ENOSPC, ENOTDIR, EOPNOTSUPP, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, strcmp, strlen, strncmp

from dockpy._below cimport open_directory, remove_entry, same_again
from dockpy._spill cimport Spill, spill_add, spill_close, spill_ends, spill_take, spill_turn
from dockpy._tarfields cimport Time
from dockpy._tarread cimport (
    FINE,
    FIRST_OF_TREE,
    FIRST_STEP,
    NAME_TOO_LONG,
    STEP_MEMORY,
    TARGET_DIRECTORY,
    TOO_MANY_BYTES,
    TOO_MANY_ENTRIES,
    TarReader,
    set_text,
)
from dockpy._walk cimport (
    AT_SYMLINK_NOFOLLOW,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFMT,
    Buffer,
    append,
    c_fstat,
    close,
    dev_t,
    fstatat,
    gid_t,
    ino_t,
    mode_t,
    openat,
    reserve,
    set_errno,
    stat_s,
    timespec,
    uid_t,
)

from dockpy._tarread import STREAM_PROBLEMS

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    """
    int O_WRONLY, O_CREAT, O_EXCL
    int AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH
    ssize_t c_write "write"(int fd, const void *data, size_t size) nogil
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset) nogil
    int ftruncate(int fd, int64_t size) nogil
    int mkdirat(int directory, const char *name, mode_t mode) nogil
    int mknodat(int directory, const char *name, mode_t mode, dev_t device) nogil
    int symlinkat(const char *target, int directory, const char *name) nogil
    int linkat(int from_, const char *old, int to, const char *new, int flags) nogil
    int unlinkat(int directory, const char *name, int flags) nogil
    int fchown(int fd, uid_t uid, gid_t gid) nogil
    int fchmod(int fd, mode_t mode) nogil
    int c_chmod "chmod"(const char *path, mode_t mode) nogil
    int fchownat(int directory, const char *name, uid_t uid, gid_t gid, int flags) nogil
    int utimensat(int directory, const char *name, const timespec *times, int flags) nogil
    int futimens(int fd, const timespec *times) nogil
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags) nogil
    int c_setxattr "setxattr"(const char *path, const char *name, const void *value, size_t size, int flags) nogil
    dev_t makedev(unsigned int major, unsigned int minor) nogil
    unsigned int SYNC_FILE_RANGE_WRITE
    int sync_file_range(int fd, int64_t offset, int64_t size, unsigned int flags) nogil

cdef enum:
    WRITTEN_ROOM = 32  # descriptors that wait for `take_written`
    WRITTEN_PIECE = 8 << 20  # bytes of a file that is not at its end yet

cdef enum TreeProblem:
    BARE_WHITEOUT = FIRST_OF_TREE
    PARENT_NOT_DIRECTORY
    PARENT_LOOP
    TARGET_MISSING
    DIRECTORY_THERE
    FILE_THERE
    DEVICE

cdef enum Step:
    STEP_PARENT = FIRST_STEP
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

ARCHIVE_PROBLEMS = STREAM_PROBLEMS | {
    BARE_WHITEOUT: "a whiteout names nothing that can be deleted",
    PARENT_NOT_DIRECTORY: "something in the entry's path is not a directory",
    PARENT_LOOP: "the entry's path goes through too many symbolic links",
    TARGET_MISSING: "a hard link's target is not in the archive before it",
    DIRECTORY_THERE: "cannot overwrite a directory with something else",
    FILE_THERE: "cannot overwrite a file with a directory",
    DEVICE: "a device is not copied unless owners are kept (-a)",
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

cdef struct DirectoryRecord:
    # Before its path below the root, without the part that it shares with the one before, and its
    # attributes.
    uint32_t shared
    uint32_t path
    uint32_t attributes
    mode_t mode
    uid_t uid
    gid_t gid
    dev_t device
    ino_t inode
    Time mtime


cdef class Unpacker(TarReader):
    """One archive being unpacked into one directory. Not for two threads at a time."""

    cdef int root
    cdef bint by_hand
    cdef bint whiteouts
    cdef bint merges
    cdef bint tame
    cdef int64_t owner
    cdef int64_t group

    cdef int file
    cdef int file_parent
    cdef const char *file_leaf

    cdef int parent
    cdef Buffer parent_path
    cdef bint parent_valid
    cdef Buffer scratch
    cdef int64_t implied  # directories that were made without an entry of their own

    cdef Spill directories
    cdef Buffer last_directory
    cdef int64_t recorded

    # Files of so many bytes (0: none) are not closed, but kept for who begins to write them back.
    cdef int64_t keeps_from
    cdef int64_t unannounced  # bytes of the file at hand
    cdef int kept[WRITTEN_ROOM]
    cdef readonly int written

    cdef readonly bint replaced

    def __cinit__(self, int directory, *, int64_t max_bytes, int64_t max_entries, int max_path,
                  int64_t max_metadata, bint whiteouts, bint by_hand=False, bint skeleton=False, bint merges=False,
                  int64_t owner=-1, int64_t group=-1, bint tame=False, int64_t keeps_from=0):
        self.file = -1
        self.parent = -1
        self.root = same_again(directory)
        self.by_hand = by_hand
        self.whiteouts = whiteouts
        self.keep_skeleton = skeleton
        self.merges = merges
        self.tame = tame
        self.owner = owner
        self.group = group
        self.keeps_from = keeps_from
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_path = max_path
        self.max_metadata = max_metadata
        if self.root < 0:
            raise OSError(errno, "dup")

    def __dealloc__(self):
        self.shut()
        free(self.parent_path.data)
        free(self.scratch.data)
        free(self.last_directory.data)
        spill_close(&self.directories)

    cdef void shut(self) noexcept nogil:
        if self.file >= 0:
            if self.merges:
                self.remove_half()
            close(self.file)
        if self.root >= 0:
            close(self.root)
        if self.parent >= 0:
            close(self.parent)
        while self.written:
            self.written -= 1
            close(self.kept[self.written])
        self.root = self.file = self.parent = -1
        self.closed = True

    cdef void remove_half(self) noexcept nogil:
        """Nobody takes away what was merged so far; half a file is nothing to keep."""
        cdef stat_s ours
        cdef stat_s there
        if (c_fstat(self.file, &ours) == 0
                and fstatat(self.file_parent, self.file_leaf, &there, AT_SYMLINK_NOFOLLOW) == 0
                and ours.st_ino == there.st_ino and ours.st_dev == there.st_dev):
            unlinkat(self.file_parent, self.file_leaf, 0)

    def close(self):
        """Let go of the directory; half a file is taken away where nobody else will."""
        self.shut()

    def take_written(self) -> list[int]:
        """Descriptors of files that are written, or a good part of them; the caller's from now on."""
        cdef int i
        found = [self.kept[i] for i in range(self.written)]
        self.written = 0
        return found

    @property
    def walks_by_hand(self) -> bool:
        """Whether the kernel turned out to deny openat2."""
        return self.by_hand

    # -- entries

    cdef int begin_entry(self) noexcept nogil:
        cdef int done
        if self.tame:
            self.mode &= 0o1777
            if self.type == c"3" or self.type == c"4":
                return self.fail(DEVICE)
        if self.owner >= 0:
            self.uid = <uint32_t>self.owner
        if self.group >= 0:
            self.gid = <uint32_t>self.group
        if self.whiteouts:
            done = self.whiteout()
            if done:
                return -1 if done < 0 else 0
        if self.type == c"5":
            return self.directory()
        if self.type == c"1":
            return self.hard_link()
        if self.type == c"2":
            return self.symbolic_link()
        if self.type == c"3":
            return self.node(S_IFCHR, makedev(self.major, self.minor))
        if self.type == c"4":
            return self.node(S_IFBLK, makedev(self.major, self.minor))
        if self.type == c"6":
            return self.node(S_IFIFO, 0)
        return 1

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
        """Directories the archive uses but does not list: 0755. Answers like open. They count as
        entries: one name can ask for two thousand of them."""
        cdef char *text = self.scratch.data
        cdef size_t cut = self.scratch.size
        cdef int here = -1
        cdef int err
        # From the end: mostly the last one only is missing.
        while here < 0:
            while cut > 0 and text[cut - 1] != c"/":
                cut -= 1
            if cut == 0:
                here = same_again(self.root)
                if here < 0:
                    return -1
                break
            text[cut - 1] = 0
            here = open_directory(self.root, text, &self.by_hand)
            err = errno
            text[cut - 1] = c"/"
            if here < 0:
                if err != ENOENT:
                    set_errno(err)
                    return -1
                cut -= 1
        while here >= 0 and cut < self.scratch.size:
            here = self.make_parent(here, text, &cut)
        return here

    cdef int make_parent(self, int here, char *text, size_t *at) noexcept nogil:
        """One more, below `here`, which is closed."""
        cdef size_t end = at[0]
        cdef char after
        cdef int below
        cdef int err
        self.implied += 1
        if self.entries + self.implied > self.max_entries:
            close(here)
            return self.fail(TOO_MANY_ENTRIES)
        while text[end] and text[end] != c"/":
            end += 1
        after = text[end]
        text[end] = 0
        if mkdirat(here, text + at[0], 0o755) == 0:
            below = openat(here, text + at[0], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            if below >= 0 and (fchmod(below, 0o755) != 0 or (self.owner >= 0 and fchown(
                    below, <uid_t>self.owner, <gid_t>self.group) != 0)):
                err = errno
                close(below)
                set_errno(err)
                below = -1
        elif errno == EEXIST:
            # A symbolic link that leads nowhere, or somebody else was quicker.
            below = openat(here, text + at[0], O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        else:
            below = -1
        err = errno
        close(here)
        text[end] = after
        at[0] = end + 1 if after else end
        set_errno(err)
        return below

    cdef int displace(self, int parent, const char *name, bint *was_whiteout) noexcept nogil:
        """Remove what has the name now."""
        cdef stat_s info
        cdef int err
        was_whiteout[0] = False
        if fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0:
            return 0 if errno == ENOENT else self.refused(STEP_REMOVE, errno)
        was_whiteout[0] = (info.st_mode & S_IFMT) == S_IFCHR and info.st_rdev == 0
        if self.merges:
            # Never a directory, also when it came there after the look at it.
            if unlinkat(parent, name, 0) == 0 or errno == ENOENT:
                return 0
            if errno == EISDIR or (info.st_mode & S_IFMT) == S_IFDIR:
                return self.fail(DIRECTORY_THERE)
            return self.refused(STEP_REMOVE, errno)
        if not was_whiteout[0]:
            self.replaced = True  # what the stream said before can no longer be read from the tree
        err = remove_entry(parent, name)
        return self.refused(STEP_REMOVE, err) if err else 0

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
        elif not kept:
            self.record_directory(&info)
        if self.problem:
            close(fd)
            return -1
        # What was there before: its owner, mode and times are not the archive's business.
        if self.path.size == 0:
            close(fd)
            return 0
        return -1 if self.remember(fd, self.path.data, self.path.size) < 0 else 0

    cdef int record_directory(self, const stat_s *info) noexcept nogil:
        cdef DirectoryRecord record
        cdef size_t shared = 0
        cdef int failed
        while (shared < self.path.size and shared < self.last_directory.size
                and self.path.data[shared] == self.last_directory.data[shared]):
            shared += 1
        record.shared = <uint32_t>shared
        record.path = <uint32_t>(self.path.size - shared)
        record.attributes = <uint32_t>self.attributes.size
        record.device = info.st_dev
        record.inode = info.st_ino
        record.mode = self.mode
        record.uid = self.uid
        record.gid = self.gid
        record.mtime = self.mtime
        if set_text(&self.last_directory, self.path.data, self.path.size) != 0:
            return self.no_memory()
        failed = spill_add(&self.directories, self.root, &record, sizeof(record))
        if not failed:
            failed = spill_add(&self.directories, self.root, self.path.data + shared, record.path)
        if not failed:
            failed = spill_add(&self.directories, self.root, self.attributes.data, record.attributes)
        if failed:
            return self.no_memory() if failed == ENOMEM else self.refused(STEP_WRITE, failed)
        return self.fail(TOO_MANY_BYTES) if self.directories.written > self.max_bytes else 0

    cdef int hard_link(self) noexcept nogil:
        cdef const char *leaf = NULL
        cdef const char *target_leaf = NULL
        cdef int parent
        cdef int fd
        cdef int problem
        cdef bint was_whiteout = False
        cdef stat_s from_
        cdef stat_s to
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

    cdef int symbolic_link(self) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent
        cdef bint was_whiteout = False
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
                self.set_attributes(fd, True, self.attributes.data, self.attributes.size)
            close(fd)
            if self.problem:
                return -1
        times[0].tv_sec = times[1].tv_sec = self.mtime.seconds
        times[0].tv_nsec = times[1].tv_nsec = self.mtime.nanoseconds
        if utimensat(parent, leaf, times, AT_SYMLINK_NOFOLLOW) != 0:
            return self.refused(STEP_TIMES, errno)
        return 0

    cdef int set_attributes(self, int fd, bint path_only, const char *list, size_t size) noexcept nogil:
        cdef char by_fd[40]
        cdef size_t at = 0
        cdef uint32_t sizes[2]
        cdef const char *name
        cdef const char *value
        cdef int result
        snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", fd)
        while at < size:
            memcpy(sizes, list + at, sizeof(sizes))
            name = list + at + sizeof(sizes)
            value = name + sizes[0] + 1
            at += sizeof(sizes) + sizes[0] + 1 + sizes[1]
            if self.tame and strncmp(name, b"user.", 5) != 0:
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

    cdef int begin_content(self) noexcept nogil:
        cdef const char *leaf = NULL
        cdef int parent
        cdef bint was_whiteout = False
        cdef int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC
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
        self.unannounced = 0
        return 0

    cdef int content(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef ssize_t done
        cdef int64_t offset = self.segment_offset
        while size:
            if self.sparse:
                done = pwrite(self.file, data, size, offset)
            else:
                done = c_write(self.file, data, size)
            if done < 0:
                if errno == EINTR:
                    continue
                return self.refused(STEP_WRITE, errno)
            offset += done
            data += done
            size -= done
            self.unannounced += done
        if self.keeps_from and self.unannounced >= WRITTEN_PIECE and self.written < WRITTEN_ROOM:
            self.keep_written(same_again(self.file))
        return 0

    cdef void keep_written(self, int file) noexcept nogil:
        if file >= 0:
            self.kept[self.written] = file
            self.written += 1
        self.unannounced = 0

    cdef int end_content(self) noexcept nogil:
        cdef stat_s info
        cdef timespec times[2]
        if self.sparse and ftruncate(self.file, self.real_size) != 0:
            return self.refused(STEP_WRITE, errno)
        if c_fstat(self.file, &info) != 0:
            return self.refused(STEP_MODE, errno)
        if info.st_uid != self.uid or info.st_gid != self.gid:
            if fchown(self.file, self.uid, self.gid) != 0:
                return self.refused(STEP_OWNER, errno)
        # The umask took bits away, or there are bits that only chmod gives and chown takes away.
        if (info.st_mode & 0o7777) != self.mode or self.mode & 0o7000:
            if fchmod(self.file, self.mode) != 0:
                return self.refused(STEP_MODE, errno)
        if self.attributes.size and self.set_attributes(self.file, False, self.attributes.data, self.attributes.size) != 0:
            return -1
        times[0].tv_sec = times[1].tv_sec = self.mtime.seconds
        times[0].tv_nsec = times[1].tv_nsec = self.mtime.nanoseconds
        if futimens(self.file, times) != 0:
            return self.refused(STEP_TIMES, errno)
        if self.keeps_from and self.unannounced >= self.keeps_from and self.written < WRITTEN_ROOM:
            self.keep_written(self.file)
            self.file = -1
            return 0
        # close(2) may tell what write-back could not do (NFS, quota).
        if close(self.file) != 0 and errno != EINTR:
            self.file = -1
            return self.refused(STEP_WRITE, errno)
        self.file = -1
        return 0

    # -- the end

    cdef int end_stream(self) noexcept nogil:
        cdef DirectoryRecord record
        cdef const char *data = NULL
        cdef int err = spill_turn(&self.directories)
        self.last_directory.size = 0
        while not err and not spill_ends(&self.directories):
            err = spill_take(&self.directories, &data, sizeof(record))
            if err:
                break
            memcpy(&record, data, sizeof(record))
            err = spill_take(&self.directories, &data, record.path + record.attributes)
            if err:
                break
            self.last_directory.size = record.shared
            if append(&self.last_directory, data, record.path) or append(&self.last_directory, b"\0", 1):
                err = ENOMEM
                break
            self.last_directory.size -= 1
            if self.finish_directory(&record, data + record.path) != 0:
                set_text(&self.path, self.last_directory.data, self.last_directory.size)
                return -1
        if err:
            return self.no_memory() if err == ENOMEM else self.refused(STEP_WRITE, err)
        return 0

    cdef int finish_directory(self, const DirectoryRecord *record, const char *attributes) noexcept nogil:
        """Everything is in it. Owner, then mode, then attributes: a mode changes an access list."""
        cdef const char *path = self.last_directory.data
        cdef size_t length = self.last_directory.size
        cdef const char *leaf = NULL
        cdef int parent
        cdef int fd = -1
        cdef stat_s info
        cdef timespec times[2]
        if length == 0:
            fd = openat(self.root, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        else:
            parent = self.existing_parent(path, length, &leaf)
            if parent >= 0:
                fd = openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            if errno == ENOENT or errno == ENOTDIR or errno == ELOOP:
                return 0  # a later entry took its place
            return self.refused(STEP_PARENT, errno)
        if c_fstat(fd, &info) != 0:
            self.refused(STEP_MODE, errno)
        elif info.st_ino == record.inode and info.st_dev == record.device:
            times[0].tv_sec = times[1].tv_sec = record.mtime.seconds
            times[0].tv_nsec = times[1].tv_nsec = record.mtime.nanoseconds
            if ((info.st_uid != record.uid or info.st_gid != record.gid)
                    and fchown(fd, record.uid, record.gid) != 0):
                self.refused(STEP_OWNER, errno)
            elif fchmod(fd, record.mode) != 0:
                self.refused(STEP_MODE, errno)
            elif record.attributes and self.set_attributes(fd, False, attributes, record.attributes) != 0:
                pass
            elif futimens(fd, times) != 0:
                self.refused(STEP_TIMES, errno)
        close(fd)
        return -1 if self.problem else 0

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


# ---------------------------------------------------------------- write-back

def begin_write_back(list files not None) -> int:
    """Have the kernel begin to write these files (at most 32) to the disk, and close them.

    Blocks while the disk's queue is full. 0, or the first errno that says data was lost: of
    sync_file_range(2), or of close(2). That the call is not known or not allowed is nothing.
    """
    cdef int fds[WRITTEN_ROOM]
    cdef int count = len(files)
    cdef int first = 0
    cdef int err
    cdef int i
    if count > WRITTEN_ROOM:
        raise ValueError("too many files")
    for i in range(count):
        fds[i] = files[i]
    with nogil:
        for i in range(count):
            err = 0
            if sync_file_range(fds[i], 0, 0, SYNC_FILE_RANGE_WRITE) != 0:
                err = errno if errno == EIO or errno == ENOSPC or errno == EDQUOT else 0
            if close(fds[i]) != 0 and errno != EINTR and not err:
                err = errno
            if not first:
                first = err
    return first
