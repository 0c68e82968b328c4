# cython: language_level=3
"""Writes a tar stream again from its skeleton and the tree it was unpacked to.

A skeleton is what `_tar` saw of the stream besides the contents of plain files, in records, their
numbers little-endian:

    R  u64 size, then so many bytes of the stream
    F  u64 size, u64 length, then a path of that length below the tree: so many bytes are its content

The records come from a file of ours, but the tree is an image's: paths are opened inside it (`_below`),
and a file of another size is a problem, not a wrong stream.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from dockpy._below cimport open_at, same_again

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_NOCTTY
        O_NOFOLLOW
        O_NONBLOCK
        O_RDONLY

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t size)

cdef enum:
    PATH_SIZE = 4096
    FINE = 0
    NO_SKELETON = 1
    CHANGED = 2
    STEP_OPEN = 3
    STEP_READ = 4

TREE_PROBLEMS = {
    NO_SKELETON: "the layer's skeleton is damaged",
    CHANGED: "a file of the layer was changed in the store",
}
KERNEL_STEPS = {STEP_OPEN: "open file of layer", STEP_READ: "read file of layer"}

cdef enum State:
    AT_RECORD
    AT_RAW
    AT_PATH
    AT_FILE


cdef class Rebuilder:
    """One stream being rebuilt. Not for two threads at a time."""

    cdef int root
    cdef int file
    cdef bint by_hand
    cdef State state
    cdef uint8_t head[17]
    cdef size_t head_fill
    cdef uint64_t left
    cdef uint64_t path_left
    cdef size_t path_size
    cdef char path[PATH_SIZE]
    cdef readonly int problem
    cdef readonly int error
    cdef readonly int entries
    cdef readonly object size

    def __cinit__(self, int directory):
        self.size = 0
        self.file = -1
        self.root = same_again(directory)
        if self.root < 0:
            raise OSError(errno, "dup")

    def __dealloc__(self):
        self.shut()

    cdef void shut(self) noexcept nogil:
        if self.root >= 0:
            close(self.root)
        if self.file >= 0:
            close(self.file)
        self.root = self.file = -1

    def close(self):
        self.shut()

    @property
    def name(self) -> bytes:
        """The file that was at work when the problem arose."""
        return self.path[:self.path_size]

    @property
    def complete(self) -> bool:
        """Whether the skeleton may end here."""
        return self.state == AT_RECORD and self.head_fill == 0

    @property
    def wants_input(self) -> bool:
        """Whether `fill` needs more of the skeleton to go on."""
        return self.state != AT_FILE

    def fill(self, const uint8_t[::1] skeleton not None, uint8_t[::1] buffer not None) -> tuple[int, int]:
        """Go on: (bytes of the skeleton used, bytes of the stream written), or (-1, -1)."""
        cdef size_t given = skeleton.shape[0]
        cdef size_t room = buffer.shape[0]
        cdef size_t used = 0
        cdef size_t made = 0
        cdef const uint8_t *source = &skeleton[0] if given else NULL
        cdef uint8_t *target = &buffer[0] if room else NULL
        if self.problem or self.root < 0:
            return -1, -1
        with nogil:
            self.go(source, given, target, room, &used, &made)
        if self.problem:
            return -1, -1
        self.size += made
        return used, made

    cdef void go(self, const uint8_t *source, size_t given, uint8_t *target, size_t room, size_t *used,
                 size_t *made) noexcept nogil:
        cdef size_t part
        cdef size_t wanted
        cdef ssize_t count
        while self.problem == FINE:
            if self.state == AT_FILE:
                if made[0] == room:
                    return
                part = room - made[0]
                if part > self.left:
                    part = <size_t>self.left
                count = read(self.file, target + made[0], part)
                if count < 0 and errno == EINTR:
                    continue
                if count < 0:
                    self.problem = STEP_READ
                    self.error = errno
                elif count == 0:
                    self.problem = CHANGED
                else:
                    made[0] += count
                    self.left -= count
                    if self.left == 0:
                        self.end_file()
            elif self.state == AT_RAW:
                if made[0] == room or used[0] == given:
                    return
                part = room - made[0]
                if part > given - used[0]:
                    part = given - used[0]
                if part > self.left:
                    part = <size_t>self.left
                memcpy(target + made[0], source + used[0], part)
                used[0] += part
                made[0] += part
                self.left -= part
                if self.left == 0:
                    self.state = AT_RECORD
            elif used[0] == given:
                return
            elif self.state == AT_PATH:
                part = given - used[0]
                if part > self.path_left:
                    part = <size_t>self.path_left
                memcpy(self.path + self.path_size, source + used[0], part)
                self.path_size += part
                self.path_left -= part
                used[0] += part
                if self.path_left == 0:
                    self.start_file()
            else:
                wanted = 9 if self.head_fill == 0 or self.head[0] == c"R" else 17
                part = 1 if self.head_fill == 0 else wanted - self.head_fill
                if part > given - used[0]:
                    part = given - used[0]
                memcpy(self.head + self.head_fill, source + used[0], part)
                self.head_fill += part
                used[0] += part
                self.take_head()

    cdef void take_head(self) noexcept nogil:
        cdef char kind = <char>self.head[0]
        if kind != c"R" and kind != c"F":
            self.problem = NO_SKELETON
            return
        if self.head_fill < (9 if kind == c"R" else 17):
            return
        self.head_fill = 0
        memcpy(&self.left, self.head + 1, 8)
        if self.left == 0:
            self.problem = NO_SKELETON
        elif kind == c"R":
            self.state = AT_RAW
        else:
            memcpy(&self.path_left, self.head + 9, 8)
            self.path_size = 0
            self.state = AT_PATH
            if self.path_left == 0 or self.path_left >= PATH_SIZE:
                self.problem = NO_SKELETON

    cdef void start_file(self) noexcept nogil:
        self.path[self.path_size] = 0
        self.file = open_at(self.root, self.path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW, &self.by_hand)
        if self.file < 0:
            self.problem = STEP_OPEN
            self.error = errno
            return
        self.entries += 1
        self.state = AT_FILE

    cdef void end_file(self) noexcept nogil:
        cdef uint8_t more
        if read(self.file, &more, 1) != 0:
            self.problem = CHANGED
        close(self.file)
        self.file = -1
        self.state = AT_RECORD
