# A row of bytes that is written once and then read once, from its beginning. Up to SPILL_SIZE of it
# lie in memory; more goes to a file without a name in a directory of the caller's choice (open(2),
# O_TMPFILE), or stays in memory where the file system has no such files. Inline; callable without
# the GIL. Functions answer 0 or an errno.

from libc.errno cimport EINTR, EIO, ENOMEM, errno
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memmove

from dockpy._walk cimport O_CLOEXEC, Buffer, append, close, openat, reserve

cdef extern from "<fcntl.h>" nogil:
    int O_TMPFILE, O_RDWR, O_EXCL

cdef extern from "<unistd.h>" nogil:
    ssize_t c_pread "pread"(int fd, void *data, size_t size, int64_t offset)
    ssize_t c_pwrite "pwrite"(int fd, const void *data, size_t size, int64_t offset)

cdef enum:
    SPILL_SIZE = 1 << 20

cdef struct Spill:
    Buffer kept
    bint in_memory  # for good: no file can be had
    bint on_disk
    int fd
    int64_t written
    int64_t read
    size_t at


cdef inline int spill_add(Spill *spill, int directory, const void *data, size_t size) noexcept nogil:
    cdef int err
    if append(&spill.kept, data, size) != 0:
        return ENOMEM
    if spill.kept.size < SPILL_SIZE or spill.in_memory:
        return 0
    if not spill.on_disk:
        spill.fd = openat(directory, b".", O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0o600)
        if spill.fd < 0:
            spill.in_memory = True
            return 0
        spill.on_disk = True
    return spill_out(spill)


cdef inline int spill_out(Spill *spill) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t count
    while done < spill.kept.size:
        count = c_pwrite(spill.fd, spill.kept.data + done, spill.kept.size - done, spill.written)
        if count < 0:
            if errno == EINTR:
                continue
            return errno
        done += count
        spill.written += count
    spill.kept.size = 0
    return 0


cdef inline int spill_turn(Spill *spill) noexcept nogil:
    # From writing to reading.
    spill.at = 0
    return spill_out(spill) if spill.on_disk else 0


cdef inline bint spill_ends(Spill *spill) noexcept nogil:
    if spill.on_disk and spill.read < spill.written:
        return False
    return spill.at == spill.kept.size


cdef inline int spill_take(Spill *spill, const char **data, size_t size) noexcept nogil:
    # The next `size` bytes; valid until the next call. EIO: there are fewer.
    cdef size_t left = spill.kept.size - spill.at
    cdef ssize_t count
    if left < size and spill.on_disk:
        if left:
            memmove(spill.kept.data, spill.kept.data + spill.at, left)
        spill.kept.size = left
        spill.at = 0
        if reserve(&spill.kept, SPILL_SIZE if size < SPILL_SIZE else size) != 0:
            return ENOMEM
        while spill.kept.size < size:
            count = c_pread(spill.fd, spill.kept.data + spill.kept.size,
                            spill.kept.room - spill.kept.size, spill.read)
            if count < 0 and errno == EINTR:
                continue
            if count < 0:
                return errno
            if count == 0:
                break
            spill.kept.size += count
            spill.read += count
        left = spill.kept.size
    if left < size:
        return EIO
    data[0] = spill.kept.data + spill.at
    spill.at += size
    return 0


cdef inline void spill_close(Spill *spill) noexcept nogil:
    if spill.on_disk:
        close(spill.fd)
    spill.on_disk = False
    free(spill.kept.data)
    spill.kept.data = NULL
    spill.kept.size = spill.kept.room = 0
