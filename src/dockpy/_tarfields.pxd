# The fields of tar headers and PAX records: bytes to numbers and times. Inline, no state; every
# function may be called without the GIL. Functions of numbers answer 0, or -1 for what does not parse.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, strlen

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #ifndef DOCKPY_TARFIELDS
    #define DOCKPY_TARFIELDS
    /* The two sums old and new tars wrote: bytes taken as unsigned and as signed. */
    static void dp_sums(const unsigned char *block, int64_t *plain, int64_t *with_sign) {
        int64_t a = 0, b = 0;
        for (int i = 0; i < 512; i++) {
            a += block[i];
            b += (signed char)block[i];
        }
        for (int i = 148; i < 156; i++) {
            a += 32 - block[i];
            b += 32 - (signed char)block[i];
        }
        *plain = a;
        *with_sign = b;
    }

    static int dp_is_zero(const unsigned char *block) {
        uint64_t all = 0, word;
        for (int i = 0; i < 512; i += 8) {
            memcpy(&word, block + i, 8);
            all |= word;
        }
        return all == 0;
    }
    #endif
    """
    void sums "dp_sums"(const unsigned char *block, int64_t *plain, int64_t *with_sign) nogil
    int is_zero "dp_is_zero"(const unsigned char *block) nogil

cdef struct Time:
    int64_t seconds
    long nanoseconds


# ---------------------------------------------------------------- numbers

cdef inline int parse_field(const uint8_t *field, int width, int64_t *result) noexcept nogil:
    """A number of a header block: octal text, or base-256 when the first bit is set."""
    cdef int i = 0
    cdef uint64_t value = 0
    cdef bint negative
    if field[0] & 0x80:
        # Two's complement, big-endian, of width*8-1 bits; GNU tar manual, "Extensions".
        negative = (field[0] & 0x40) != 0
        value = <uint64_t>-1 if negative else 0
        for i in range(width):
            if i < width - 8:
                if field[i] != (0xFF if negative else (0x80 if i == 0 else 0)):
                    return -1
                continue
            if i == 0:
                value = (value << 8) | (field[0] if negative else field[0] & 0x7F)
            else:
                value = (value << 8) | field[i]
        if ((<int64_t>value) < 0) != negative:
            return -1
        result[0] = <int64_t>value
        return 0
    while i < width and field[i] == c" ":
        i += 1
    while i < width and field[i] != c" " and field[i] != 0:
        if field[i] < c"0" or field[i] > c"7" or value >> 60:
            return -1
        value = (value << 3) | <uint64_t>(field[i] - c"0")
        i += 1
    while i < width:
        if field[i] != c" " and field[i] != 0:
            return -1
        i += 1
    result[0] = <int64_t>value
    return 0


cdef inline int parse_decimal(const char *text, size_t size, int64_t *result) noexcept nogil:
    cdef size_t i
    cdef int64_t value = 0
    if size == 0 or size > 18:
        return -1
    for i in range(size):
        if text[i] < c"0" or text[i] > c"9":
            return -1
        value = value * 10 + (text[i] - c"0")
    result[0] = value
    return 0


cdef inline int parse_time(const char *text, size_t size, Time *result) noexcept nogil:
    """PAX time: [-]seconds[.fraction]; rounded down to the nanosecond."""
    cdef bint negative = size > 0 and text[0] == c"-"
    cdef size_t start = 1 if negative else 0
    cdef size_t dot = start
    cdef size_t i
    cdef long fraction = 0
    cdef long scale = 100000000
    cdef int64_t seconds = 0
    cdef bint rest = False
    while dot < size and text[dot] != c".":
        dot += 1
    if parse_decimal(text + start, dot - start, &seconds) != 0:
        return -1
    i = dot + 1
    while i < size:
        if text[i] < c"0" or text[i] > c"9":
            return -1
        fraction += (text[i] - c"0") * scale
        if scale == 0 and text[i] != c"0":
            rest = True
        scale //= 10
        i += 1
    if negative:
        seconds = -seconds
        if rest:
            fraction += 1
        if fraction:
            seconds -= 1
            fraction = 1000000000 - fraction
    result.seconds = seconds
    result.nanoseconds = fraction
    return 0


# ---------------------------------------------------------------- texts

cdef inline size_t bounded(const char *text, size_t limit) noexcept nogil:
    cdef size_t size = 0
    while size < limit and text[size]:
        size += 1
    return size


cdef inline bint same(const char *text, size_t size, const char *word) noexcept nogil:
    return size == strlen(word) and memcmp(text, word, size) == 0


cdef inline bint begins(const char *text, size_t size, const char *word) noexcept nogil:
    cdef size_t length = strlen(word)
    return size >= length and memcmp(text, word, length) == 0
