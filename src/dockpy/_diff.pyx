"""What a container changed: an overlayfs upper against its lowers, without Python per entry.

Facts, and where they come from:

- Docker compares the merged trees, whichever its storage is (seen with Docker 20.10.24 on overlay2
  and vfs; tests/kernel/test_changes.py holds what it answered): a name that is there now and was not
  is A; one that was and is not is D, alone, without what was below it; one that was and is, with
  another type, mode, owner, group, device number, capability, or (unless a directory) size or time,
  is C. Opening a file for writing, or touching a directory, changes nothing. A directory with any
  change in it is C itself; of the root nothing is said.
- Times are equal when their seconds are and one of them has no nanoseconds (archives often have
  none). The bit that tells directories, 0o040000, is part of a block device's and a socket's type
  too: their size and time do not count either.
- overlayfs shows a name of the topmost layer that has it. Character device 0:0 says it is deleted;
  directories of one name are merged downwards until one is not a directory, or has
  trusted.overlay.opaque=y (kernel, Documentation/filesystems/overlayfs.rst). Its other mark for a
  deleted name, trusted.overlay.whiteout, only foreign tools make; it is not looked for here.

So only the upper has to be walked. What is below a directory that is new is new. Names of a lower
directory are read only where an opaque upper hides them, or where the upper has so many names that
looking each of them up would cost more. Nothing is opened but directories.

The lowers must not change meanwhile; the upper may: what is gone is left out.
"""

from libc.errno cimport ELOOP, ENODATA, ENOENT, ENOMEM, ENOTDIR, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memset, strcmp, strlen

from dockpy._walk cimport (
    AT_SYMLINK_NOFOLLOW, Buffer, DENTS_SIZE, DT_CHR, DT_DIR, DT_UNKNOWN, KEPT_OPEN, Names,
    O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, PATH_LIMIT, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG,
    append, c_fstat, close, cut_path, dev_t, fgetxattr, flistxattr, free_names, fstatat, ino_t,
    lgetxattr, open_directory, openat, read_names, set_errno, sort_texts, stat_s, type_of,
)

cdef enum Problem:
    FINE = 0
    REDIRECTED = 1
    MOVED
    STEP_MEMORY = 100
    STEP_DIRECTORY
    STEP_NAMES
    STEP_LOOK
    STEP_ATTRIBUTES

TREE_PROBLEMS = {
    REDIRECTED: "overlayfs stored a renamed directory as a reference to its old name"
                " (mount with redirect_dir=off)",
    MOVED: "a directory was moved while it was read; stop or pause what changes it",
}
KERNEL_STEPS = {
    STEP_MEMORY: "allocate memory",
    STEP_DIRECTORY: "open directory",
    STEP_NAMES: "read directory",
    STEP_LOOK: "look at file",
    STEP_ATTRIBUTES: "read extended attributes",
}

cdef enum:
    MANY_NAMES = 512  # in one directory: reading the lower one's names is cheaper than asking
    FEW_PLACES = 4096  # of a table that is kept for the next directory
    LIST_SIZE = 64 << 10  # XATTR_LIST_MAX and XATTR_SIZE_MAX of the kernel
    CAPABILITY_SIZE = 64  # more than any version of security.capability has

cdef enum Below:
    NOTHING
    SOMETHING
    BROKEN = -1

cdef struct Place:
    # A name below a directory: which of its lowers has it first, and whether the upper has it too.
    size_t name  # offset in the arena plus one; 0 is a free place
    uint32_t lower
    bint seen

cdef struct NameTable:
    Buffer arena
    Place *places
    size_t room
    size_t count
    bint loaded

cdef struct Frame:
    # A directory of the upper that also is below, or is new.
    Names names
    NameTable below
    size_t next
    size_t path_size  # of its path, with the slash
    uint32_t *lowers  # indexes of the layers whose directories are merged here, top first
    size_t lower_count
    size_t lower_room
    int fd
    dev_t device
    ino_t inode
    uint8_t kind  # what to say about it when something in it has changed; 0: said, or the root
    bint hides  # nothing of the lowers shows through


cdef bint is_deletion(const stat_s *info) noexcept nogil:
    return (info.st_mode & S_IFMT) == S_IFCHR and info.st_rdev == 0


cdef bint is_directory(const stat_s *info) noexcept nogil:
    return (info.st_mode & S_IFMT) == S_IFDIR


