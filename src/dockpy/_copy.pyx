# cython: language_level=3
"""The pump: one epoll loop that moves the bytes of many containers.

Output goes pipe -> staging pipe (splice) -> shared buffer (read) -> log (write) -> clients (through
the staging pipe again, splice). The journal, a shared mapping, says at each moment whose bytes are
where. Staging and journal are held by another process too, so after kill -9 a new pump finds what
was in flight and finishes it: log and clients get every byte once. The phases of a batch:

    FILLING  bytes may be in staging; none are in the buffer
    READING  `size` bytes are in staging and buffer together, the buffer's come first
    WRITING  all `size` bytes are in the buffer; the log may hold any part of the batch: cut and redo
    LOGGED   the log has the batch; its last `kept` bytes become the stream's tail
    CLIENTS  clients numbered below `client` have the batch; the steps of one delivery are below
    IDLE     nothing is in flight

    LOADING  staging is being filled for one client; it has nothing of it: throw staging away
    MOVING   what is not in staging any more, the client has
    GIVEN    the client has `given` bytes; the rest belongs to its backlog

A line whose end has not come is kept as the stream's tail until it comes, until the line is 16 KiB
long, or for a tenth of a second: then it is logged as a part, so that a prompt is seen. A character
cut off at the end of a part stays until its rest arrives. Tails and backlogs (what slow clients have
not taken yet) live in the journal's mapping.

The loop holds `lock` while it works and never while it waits; it does system calls and arithmetic.
A process that ended stays a zombie until `remove`, so that its exit status outlives the pump.
Source: splice(2), epoll(7), pidfd_open(2), waitid(2), the UTF-8 and JSON rules in `_log`.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EPERM, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove, memset

from dockpy._log cimport log_encode, log_tail

cdef extern from "<fcntl.h>" nogil:
    int open(const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)
    ssize_t splice(int source, int64_t *off_in, int target, int64_t *off_out, size_t size, unsigned int flags)
    enum:
        F_DUPFD_CLOEXEC
        F_GETFL
        F_GETPIPE_SZ
        F_SETFL
        F_SETPIPE_SZ
        O_APPEND
        O_CLOEXEC
        O_CREAT
        O_NONBLOCK
        O_RDWR
        SPLICE_F_MOVE
        SPLICE_F_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int ftruncate(int fd, int64_t size)
    int64_t lseek(int fd, int64_t offset, int whence)
    ssize_t pread(int fd, void *data, size_t size, int64_t offset)
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)
    enum:
        SEEK_CUR

cdef extern from "<stdio.h>" nogil:
    int rename(const char *old, const char *new)
    int snprintf(char *out, size_t size, const char *format, ...)

cdef extern from "<string.h>" nogil:
    char *strdup(const char *text)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat:
        int64_t st_size
        uint32_t st_mode
    int fstat(int fd, stat *status)
    bint S_ISREG(uint32_t mode)
    bint S_ISSOCK(uint32_t mode)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum:
        FIONREAD

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t size)
    int madvise(void *at, size_t size, int advice)
    enum:
        MADV_REMOVE
        MAP_NORESERVE
        MAP_SHARED
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout)
    enum:
        EPOLLERR
        EPOLLHUP
        EPOLLIN
        EPOLLOUT
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    uint32_t EPOLLET

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<sys/wait.h>" nogil:
    ctypedef struct siginfo_t:
        int si_code
        int si_status
        int si_pid
    int waitid(int kind, int identifier, siginfo_t *info, int options)
    enum:
        CLD_DUMPED
        CLD_EXITED
        P_PIDFD
        WEXITED
        WNOHANG
        WNOWAIT

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *left)
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME

cdef extern from "<sys/timerfd.h>" nogil:
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_TIMERSLACK

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    BATCH = 262144
    OUT_ROOM = 655360
    TURN = 8
    BIG_PIPE = 1048576
    MANY = 64
    INPUT = 65536
    STREAMING = 8192
    PAUSE = 80000
    PATIENCE = 100000000  # nanoseconds an unfinished line waits for its end
    LAST_WORDS = 1048576  # what is read of a terminal after the exit
    HEADER = 16384
    FRONT = 20480
    TAILS = 4096
    TAIL_ROOM = 16640
    BACKLOGS = 128
    BACKLOG_ROOM = 2097152

cdef enum Kind:
    KIND_EXITED = 1
    KIND_ATTACHMENT
    KIND_LOG
    KIND_STDIN

EXITED = KIND_EXITED
ATTACHMENT_CLOSED = KIND_ATTACHMENT
LOG_FAILED = KIND_LOG
STDIN_CLOSED = KIND_STDIN
# Sparse: pages that were never needed take no memory.
cdef size_t TAIL_HEADS_AT = HEADER
cdef size_t BUFFER_AT = HEADER + TAILS * sizeof(Tail) + FRONT
cdef size_t TAILS_AT = HEADER + TAILS * sizeof(Tail) + FRONT + BATCH
cdef size_t BACKLOGS_AT = HEADER + TAILS * sizeof(Tail) + FRONT + BATCH + <size_t> TAILS * TAIL_ROOM
cdef size_t WHOLE = HEADER + TAILS * sizeof(Tail) + FRONT + BATCH + <size_t> TAILS * TAIL_ROOM + <size_t> BACKLOGS * BACKLOG_ROOM

JOURNAL_SIZE = WHOLE

cdef enum Phase:
    IDLE
    FILLING
    READING
    WRITING
    LOGGED
    CLIENTS

cdef enum Step:
    NOTHING
    LOADING
    MOVING
    GIVEN

cdef enum Mode:
    KEEP  # an unfinished line waits for its end
    PART  # it is logged as a part; a cut-off character waits
    LAST  # nothing more will come

cdef enum Way:
    WAY_SPLICE  # pipes and terminals: what left staging has arrived
    WAY_FILE  # regular files: their position tells
    WAY_PLAIN  # others: counted after each write
    WAY_SOCKET

cdef enum Role:
    ROLE_WAKE
    ROLE_TIMER
    ROLE_EXIT
    ROLE_STDOUT
    ROLE_STDERR
    ROLE_TTY
    ROLE_STDIN
    ROLE_CLIENT_IN
    ROLE_CLIENT_OUT
    ROLE_CLIENT_ERR

cdef enum Why:
    WHY_ENDED
    WHY_DETACHED
    WHY_BROKEN
    WHY_CLOSED

cdef struct Tail:
    uint64_t key
    int32_t stream
    int32_t size

cdef struct Waiting:
    uint64_t number
    int32_t stream
    int32_t used
    uint64_t start
    uint64_t end

cdef struct Journal:
    uint32_t phase
    uint32_t mode
    int32_t stream
    uint32_t tails  # those ever used
    uint64_t key
    uint64_t size
    int64_t log_length
    uint64_t kept
    uint64_t client
    # One delivery. `serving`: the client of a batch; `before`: where its backlog ended before.
    uint64_t serving
    uint64_t before
    uint32_t step
    int32_t slot  # of the backlog that is delivered, -1 for a batch
    uint64_t origin  # where that backlog began
    uint64_t asked
    uint64_t base
    uint64_t given
    int64_t position
    int32_t way
    int32_t target  # the stream
    uint64_t number
    Waiting waiting[BACKLOGS]

cdef struct Source:
    int role
    int fd
    uint32_t armed
    int way
    bint pollable
    bint big
    bint due
    int tail
    uint64_t moved
    int64_t due_at
    Source *due_before
    Source *due_after
    Container *container
    Attachment *attachment

cdef struct Backlog:
    char *data
    size_t room
    int slot  # -1: in this process alone
    Waiting own
    Waiting *head

cdef struct Queue:
    char *data
    size_t start
    size_t end
    size_t room

cdef struct Attachment:
    uint64_t number
    Container *container
    Attachment *next
    Source input
    Source out
    Source err
    Backlog out_backlog
    Backlog err_backlog
    Queue in_queue
    char keys[32]
    int keys_size
    int matched
    bint closing
    bint input_ended
    int why

cdef struct Container:
    uint64_t key
    Container *next
    Source exit
    Source out
    Source err
    Source tty
    Source stdin
    Attachment *attachments
    char *log_path
    int64_t log_limit
    int64_t log_length
    int64_t missing
    int log_files
    int log
    bint log_failing
    bint stdin_once
    bint had_input
    bint ended
    bint announced
    bint removed
    int status
    double when

cdef struct Note:
    int kind
    uint64_t subject
    int value
    double when

cdef struct Loop:
    int epoll
    int wake
    int event
    int staging_out
    int staging_in
    pthread_mutex_t lock
    int waiting
    bint stopping
    size_t streamed
    bint running
    bint timing
    int timer
    Source wake_source
    Source timer_source
    Source *due_first
    Source *due_last
    int free_tails[TAILS]
    int free_tail_count
    Container *containers
    Container *graves
    Attachment *attachment_graves
    Journal *journal
    Tail *tails
    char *tail_bytes
    char *backlogs
    char *buffer
    char *encoded
    char *input
    Note *notes
    size_t note_count
    size_t note_room

cdef extern from *:
    """
    #define dockpy_add(at, by) __atomic_add_fetch(at, by, __ATOMIC_SEQ_CST)
    #define dockpy_load(at) __atomic_load_n(at, __ATOMIC_SEQ_CST)
    #define dockpy_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    int dockpy_add(int *at, int by) nogil
    int dockpy_load(int *at) nogil
    void dockpy_fence() nogil


