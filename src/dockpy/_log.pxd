from libc.stdint cimport int64_t

cdef size_t log_tail(const char *stream, int64_t seconds, int64_t nanoseconds, char *out) noexcept nogil
cdef size_t log_encode(const char *data, size_t size, bint partial, char *out, size_t room,
                       const char *tail, size_t tail_size, size_t *used) noexcept nogil
