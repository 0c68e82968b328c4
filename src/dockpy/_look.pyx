# cython: language_level=3
"""Many small files at once: what the kernel says of them, and what is in them."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EFBIG, ENAMETOOLONG, ENOENT, ENOTDIR, errno
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, strlen

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char *path, int flags)
    enum:
        O_RDONLY
        O_CLOEXEC
        O_NONBLOCK

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct Moment "struct timespec":
        long tv_sec
        long tv_nsec
    ctypedef struct Facts "struct stat":
        unsigned long long st_ino
        long long st_size
        Moment st_mtim
        Moment st_ctim
    int fstatat(int directory, const char *path, Facts *facts, int flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t count)
    int close(int fd)

cdef enum:
    WIDTH = 4  # inode, time of change, time of modification, size
    LONGEST = 4096


cdef void look_at(int directory, const char *path, long long *out) noexcept nogil:
    cdef Facts facts
    if fstatat(directory, path, &facts, 0) != 0:
        out[0] = out[1] = out[2] = 0
        out[3] = 0 if errno == ENOENT or errno == ENOTDIR else -errno
        return
    out[0] = <long long>facts.st_ino
    out[1] = facts.st_ctim.tv_sec * 1000000000 + facts.st_ctim.tv_nsec
    out[2] = facts.st_mtim.tv_sec * 1000000000 + facts.st_mtim.tv_nsec
    out[3] = facts.st_size


cdef void look_into(int directory, const char *name, const char *const *files, Py_ssize_t count, long long *out) noexcept nogil:
    cdef char path[LONGEST]
    cdef size_t length = strlen(name), size
    cdef Py_ssize_t number
    for number in range(count):
        size = strlen(files[number]) + 1
        if length + 1 + size > LONGEST:
            out[0] = out[1] = out[2] = 0
            out[3] = -ENAMETOOLONG
        else:
            memcpy(path, name, length)
            path[length] = c"/"
            memcpy(path + length + 1, files[number], size)
            look_at(directory, path, out)
        out += WIDTH


def look(int directory, list names not None, list files not None):
    cdef Py_ssize_t count = len(names), each = len(files), number
    cdef const char **texts = <const char **>PyMem_Malloc((count + each + 1) * sizeof(char *))
    cdef long long *found = <long long *>PyMem_Malloc((count * each * WIDTH + 1) * sizeof(long long))
    cdef bytes text
    try:
        if texts is NULL or found is NULL:
            raise MemoryError
        for number in range(count):
            text = names[number]
            texts[number] = text
        for number in range(each):
            text = files[number]
            texts[count + number] = text
        with nogil:
            for number in range(count):
                look_into(directory, texts[number], texts + count, each, found + number * each * WIDTH)
        return [
            (<char *>(found + number * each * WIDTH))[: each * WIDTH * sizeof(long long)]
            for number in range(count)
        ]
    finally:
        PyMem_Free(<void *>texts)
        PyMem_Free(found)


cdef struct Piece:
    size_t begin
    ssize_t size  # or -errno


cdef struct Heap:
    char *data
    size_t used
    size_t room


cdef int read_one(int directory, const char *path, size_t limit, Heap *heap, Piece *piece) noexcept nogil:
    # 0, or -1 when there is no memory.
    cdef size_t wanted
    cdef char *more
    cdef ssize_t got
    cdef int fd = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        piece.size = -errno
        return 0
    if heap.room - heap.used < limit + 1:
        wanted = heap.room * 2 + limit + 1
        more = <char *>realloc(heap.data, wanted)
        if more is NULL:
            close(fd)
            return -1
        heap.data, heap.room = more, wanted
    piece.begin = heap.used
    got = read(fd, heap.data + heap.used, limit + 1)
    piece.size = -errno if got < 0 else got
    close(fd)
    if got > <ssize_t>limit:
        piece.size = -EFBIG
    elif got > 0:
        heap.used += <size_t>got
    return 0


def read_small(int directory, list paths not None, size_t limit):
    cdef Py_ssize_t count = len(paths), number
    cdef const char **texts = <const char **>PyMem_Malloc((count + 1) * sizeof(char *))
    cdef Piece *pieces = <Piece *>PyMem_Malloc((count + 1) * sizeof(Piece))
    cdef Heap heap
    cdef int failed = 0
    cdef bytes path
    heap.data, heap.used, heap.room = NULL, 0, 0
    try:
        if texts is NULL or pieces is NULL:
            raise MemoryError
        for number in range(count):
            path = paths[number]
            texts[number] = path
        with nogil:
            for number in range(count):
                failed = read_one(directory, texts[number], limit, &heap, &pieces[number])
                if failed:
                    break
        if failed:
            raise MemoryError
        return [
            heap.data[pieces[number].begin : pieces[number].begin + pieces[number].size]
            if pieces[number].size >= 0
            else <int>-pieces[number].size
            for number in range(count)
        ]
    finally:
        PyMem_Free(<void *>texts)
        PyMem_Free(pieces)
        free(heap.data)