# -- small things ------------------------------------------------------------------------------

cdef double now_seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec + now.tv_nsec / 1e9


cdef void note(Loop *loop, int kind, uint64_t subject, int value) noexcept nogil:
    cdef uint64_t one = 1
    cdef Note *grown
    if loop.note_count == loop.note_room:
        grown = <Note *> realloc(loop.notes, (loop.note_room * 2 + 64) * sizeof(Note))
        if grown == NULL:
            return
        loop.notes = grown
        loop.note_room = loop.note_room * 2 + 64
    loop.notes[loop.note_count].kind = kind
    loop.notes[loop.note_count].subject = subject
    loop.notes[loop.note_count].value = value
    loop.notes[loop.note_count].when = now_seconds()
    loop.note_count += 1
    write(loop.event, &one, 8)


cdef void arm(Loop *loop, Source *source, uint32_t events) noexcept nogil:
    # A source that wants nothing leaves the epoll set: a hung-up pipe would wake us for ever.
    cdef epoll_event event
    if source.fd < 0 or source.armed == events:
        return
    if not source.pollable:
        source.armed = events
        return
    event.events = events
    event.data.ptr = source
    if events == 0:
        epoll_ctl(loop.epoll, EPOLL_CTL_DEL, source.fd, &event)
    elif source.armed == 0:
        if epoll_ctl(loop.epoll, EPOLL_CTL_ADD, source.fd, &event) != 0 and errno == EPERM:
            source.pollable = False  # a regular file or the like: always ready
    else:
        epoll_ctl(loop.epoll, EPOLL_CTL_MOD, source.fd, &event)
    source.armed = events


cdef void shut(Loop *loop, Source *source) noexcept nogil:
    if source.fd >= 0:
        arm(loop, source, 0)
        close(source.fd)
        source.fd = -1


cdef void begin(Source *source, int role, int fd, Container *container, Attachment *attachment) noexcept nogil:
    cdef stat status
    source.role = role
    source.fd = fd
    source.armed = 0
    source.pollable = True
    source.way = WAY_SPLICE
    source.tail = -1
    if fd >= 0 and fstat(fd, &status) == 0:
        if S_ISSOCK(status.st_mode):
            source.way = WAY_SOCKET
        elif S_ISREG(status.st_mode):
            source.way = WAY_FILE
    source.container = container
    source.attachment = attachment


cdef size_t queued(Queue *queue) noexcept nogil:
    return queue.end - queue.start


cdef bint enqueue(Queue *queue, const char *data, size_t size) noexcept nogil:
    cdef char *grown
    if queue.start > 0:
        memmove(queue.data, queue.data + queue.start, queue.end - queue.start)
        queue.end -= queue.start
        queue.start = 0
    if queue.end + size > queue.room:
        grown = <char *> realloc(queue.data, queue.end + size)
        if grown == NULL:
            return False
        queue.data = grown
        queue.room = queue.end + size
    memcpy(queue.data + queue.end, data, size)
    queue.end += size
    return True


cdef void empty(Queue *queue) noexcept nogil:
    free(queue.data)
    memset(queue, 0, sizeof(Queue))


