# cython: language_level=3
"""Lines of output as lines of JSON, and back: the json-file format that log collectors read.

    {"log":"text\\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}

An entry without `\\n` at its end is a part of a line: of one longer than 16 KiB, or of one whose end
had not been written yet (a prompt). Bytes that are not UTF-8 become U+FFFD. Escapes: RFC 8259 §7;
times: RFC 3339; times of day from days since the epoch by the civil calendar's 400-year cycle.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum:
        POLLOUT

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *data, size_t size)

cdef extern from "<sys/inotify.h>" nogil:
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, unsigned int mask)
    enum:
        IN_CLOEXEC
        IN_CREATE
        IN_MODIFY
        IN_MOVED_FROM
        IN_MOVED_TO
        IN_NONBLOCK

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif

    /* Copies plain ASCII from `in` to `out` until a byte that needs thought: a control character, a
     * quote, a backslash or anything above 0x7f. Reads at most `size` bytes; `out` has 16 to spare. */
    static size_t dockpy_plain(const unsigned char *in, size_t size, unsigned char *out) {
        size_t at = 0;
    #if defined(__SSE2__)
        const __m128i space = _mm_set1_epi8(0x20), quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\\\');
        while (at + 16 <= size) {
            __m128i block = _mm_loadu_si128((const __m128i *)(in + at));
            _mm_storeu_si128((__m128i *)(out + at), block);
            /* signed: below 0x20 also holds for bytes above 0x7f */
            __m128i special = _mm_or_si128(_mm_cmplt_epi8(block, space),
                                           _mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, slash)));
            int found = _mm_movemask_epi8(special);
            if (found) return at + __builtin_ctz(found);
            at += 16;
        }
    #endif
        while (at < size) {
            unsigned char byte = in[at];
            if (byte < 0x20 || byte > 0x7f || byte == '"' || byte == '\\\\') return at;
            out[at++] = byte;
        }
        return at;
    }

    /* The same, to the next quote or backslash: inside a JSON text. */
    static size_t dockpy_text(const unsigned char *in, size_t size, unsigned char *out) {
        size_t at = 0;
    #if defined(__SSE2__)
        const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\\\');
        while (at + 16 <= size) {
            __m128i block = _mm_loadu_si128((const __m128i *)(in + at));
            _mm_storeu_si128((__m128i *)(out + at), block);
            int found = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, slash)));
            if (found) return at + __builtin_ctz(found);
            at += 16;
        }
    #endif
        while (at < size && in[at] != '"' && in[at] != '\\\\') { out[at] = in[at]; at++; }
        return at;
    }

    /* Length of the UTF-8 character at `in`: 1-4, 0 when it is none, -1 when it is cut off. */
    static int dockpy_character(const unsigned char *in, size_t size) {
        unsigned char first = in[0];
        int need;
        unsigned char low = 0x80, high = 0xbf;
        if (first < 0x80) return 1;
        if (first < 0xc2) return 0;
        if (first < 0xe0) need = 2;
        else if (first < 0xf0) { need = 3; if (first == 0xe0) low = 0xa0; if (first == 0xed) high = 0x9f; }
        else if (first < 0xf5) { need = 4; if (first == 0xf0) low = 0x90; if (first == 0xf4) high = 0x8f; }
        else return 0;
        for (int i = 1; i < need; i++) {
            if ((size_t)i >= size) return -1;
            if (in[i] < low || in[i] > high) return 0;
            low = 0x80; high = 0xbf;
        }
        return need;
    }
    """
    size_t dockpy_plain(const unsigned char *source, size_t size, unsigned char *out) nogil
    size_t dockpy_text(const unsigned char *source, size_t size, unsigned char *out) nogil
    int dockpy_character(const unsigned char *source, size_t size) nogil

cdef enum:
    LONGEST = 16384
    HEAD = 8
    WORST = 6 * LONGEST + 256
    CHUNK = 262144

LONGEST_PART = LONGEST


cdef inline void digits(char *out, int64_t value, int count) noexcept nogil:
    cdef int i
    for i in range(count - 1, -1, -1):
        out[i] = <char> (48 + value % 10)
        value = value // 10