cdef bint same_time(const stat_s *a, const stat_s *b) noexcept nogil:
    return a.st_mtim.tv_sec == b.st_mtim.tv_sec and (
        a.st_mtim.tv_nsec == b.st_mtim.tv_nsec or a.st_mtim.tv_nsec == 0 or b.st_mtim.tv_nsec == 0)


cdef bint same_values(const stat_s *old, const stat_s *new) noexcept nogil:
    """All that Docker compares but the capability."""
    if (old.st_mode != new.st_mode or old.st_uid != new.st_uid or old.st_gid != new.st_gid
            or old.st_rdev != new.st_rdev):
        return False
    return (old.st_mode & S_IFDIR) == S_IFDIR or (
        old.st_size == new.st_size and same_time(old, new))


# ---------------------------------------------------------------- a table of names

cdef size_t place_of(NameTable *table, const char *name) noexcept nogil:
    """Where the name is, or the free place where it belongs. Never full."""
    cdef uint64_t mixed = 14695981039346656037u
    cdef size_t i = 0, at
    while name[i]:
        mixed = (mixed ^ <uint8_t>name[i]) * <uint64_t>1099511628211
        i += 1
    at = <size_t>(mixed ^ (mixed >> 32)) & (table.room - 1)
    while table.places[at].name and strcmp(table.arena.data + table.places[at].name - 1, name) != 0:
        at = (at + 1) & (table.room - 1)
    return at


cdef int grow_table(NameTable *table) noexcept nogil:
    cdef size_t i, old_room = table.room
    cdef Place *old = table.places
    table.room = old_room * 2 if old_room else 256
    table.places = <Place *>calloc(table.room, sizeof(Place))
    if table.places == NULL:
        table.places = old
        table.room = old_room
        return -1
    for i in range(old_room):
        if old[i].name:
            table.places[place_of(table, table.arena.data + old[i].name - 1)] = old[i]
    free(old)
    return 0


cdef int add_name(NameTable *table, const char *name, uint32_t lower) noexcept nogil:
    """Unless a higher lower has it."""
    cdef size_t at
    if table.count * 2 >= table.room and grow_table(table):
        return -1
    at = place_of(table, name)
    if table.places[at].name:
        return 0
    table.places[at].name = table.arena.size + 1
    table.places[at].lower = lower
    table.places[at].seen = False
    table.count += 1
    return append(&table.arena, name, strlen(name) + 1)


cdef void empty_table(NameTable *table) noexcept nogil:
    if table.room > FEW_PLACES:
        free(table.places)
        table.places = NULL
        table.room = 0
    elif table.count:
        memset(table.places, 0, table.room * sizeof(Place))
    table.count = 0
    table.arena.size = 0
    table.loaded = False


# ---------------------------------------------------------------- the comparison

