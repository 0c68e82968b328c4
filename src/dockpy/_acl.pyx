# cython: language_level=3
"""Access control lists as archives write them, to system.posix_acl_access and system.posix_acl_default.

Facts, and where they come from:

- star(5), "SCHILY.acl.access": entries `tag:qualifier:permissions`, separated by commas; GNU tar
  separates them by newlines, as acl_to_text(3) does. star and bsdtar add `:number` to an entry with a
  name. acl(5), "ACL TEXT FORMS": tags may be one letter, `#` starts a comment.
- The attribute (kernel, include/uapi/linux/posix_acl_xattr.h): u32 version 2, then for each entry
  u16 tag, u16 permissions, u32 id, little-endian; the kernel wants user, users, group, groups, mask,
  others in this order, and each of the three for everybody's file exactly once.

A name without its number is somebody of the machine that packed the archive; who that is here nobody
can say (but for root). Such an entry is left out, and counted: the others, above all the mask and the
owning group's own permissions, are kept, so nobody may do more than the archive says.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free

from dockpy._tarfields cimport begins, parse_decimal, same
from dockpy._walk cimport Buffer, append

cdef enum Tag:
    USER_OBJ = 1
    USER = 2
    GROUP_OBJ = 4
    GROUP = 8
    MASK = 16
    OTHER = 32

cdef enum:
    VERSION = 2
    NOBODY = 0xFFFFFFFF


cdef int tag_of(const char *text, size_t size) noexcept nogil:
    """The tag for everybody's file, so USER_OBJ for `user`; 0: no such tag."""
    if same(text, size, b"user") or same(text, size, b"u"):
        return USER_OBJ
    if same(text, size, b"group") or same(text, size, b"g"):
        return GROUP_OBJ
    if same(text, size, b"mask") or same(text, size, b"m"):
        return MASK
    if same(text, size, b"other") or same(text, size, b"o"):
        return OTHER
    return 0


cdef int permissions_of(const char *text, size_t size) noexcept nogil:
    """Bits, or -1."""
    cdef size_t i
    cdef int bits = 0
    for i in range(size):
        if text[i] == c"r":
            bits |= 4
        elif text[i] == c"w":
            bits |= 2
        elif text[i] == c"x":
            bits |= 1
        elif text[i] != c"-":
            return -1
    return bits if size > 0 and size <= 3 else -1


cdef int put(Buffer *value, int tag, int bits, int64_t number) noexcept nogil:
    cdef uint8_t entry[8]
    cdef uint32_t id = <uint32_t>number
    cdef int i
    entry[0] = <uint8_t>tag
    entry[1] = 0
    entry[2] = <uint8_t>bits
    entry[3] = 0
    for i in range(4):
        entry[4 + i] = <uint8_t>(id >> (8 * i))
    return append(value, entry, 8)


cdef int take_entry(const char *text, size_t size, int wanted, Buffer *value, int *seen,
                    int64_t *unnamed) noexcept nogil:
    """Add the entry if its tag is `wanted`. 0, -1 or ENOMEM."""
    cdef const char *field[4]
    cdef size_t length[4]
    cdef size_t at = 0
    cdef int fields = 0
    cdef int tag
    cdef int bits
    cdef int64_t number = NOBODY
    if begins(text, size, b"default:"):
        text += 8
        size -= 8
    while True:
        if fields == 4:
            return -1
        field[fields] = text + at
        length[fields] = 0
        while at < size and text[at] != c":":
            length[fields] += 1
            at += 1
        fields += 1
        if at == size:
            break
        at += 1
    tag = tag_of(field[0], length[0])
    if fields == 2 and (tag == MASK or tag == OTHER):  # `mask:rwx`, as Solaris and old star write it
        field[2], length[2] = field[1], length[1]
        length[1] = 0
        fields = 3
    if tag == 0 or fields < 3:
        return -1
    bits = permissions_of(field[2], length[2])
    if bits < 0:
        return -1
    if length[1]:
        if tag != USER_OBJ and tag != GROUP_OBJ:
            return -1
        tag = USER if tag == USER_OBJ else GROUP
    if tag != wanted:
        return 0
    if length[1]:
        if fields == 4:
            if parse_decimal(field[3], length[3], &number) != 0:
                return -1
        elif parse_decimal(field[1], length[1], &number) != 0:
            if not same(field[1], length[1], b"root"):
                unnamed[0] += 1
                return 0
            number = 0
        if number >= <int64_t>NOBODY:
            return -1
    seen[0] += 1
    return ENOMEM if put(value, tag, bits, number) != 0 else 0


cdef int take_tag(const char *text, size_t size, int wanted, Buffer *value, int *seen,
                  int64_t *unnamed) noexcept nogil:
    """All entries with one tag, in the text's order."""
    cdef size_t at = 0
    cdef size_t start
    cdef size_t end
    cdef bint comment
    cdef int failed
    while at < size:
        while at < size and (text[at] == c" " or text[at] == c"\t"):
            at += 1
        start = end = at
        comment = False
        while at < size and text[at] != c"\n" and (text[at] != c"," or comment):
            if text[at] == c"#":
                comment = True
            if not comment and text[at] != c" " and text[at] != c"\t" and text[at] != c"\r":
                end = at + 1
            at += 1
        at += 1
        if end > start:
            failed = take_entry(text + start, end - start, wanted, value, seen, unnamed)
            if failed:
                return failed
    return 0


cdef int acl_value(const char *text, size_t size, Buffer *value, int64_t *unnamed) noexcept nogil:
    cdef int wanted[6]
    cdef uint8_t version[4]
    cdef int i
    cdef int seen
    cdef int failed
    wanted[0], wanted[1], wanted[2] = USER_OBJ, USER, GROUP_OBJ
    wanted[3], wanted[4], wanted[5] = GROUP, MASK, OTHER
    version[0] = VERSION
    version[1] = version[2] = version[3] = 0
    if append(value, version, 4) != 0:
        return ENOMEM
    for i in range(6):
        seen = 0
        failed = take_tag(text, size, wanted[i], value, &seen, unnamed)
        if failed:
            return failed
        if (wanted[i] == USER_OBJ or wanted[i] == GROUP_OBJ or wanted[i] == OTHER) and seen != 1:
            return -1
        if wanted[i] == MASK and seen > 1:
            return -1
    return 0


# ---------------------------------------------------------------- a door for tests

def attribute_of(bytes text not None) -> tuple[bytes | None, int]:
    """The attribute's value, or None for a text that does not parse; how many entries lack a number."""
    cdef Buffer value = Buffer(NULL, 0, 0)
    cdef int64_t unnamed = 0
    cdef int failed = acl_value(text, len(text), &value, &unnamed)
    made = None if failed else value.data[:value.size]
    free(value.data)
    return made, unnamed