cdef size_t stamp(int64_t seconds, int64_t nanoseconds, char *out) noexcept nogil:
    # Days to year, month and day: eras of 146097 days beginning on March 1st.
    cdef int64_t days = seconds // 86400
    cdef int64_t rest = seconds - days * 86400
    cdef int64_t z = days + 719468
    cdef int64_t era = z // 146097
    cdef int64_t doe = z - era * 146097
    cdef int64_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int64_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int64_t mp = (5 * doy + 2) // 153
    cdef int64_t month = mp + 3 if mp < 10 else mp - 9
    cdef int64_t year = yoe + era * 400 + (1 if month <= 2 else 0)
    memcpy(out, b"0000-00-00T00:00:00.000000000Z", 30)
    digits(out, year, 4)
    digits(out + 5, month, 2)
    digits(out + 8, doy - (153 * mp + 2) // 5 + 1, 2)
    digits(out + 11, rest // 3600, 2)
    digits(out + 14, rest // 60 % 60, 2)
    digits(out + 17, rest % 60, 2)
    digits(out + 20, nanoseconds, 9)
    return 30


cdef size_t log_tail(const char *stream, int64_t seconds, int64_t nanoseconds, char *out) noexcept nogil:
    """What follows the text of an entry; `stream` has six letters, `out` room for 80. Its length."""
    memcpy(out, b"\",\"stream\":\"", 12)
    memcpy(out + 12, stream, 6)
    memcpy(out + 18, b"\",\"time\":\"", 10)
    stamp(seconds, nanoseconds, out + 28)
    memcpy(out + 58, b"\"}\n", 3)
    return 61


cdef size_t escape(unsigned char byte, unsigned char *out) noexcept nogil:
    cdef const char *hexes = b"0123456789abcdef"
    out[0] = c"\\"
    if byte == c'"' or byte == c"\\":
        out[1] = byte
        return 2
    if byte == c"\n":
        out[1] = c"n"
        return 2
    if byte == c"\r":
        out[1] = c"r"
        return 2
    if byte == c"\t":
        out[1] = c"t"
        return 2
    memcpy(out, b"\\u00", 4)
    out[4] = hexes[byte >> 4]
    out[5] = hexes[byte & 15]
    return 6


cdef size_t log_encode(
    const char *data, size_t size, bint partial, char *out, size_t room,
    const char *tail, size_t tail_size, size_t *used,
) noexcept nogil:
    """Encode whole lines, and with `partial` also the unfinished last one; bytes taken of `data`.

    Stops when `out` (of `room` bytes, at least 100 KiB) might not hold the next part. With
    `partial`, up to three bytes of a cut-off character stay.
    """
    cdef const unsigned char *cursor = <const unsigned char *> data
    cdef const unsigned char *end = cursor + size
    cdef const unsigned char *start
    cdef const unsigned char *limit
    cdef unsigned char *to = <unsigned char *> out
    cdef unsigned char *entry
    cdef unsigned char *last = to + room - WORST
    cdef size_t plain
    cdef int length
    cdef bint whole
    cdef unsigned char byte
    while cursor < end and to <= last:
        start = cursor
        entry = to
        limit = end if <size_t> (end - cursor) <= LONGEST else cursor + LONGEST
        memcpy(to, b"{\"log\":\"", HEAD)
        to += HEAD
        whole = False
        while cursor < limit:
            plain = dockpy_plain(cursor, limit - cursor, to)
            cursor += plain
            to += plain
            if cursor == limit:
                break
            byte = cursor[0]
            if byte < 0x80:
                to += escape(byte, to)
                cursor += 1
                if byte == c"\n":
                    whole = True
                    break
                continue
            length = dockpy_character(cursor, end - cursor)
            if length < 0:
                break  # its rest has not come yet
            if length == 0:
                memcpy(to, b"\\ufffd", 6)
                to += 6
                cursor += 1
                continue
            if cursor + length > limit:
                break
            memcpy(to, cursor, length)
            to += length
            cursor += length
        if not whole and cursor - start < LONGEST - 3 and (not partial or cursor == start):
            to = entry
            cursor = start
            break
        memcpy(to, tail, tail_size)
        to += tail_size
    used[0] = to - <unsigned char *> out
    return cursor - <const unsigned char *> data


def encode(bytes data not None, bytes stream not None, bint partial, long seconds, long nanoseconds):
    """(entries, bytes taken): the encoder as tests and one-off entries use it."""
    cdef char tail[80]
    cdef size_t tail_size = log_tail(stream, seconds, nanoseconds, tail)
    cdef size_t room = 2 * WORST
    cdef size_t used = 0
    cdef size_t done = 0
    cdef size_t taken
    cdef const char *source = data
    cdef size_t size = len(data)
    cdef char *out = <char *> malloc(room + 64)
    if out == NULL:
        raise MemoryError
    pieces = []
    try:
        while done < size:
            taken = log_encode(source + done, size - done, partial, out, room, tail, tail_size, &used)
            if taken == 0:
                break
            pieces.append(out[:used])
            done += taken
    finally:
        free(out)
    return b"".join(pieces), done


def timestamp(long seconds, long nanoseconds):
    cdef char out[32]
    return out[:stamp(seconds, nanoseconds, out)].decode()


# -- reading back ------------------------------------------------------------------------------

cdef struct Entry:
    bint error
    const char *time
    size_t time_size
    size_t size


cdef int hexvalue(unsigned char byte) noexcept nogil:
    if c"0" <= byte <= c"9":
        return byte - c"0"
    byte = byte | 0x20
    if c"a" <= byte <= c"f":
        return byte - c"a" + 10
    return -1


cdef int code_unit(const unsigned char *at, const unsigned char *end) noexcept nogil:
    cdef int value = 0
    cdef int i
    cdef int one
    if end - at < 4:
        return -1
    for i in range(4):
        one = hexvalue(at[i])
        if one < 0:
            return -1
        value = value * 16 + one
    return value


cdef size_t utf8(unsigned int point, unsigned char *out) noexcept nogil:
    if point < 0x80:
        out[0] = point
        return 1
    if point < 0x800:
        out[0] = 0xc0 | point >> 6
        out[1] = 0x80 | point & 0x3f
        return 2
    if point < 0x10000:
        out[0] = 0xe0 | point >> 12
        out[1] = 0x80 | point >> 6 & 0x3f
        out[2] = 0x80 | point & 0x3f
        return 3
    out[0] = 0xf0 | point >> 18
    out[1] = 0x80 | point >> 12 & 0x3f
    out[2] = 0x80 | point >> 6 & 0x3f
    out[3] = 0x80 | point & 0x3f
    return 4


cdef const char *find(const char *text, size_t size, const char *what, size_t length) noexcept nogil:
    cdef const char *at = text
    cdef const char *end = text + size
    while <size_t> (end - at) >= length:
        at = <const char *> memchr(at, what[0], end - at - length + 1)
        if at == NULL:
            return NULL
        if memcmp(at, what, length) == 0:
            return at
        at += 1
    return NULL


cdef bint decode(const char *line, size_t size, unsigned char *out, Entry *entry) noexcept nogil:
    # One line without its newline; `out` has room for size + 16. False: not an entry, skip it.
    cdef const unsigned char *cursor = <const unsigned char *> line
    cdef const unsigned char *end = cursor + size
    cdef const char *found
    cdef unsigned char *to = out
    cdef size_t plain
    cdef int unit
    cdef int second
    cdef unsigned char byte
    if size < 20 or memcmp(line, b"{\"log\":\"", HEAD) != 0 or line[size - 1] != c"}":
        return False
    cursor += HEAD
    while True:
        plain = dockpy_text(cursor, end - cursor, to)
        cursor += plain
        to += plain
        if cursor >= end:
            return False
        if cursor[0] == c'"':
            break
        if end - cursor < 2:
            return False
        byte = cursor[1]
        cursor += 2
        if byte == c"n":
            to[0] = c"\n"
        elif byte == c"r":
            to[0] = c"\r"
        elif byte == c"t":
            to[0] = c"\t"
        elif byte == c"b":
            to[0] = 8
        elif byte == c"f":
            to[0] = 12
        elif byte == c"u":
            unit = code_unit(cursor, end)
            if unit < 0:
                return False
            cursor += 4
            if 0xd800 <= unit < 0xdc00 and end - cursor >= 6 and cursor[0] == c"\\" and cursor[1] == c"u":
                second = code_unit(cursor + 2, end)
                if 0xdc00 <= second < 0xe000:
                    unit = 0x10000 + (unit - 0xd800) * 1024 + second - 0xdc00
                    cursor += 6
            if 0xd800 <= unit < 0xe000:
                unit = 0xfffd  # half of a pair
            to += utf8(unit, to)
            continue
        else:
            to[0] = byte
        to += 1
    entry.size = to - out
    cursor += 1
    if (
        end - cursor == 59
        and memcmp(cursor, b",\"stream\":\"std", 14) == 0
        and memcmp(cursor + 17, b"\",\"time\":\"", 10) == 0
        and memcmp(cursor + 56, b"Z\"}", 3) == 0
    ):
        # As we write it.
        entry.error = cursor[14] == c"e"
        entry.time = <const char *> cursor + 27
        entry.time_size = 30
        return True
    found = find(<const char *> cursor, end - cursor, b",\"stream\":\"", 11)
    if cursor >= end or cursor[0] != c"," or found == NULL:
        return False
    if find(<const char *> cursor, end - cursor, b"{\"log\":\"", HEAD) != NULL:
        return False  # torn, with another one behind it
    entry.error = end - <const unsigned char *> found >= 17 and memcmp(found + 11, b"stderr", 6) == 0
    # The time is the last member; attributes of Docker's before it may have one too.
    entry.time = NULL
    entry.time_size = 0
    while True:
        found = find(<const char *> cursor, end - cursor, b",\"time\":\"", 9)
        if found == NULL:
            break
        entry.time = found + 9
        cursor = <const unsigned char *> entry.time
    if entry.time == NULL:
        return False
    found = <const char *> memchr(entry.time, c'"', <const char *> end - entry.time)
    if found == NULL:
        return False
    entry.time_size = found - entry.time
    return True


cdef bint resume(const char *line, size_t size, unsigned char *out, Entry *entry) noexcept nogil:
    # A line that a crash tore has the next entry right behind it. Quotes inside a text are escaped,
    # so what looks like a beginning is one.
    cdef const char *end = line + size
    cdef const char *last = NULL
    cdef const char *found = line
    while end - found > 1:
        found = find(found + 1, end - found - 1, b"{\"log\":\"", HEAD)
        if found == NULL:
            break
        last = found
    return last != NULL and decode(last, end - last, out, entry)


cdef bint flush(int fd, const char *data, size_t size, int *err) noexcept nogil:
    cdef ssize_t done
    cdef pollfd ready
    if fd < 0:
        return True
    while size > 0:
        done = write(fd, data, size)
        if done < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                # Its owner made it so; we are the one who waits.
                ready.fd = fd
                ready.events = POLLOUT
                poll(&ready, 1, -1)
                continue
            err[0] = errno
            return False
        data += done
        size -= done
    return True


def copy_entries(
    int source, int stdout, int stderr, bytes since not None, bytes until not None, bint timestamps,
    int inside,
):
    """Decode from a log's current offset to its end: (bytes taken, reached `until`, errno, inside).

    An unfinished last line is left for the next call; the caller sets the offset back to it.
    `since` and `until` are times as the log writes them, empty for none. Blocks on slow readers.
    `inside` says which streams (1 stdout, 2 stderr) are within a line: a time goes before whole
    lines only.
    """
    cdef size_t room = 2 * CHUNK
    cdef char *buffer = <char *> malloc(room)
    cdef char *text = <char *> malloc(room + 64)
    cdef char *outs[2]
    cdef size_t fills[2]
    cdef int fds[2]
    cdef const char *lower = since
    cdef const char *upper = until
    cdef size_t lower_size = len(since)
    cdef size_t upper_size = len(until)
    cdef size_t have = 0
    cdef size_t at
    cdef long taken = 0
    cdef const char *newline
    cdef size_t line
    cdef ssize_t got
    cdef Entry entry
    cdef int which
    cdef int err = 0
    cdef bint over = False
    cdef int i
    outs[0] = <char *> malloc(room + 128)
    outs[1] = <char *> malloc(room + 128)
    fds[0] = stdout
    fds[1] = stderr
    fills[0] = fills[1] = 0
    try:
        if buffer == NULL or text == NULL or outs[0] == NULL or outs[1] == NULL:
            raise MemoryError
        with nogil:
            while err == 0 and not over:
                got = read(source, buffer + have, room - have)
                if got < 0:
                    if errno == EINTR:
                        continue
                    err = errno
                    break
                if got == 0:
                    break
                have += got
                at = 0
                while at < have:
                    newline = <const char *> memchr(buffer + at, c"\n", have - at)
                    if newline == NULL:
                        break
                    line = newline - (buffer + at)
                    while line > 0 and buffer[at] == 0:
                        # A hole that a power cut left before the line.
                        at += 1
                        line -= 1
                        taken += 1
                    if decode(buffer + at, line, <unsigned char *> text, &entry) or resume(
                        buffer + at, line, <unsigned char *> text, &entry
                    ):
                        if upper_size and entry.time != NULL and later(entry.time, entry.time_size, upper, upper_size):
                            over = True
                            break
                        which = 1 if entry.error else 0
                        if fds[which] >= 0 and not (
                            lower_size and entry.time != NULL and later(lower, lower_size, entry.time, entry.time_size)
                        ):
                            if fills[which] + entry.size + entry.time_size + 2 > CHUNK:
                                # What came first goes first: both streams may be one descriptor.
                                for i in range(2):
                                    if not flush(fds[i], outs[i], fills[i], &err):
                                        break
                                    fills[i] = 0
                            if fills[1 - which] > 0 and err == 0:
                                if flush(fds[1 - which], outs[1 - which], fills[1 - which], &err):
                                    fills[1 - which] = 0
                            if err != 0:
                                break
                            if timestamps and not inside & (1 << which):
                                memcpy(outs[which] + fills[which], entry.time, entry.time_size)
                                fills[which] += entry.time_size
                                outs[which][fills[which]] = c" "
                                fills[which] += 1
                            memcpy(outs[which] + fills[which], text, entry.size)
                            fills[which] += entry.size
                            if entry.size > 0 and text[entry.size - 1] == c"\n":
                                inside &= ~(1 << which)
                            else:
                                inside |= 1 << which
                    at += line + 1
                    taken += line + 1
                if at == 0 and have == room:
                    at = have  # no entry is that long: not a log's line
                    taken += have
                memmove(buffer, buffer + at, have - at)
                have -= at
            for i in range(2):
                if err == 0:
                    flush(fds[i], outs[i], fills[i], &err)
        return taken, over, err, inside
    finally:
        free(buffer)
        free(text)
        free(outs[0])
        free(outs[1])


cdef bint later(const char *a, size_t a_size, const char *b, size_t b_size) noexcept nogil:
    # RFC 3339 times in UTC; a fraction may be shorter, so the final Z counts as the lowest digit.
    cdef size_t i
    cdef char x
    cdef char y
    for i in range(30):
        x = a[i] if i < a_size and a[i] != c"Z" else c"0"
        y = b[i] if i < b_size and b[i] != c"Z" else c"0"
        if i == 19:
            continue
        if x != y:
            return x > y
    return False


def watch(bytes directory not None):
    """An inotify descriptor that becomes readable when a file in `directory` changes, errno."""
    cdef const char *path = directory
    cdef int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if fd < 0:
        return -1, errno
    if inotify_add_watch(fd, path, IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM) < 0:
        return fd, errno
    return fd, 0
