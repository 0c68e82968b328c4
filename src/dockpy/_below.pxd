# Paths below a root directory that somebody else filled: see _below.pyx.

cdef enum:
    PATH_LIMIT = 4096  # PATH_MAX of the kernel, the NUL included
    NAME_LIMIT = 255

# A descriptor of its own for an open one, close-on-exec; -1 and errno.
cdef int same_again(int fd) noexcept nogil

# A directory below `root` as an O_PATH descriptor of its own; "" is the root. -1 and errno. `by_hand`
# is set when the kernel denies openat2.
cdef int open_directory(int root, const char *path, bint *by_hand) noexcept nogil

# What is at `path` below `root`, with openat's `flags`; links are followed inside the root, but for
# the last part where it has to be walked by hand. -1 and errno.
cdef int open_at(int root, const char *path, int flags, bint *by_hand) noexcept nogil

# One name and all below it; links are never followed. 0 or errno; a missing name is fine.
cdef int remove_entry(int directory, const char *name) noexcept nogil