cdef ssize_t put(Source *source, const char *data, size_t size) noexcept nogil:
    # What can be written now without blocking: bytes, or -1 when the other end is broken.
    cdef size_t done = 0
    cdef ssize_t one
    while done < size:
        if source.way == WAY_SOCKET:
            one = send(source.fd, data + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            one = write(source.fd, data + done, size - done)
        if one < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                break
            return -1
        done += one
    return done


# -- the log -----------------------------------------------------------------------------------

cdef bint open_log(Loop *loop, Container *container) noexcept nogil:
    cdef stat status
    if container.log >= 0:
        return True
    container.log = open(container.log_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0o640)
    if container.log < 0:
        return False
    container.log_length = status.st_size if fstat(container.log, &status) == 0 else 0
    mend_log(loop, container)
    return True


cdef void mend_log(Loop *loop, Container *container) noexcept nogil:
    # A crash of the machine tears the last line, or leaves a hole of zeros: back to the last newline.
    cdef int64_t end = container.log_length
    cdef ssize_t got
    cdef size_t size
    if end == 0 or (pread(container.log, loop.encoded, 1, end - 1) == 1 and loop.encoded[0] == c"\n"):
        return
    while end > 0:
        size = <size_t> end if end < OUT_ROOM else OUT_ROOM
        got = pread(container.log, loop.encoded, size, end - size)
        if got != <ssize_t> size:
            return
        while size > 0 and loop.encoded[size - 1] != c"\n":
            size -= 1
            end -= 1
        if size > 0:
            break
    if ftruncate(container.log, end) == 0:
        container.log_length = end


cdef void rotate(Container *container) noexcept nogil:
    # container.log -> .1 -> .2 ...; the oldest is overwritten by its successor.
    cdef char old[4096]
    cdef char new[4096]
    cdef int number
    if container.log_files < 2:
        ftruncate(container.log, 0)
        container.log_length = 0
        return
    close(container.log)
    container.log = -1
    container.log_length = 0
    for number in range(container.log_files - 1, 0, -1):
        if number == 1:
            snprintf(old, sizeof(old), b"%s", container.log_path)
        else:
            snprintf(old, sizeof(old), b"%s.%d", container.log_path, number - 1)
        snprintf(new, sizeof(new), b"%s.%d", container.log_path, number)
        rename(old, new)


cdef bint write_log(Container *container, const char *data, size_t size) noexcept nogil:
    cdef ssize_t done
    while size > 0:
        done = write(container.log, data, size)
        if done < 0:
            if errno == EINTR:
                continue
            return False
        container.log_length += done
        data += done
        size -= done
    return True


cdef void log_lost(Loop *loop, Container *container, int64_t size, int64_t cut, int err) noexcept nogil:
    # Back to the last whole line; the container goes on, the gap is told once there is room again.
    if container.log >= 0:
        ftruncate(container.log, cut)
        container.log_length = cut
    container.missing += size
    if not container.log_failing:
        container.log_failing = True
        note(loop, KIND_LOG, container.key, err)


cdef bint tell_gap(Container *container, timespec *now) noexcept nogil:
    cdef char line[320]
    cdef char tail[80]
    cdef size_t tail_size = log_tail(b"stderr", now.tv_sec, now.tv_nsec, tail)
    cdef int size = snprintf(
        line, 200, b"{\"log\":\"[dockpy: %lld bytes of output are missing here, the log could not be written]\\n",
        <long long> container.missing,
    )
    cdef int64_t before = container.log_length
    memcpy(line + size, tail, tail_size)
    if not write_log(container, line, size + tail_size):
        ftruncate(container.log, before)
        container.log_length = before
        return False
    container.missing = 0
    container.log_failing = False
    return True


cdef size_t log_batch(
    Loop *loop, Container *container, int stream, const char *data, size_t size, int mode,
    bint may_keep, timespec *now,
) noexcept nogil:
    # Writes a batch; gives how many bytes at its end wait for the rest of their line or character.
    cdef char tail[80]
    cdef char marks[80]
    cdef size_t tail_size
    cdef size_t used = 0
    cdef size_t done = 0
    cdef size_t taken
    cdef size_t i
    cdef int64_t cut
    cdef bint partial = mode != KEEP or not may_keep
    if not open_log(loop, container):
        log_lost(loop, container, size, 0, errno)
        return 0
    if loop.journal.log_length < 0:
        loop.journal.log_length = container.log_length
        dockpy_fence()
    cut = container.log_length
    if container.missing and not tell_gap(container, now):
        log_lost(loop, container, size, cut, errno)
        return 0
    cut = container.log_length
    tail_size = log_tail(b"stderr" if stream == ROLE_STDERR else b"stdout", now.tv_sec, now.tv_nsec, tail)
    while done < size:
        taken = log_encode(data + done, size - done, partial, loop.encoded, OUT_ROOM, tail, tail_size, &used)
        if taken == 0:
            break
        if not write_log(container, loop.encoded, used):
            log_lost(loop, container, size, cut, errno)
            return 0
        done += taken
    if done == size or (mode != LAST and may_keep):
        return size - done
    # The rest of a character will not come: as with other bytes that are none, a mark for each.
    memcpy(marks, b"{\"log\":\"", 8)
    used = 8
    for i in range(size - done):
        memcpy(marks + used, b"\\ufffd", 6)
        used += 6
    if not write_log(container, marks, used) or not write_log(container, tail, tail_size):
        log_lost(loop, container, size, cut, errno)
    return 0


# -- tails: unfinished lines -------------------------------------------------------------------

cdef int64_t monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef void set_timer(Loop *loop) noexcept nogil:
    cdef itimerspec when
    if loop.timing or loop.due_first == NULL:
        return
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = loop.due_first.due_at // 1000000000
    when.it_value.tv_nsec = loop.due_first.due_at % 1000000000
    loop.timing = timerfd_settime(loop.timer, 1, &when, NULL) == 0  # 1: an absolute time


cdef void not_due(Loop *loop, Source *source) noexcept nogil:
    if not source.due:
        return
    source.due = False
    if source.due_before != NULL:
        source.due_before.due_after = source.due_after
    else:
        loop.due_first = source.due_after
    if source.due_after != NULL:
        source.due_after.due_before = source.due_before
    else:
        loop.due_last = source.due_before


cdef void due_later(Loop *loop, Source *source, int64_t at) noexcept nogil:
    # All wait equally long, so the list is in the order of time.
    not_due(loop, source)
    source.due = True
    source.due_at = at
    source.due_before = loop.due_last
    source.due_after = NULL
    if loop.due_last != NULL:
        loop.due_last.due_after = source
    else:
        loop.due_first = source
    loop.due_last = source
    set_timer(loop)


cdef void free_tail(Loop *loop, int index) noexcept nogil:
    loop.tails[index].size = 0
    loop.free_tails[loop.free_tail_count] = index
    loop.free_tail_count += 1


cdef void drop_tail(Loop *loop, Source *source) noexcept nogil:
    not_due(loop, source)
    if source.tail >= 0:
        free_tail(loop, source.tail)
        source.tail = -1


cdef bint find_tail(Loop *loop, Source *source) noexcept nogil:
    # A place for the stream's tail, its old one if it has any; False when there is none.
    if source.tail >= 0:
        return True
    if loop.free_tail_count > 0:
        loop.free_tail_count -= 1
        source.tail = loop.free_tails[loop.free_tail_count]
    elif loop.journal.tails < TAILS:
        source.tail = loop.journal.tails
        loop.tails[source.tail].size = 0
        dockpy_fence()
        loop.journal.tails += 1
    return source.tail >= 0


cdef void settle_tail(Loop *loop, Container *container, Source *source, const char *data, size_t kept, bint fresh, int mode) noexcept nogil:
    # The journal says LOGGED; may be done twice.
    cdef Tail *tail
    if kept == 0 or not find_tail(loop, source):
        drop_tail(loop, source)
        return
    tail = &loop.tails[source.tail]
    memcpy(loop.tail_bytes + <size_t> source.tail * TAIL_ROOM, data, kept)
    tail.key = container.key
    tail.stream = stream_of(source)
    dockpy_fence()
    tail.size = <int32_t> kept
    if mode != KEEP:
        not_due(loop, source)
    elif fresh or not source.due:
        due_later(loop, source, monotonic() + PATIENCE)


cdef void log_unfinished(Loop *loop, Source *source, int mode) noexcept nogil:
    # The line's end did not come in time, or never will.
    cdef Container *container = source.container
    cdef Journal *journal = loop.journal
    not_due(loop, source)
    if source.tail < 0 or container.log_path == NULL:
        return
    open_log(loop, container)
    journal.key = container.key
    journal.stream = stream_of(source)
    journal.mode = mode
    journal.size = 0
    journal.log_length = container.log_length if container.log >= 0 else -1
    dockpy_fence()
    journal.phase = WRITING
    finish_batch(loop, container, source, 0, mode)


cdef void time_is_up(Loop *loop) noexcept nogil:
    cdef uint64_t count
    cdef int64_t now = monotonic()
    read(loop.timer, &count, 8)
    loop.timing = False
    while loop.due_first != NULL and loop.due_first.due_at <= now:
        log_unfinished(loop, loop.due_first, PART)
    set_timer(loop)


# -- clients -----------------------------------------------------------------------------------

cdef int stream_of(Source *source) noexcept nogil:
    if source.role == ROLE_STDERR or source.role == ROLE_CLIENT_ERR:
        return ROLE_STDERR
    return ROLE_STDOUT


cdef Source *client_end(Attachment *attachment, int stream) noexcept nogil:
    return &attachment.err if stream == ROLE_STDERR else &attachment.out


cdef Backlog *client_backlog(Attachment *attachment, int stream) noexcept nogil:
    return &attachment.err_backlog if stream == ROLE_STDERR else &attachment.out_backlog


cdef size_t owed(Backlog *backlog) noexcept nogil:
    return backlog.head.end - backlog.head.start if backlog.head != NULL else 0


cdef void release(Loop *loop, Backlog *backlog) noexcept nogil:
    if backlog.head == NULL:
        return
    if backlog.slot < 0:
        free(backlog.data)
    else:
        backlog.head.used = 0
        madvise(backlog.data, BACKLOG_ROOM, MADV_REMOVE)
    memset(backlog, 0, sizeof(Backlog))


cdef void adopt(Loop *loop, Backlog *backlog, int slot) noexcept nogil:
    backlog.slot = slot
    backlog.head = &loop.journal.waiting[slot]
    backlog.data = loop.backlogs + <size_t> slot * BACKLOG_ROOM
    backlog.room = BACKLOG_ROOM


cdef bint append(Loop *loop, Backlog *backlog, uint64_t number, int stream, const char *data, size_t size) noexcept nogil:
    cdef Waiting *head
    cdef char *grown
    cdef size_t had
    cdef size_t room
    cdef int i
    if backlog.head == NULL:
        for i in range(BACKLOGS):
            head = &loop.journal.waiting[i]
            if not head.used:
                head.number = number
                head.stream = stream
                head.start = head.end = 0
                dockpy_fence()
                head.used = 1
                adopt(loop, backlog, i)
                break
    if backlog.head == NULL or backlog.head.end + size > backlog.room:
        # More than is shared: the rest of this client's life its bytes are this process's alone.
        had = owed(backlog)
        room = 2 * (had + size)
        grown = <char *> malloc(room)
        if grown == NULL:
            return False
        if had:
            memcpy(grown, backlog.data + backlog.head.start, had)
        release(loop, backlog)
        backlog.data = grown
        backlog.room = room
        backlog.slot = -1
        backlog.head = &backlog.own
        backlog.own.end = had
    memcpy(backlog.data + backlog.head.end, data, size)
    dockpy_fence()
    backlog.head.end += size
    return True


cdef int64_t position(Source *source) noexcept nogil:
    # Of a regular file: grows by what we write.
    cdef stat status
    if fcntl(source.fd, F_GETFL) & O_APPEND:
        return status.st_size if fstat(source.fd, &status) == 0 else 0
    return lseek(source.fd, 0, SEEK_CUR)


cdef void discard(Loop *loop) noexcept nogil:
    # Staging is made empty; it never blocks.
    cdef int left = 0
    while ioctl(loop.staging_out, FIONREAD, &left) == 0 and left > 0:
        if read(loop.staging_out, loop.input, INPUT if left > INPUT else left) <= 0 and errno != EINTR:
            break


cdef ssize_t deliver(Loop *loop, Source *source, uint64_t number, const char *data, size_t size, size_t done) noexcept nogil:
    # To a client that has `done` bytes: how many it has then, or -1 when it is broken. The journal's
    # step is GIVEN then.
    cdef Journal *journal = loop.journal
    cdef size_t moved
    cdef ssize_t one
    cdef int err = 0
    journal.number = number
    journal.target = stream_of(source)
    while source.way == WAY_SPLICE and done < size:
        journal.way = WAY_SPLICE
        journal.base = journal.given = done
        dockpy_fence()
        journal.step = LOADING
        one = write(loop.staging_in, data + done, size - done)
        if one <= 0:
            break  # staging is empty, so this does not happen; the rest waits
        journal.asked = one
        dockpy_fence()
        journal.step = MOVING
        moved = 0
        while moved < journal.asked:
            one = splice(loop.staging_out, NULL, source.fd, NULL, journal.asked - moved, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if one <= 0:
                err = errno if one < 0 else EAGAIN
                if err == EINTR:
                    continue
                break
            moved += one
        done += moved
        journal.given = done
        dockpy_fence()
        journal.step = GIVEN
        if moved == journal.asked:
            continue
        discard(loop)
        if err == EINVAL:
            source.way = WAY_PLAIN  # nothing that can be spliced to
        elif err == EAGAIN:
            return done
        else:
            return -1
    if source.way == WAY_SPLICE or done == size:
        return done
    journal.way = source.way
    journal.base = journal.given = done
    journal.position = position(source) if source.way == WAY_FILE else 0
    dockpy_fence()
    journal.step = MOVING
    while done < size:
        if source.way == WAY_SOCKET:
            one = send(source.fd, data + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            one = write(source.fd, data + done, size - done)
        if one < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                break
            return -1
        done += one
        journal.given = done
    dockpy_fence()
    journal.step = GIVEN
    return done


cdef void make_roomy(Source *source) noexcept nogil:
    if not source.big:
        source.big = True
        if source.way == WAY_SPLICE:
            fcntl(source.fd, F_SETPIPE_SZ, BIG_PIPE)


cdef void give(Loop *loop, Attachment *attachment, int stream, const char *data, size_t size, size_t has) noexcept nogil:
    # A batch to one client, which has the first `has` bytes already.
    cdef Source *source = client_end(attachment, stream)
    cdef Backlog *backlog = client_backlog(attachment, stream)
    cdef ssize_t done = 0
    if source.fd < 0 or attachment.closing:
        return
    if owed(backlog) == 0:
        done = deliver(loop, source, attachment.number, data, size, has)
        if 0 <= done < <ssize_t> size and not source.big:
            make_roomy(source)
            done = deliver(loop, source, attachment.number, data, size, done)
        if done < 0:
            close_attachment(loop, attachment, WHY_BROKEN)
            return
        has = done
    if has < size:
        if not append(loop, backlog, attachment.number, stream, data + has, size - has):
            close_attachment(loop, attachment, WHY_BROKEN)
            return
        arm(loop, source, EPOLLOUT)


cdef void serve_clients(Loop *loop, Container *container, int stream, size_t size) noexcept nogil:
    # The journal says CLIENTS. They are in the order of their numbers.
    cdef Journal *journal = loop.journal
    cdef Attachment *attachment = container.attachments
    cdef Attachment *following
    cdef Backlog *backlog
    cdef size_t has
    while attachment != NULL:
        following = attachment.next
        if attachment.number >= journal.client:
            backlog = client_backlog(attachment, stream)
            has = 0
            if journal.serving == attachment.number:
                # A killed pump was at it: without what it may have appended.
                has = journal.given if journal.step == GIVEN else 0
                if backlog.head != NULL:
                    backlog.head.end = journal.before
            else:
                journal.serving = 0
                dockpy_fence()
                journal.step = NOTHING
                journal.before = backlog.head.end if backlog.head != NULL else 0
                journal.slot = -1
                dockpy_fence()
                journal.serving = attachment.number
            give(loop, attachment, stream, loop.buffer, size, has)
            dockpy_fence()
            journal.client = attachment.number + 1
        attachment = following
    dockpy_fence()
    journal.serving = 0
    journal.step = NOTHING


cdef bint clients_are_slow(Container *container) noexcept nogil:
    cdef Attachment *attachment = container.attachments
    while attachment != NULL:
        if owed(&attachment.out_backlog) or owed(&attachment.err_backlog):
            return True
        attachment = attachment.next
    return False


# -- output ------------------------------------------------------------------------------------

cdef void finish_batch(Loop *loop, Container *container, Source *source, size_t size, int mode) noexcept nogil:
    # The buffer holds `size` bytes; the journal says WRITING.
    cdef timespec now
    cdef Journal *journal = loop.journal
    cdef size_t front = 0
    cdef size_t kept = 0
    if container.log_path != NULL:
        clock_gettime(CLOCK_REALTIME, &now)
        if source.tail >= 0:
            front = loop.tails[source.tail].size
            memcpy(loop.buffer - front, loop.tail_bytes + <size_t> source.tail * TAIL_ROOM, front)
        kept = log_batch(
            loop, container, journal.stream, loop.buffer - front, size + front, mode,
            source.tail >= 0 or loop.free_tail_count > 0 or journal.tails < TAILS, &now,
        )
    journal.kept = kept
    dockpy_fence()
    journal.phase = LOGGED
    after_log(loop, container, source, size, kept < size + front, mode)


cdef void after_log(Loop *loop, Container *container, Source *source, size_t size, bint fresh, int mode) noexcept nogil:
    cdef Journal *journal = loop.journal
    settle_tail(loop, container, source, loop.buffer + size - journal.kept, journal.kept, fresh, mode)
    if size and container.attachments != NULL:
        journal.client = 0
        journal.serving = 0
        journal.step = NOTHING
        dockpy_fence()
        journal.phase = CLIENTS
        serve_clients(loop, container, journal.stream, size)
    dockpy_fence()
    journal.phase = IDLE
    if container.log >= 0 and container.log_limit and container.log_length >= container.log_limit:
        rotate(container)


cdef size_t batch_limit(Container *container) noexcept nogil:
    # Small logs rotate in time when their batches are small.
    cdef int64_t limit = BATCH
    if container.log_limit:
        limit = container.log_limit // 32
        if limit > BATCH:
            limit = BATCH
        if limit < 4096:
            limit = 4096
    return <size_t> limit


cdef bint says_something(Source *source) noexcept nogil:
    # Who says nothing has no log: its end alone is no reason to make one.
    cdef int waiting
    return ioctl(source.fd, FIONREAD, &waiting) != 0 or waiting > 0


cdef int take_batch(Loop *loop, Container *container, Source *source) noexcept nogil:
    # 1: a batch was moved; 0: nothing there now; -1: the other end is closed.
    cdef size_t limit = batch_limit(container)
    cdef Journal *journal = loop.journal
    cdef ssize_t moved
    cdef ssize_t got
    cdef size_t done = 0
    if container.log_path != NULL and container.log < 0 and says_something(source):
        open_log(loop, container)
    journal.key = container.key
    journal.stream = stream_of(source)
    journal.mode = KEEP
    journal.log_length = container.log_length if container.log >= 0 else -1
    dockpy_fence()
    journal.phase = FILLING
    while True:
        moved = splice(source.fd, NULL, loop.staging_in, NULL, limit, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if moved >= 0 or errno != EINTR:
            break
    if moved <= 0:
        journal.phase = IDLE
        if moved < 0 and errno == EAGAIN:
            return 0
        return -1
    journal.size = moved
    dockpy_fence()
    journal.phase = READING
    while done < <size_t> moved:
        got = read(loop.staging_out, loop.buffer + done, moved - done)
        if got < 0:
            if errno == EINTR:
                continue
            break
        done += got
    dockpy_fence()
    journal.phase = WRITING
    loop.streamed += moved
    source.moved += moved
    if source.moved > BIG_PIPE and not source.big:
        source.big = True
        fcntl(source.fd, F_SETPIPE_SZ, BIG_PIPE)
    finish_batch(loop, container, source, moved, KEEP)
    return 1


cdef void output(Loop *loop, Container *container, Source *source) noexcept nogil:
    cdef int turn
    cdef int got
    for turn in range(TURN):
        if source.fd < 0:
            return
        got = take_batch(loop, container, source)
        if got == 0:
            return
        if got < 0:
            if source.role == ROLE_TTY:
                # No slave is open just now; a later program may open one: tell us when that changes.
                arm(loop, source, EPOLLIN | EPOLLET | (source.armed & EPOLLOUT))
            else:
                shut(loop, source)
                log_unfinished(loop, source, LAST)
            return
        if source.armed & EPOLLET:
            arm(loop, source, EPOLLIN | (source.armed & EPOLLOUT))
        if clients_are_slow(container):
            throttle(loop, container)
            return
        if dockpy_load(&loop.waiting) > 0:
            return


cdef void throttle(Loop *loop, Container *container) noexcept nogil:
    arm(loop, &container.out, 0)
    arm(loop, &container.err, 0)
    arm(loop, &container.tty, container.tty.armed & EPOLLOUT)


cdef void resume(Loop *loop, Container *container) noexcept nogil:
    if container.removed or clients_are_slow(container):
        return
    arm(loop, &container.out, EPOLLIN)
    arm(loop, &container.err, EPOLLIN)
    arm(loop, &container.tty, EPOLLIN | (container.tty.armed & EPOLLOUT))


# -- input -------------------------------------------------------------------------------------

cdef Source *container_input(Container *container) noexcept nogil:
    return &container.tty if container.tty.fd >= 0 else &container.stdin


cdef void close_stdin(Loop *loop, Container *container) noexcept nogil:
    # Clients that feed it learn it too: what they still send has nowhere to go.
    cdef Attachment *attachment = container.attachments
    if container.stdin.fd < 0:
        return
    shut(loop, &container.stdin)
    note(loop, KIND_STDIN, container.key, 0)
    while attachment != NULL:
        shut(loop, &attachment.input)
        attachment.in_queue.start = attachment.in_queue.end = 0
        attachment.input_ended = False
        attachment = attachment.next


cdef size_t without_keys(Attachment *attachment, const char *data, size_t size, char *out, bint *detach) noexcept nogil:
    # Copies input, holding back a beginning of the detach keys until a byte decides.
    cdef size_t i = 0
    cdef size_t made = 0
    cdef size_t plain
    cdef const char *first
    cdef int k
    detach[0] = False
    if attachment.keys_size == 0:
        memcpy(out, data, size)
        return size
    while i < size:
        if attachment.matched == 0:  # nothing is held back: all up to the next first key passes
            first = <const char *> memchr(data + i, attachment.keys[0], size - i)
            plain = size - i if first == NULL else <size_t> (first - data) - i
            memcpy(out + made, data + i, plain)
            made += plain
            i += plain
            if first == NULL:
                break
        if data[i] == attachment.keys[attachment.matched]:
            attachment.matched += 1
            if attachment.matched == attachment.keys_size:
                attachment.matched = 0
                detach[0] = True
                return made
            i += 1
            continue
        # What was held back is not the sequence; a shorter beginning of it may still be.
        while attachment.matched > 0:
            k = next_match(attachment.keys, attachment.matched)
            memcpy(out + made, attachment.keys, attachment.matched - k)
            made += attachment.matched - k
            attachment.matched = k
            if data[i] == attachment.keys[k]:
                break
        if data[i] == attachment.keys[attachment.matched]:
            attachment.matched += 1
            if attachment.matched == attachment.keys_size:
                attachment.matched = 0
                detach[0] = True
                return made
        else:
            out[made] = data[i]
            made += 1
        i += 1
    return made


cdef int next_match(const char *keys, int matched) noexcept nogil:
    # The longest proper beginning of `keys` that ends what was matched so far.
    cdef int size
    cdef int i
    cdef bint same
    for size in range(matched - 1, 0, -1):
        same = True
        for i in range(size):
            if keys[i] != keys[matched - size + i]:
                same = False
                break
        if same:
            return size
    return 0


cdef void push_input(Loop *loop, Attachment *attachment) noexcept nogil:
    # Queued input to the container, as much as it takes.
    cdef Container *container = attachment.container
    cdef Source *target = container_input(container)
    cdef ssize_t done
    if queued(&attachment.in_queue) == 0:
        return
    if target.fd < 0:
        attachment.in_queue.start = attachment.in_queue.end = 0
        return
    done = put(target, attachment.in_queue.data + attachment.in_queue.start, queued(&attachment.in_queue))
    if done < 0:
        # The program closed its input: what is left has nowhere to go.
        attachment.in_queue.start = attachment.in_queue.end = 0
        close_stdin(loop, container)
        shut(loop, &attachment.input)
        return
    attachment.in_queue.start += done
    if queued(&attachment.in_queue):
        arm(loop, target, target.armed | EPOLLOUT)


cdef bint other_inputs(Container *container, Attachment *but) noexcept nogil:
    cdef Attachment *attachment = container.attachments
    while attachment != NULL:
        if attachment != but and attachment.input.fd >= 0:
            return True
        attachment = attachment.next
    return False


cdef void input_ended(Loop *loop, Attachment *attachment) noexcept nogil:
    # End of the client's input, once everything before it has been passed on.
    cdef Container *container = attachment.container
    shut(loop, &attachment.input)
    if queued(&attachment.in_queue):
        attachment.input_ended = True
        return
    attachment.input_ended = False
    if container.tty.fd < 0 and (container.stdin_once or not other_inputs(container, attachment)):
        close_stdin(loop, container)


cdef bint client_input(Loop *loop, Attachment *attachment) noexcept nogil:
    # One read of a client's input; True when there may be more at once.
    cdef Container *container = attachment.container
    cdef Source *target = container_input(container)
    cdef char *kept = loop.input + INPUT
    cdef bint detach = False
    cdef ssize_t got
    cdef size_t size
    if attachment.input.fd < 0 or attachment.closing:
        return False
    if queued(&attachment.in_queue):
        arm(loop, &attachment.input, 0)
        return False
    if attachment.input.way == WAY_SOCKET:
        got = recv(attachment.input.fd, loop.input, INPUT, MSG_DONTWAIT)
    else:
        got = read(attachment.input.fd, loop.input, INPUT)
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            return False
        got = 0
    if got == 0:
        if attachment.matched:
            enqueue(&attachment.in_queue, attachment.keys, attachment.matched)
            attachment.matched = 0
            push_input(loop, attachment)
        if attachment.input.fd >= 0:
            input_ended(loop, attachment)
        return False
    size = without_keys(attachment, loop.input, got, kept, &detach)
    if target.fd >= 0 and size:
        enqueue(&attachment.in_queue, kept, size)
        push_input(loop, attachment)
    if detach:
        close_attachment(loop, attachment, WHY_DETACHED)
        return False
    if attachment.input.fd < 0:
        return False
    if queued(&attachment.in_queue):
        arm(loop, &attachment.input, 0)
        return False
    return not attachment.input.pollable


cdef void container_takes_input(Loop *loop, Container *container) noexcept nogil:
    cdef Source *target = container_input(container)
    cdef Attachment *attachment = container.attachments
    cdef Attachment *following
    arm(loop, target, target.armed & ~<uint32_t> EPOLLOUT)
    while attachment != NULL:
        following = attachment.next
        push_input(loop, attachment)
        if queued(&attachment.in_queue) == 0:
            if attachment.input_ended:
                input_ended(loop, attachment)
            elif attachment.input.fd >= 0:
                read_input(loop, attachment)
        attachment = following


cdef void read_input(Loop *loop, Attachment *attachment) noexcept nogil:
    # Sources that epoll cannot watch are read here until the container's pipe is full.
    arm(loop, &attachment.input, EPOLLIN)
    if attachment.input.fd >= 0 and not attachment.input.pollable:
        while client_input(loop, attachment):
            pass


# -- ends --------------------------------------------------------------------------------------

cdef void close_attachment(Loop *loop, Attachment *attachment, int why) noexcept nogil:
    # Takes it out of its container; the memory is freed when the loop is between events.
    cdef Container *container = attachment.container
    cdef Attachment **link = &container.attachments
    cdef bint gave_input = attachment.input.fd >= 0
    if attachment.closing:
        return
    attachment.closing = True
    while link[0] != NULL and link[0] != attachment:
        link = &link[0].next
    if link[0] == attachment:
        link[0] = attachment.next
    shut(loop, &attachment.input)
    shut(loop, &attachment.out)
    shut(loop, &attachment.err)
    release(loop, &attachment.out_backlog)
    release(loop, &attachment.err_backlog)
    empty(&attachment.in_queue)
    note(loop, KIND_ATTACHMENT, attachment.number, why)
    attachment.next = loop.attachment_graves
    loop.attachment_graves = attachment
    if gave_input and container.stdin_once and why != WHY_DETACHED and not container.announced:
        close_stdin(loop, container)
    resume(loop, container)


cdef void close_if_flushed(Loop *loop, Attachment *attachment) noexcept nogil:
    if attachment.container.announced and not owed(&attachment.out_backlog) and not owed(&attachment.err_backlog):
        close_attachment(loop, attachment, WHY_ENDED)


cdef size_t room_in(Source *source) noexcept nogil:
    # About what a client takes now: loading more into staging would be for nothing.
    cdef int used = 0
    cdef int size = fcntl(source.fd, F_GETPIPE_SZ) if source.way == WAY_SPLICE else 0
    if size <= 0:
        return 4096 if source.way == WAY_SPLICE else INPUT  # a terminal takes little at a time
    if ioctl(source.fd, FIONREAD, &used) != 0 or size - used < 4096:
        return 4096
    return size - used


cdef void client_takes_output(Loop *loop, Attachment *attachment, int stream) noexcept nogil:
    cdef Source *source = client_end(attachment, stream)
    cdef Backlog *backlog = client_backlog(attachment, stream)
    cdef Journal *journal = loop.journal
    cdef Container *container = attachment.container
    cdef size_t size = owed(backlog)
    cdef size_t room
    cdef ssize_t done = 0
    if size > 0:
        room = room_in(source)
        journal.slot = backlog.slot
        journal.origin = backlog.head.start
        done = deliver(loop, source, attachment.number, backlog.data + backlog.head.start, size if size < room else room, 0)
        if done > 0:
            backlog.head.start += done
        dockpy_fence()
        journal.step = NOTHING
    if done < 0:
        close_attachment(loop, attachment, WHY_BROKEN)
        return
    if owed(backlog) == 0:
        release(loop, backlog)
        arm(loop, source, 0)
        if container.announced:
            close_if_flushed(loop, attachment)
        else:
            resume(loop, container)


cdef void drain(Loop *loop, Container *container, Source *source) noexcept nogil:
    # What was there when it ended: somebody else who writes to its pipe does not hold us up.
    cdef int left = 0
    cdef uint64_t end
    if source.fd < 0:
        return
    if source.role == ROLE_TTY or ioctl(source.fd, FIONREAD, &left) != 0:
        left = LAST_WORDS
    end = source.moved + left
    while source.moved < end and take_batch(loop, container, source) > 0:
        pass
    shut(loop, source)


cdef void exited(Loop *loop, Container *container) noexcept nogil:
    cdef siginfo_t info
    cdef Attachment *attachment
    cdef Attachment *following
    cdef int status = -1
    memset(&info, 0, sizeof(info))
    if waitid(P_PIDFD, container.exit.fd, &info, WEXITED | WNOWAIT) == 0:
        if info.si_code == CLD_EXITED:
            status = info.si_status << 8
        else:
            status = info.si_status | (0x80 if info.si_code == CLD_DUMPED else 0)
    container.ended = True
    container.status = status
    container.when = now_seconds()
    arm(loop, &container.exit, 0)
    drain(loop, container, &container.out)
    drain(loop, container, &container.err)
    drain(loop, container, &container.tty)
    log_unfinished(loop, &container.out, LAST)
    log_unfinished(loop, &container.err, LAST)
    log_unfinished(loop, &container.tty, LAST)
    shut(loop, &container.stdin)
    container.announced = True
    note(loop, KIND_EXITED, container.key, status)
    attachment = container.attachments
    while attachment != NULL:
        following = attachment.next
        shut(loop, &attachment.input)
        close_if_flushed(loop, attachment)
        attachment = following


cdef void bury(Loop *loop) noexcept nogil:
    cdef Attachment *attachment
    cdef Container *container
    while loop.attachment_graves != NULL:
        attachment = loop.attachment_graves
        loop.attachment_graves = attachment.next
        free(attachment)
    while loop.graves != NULL:
        container = loop.graves
        loop.graves = container.next
        free(container.log_path)
        free(container)


cdef void unlink_container(Loop *loop, Container *container) noexcept nogil:
    cdef siginfo_t info
    cdef Container **link = &loop.containers
    while link[0] != NULL and link[0] != container:
        link = &link[0].next
    if link[0] == container:
        link[0] = container.next
    container.removed = True
    container.announced = True
    while container.attachments != NULL:
        close_attachment(loop, container.attachments, WHY_CLOSED)
    if not loop.stopping:
        drop_tail(loop, &container.out)
        drop_tail(loop, &container.err)
        drop_tail(loop, &container.tty)
    if container.ended and container.exit.fd >= 0:
        waitid(P_PIDFD, container.exit.fd, &info, WEXITED | WNOHANG)
    shut(loop, &container.exit)
    shut(loop, &container.out)
    shut(loop, &container.err)
    shut(loop, &container.tty)
    shut(loop, &container.stdin)
    if container.log >= 0:
        close(container.log)
        container.log = -1
    container.next = loop.graves
    loop.graves = container


cdef Container *find(Loop *loop, uint64_t key) noexcept nogil:
    cdef Container *container = loop.containers
    while container != NULL and container.key != key:
        container = container.next
    return container


# -- the loop ----------------------------------------------------------------------------------

cdef void serve(Loop *loop, Source *source, uint32_t events) noexcept nogil:
    cdef uint64_t count
    if source.role == ROLE_WAKE:
        read(loop.wake, &count, 8)
        return
    if source.role == ROLE_TIMER:
        time_is_up(loop)
        return
    if source.fd < 0:
        return
    if source.role == ROLE_EXIT:
        exited(loop, source.container)
    elif source.role == ROLE_STDOUT or source.role == ROLE_STDERR:
        output(loop, source.container, source)
    elif source.role == ROLE_TTY:
        if events & EPOLLOUT:
            container_takes_input(loop, source.container)
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            output(loop, source.container, source)
    elif source.role == ROLE_STDIN:
        if events & EPOLLERR:
            close_stdin(loop, source.container)
        else:
            container_takes_input(loop, source.container)
    elif source.attachment.closing:
        return
    elif source.role == ROLE_CLIENT_IN:
        client_input(loop, source.attachment)
    elif events & EPOLLERR and not events & EPOLLOUT:
        close_attachment(loop, source.attachment, WHY_BROKEN)
    elif source.role == ROLE_CLIENT_OUT:
        client_takes_output(loop, source.attachment, ROLE_STDOUT)
    elif source.role == ROLE_CLIENT_ERR:
        client_takes_output(loop, source.attachment, ROLE_STDERR)


cdef Source *source_of(Container *container, int stream) noexcept nogil:
    if stream == ROLE_STDERR:
        return &container.err
    return &container.tty if container.tty.fd >= 0 else &container.out


cdef Attachment *attachment_of(Loop *loop, uint64_t number) noexcept nogil:
    cdef Container *container = loop.containers
    cdef Attachment *found
    while container != NULL:
        found = container.attachments
        while found != NULL:
            if found.number == number:
                return found
            found = found.next
        container = container.next
    return NULL


cdef void recover_delivery(Loop *loop) noexcept nogil:
    # How much of what was on its way to a client arrived: the step is GIVEN or NOTHING then.
    cdef Journal *journal = loop.journal
    cdef Attachment *attachment
    cdef Waiting *head
    cdef int64_t moved
    cdef int left = 0
    if journal.step == LOADING:
        journal.given = journal.base
    elif journal.step == MOVING and journal.way == WAY_SPLICE:
        ioctl(loop.staging_out, FIONREAD, &left)
        journal.given = journal.base + journal.asked - left
    elif journal.step == MOVING and journal.way == WAY_FILE:
        attachment = attachment_of(loop, journal.number)
        if attachment != NULL and client_end(attachment, journal.target).fd >= 0:
            moved = position(client_end(attachment, journal.target)) - journal.position
            if moved > <int64_t> (journal.given - journal.base):
                journal.given = journal.base + moved
    if journal.step != NOTHING:
        dockpy_fence()
        journal.step = GIVEN
    discard(loop)
    if journal.step == GIVEN and journal.phase != CLIENTS:
        if 0 <= journal.slot < BACKLOGS:
            head = &journal.waiting[journal.slot]
            if head.used and head.number == journal.number and journal.origin + journal.given <= head.end:
                head.start = journal.origin + journal.given
        dockpy_fence()
        journal.step = NOTHING


cdef void recover_batch(Loop *loop) noexcept nogil:
    cdef Journal *journal = loop.journal
    cdef Container *container = find(loop, journal.key)
    cdef Source *source
    cdef int left = 0
    cdef size_t have
    cdef ssize_t got
    if journal.phase == FILLING or journal.phase == READING:
        ioctl(loop.staging_out, FIONREAD, &left)
        if journal.phase == FILLING:
            journal.size = left
            dockpy_fence()
            journal.phase = READING
        have = journal.size - left
        while have < journal.size:
            got = read(loop.staging_out, loop.buffer + have, journal.size - have)
            if got <= 0:
                break
            have += got
        dockpy_fence()
        journal.phase = IDLE if journal.size == 0 else WRITING
    if container == NULL:
        journal.phase = IDLE  # nobody wants it any more
    if journal.phase == IDLE:
        return
    source = source_of(container, journal.stream)
    if journal.phase == WRITING:
        if (
            container.log_path != NULL
            and journal.log_length >= 0
            and open_log(loop, container)
            and container.log_length > journal.log_length
        ):
            ftruncate(container.log, journal.log_length)
            container.log_length = journal.log_length
        finish_batch(loop, container, source, journal.size, journal.mode)
    elif journal.phase == LOGGED:
        after_log(loop, container, source, journal.size, True, journal.mode)
    elif journal.phase == CLIENTS:
        serve_clients(loop, container, journal.stream, journal.size)
        dockpy_fence()
        journal.phase = IDLE


cdef void recover(Loop *loop) noexcept nogil:
    # Finish what a killed pump had in flight, and forget what belongs to nobody.
    cdef Journal *journal = loop.journal
    cdef Container *container
    cdef Attachment *attachment
    cdef Source *source
    cdef int i
    if journal.phase != FILLING and journal.phase != READING:
        recover_delivery(loop)
    for i in range(<int> journal.tails):
        container = find(loop, loop.tails[i].key) if loop.tails[i].size > 0 else NULL
        source = NULL if container == NULL else source_of(container, loop.tails[i].stream)
        if source == NULL or source.tail >= 0:
            free_tail(loop, i)
        else:
            source.tail = i
            due_later(loop, source, monotonic() + PATIENCE)
    for i in range(BACKLOGS):
        if not journal.waiting[i].used:
            continue
        attachment = attachment_of(loop, journal.waiting[i].number)
        if attachment == NULL:
            journal.waiting[i].used = 0
        else:
            adopt(loop, client_backlog(attachment, journal.waiting[i].stream), i)
            arm(loop, client_end(attachment, journal.waiting[i].stream), EPOLLOUT)
    recover_batch(loop)
    container = loop.containers
    while container != NULL:
        if clients_are_slow(container):
            throttle(loop, container)
        container = container.next
    loop.running = True


cdef void run_loop(Loop *loop) noexcept nogil:
    cdef epoll_event events[MANY]
    cdef timespec pause
    cdef int count
    cdef int i
    pause.tv_sec = 0
    pause.tv_nsec = PAUSE
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    pthread_mutex_lock(&loop.lock)
    recover(loop)
    while not loop.stopping:
        bury(loop)
        pthread_mutex_unlock(&loop.lock)
        while dockpy_load(&loop.waiting) > 0:
            sched_yield()
        if loop.streamed >= STREAMING:
            # Output is pouring in: let the pipes fill, a wake-up per write costs more than it moves.
            nanosleep(&pause, NULL)
        loop.streamed = 0
        count = epoll_wait(loop.epoll, events, MANY, -1)
        pthread_mutex_lock(&loop.lock)
        for i in range(count):
            serve(loop, <Source *> events[i].data.ptr, events[i].events)
    while loop.due_first != NULL:
        log_unfinished(loop, loop.due_first, PART)
    pthread_mutex_unlock(&loop.lock)


cdef void enter(Loop *loop) noexcept nogil:
    # Other threads announce themselves, so that a busy loop lets them in.
    dockpy_add(&loop.waiting, 1)
    pthread_mutex_lock(&loop.lock)
    dockpy_add(&loop.waiting, -1)


cdef class Pump:
    """One loop for many containers. Its methods may be called from any thread."""

    cdef Loop loop
    cdef char *mapping
    cdef readonly int event_fd

    def __cinit__(self, object staging, int journal):
        memset(&self.loop, 0, sizeof(Loop))
        self.mapping = NULL
        self.loop.epoll = self.loop.wake = self.loop.event = self.loop.timer = -1

    def __init__(self, object staging, int journal):
        cdef epoll_event event
        cdef stat status
        cdef void *mapped
        if sizeof(Journal) > HEADER:
            raise AssertionError("the journal's header is too small")
        if fstat(journal, &status) != 0 or status.st_size < <int64_t> WHOLE:
            raise ValueError(f"the journal needs {WHOLE} bytes")
        mapped = mmap(NULL, WHOLE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, journal, 0)
        if mapped == MAP_FAILED:
            raise OSError(errno, "map the journal")
        self.mapping = <char *> mapped
        self.loop.staging_out, self.loop.staging_in = staging
        fcntl(self.loop.staging_in, F_SETPIPE_SZ, BIG_PIPE)
        self.loop.journal = <Journal *> mapped
        self.loop.tails = <Tail *> (self.mapping + TAIL_HEADS_AT)
        # A tail goes right before the buffer: FRONT bytes there are free.
        self.loop.buffer = self.mapping + BUFFER_AT
        self.loop.tail_bytes = self.mapping + TAILS_AT
        self.loop.backlogs = self.mapping + BACKLOGS_AT
        self.loop.encoded = <char *> malloc(OUT_ROOM + 64)
        self.loop.input = <char *> malloc(2 * INPUT + 64)
        self.loop.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.loop.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.loop.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.loop.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        self.event_fd = self.loop.event
        if self.loop.encoded == NULL or self.loop.input == NULL:
            raise MemoryError
        if self.loop.epoll < 0 or self.loop.wake < 0 or self.loop.event < 0 or self.loop.timer < 0:
            raise OSError(errno, "make the pump's descriptors")
        pthread_mutex_init(&self.loop.lock, NULL)
        begin(&self.loop.wake_source, ROLE_WAKE, self.loop.wake, NULL, NULL)
        arm(&self.loop, &self.loop.wake_source, EPOLLIN)
        begin(&self.loop.timer_source, ROLE_TIMER, self.loop.timer, NULL, NULL)
        arm(&self.loop, &self.loop.timer_source, EPOLLIN)

    def __dealloc__(self):
        while self.loop.containers != NULL:
            unlink_container(&self.loop, self.loop.containers)
        bury(&self.loop)
        for fd in (self.loop.epoll, self.loop.wake, self.loop.event, self.loop.timer):
            if fd >= 0:
                close(fd)
        if self.mapping != NULL:
            munmap(self.mapping, WHOLE)
            pthread_mutex_destroy(&self.loop.lock)
        free(self.loop.encoded)
        free(self.loop.input)
        free(self.loop.notes)

    def run(self):
        """The loop; blocks until `stop`."""
        with nogil:
            run_loop(&self.loop)

    def stop(self):
        cdef uint64_t one = 1
        with nogil:
            enter(&self.loop)
            self.loop.stopping = True
            pthread_mutex_unlock(&self.loop.lock)
            write(self.loop.wake, &one, 8)

    def events(self):
        """What happened since the last call: (kind, key or attachment, value, seconds)."""
        cdef uint64_t count
        cdef Note *notes
        cdef size_t size
        cdef size_t i
        with nogil:
            enter(&self.loop)
            read(self.loop.event, &count, 8)
            notes = self.loop.notes
            size = self.loop.note_count
            self.loop.notes = NULL
            self.loop.note_count = 0
            self.loop.note_room = 0
            pthread_mutex_unlock(&self.loop.lock)
        found = [(notes[i].kind, notes[i].subject, notes[i].value, notes[i].when) for i in range(size)]
        free(notes)
        return found

    def add(
        self, uint64_t key, *, int stdin, int stdout, int stderr, int tty,
        bytes log_path not None, long log_max_size, int log_max_file, bint stdin_once,
    ):
        cdef Container *container = <Container *> calloc(1, sizeof(Container))
        cdef const char *path = log_path
        cdef int fd
        if container == NULL:
            raise MemoryError
        container.key = key
        container.log = -1
        container.log_path = strdup(path) if log_path else NULL
        container.log_limit = log_max_size
        container.log_files = log_max_file
        container.stdin_once = stdin_once
        for fd in (stdin, stdout, stderr, tty):
            if fd >= 0:
                fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
        with nogil:
            begin(&container.exit, ROLE_EXIT, -1, container, NULL)
            begin(&container.out, ROLE_STDOUT, stdout, container, NULL)
            begin(&container.err, ROLE_STDERR, stderr, container, NULL)
            begin(&container.tty, ROLE_TTY, tty, container, NULL)
            begin(&container.stdin, ROLE_STDIN, stdin, container, NULL)
            enter(&self.loop)
            container.next = self.loop.containers
            self.loop.containers = container
            arm(&self.loop, &container.out, EPOLLIN)
            arm(&self.loop, &container.err, EPOLLIN)
            arm(&self.loop, &container.tty, EPOLLIN)
            pthread_mutex_unlock(&self.loop.lock)

    def watch(self, uint64_t key, int pidfd):
        cdef Container *container
        with nogil:
            enter(&self.loop)
            container = find(&self.loop, key)
            if container != NULL:
                begin(&container.exit, ROLE_EXIT, pidfd, container, NULL)
                arm(&self.loop, &container.exit, EPOLLIN)
            pthread_mutex_unlock(&self.loop.lock)
        if container == NULL:
            close(pidfd)

    def remove(self, uint64_t key):
        cdef Container *container
        cdef uint64_t one = 1
        with nogil:
            enter(&self.loop)
            container = find(&self.loop, key)
            if container != NULL:
                unlink_container(&self.loop, container)
            pthread_mutex_unlock(&self.loop.lock)
            write(self.loop.wake, &one, 8)

    def attach(
        self, uint64_t key, uint64_t attachment, *, int stdin, int stdout, int stderr,
        bytes detach_keys not None,
    ):
        cdef Attachment *fresh = <Attachment *> calloc(1, sizeof(Attachment))
        cdef Attachment **link
        cdef Container *container
        cdef const char *keys = detach_keys
        if fresh == NULL:
            raise MemoryError
        if len(detach_keys) > 32:
            free(fresh)
            raise ValueError("detach keys are too long")
        fresh.number = attachment
        fresh.keys_size = <int> len(detach_keys)
        memcpy(fresh.keys, keys, fresh.keys_size)
        with nogil:
            enter(&self.loop)
            container = find(&self.loop, key)
            begin(&fresh.input, ROLE_CLIENT_IN, stdin, container, fresh)
            begin(&fresh.out, ROLE_CLIENT_OUT, stdout, container, fresh)
            begin(&fresh.err, ROLE_CLIENT_ERR, stderr, container, fresh)
            if container == NULL or container.announced:
                shut(&self.loop, &fresh.input)
                shut(&self.loop, &fresh.out)
                shut(&self.loop, &fresh.err)
                note(&self.loop, KIND_ATTACHMENT, attachment, WHY_ENDED)
                free(fresh)
            else:
                fresh.container = container
                # In the order of their numbers: the journal counts clients with it.
                link = &container.attachments
                while link[0] != NULL and link[0].number < attachment:
                    link = &link[0].next
                fresh.next = link[0]
                link[0] = fresh
                if container_input(container).fd < 0:
                    shut(&self.loop, &fresh.input)
                elif fresh.input.fd >= 0:
                    read_input(&self.loop, fresh)
            pthread_mutex_unlock(&self.loop.lock)

    def detach(self, uint64_t attachment):
        cdef Container *container
        cdef Attachment *found = NULL
        cdef uint64_t one = 1
        with nogil:
            enter(&self.loop)
            container = self.loop.containers
            while container != NULL and found == NULL:
                found = container.attachments
                while found != NULL and found.number != attachment:
                    found = found.next
                container = container.next
            if found != NULL:
                close_attachment(&self.loop, found, WHY_CLOSED)
            pthread_mutex_unlock(&self.loop.lock)
            write(self.loop.wake, &one, 8)

    def close_stdin(self, uint64_t key):
        cdef Container *container
        with nogil:
            enter(&self.loop)
            container = find(&self.loop, key)
            if container != NULL:
                close_stdin(&self.loop, container)
            pthread_mutex_unlock(&self.loop.lock)

    def duplicates(self, uint64_t key):
        """Duplicates of stdin, stdout, stderr, terminal and pidfd, -1 for none; the caller's."""
        cdef Container *container
        cdef int made[5]
        cdef Source *sources[5]
        cdef int i
        with nogil:
            for i in range(5):
                made[i] = -1
            enter(&self.loop)
            container = find(&self.loop, key)
            if container != NULL:
                sources[0] = &container.stdin
                sources[1] = &container.out
                sources[2] = &container.err
                sources[3] = &container.tty
                sources[4] = &container.exit
                for i in range(5):
                    if sources[i].fd >= 0:
                        made[i] = fcntl(sources[i].fd, F_DUPFD_CLOEXEC, 3)
            pthread_mutex_unlock(&self.loop.lock)
        return made[0], made[1], made[2], made[3], made[4]


def escapable_copy(int source, int target, bytes keys not None):
    """Copy until the end or the detach keys: (bytes written, whether detached, errno). Blocks."""
    cdef Attachment state
    cdef char data[65536]  # a whole pipe's
    cdef char out[65536 + 32]  # and what was held back of the detach keys
    cdef const char *sequence = keys
    cdef bint detach = False
    cdef ssize_t got
    cdef ssize_t done
    cdef size_t size
    cdef size_t sent
    cdef long total = 0
    cdef int err = 0
    if len(keys) > 32:
        raise ValueError("detach keys are too long")
    memset(&state, 0, sizeof(state))
    state.keys_size = <int> len(keys)
    memcpy(state.keys, sequence, state.keys_size)
    with nogil:
        while err == 0 and not detach:
            got = read(source, data, sizeof(data))
            if got < 0 and errno == EINTR:
                continue
            if got < 0:
                err = errno
                break
            if got == 0:
                size = state.matched
                memcpy(out, state.keys, size)
            else:
                size = without_keys(&state, data, got, out, &detach)
            sent = 0
            while sent < size:
                done = write(target, out + sent, size - sent)
                if done < 0:
                    if errno == EINTR:
                        continue
                    err = errno
                    break
                sent += done
            total += sent
            if got == 0:
                break
    return total, detach, err
