# A tar stream, read: see _tarread.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from dockpy._tarfields cimport Time
from dockpy._walk cimport Buffer

cdef enum Problem:
    FINE = 0
    # The stream's fault.
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
    ROOT_NOT_DIRECTORY
    TARGET_DIRECTORY
    UNKNOWN_TYPE
    BAD_ID
    BAD_DEVICE
    BAD_SPARSE
    BAD_ATTRIBUTE
    BAD_ACL
    TOO_MANY_ENTRIES
    TOO_MANY_BYTES
    TOO_MUCH_METADATA
    TOO_MUCH_PADDING
    TOO_MUCH_BESIDE
    # The tree's fault, from here on; _tar numbers them.
    FIRST_OF_TREE = 60
    # The kernel's refusal, from here on; `error` holds errno.
    STEP_MEMORY = 100
    FIRST_STEP = 101

cdef enum State:
    AT_HEADER
    AT_METADATA
    AT_DATA
    AT_SKIP
    AT_SPARSE_BLOCK
    AT_SPARSE_MAP
    AT_END

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
    bint has_sparse_name
    int64_t half_segment  # a sparse map's offset that waits for its size, or -1

cdef int set_text(Buffer *buffer, const void *data, size_t size) noexcept nogil


cdef class TarReader:
    cdef int64_t max_bytes
    cdef int64_t max_entries
    cdef size_t max_path
    cdef int64_t max_metadata

    # The stream.
    cdef State state
    cdef int64_t given  # bytes so far
    cdef uint8_t block[512]
    cdef size_t block_fill
    cdef int64_t skip_left
    cdef int64_t padding
    cdef bint seen_header
    cdef bint seen_bytes
    cdef bint extended_pending

    # Extended headers.
    cdef char meta_type
    cdef int64_t meta_left
    cdef Buffer meta
    cdef Overrides local
    cdef Overrides everywhere
    cdef Buffer pax_path
    cdef Buffer pax_link
    cdef Buffer gnu_path
    cdef Buffer gnu_link
    cdef bint has_gnu_path
    cdef bint has_gnu_link

    # The entry: what `begin_entry` may read.
    cdef Buffer path  # `a/b/c`; "" is the root
    cdef Buffer link  # of a hard link as a path, of a symbolic link as it is
    cdef char type  # 0 file, 1 hard link, 2 link, 3 and 4 devices, 5 directory, 6 fifo; as characters
    cdef uint32_t mode
    cdef uint32_t uid
    cdef uint32_t gid
    cdef Time mtime
    cdef unsigned int major
    cdef unsigned int minor
    cdef Buffer attributes  # u32 size of the name, u32 of the value, name, NUL, value; and so on

    # Its content.
    cdef int64_t size
    cdef int64_t real_size
    cdef bint sparse
    cdef Buffer segments
    cdef size_t segment_at
    cdef int64_t segment_left
    cdef int64_t segment_offset
    cdef int64_t map_numbers  # of a PAX 1.0 map: read so far
    cdef int64_t map_needed
    cdef int64_t map_value
    cdef int map_digits

    # What is kept for the skeleton.
    cdef bint keep_skeleton
    cdef Buffer tape
    cdef Buffer raw

    cdef bint closed
    cdef readonly int problem
    cdef readonly int error
    cdef readonly int64_t entries
    cdef readonly int64_t bytes_written
    cdef readonly int64_t ignored_attributes

    # What the one who makes something of the stream provides. All answer 0, or -1 after `fail` or
    # `refused`; `begin_entry` answers 1 when it wants the file's content.
    cdef int begin_entry(self) noexcept nogil
    cdef int begin_content(self) noexcept nogil
    cdef int content(self, const uint8_t *data, size_t size) noexcept nogil
    cdef int end_content(self) noexcept nogil
    cdef int end_stream(self) noexcept nogil

    cdef int fail(self, int problem) noexcept nogil
    cdef int refused(self, int step, int err) noexcept nogil
    cdef int no_memory(self) noexcept nogil

    cdef int keep_raw(self, const uint8_t *data, size_t size) noexcept nogil
    cdef int flush_raw(self) noexcept nogil
    cdef int keep_file(self) noexcept nogil
    cdef void take(self, const uint8_t *data, size_t size) noexcept nogil
    cdef int take_block(self, const uint8_t *block) noexcept nogil
    cdef void skip(self, int64_t size) noexcept nogil
    cdef void forget_overrides(self) noexcept nogil
    cdef int header(self, const uint8_t *block) noexcept nogil
    cdef int metadata_done(self) noexcept nogil
    cdef int pax(self, const char *data, size_t size, bint everywhere) noexcept nogil
    cdef int pax_record(self, const char *key, size_t key_size, const char *value, size_t size,
                        bint everywhere) noexcept nogil
    cdef int keep_coded_attribute(self, const char *name, size_t name_size, const char *value,
                                  size_t size) noexcept nogil
    cdef int keep_attribute(self, const char *name, size_t name_size, const char *value,
                            size_t size) noexcept nogil
    cdef int keep_acl(self, const char *name, const char *text, size_t size) noexcept nogil
    cdef int pax_sparse(self, const char *key, size_t key_size, const char *value,
                        size_t size) noexcept nogil
    cdef int sparse_number(self, int64_t number) noexcept nogil
    cdef int entry(self, const uint8_t *block, int64_t size, char kind) noexcept nogil
    cdef int entry_values(self, const uint8_t *block) noexcept nogil
    cdef int entry_link(self, const uint8_t *block) noexcept nogil
    cdef int entry_content(self, const uint8_t *block) noexcept nogil
    cdef int named(self, const char *name, size_t size, int problem) noexcept nogil
    cdef int sparse_pair(self, const uint8_t *pair) noexcept nogil
    cdef int sparse_block(self, const uint8_t *block) noexcept nogil
    cdef int sparse_map(self, const uint8_t *block) noexcept nogil
    cdef int start_data(self) noexcept nogil
    cdef int next_segment(self) noexcept nogil
    cdef int give(self, const uint8_t *data, size_t size) noexcept nogil
    cdef void end(self) noexcept nogil
