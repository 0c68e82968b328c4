# cython: language_level=3
"""A tar stream of any dialect to entries and their contents, pushed, without Python per entry.

Facts, and where they come from:

- A tar archive is a row of 512-byte blocks: header, data padded to a block, ..., a block of zeros
  (POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar
  Format" and "Storing Sparse Files"). Links, devices, fifos and directories carry no data whatever
  their size field says.
- PAX records win over GNU's long names, and these over the header. An empty value takes a record
  back. What a global header says about names, sizes or attributes would be said of every entry.
- Names are bytes, and hostile: absolute ones, `.` and `..` inside, NUL and empty parts are refused.
- A PAX keyword cannot hold `=`: GNU tar writes it in a SCHILY.xattr name as %3D and `%` as %25, and
  reads these two back, in capitals, and no other (GNU tar 1.34, tried both ways).
- Access control lists come as text (`_acl`); those of NFSv4 (SCHILY.acl.ace) and Solaris (type A)
  have no place in Linux and are left out.

`TarReader` is pushed: `feed` takes any number of bytes and does what they allow. Who makes something
of the stream extends it: `begin_entry`, then for a file with content `begin_content`, `content` as
often as it takes and `end_content`; `end_stream` once. Nothing here raises for what an archive does:
`feed` and `finish` answer False, and `problem`, `error` and `name` tell. Memory is bounded by the
budgets; every number of the stream is checked before it is used.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from dockpy._acl cimport acl_value
from dockpy._below cimport NAME_LIMIT, PATH_LIMIT
from dockpy._tarfields cimport Time, begins, bounded, is_zero, parse_decimal, parse_field, parse_time, same, sums
from dockpy._walk cimport Buffer, append

STREAM_PROBLEMS = {
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
    ROOT_NOT_DIRECTORY: "the root of the archive is not a directory",
    TARGET_DIRECTORY: "a hard link's target is a directory",
    UNKNOWN_TYPE: "an entry has an unknown type",
    BAD_ID: "an entry has an impossible user or group id",
    BAD_DEVICE: "an entry has an impossible device number",
    BAD_SPARSE: "damaged archive: a sparse file's map is wrong",
    BAD_ATTRIBUTE: "an extended attribute has an impossible name or size",
    BAD_ACL: "damaged archive: an access control list does not parse",
    TOO_MANY_ENTRIES: "the archive has more entries than allowed",
    TOO_MANY_BYTES: "the archive unpacks to more bytes than allowed",
    TOO_MUCH_METADATA: "an entry has more metadata than allowed",
    TOO_MUCH_PADDING: "the archive does not stop after its end mark",
    TOO_MUCH_BESIDE: "the archive has more besides its files than allowed",
}

cdef enum:
    PADDING_LIMIT = 16 << 20
    BESIDE_LIMIT = 64 << 20  # bytes of the stream that are no content; more for many entries:
    BESIDE_EACH = 4096
    SEGMENT_LIMIT = 1 << 20
    ATTRIBUTE_LIMIT = 65536  # XATTR_SIZE_MAX of the kernel
    ID_LIMIT = 0xFFFFFFFF  # means "leave it" to chown(2)

cdef struct Segment:
    int64_t offset
    int64_t size


# ---------------------------------------------------------------- names

cdef int set_text(Buffer *buffer, const void *data, size_t size) noexcept nogil:
    # The bytes and a NUL that is not counted.
    buffer.size = 0
    if append(buffer, data, size) != 0 or append(buffer, b"\0", 1) != 0:
        return -1
    buffer.size -= 1
    return 0


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


# ---------------------------------------------------------------- the reader

cdef class TarReader:
    """One stream being read. Not for two threads at a time."""

    def __cinit__(self):
        self.max_bytes = 256 << 30
        self.max_entries = 10000000
        self.max_path = PATH_LIMIT - 1
        self.max_metadata = 1 << 20
        self.local.half_segment = self.everywhere.half_segment = -1

    def __dealloc__(self):
        free(self.meta.data)
        free(self.pax_path.data)
        free(self.pax_link.data)
        free(self.gnu_path.data)
        free(self.gnu_link.data)
        free(self.attributes.data)
        free(self.segments.data)
        free(self.path.data)
        free(self.link.data)
        free(self.tape.data)
        free(self.raw.data)

    @property
    def name(self) -> bytes:
        """The entry that was at work when the problem arose, as the archive spells it."""
        return b"" if self.path.data == NULL else self.path.data[:self.path.size]

    def feed(self, const uint8_t[::1] data not None) -> bool:
        """Whether all is well so far."""
        cdef size_t size = data.shape[0]
        if self.problem or self.closed:
            return False
        if size == 0:
            return True
        with nogil:
            self.take(&data[0], size)
            self.given += size
            # Headers without end, or sizes of what has no content, are in no other budget.
            if (self.given - self.bytes_written - BESIDE_LIMIT) // BESIDE_EACH > self.max_entries:
                self.fail(TOO_MUCH_BESIDE)
        return self.problem == FINE

    def finish(self) -> bool:
        """The stream is over; whether it was whole, and what was made of it is finished."""
        if self.problem or self.closed:
            return False
        with nogil:
            self.end()
        return self.problem == FINE

    @property
    def skeleton_size(self) -> int:
        """How many bytes `take_skeleton` would give, about."""
        return self.tape.size + self.raw.size

    def take_skeleton(self) -> bytes:
        """What the stream held besides the contents of files, since the last time. Format: `_skeleton`."""
        if self.flush_raw() != 0:
            raise MemoryError
        found = b"" if self.tape.data == NULL else self.tape.data[:self.tape.size]
        self.tape.size = 0
        return found

    # -- what is made of the stream: of this one nothing

    cdef int begin_entry(self) noexcept nogil:
        return 1

    cdef int begin_content(self) noexcept nogil:
        return 0

    cdef int content(self, const uint8_t *data, size_t size) noexcept nogil:
        return 0

    cdef int end_content(self) noexcept nogil:
        return 0

    cdef int end_stream(self) noexcept nogil:
        return 0

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
                if self.give(data, part) != 0:
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
        if is_zero(block):
            if self.extended_pending:
                return self.fail(TRUNCATED)
            self.seen_header = True
            self.state = AT_END
            self.skip_left = 0
            return 0
        sums(block, &plain, &with_sign)
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
            # Beside a sparse file's own name, `path` is one for tars that know no sparse files.
            if key[0] == c"p" and to.has_sparse_name:
                return 0
            to.has_path = given
            to.has_sparse_name = given and key[0] != c"p"
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
            return self.keep_coded_attribute(key + 13, key_size - 13, value, size)
        if same(key, key_size, b"SCHILY.acl.access") or same(key, key_size, b"SCHILY.acl.default"):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            if not given:
                return 0
            return self.keep_acl(b"system.posix_acl_access" if key[11] == c"a" else b"system.posix_acl_default",
                                 value, size)
        if begins(key, key_size, b"GNU.sparse."):
            if everywhere:
                return self.fail(GLOBAL_OVERRIDE)
            return self.pax_sparse(key + 11, key_size - 11, value, size)
        return 0

    cdef int keep_coded_attribute(self, const char *name, size_t name_size, const char *value,
                                  size_t size) noexcept nogil:
        """Names come as they are, but for `=` and `%`. Decoded before it is judged whose they are."""
        cdef char plain[NAME_LIMIT]
        cdef size_t at = 0, length = 0
        while at < name_size:
            if length == NAME_LIMIT:
                return self.fail(BAD_ATTRIBUTE)
            plain[length] = name[at]
            if begins(name + at, name_size - at, b"%3D") or begins(name + at, name_size - at, b"%25"):
                plain[length] = c"=" if name[at + 1] == c"3" else c"%"
                at += 2
            length += 1
            at += 1
        return self.keep_attribute(plain, length, value, size)

    cdef int keep_attribute(self, const char *name, size_t name_size, const char *value,
                            size_t size) noexcept nogil:
        cdef uint32_t sizes[2]
        # How overlayfs sees a directory is decided by dockpy, never by an archive.
        if begins(name, name_size, b"trusted.overlay.") or begins(name, name_size, b"user.overlay."):
            return 0
        if name_size == 0 or name_size > NAME_LIMIT or size > ATTRIBUTE_LIMIT:
            return self.fail(BAD_ATTRIBUTE)
        sizes[0] = <uint32_t>name_size
        sizes[1] = <uint32_t>size
        if (append(&self.attributes, sizes, sizeof(sizes)) or append(&self.attributes, name, name_size)
                or append(&self.attributes, b"\0", 1) or append(&self.attributes, value, size)):
            return self.no_memory()
        if <int64_t>self.attributes.size > self.max_metadata:
            return self.fail(TOO_MUCH_METADATA)
        return 0

    cdef int keep_acl(self, const char *name, const char *text, size_t size) noexcept nogil:
        cdef Buffer value = Buffer(NULL, 0, 0)
        cdef int failed = acl_value(text, size, &value, &self.ignored_attributes)
        if failed == ENOMEM:
            self.no_memory()
        elif failed:
            self.fail(BAD_ACL)
        else:
            self.keep_attribute(name, strlen(name), value.data, value.size)
        free(value.data)
        return -1 if self.problem else 0

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
        cdef size_t name_size = 0
        cdef size_t part
        cdef int wanted
        cdef bint has_data

        # The name: PAX, then GNU's long name, then prefix/name of ustar (star: a shorter prefix).
        if self.local.has_path:
            name = self.pax_path.data
            name_size = self.pax_path.size
        elif self.has_gnu_path:
            name = self.gnu_path.data
            name_size = self.gnu_path.size
        else:
            if memcmp(block + 257, b"ustar\0", 6) == 0:
                part = bounded(<const char *>(block + 345), 131 if memcmp(block + 508, b"tar\0", 4) == 0 else 155)
                if part:
                    memcpy(raw, block + 345, part)
                    raw[part] = c"/"
                    name_size = part + 1
            part = bounded(<const char *>block, 100)
            memcpy(raw + name_size, block, part)
            name_size += part

        if kind == 0 or kind == c"7":
            kind = c"0"
        has_data = kind == c"0" or kind == c"S" or kind == c"D" or kind == c"V" or kind == c"A"
        if self.local.has_size:
            size = self.local.size
        self.size = size if has_data else 0
        self.padding = (-self.size) & 511
        if kind == c"V" or kind == c"A":
            # A volume's label and Solaris ACLs: nothing that belongs in a tree.
            self.forget_overrides()
            self.skip(self.size + self.padding)
            return 0
        if kind == c"D" or (kind == c"0" and name_size > 0 and name[name_size - 1] == c"/"):
            kind = c"5"
        self.type = kind

        wanted = normalise(name, name_size, self.max_path, &self.path)
        if wanted:
            return self.named(name, name_size, wanted)
        if self.entry_values(block) != 0 or self.entry_link(block) != 0:
            return -1
        self.entries += 1
        if self.entries > self.max_entries:
            return self.fail(TOO_MANY_ENTRIES)
        if self.path.size == 0 and kind != c"5":
            return self.fail(ROOT_NOT_DIRECTORY)
        wanted = self.begin_entry()
        if wanted < 0:
            return -1
        if wanted and (kind == c"0" or kind == c"S"):
            return self.entry_content(block)
        self.forget_overrides()
        self.skip(self.size + self.padding)
        return 0

    cdef int named(self, const char *name, size_t size, int problem) noexcept nogil:
        # For names that never became a path.
        if self.problem == FINE:
            set_text(&self.path, name, size if size < 256 else 256)
        return self.refused(problem, ENOMEM) if problem == STEP_MEMORY else self.fail(problem)

    cdef int entry_values(self, const uint8_t *block) noexcept nogil:
        cdef int64_t mode = 0
        cdef int64_t uid = 0
        cdef int64_t gid = 0
        cdef int64_t seconds = 0
        cdef int64_t major = 0
        cdef int64_t minor = 0
        if (parse_field(block + 100, 8, &mode) or parse_field(block + 108, 8, &uid)
                or parse_field(block + 116, 8, &gid) or parse_field(block + 136, 12, &seconds)):
            return self.fail(BAD_NUMBER)
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
        if uid < 0 or gid < 0 or uid >= <int64_t>ID_LIMIT or gid >= <int64_t>ID_LIMIT:
            return self.fail(BAD_ID)
        self.mode = <uint32_t>(mode & 0o7777)
        self.uid = <uint32_t>uid
        self.gid = <uint32_t>gid
        if self.type == c"3" or self.type == c"4":
            if parse_field(block + 329, 8, &major) or parse_field(block + 337, 8, &minor):
                return self.fail(BAD_NUMBER)
            # The kernel keeps 12 bits of major and 20 of minor.
            if major < 0 or minor < 0 or major >= 1 << 12 or minor >= 1 << 20:
                return self.fail(BAD_DEVICE)
            self.major = <unsigned int>major
            self.minor = <unsigned int>minor
        return 0

    cdef int entry_link(self, const uint8_t *block) noexcept nogil:
        cdef const char *target = <const char *>(block + 157)
        cdef size_t size = bounded(target, 100)
        cdef int problem
        if self.type != c"1" and self.type != c"2":
            return 0 if c"0" <= self.type <= c"6" or self.type == c"S" else self.fail(UNKNOWN_TYPE)
        if self.local.has_link:
            target = self.pax_link.data
            size = self.pax_link.size
        elif self.has_gnu_link:
            target = self.gnu_link.data
            size = self.gnu_link.size
        if size == 0:
            return self.fail(LINK_EMPTY)
        if self.type == c"1":
            problem = normalise(target, size, self.max_path, &self.link)
            if problem:
                return self.refused(problem, ENOMEM) if problem == STEP_MEMORY else self.fail(problem)
            return self.fail(TARGET_DIRECTORY) if self.link.size == 0 else 0
        if memchr(target, 0, size) != NULL:
            return self.fail(NAME_NUL)
        if size >= PATH_LIMIT:
            return self.fail(NAME_TOO_LONG)
        return self.no_memory() if set_text(&self.link, target, size) != 0 else 0

    # -- content

    cdef int entry_content(self, const uint8_t *block) noexcept nogil:
        """Where the file's content is; for a sparse file its map comes first."""
        cdef int i
        cdef int64_t real = 0
        if self.size > self.max_bytes - self.bytes_written:
            return self.fail(TOO_MANY_BYTES)
        self.sparse = False
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
        if self.local.has_map or self.local.sparse_major:
            self.sparse = True
            self.real_size = self.local.real_size
            if not self.local.has_real_size or self.local.sparse_major > 1:
                return self.fail(BAD_SPARSE)
            if self.local.sparse_major == 1:
                self.segments.size = 0
                self.local.half_segment = -1
                self.map_numbers = 0
                self.map_needed = 1
                self.map_value = 0
                self.map_digits = 0
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
        """PAX format 1.0: a count and as many pairs, a decimal line each, padded to a block."""
        cdef int i
        self.size -= 512
        for i in range(512):
            if block[i] == c"\n":
                if self.map_digits == 0:
                    return self.fail(BAD_SPARSE)
                if self.map_numbers == 0:
                    if self.map_value > SEGMENT_LIMIT:
                        return self.fail(BAD_SPARSE)
                    self.map_needed = 2 * self.map_value + 1
                elif self.sparse_number(self.map_value) != 0:
                    return -1
                self.map_numbers += 1
                self.map_value = 0
                self.map_digits = 0
                if self.map_numbers == self.map_needed:
                    return self.start_data()
                continue
            if block[i] < c"0" or block[i] > c"9" or self.map_digits == 18:
                return self.fail(BAD_SPARSE)
            self.map_value = self.map_value * 10 + (block[i] - c"0")
            self.map_digits += 1
        return 0 if self.size >= 512 else self.fail(BAD_SPARSE)

    cdef int start_data(self) noexcept nogil:
        cdef Segment *segments = <Segment *>self.segments.data
        cdef size_t count = self.segments.size // sizeof(Segment)
        cdef size_t i
        cdef int64_t end = 0
        cdef int64_t total = 0
        self.state = AT_DATA
        self.segment_at = 0
        self.segment_left = 0
        if self.sparse:
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
        else:
            self.real_size = self.size
            self.segment_left = self.size
            if self.keep_skeleton and self.size > 0 and self.keep_file() != 0:
                return -1
        if self.begin_content() != 0:
            return -1
        return self.next_segment() if self.segment_left == 0 else 0

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
        if self.end_content() != 0:
            return -1
        self.forget_overrides()
        self.skip(self.padding)
        return 0

    cdef int give(self, const uint8_t *data, size_t size) noexcept nogil:
        if self.content(data, size) != 0:
            return -1
        self.segment_offset += size
        self.segment_left -= size
        self.bytes_written += size
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
            self.end_stream()