cdef class Comparison:
    """All changes of an upper against its lowers, top first, by one call of `run`.

    The descriptors stay the caller's. `mount_points`: relative paths; an empty file or directory
    the engine itself made there to mount on is no change.
    """
    cdef readonly int problem
    cdef readonly int error
    cdef int upper
    cdef int *layers
    cdef uint32_t layer_count
    cdef Buffer point_names  # relative paths, each with its NUL
    cdef size_t longest_point
    cdef Buffer path  # of the name at hand, relative to the roots
    cdef Buffer location
    cdef Buffer found  # the changes: a letter and a path with its NUL, one after the other
    cdef size_t found_count
    cdef Buffer sorted
    cdef Buffer letters
    cdef Frame *frames
    cdef size_t depth
    cdef size_t frame_room
    cdef Names scratch
    cdef char *space
    cdef uint32_t *collected  # layers of the directory that is entered next
    cdef uint32_t collected_count
    cdef size_t found_lower  # where `find_below` found the name, in the frame's lowers
    cdef bint is_opaque

    def __cinit__(self, int upper, list lowers not None, *, list mount_points not None = []):
        cdef bytes point
        cdef size_t i
        self.upper = upper
        self.layer_count = <uint32_t>len(lowers)
        self.layers = <int *>malloc((self.layer_count + 1) * sizeof(int))
        self.collected = <uint32_t *>malloc((self.layer_count + 1) * sizeof(uint32_t))
        self.space = <char *>malloc(DENTS_SIZE)
        if self.layers == NULL or self.collected == NULL or self.space == NULL:
            raise MemoryError
        for i in range(self.layer_count):
            self.layers[i] = lowers[i]
        for point in mount_points:
            self.longest_point = max(self.longest_point, <size_t>len(point))
            if append(&self.point_names, <const char *>point, len(point) + 1):
                raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        while self.depth:
            self.pop()
        for i in range(self.frame_room):
            free_names(&self.frames[i].names)
            free(self.frames[i].below.arena.data)
            free(self.frames[i].below.places)
            free(self.frames[i].lowers)
        free_names(&self.scratch)
        for data in (<size_t>self.layers, <size_t>self.collected, <size_t>self.space,
                     <size_t>self.frames, <size_t>self.point_names.data, <size_t>self.path.data,
                     <size_t>self.location.data, <size_t>self.found.data,
                     <size_t>self.sorted.data, <size_t>self.letters.data):
            free(<void *><size_t>data)

    @property
    def name(self) -> bytes:
        """The path at hand when it failed, relative to the root."""
        return self.path.data[:self.path.size] if self.path.data != NULL else b""

    def run(self) -> tuple[bytes, bytes] | None:
        """Absolute paths, a NUL after each, sorted by their bytes; and a letter (A, C, D) for each.
        None: it failed."""
        cdef int failed
        with nogil:
            failed = self.walk() or self.sort(False)
        if failed:
            return None
        if self.found_count == 0:
            return b"", b""
        return self.sorted.data[:self.sorted.size], self.letters.data[:self.letters.size]

    def lines(self) -> bytes | None:
        """The same as text: a letter, a space, the path and a newline for each."""
        cdef int failed
        with nogil:
            failed = self.walk() or self.sort(True)
        if failed:
            return None
        return self.sorted.data[:self.sorted.size] if self.found_count else b""

    # -- failures

    cdef int fail(self, int problem) noexcept nogil:
        self.problem = problem
        self.error = 0
        return -1

    cdef int refused(self, int step, int err) noexcept nogil:
        self.problem = step
        self.error = err
        return -1

    cdef int no_memory(self) noexcept nogil:
        return self.refused(STEP_MEMORY, ENOMEM)

    # -- the walk

    cdef int walk(self) noexcept nogil:
        cdef Frame *frame
        cdef const char *name
        cdef uint32_t i
        if cut_path(&self.path, 0, b"", False):
            return self.no_memory()
        self.collected_count = 0
        for i in range(self.layer_count):
            self.collected[i] = i
            self.collected_count += 1
            if self.look_at_lower_attributes(i) != 0:
                return -1
            if self.is_opaque:
                break
        if self.enter(self.upper, b".", 0, False) != 0:
            return -1
        while self.depth:
            frame = &self.frames[self.depth - 1]
            if frame.next < frame.names.count:
                name = frame.names.list[frame.next]
                frame.next += 1
                if cut_path(&self.path, frame.path_size, name, False):
                    return self.no_memory()
                if self.compare(frame, name, type_of(name)) != 0:
                    return -1
            elif (frame.hides and self.uncover(frame) != 0) or self.leave() != 0:
                return -1
        return 0

    cdef int compare(self, Frame *frame, const char *name, uint8_t kind) noexcept nogil:
        """One name of the upper."""
        cdef stat_s old, new
        cdef uint32_t first = 0
        cdef size_t at
        cdef int below = NOTHING
        cdef bint changed
        if frame.lower_count:
            if frame.below.loaded:
                first = <uint32_t>frame.lower_count
                if frame.below.room:
                    at = place_of(&frame.below, name)
                    if frame.below.places[at].name:
                        first = frame.below.places[at].lower
                        frame.below.places[at].seen = True
            below = self.find_below(frame, first, &old)
        if below == BROKEN:
            return -1
        if below == NOTHING:
            return self.added(frame, name, kind)
        if fstatat(frame.fd, name, &new, AT_SYMLINK_NOFOLLOW) != 0:
            return 0 if errno == ENOENT else self.refused(STEP_LOOK, errno)
        if is_deletion(&new):
            return self.say(c"D")
        changed = not same_values(&old, &new)
        if not changed:
            changed = self.same_capability(frame, name) == 0
            if self.problem:
                return -1
        if changed and self.say(c"C") != 0:
            return -1
        if not is_directory(&new):
            return 0
        self.collected_count = 0
        if is_directory(&old) and self.collect(frame, self.found_lower) != 0:
            return -1
        return self.enter(frame.fd, name, 0 if changed else c"C", frame.hides)

    cdef int added(self, Frame *frame, const char *name, uint8_t kind) noexcept nogil:
        """A name that is nowhere below, or a mark that deletes nothing."""
        cdef stat_s new
        cdef bint is_point = self.is_mount_point()
        if is_point or kind == DT_UNKNOWN or kind == DT_CHR:
            if fstatat(frame.fd, name, &new, AT_SYMLINK_NOFOLLOW) != 0:
                return 0 if errno == ENOENT else self.refused(STEP_LOOK, errno)
            if is_deletion(&new):
                return 0
            if is_directory(&new):
                kind = DT_DIR
            if is_point and (new.st_mode & S_IFMT) == S_IFREG and new.st_size == 0:
                return 0
        if not (is_point and kind == DT_DIR) and self.say(c"A") != 0:
            return -1
        if kind != DT_DIR:
            return 0
        self.collected_count = 0
        return self.enter(frame.fd, name, c"A" if is_point else 0, False)

    cdef bint is_mount_point(self) noexcept nogil:
        cdef size_t at = 0, length
        if self.path.size > self.longest_point:
            return False
        while at < self.point_names.size:
            length = strlen(self.point_names.data + at)
            if length == self.path.size and memcmp(
                    self.point_names.data + at, self.path.data, length) == 0:
                return True
            at += length + 1
        return False

    cdef int uncover(self, Frame *frame) noexcept nogil:
        """What was in the directories below, and the upper that hides them has not."""
        cdef size_t i
        cdef stat_s old
        cdef int below
        for i in range(frame.below.room):
            if frame.below.places[i].name == 0 or frame.below.places[i].seen:
                continue
            if cut_path(&self.path, frame.path_size,
                        frame.below.arena.data + frame.below.places[i].name - 1, False):
                return self.no_memory()
            below = self.find_below(frame, frame.below.places[i].lower, &old)
            if below == BROKEN or (below == SOMETHING and self.say(c"D") != 0):
                return -1
        return 0

    # -- what is below

    cdef int look_below(self, uint32_t layer, stat_s *info) noexcept nogil:
        """fstatat(2) of the path at hand in a layer; every part before the last is a directory."""
        cdef const char *name
        cdef int directory = self.layers[layer], result, err
        if self.path.size < PATH_LIMIT:
            return fstatat(directory, self.path.data, info, AT_SYMLINK_NOFOLLOW)
        directory = self.open_parent(layer, &name)
        if directory < 0:
            return -1
        result = fstatat(directory, name, info, AT_SYMLINK_NOFOLLOW)
        err = errno
        close(directory)
        set_errno(err)
        return result

    cdef int open_parent(self, uint32_t layer, const char **name) noexcept nogil:
        cdef size_t slash = self.path.size
        cdef int fd
        while slash and self.path.data[slash - 1] != c"/":
            slash -= 1
        name[0] = self.path.data + slash
        if slash == 0:
            return open_directory(self.layers[layer], b"", False)
        self.path.data[slash - 1] = 0
        fd = open_directory(self.layers[layer], self.path.data, False)
        self.path.data[slash - 1] = c"/"
        return fd

    cdef int find_below(self, Frame *frame, size_t first, stat_s *old) noexcept nogil:
        """What the lowers show under the name at hand; a `Below`."""
        cdef size_t i = first
        while i < frame.lower_count:
            if self.look_below(frame.lowers[i], old) == 0:
                if is_deletion(old):
                    return NOTHING
                self.found_lower = i
                return SOMETHING
            if errno != ENOENT:
                self.refused(STEP_LOOK, errno)
                return BROKEN
            i += 1
        return NOTHING

    cdef int collect(self, Frame *frame, size_t first) noexcept nogil:
        """The layers whose directories at this path are merged, from the one found on."""
        cdef stat_s info
        cdef size_t i = first
        while i < frame.lower_count:
            if i > first:
                if self.look_below(frame.lowers[i], &info) != 0:
                    if errno != ENOENT:
                        return self.refused(STEP_LOOK, errno)
                    i += 1
                    continue
                if not is_directory(&info):
                    return 0
            self.collected[self.collected_count] = frame.lowers[i]
            self.collected_count += 1
            if i + 1 < frame.lower_count:
                if self.look_at_lower_attributes(frame.lowers[i]) != 0:
                    return -1
                if self.is_opaque:
                    return 0
            i += 1
        return 0

    cdef int look_at_lower_attributes(self, uint32_t layer) noexcept nogil:
        cdef int result, fd = open_directory(self.layers[layer], self.path.data, False)
        if fd < 0:
            return self.refused(STEP_DIRECTORY, errno)
        result = self.look_at_attributes(fd)
        close(fd)
        return result

    cdef int look_at_attributes(self, int fd) noexcept nogil:
        """What overlayfs wrote on a directory."""
        cdef char value[4]
        cdef ssize_t size = flistxattr(fd, self.space, LIST_SIZE)
        cdef char *name = self.space
        self.is_opaque = False
        if size < 0:
            return 0 if errno == EOPNOTSUPP else self.refused(STEP_ATTRIBUTES, errno)
        while name < self.space + size:
            if strcmp(name, b"trusted.overlay.opaque") == 0:
                self.is_opaque = fgetxattr(fd, name, value, sizeof(value)) == 1 and value[0] == c"y"
            elif strcmp(name, b"trusted.overlay.redirect") == 0:
                return self.fail(REDIRECTED)
            name += strlen(name) + 1
        return 0

    cdef int load_names(self, Frame *frame) noexcept nogil:
        """The names of the directories below, each with the first that has it."""
        cdef size_t i, at
        cdef int fd, err
        empty_table(&frame.below)
        for i in range(frame.lower_count):
            fd = open_directory(self.layers[frame.lowers[i]], self.path.data, False)
            if fd < 0:
                return self.refused(STEP_DIRECTORY, errno)
            err = read_names(fd, &self.scratch, self.space, False)
            close(fd)
            if err:
                return self.refused(STEP_NAMES, err)
            for at in range(self.scratch.count):
                if add_name(&frame.below, self.scratch.list[at], <uint32_t>i):
                    return self.no_memory()
        frame.below.loaded = True
        return 0

    cdef int same_capability(self, Frame *frame, const char *name) noexcept nogil:
        """1 or 0; `problem` is set when it cannot be told."""
        cdef char old[CAPABILITY_SIZE]
        cdef char new[CAPABILITY_SIZE]
        cdef const char *leaf
        cdef ssize_t new_size = self.capability(frame.fd, name, new)
        cdef uint32_t layer = frame.lowers[self.found_lower]
        cdef int parent
        cdef ssize_t old_size
        if self.path.size < PATH_LIMIT - 40:  # with the number of the layer before it
            old_size = self.capability(self.layers[layer], self.path.data, old)
        else:
            parent = self.open_parent(layer, &leaf)
            if parent < 0:
                self.refused(STEP_DIRECTORY, errno)
                return 0
            old_size = self.capability(parent, leaf, old)
            close(parent)
        if old_size < 0 or new_size < 0:
            return 0
        return old_size == new_size and memcmp(old, new, <size_t>old_size) == 0

    cdef ssize_t capability(self, int parent, const char *name, char *value) noexcept nogil:
        cdef char number[40]
        cdef ssize_t size
        cdef stat_s info
        snprintf(number, sizeof(number), b"/proc/self/fd/%d/", parent)
        self.location.size = 0
        if (append(&self.location, number, strlen(number))
                or append(&self.location, name, strlen(name) + 1)):
            return self.no_memory()
        size = lgetxattr(self.location.data, b"security.capability", value, CAPABILITY_SIZE)
        if size >= 0:
            return size
        if errno == ENODATA or errno == EOPNOTSUPP:
            return 0
        if errno == ENOENT and fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0:
            return 0  # it is gone
        return self.refused(STEP_ATTRIBUTES, errno)

    # -- directories of the upper

    cdef int enter(self, int parent, const char *name, uint8_t kind, bint hides) noexcept nogil:
        """Begin with the directory at hand; `collected`: what is merged with it."""
        cdef Frame *frame
        cdef Frame *grown
        cdef uint32_t *lowers
        cdef stat_s info
        cdef size_t room
        cdef int err, fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            if self.depth and (errno == ENOENT or errno == ENOTDIR or errno == ELOOP):
                return 0  # gone, or something else by now
            return self.refused(STEP_DIRECTORY, errno)
        if self.depth == self.frame_room:
            room = self.frame_room * 2 + 16
            grown = <Frame *>realloc(self.frames, room * sizeof(Frame))
            if grown == NULL:
                close(fd)
                return self.no_memory()
            memset(grown + self.frame_room, 0, (room - self.frame_room) * sizeof(Frame))
            self.frames = grown
            self.frame_room = room
        frame = &self.frames[self.depth]
        frame.fd = fd
        self.depth += 1
        frame.next = 0
        frame.kind = kind
        frame.names.count = 0
        if self.collected_count > frame.lower_room:
            lowers = <uint32_t *>realloc(
                frame.lowers, self.collected_count * sizeof(uint32_t))
            if lowers == NULL:
                return self.no_memory()
            frame.lowers = lowers
            frame.lower_room = self.collected_count
        for err in range(<int>self.collected_count):
            frame.lowers[err] = self.collected[err]
        frame.lower_count = self.collected_count
        if c_fstat(fd, &info) != 0:
            return self.refused(STEP_LOOK, errno)
        frame.device = info.st_dev
        frame.inode = info.st_ino
        if self.look_at_attributes(fd) != 0:
            return -1
        frame.hides = frame.lower_count > 0 and (hides or self.is_opaque)
        err = read_names(fd, &frame.names, self.space, False)
        if err:
            return self.refused(STEP_NAMES, err)
        empty_table(&frame.below)
        if (frame.hides or (frame.lower_count and frame.names.count >= MANY_NAMES)) and (
                self.load_names(frame) != 0):
            return -1
        if self.path.size and append(&self.path, b"/\0", 2):
            return self.no_memory()
        if self.path.size:
            self.path.size -= 1
        frame.path_size = self.path.size
        if self.depth > KEPT_OPEN and self.frames[self.depth - KEPT_OPEN].fd >= 0:
            # Never the root: all others can be found again from it.
            close(self.frames[self.depth - KEPT_OPEN].fd)
            self.frames[self.depth - KEPT_OPEN].fd = -1
        return 0

    cdef void pop(self) noexcept nogil:
        self.depth -= 1
        if self.frames[self.depth].fd >= 0:
            close(self.frames[self.depth].fd)

    cdef int leave(self) noexcept nogil:
        cdef Frame *frame
        cdef stat_s info
        self.pop()
        if self.depth == 0:
            return 0
        frame = &self.frames[self.depth - 1]
        if frame.fd >= 0:
            return 0
        # Its path is still the beginning of the one at hand.
        self.path.size = frame.path_size
        self.path.data[self.path.size] = 0
        frame.fd = open_directory(self.frames[0].fd, self.path.data, False)
        if frame.fd < 0:
            if errno == ENOENT or errno == ENOTDIR or errno == ELOOP:
                return self.fail(MOVED)
            return self.refused(STEP_DIRECTORY, errno)
        if c_fstat(frame.fd, &info) != 0:
            return self.refused(STEP_LOOK, errno)
        if info.st_dev != frame.device or info.st_ino != frame.inode:
            return self.fail(MOVED)
        return 0

    # -- what is found

    cdef int say(self, uint8_t kind) noexcept nogil:
        """A change of the path at hand: the directories it is in are changed too."""
        cdef size_t i = self.depth
        cdef Frame *frame
        while i:
            i -= 1
            frame = &self.frames[i]
            if frame.kind == 0:
                break
            if self.record(frame.kind, frame.path_size - 1) != 0:
                return -1
            frame.kind = 0
        return self.record(kind, self.path.size)

    cdef int record(self, uint8_t kind, size_t size) noexcept nogil:
        if (append(&self.found, &kind, 1) or append(&self.found, b"/", 1)
                or append(&self.found, self.path.data, size) or append(&self.found, b"\0", 1)):
            return self.no_memory()
        self.found_count += 1
        return 0

    cdef int sort(self, bint as_lines) noexcept nogil:
        """Into `sorted` and `letters`, or as lines into `sorted` alone."""
        cdef size_t i, size, at = 0
        cdef const char **paths = <const char **>malloc((self.found_count + 1) * sizeof(char *))
        cdef int failed = 0
        if paths == NULL:
            return self.no_memory()
        for i in range(self.found_count):
            paths[i] = self.found.data + at + 1
            at += strlen(paths[i]) + 2
        if self.found_count > 1:
            sort_texts(paths, self.found_count)
        self.sorted.size = 0
        self.letters.size = 0
        for i in range(self.found_count):
            size = strlen(paths[i])
            if as_lines:
                failed = (failed or append(&self.sorted, paths[i] - 1, 1)
                          or append(&self.sorted, b" ", 1) or append(&self.sorted, paths[i], size)
                          or append(&self.sorted, b"\n", 1))
            else:
                failed = (failed or append(&self.letters, paths[i] - 1, 1)
                          or append(&self.sorted, paths[i], size + 1))
        free(paths)
        return self.no_memory() if failed else 0
