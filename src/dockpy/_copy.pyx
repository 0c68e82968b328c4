# cython: language_level=3
"""The pump: one epoll loop that moves the bytes of many containers.

Output goes pipe -> staging pipe (splice) -> shared buffer (read) -> log (write) -> clients. The
journal, a shared page, says at each moment which stream the bytes in staging and buffer belong to
and how long the log was before them. Staging and journal are held by another process too, so after
kill -9 a new pump finds the batch that was in flight, cuts the log back to where it began and
writes it again: the log has every byte once. The phases:

    FILLING  bytes may be in staging; none are in the buffer
    READING  `size` bytes are in staging and buffer together, the buffer's come first
    WRITING  all `size` bytes are in the buffer; the log may hold any part of the batch
    COMMIT   the log has the batch; `next` takes the place of the stream's carry
    IDLE     nothing is in flight

A character cut off at a batch's end is kept in a table of the journal until its rest arrives.
The loop holds `lock` while it works and never while it waits; it does system calls and arithmetic.
Source: splice(2), epoll(7), pidfd_open(2), the UTF-8 and JSON rules in `_log`.
"""

from libc.errno cimport EAGAIN, EINTR, EPERM, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset, strlen

from dockpy._log cimport log_encode, log_tail

cdef extern from "<fcntl.h>" nogil:
    int open(const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)
    ssize_t splice(int source, int64_t *off_in, int target, int64_t *off_out, size_t size, unsigned int flags)
    enum:
        F_DUPFD_CLOEXEC
        F_GETFL
        F_SETFL
        F_SETPIPE_SZ
        O_APPEND
        O_CLOEXEC
        O_CREAT
        O_NONBLOCK
        O_WRONLY
        SPLICE_F_MOVE
        SPLICE_F_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int ftruncate(int fd, int64_t size)
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)

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
    enum:
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

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *left)
    enum:
        CLOCK_REALTIME

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
    PAGE = 4096
    BATCH = 262144
    OUT_ROOM = 655360
    TURN = 8
    BIG_PIPE = 1048576
    CARRIES = 120
    MANY = 64
    INPUT = 65536
    STREAMING = 8192
    PAUSE = 80000

cdef enum Kind:
    KIND_EXITED = 1
    KIND_ATTACHMENT
    KIND_LOG
    KIND_STDIN

EXITED = KIND_EXITED
ATTACHMENT_CLOSED = KIND_ATTACHMENT
LOG_FAILED = KIND_LOG
STDIN_CLOSED = KIND_STDIN
JOURNAL_SIZE = PAGE + BATCH

cdef enum Phase:
    IDLE
    FILLING
    READING
    WRITING
    COMMIT

cdef enum Role:
    ROLE_WAKE
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

cdef struct Carry:
    uint64_t key
    int32_t stream
    int32_t size
    char bytes[8]

cdef struct Journal:
    uint32_t phase
    int32_t stream
    uint64_t key
    uint64_t size
    int64_t log_length
    Carry next
    Carry carries[CARRIES]

cdef struct Source:
    int role
    int fd
    uint32_t armed
    bint pollable
    bint is_socket
    bint big
    uint64_t moved
    Container *container
    Attachment *attachment

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
    Queue out_queue
    Queue err_queue
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
    Source wake_source
    Container *containers
    Container *graves
    Attachment *attachment_graves
    Journal *journal
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
    source.is_socket = fd >= 0 and fstat(fd, &status) == 0 and S_ISSOCK(status.st_mode)
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
        if source.is_socket:
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

cdef bint open_log(Container *container) noexcept nogil:
    cdef stat status
    if container.log >= 0:
        return True
    container.log = open(container.log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o640)
    if container.log < 0:
        return False
    container.log_length = status.st_size if fstat(container.log, &status) == 0 else 0
    return True


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


cdef Carry *carry_of(Loop *loop, uint64_t key, int stream, bint make) noexcept nogil:
    cdef int i
    cdef Carry *spare = NULL
    for i in range(CARRIES):
        if loop.journal.carries[i].size and loop.journal.carries[i].key == key and loop.journal.carries[i].stream == stream:
            return &loop.journal.carries[i]
        if spare == NULL and loop.journal.carries[i].size == 0:
            spare = &loop.journal.carries[i]
    return spare if make else NULL


cdef size_t log_batch(Loop *loop, Container *container, int stream, const char *data, size_t size, bint last, timespec *now) noexcept nogil:
    # Writes a batch; gives how many bytes at its end wait for the rest of a character.
    cdef char tail[80]
    cdef size_t tail_size
    cdef size_t used = 0
    cdef size_t done = 0
    cdef size_t taken
    cdef int64_t cut
    if not open_log(container):
        log_lost(loop, container, size, 0, errno)
        return 0
    cut = container.log_length
    if container.missing and not tell_gap(container, now):
        log_lost(loop, container, size, cut, errno)
        return 0
    cut = container.log_length
    tail_size = log_tail(b"stderr" if stream == ROLE_STDERR else b"stdout", now.tv_sec, now.tv_nsec, tail)
    while done < size:
        taken = log_encode(data + done, size - done, True, loop.encoded, OUT_ROOM, tail, tail_size, &used)
        if taken == 0:
            break
        if not write_log(container, loop.encoded, used):
            log_lost(loop, container, size, cut, errno)
            return 0
        done += taken
    return size - done


# -- output ------------------------------------------------------------------------------------

cdef Source *client_end(Attachment *attachment, int stream) noexcept nogil:
    return &attachment.err if stream == ROLE_STDERR else &attachment.out


cdef Queue *client_queue(Attachment *attachment, int stream) noexcept nogil:
    return &attachment.err_queue if stream == ROLE_STDERR else &attachment.out_queue


cdef void give(Loop *loop, Attachment *attachment, int stream, const char *data, size_t size) noexcept nogil:
    cdef Source *source = client_end(attachment, stream)
    cdef Queue *queue = client_queue(attachment, stream)
    cdef ssize_t done = 0
    if source.fd < 0 or attachment.closing:
        return
    if queued(queue) == 0:
        done = put(source, data, size)
        if done < 0:
            close_attachment(loop, attachment, WHY_BROKEN)
            return
    if <size_t> done < size:
        if not source.is_socket:
            fcntl(source.fd, F_SETPIPE_SZ, BIG_PIPE)
        if not enqueue(queue, data + done, size - done):
            close_attachment(loop, attachment, WHY_BROKEN)
            return
        arm(loop, source, EPOLLOUT)


cdef bint clients_are_slow(Container *container) noexcept nogil:
    cdef Attachment *attachment = container.attachments
    while attachment != NULL:
        if queued(&attachment.out_queue) or queued(&attachment.err_queue):
            return True
        attachment = attachment.next
    return False


cdef void commit(Loop *loop) noexcept nogil:
    # May be done twice: what a killed pump committed is committed again.
    cdef Journal *journal = loop.journal
    cdef Carry *carry = carry_of(loop, journal.key, journal.stream, journal.next.size > 0)
    if carry != NULL:
        carry.key = journal.key
        carry.stream = journal.stream
        memcpy(carry.bytes, journal.next.bytes, 8)
        carry.size = journal.next.size
    dockpy_fence()
    journal.phase = IDLE


cdef void finish_batch(Loop *loop, Container *container, int stream, size_t size, bint last) noexcept nogil:
    # The buffer holds `size` bytes of `stream`; the journal says WRITING.
    cdef timespec now
    cdef Attachment *attachment
    cdef Attachment *following
    cdef Carry *carry = NULL
    cdef size_t kept = 0
    cdef size_t before = 0
    clock_gettime(CLOCK_REALTIME, &now)
    if container.log_path != NULL:
        carry = carry_of(loop, container.key, stream, False)
        if carry != NULL:
            # The buffer has room for it in front: see `PAGE` bytes before it in the mapping.
            before = carry.size
            memcpy(loop.buffer - before, carry.bytes, before)
        kept = log_batch(loop, container, stream, loop.buffer - before, size + before, last, &now)
        if kept > 3:
            kept = 0
    attachment = container.attachments
    while attachment != NULL:
        following = attachment.next
        give(loop, attachment, stream, loop.buffer, size)
        attachment = following
    loop.journal.next.size = <int32_t> kept
    memcpy(loop.journal.next.bytes, loop.buffer + size - kept, kept)
    dockpy_fence()
    loop.journal.phase = COMMIT
    commit(loop)
    if container.log >= 0 and container.log_limit and container.log_length >= container.log_limit:
        rotate(container)


cdef void flush_carry(Loop *loop, Container *container, int stream) noexcept nogil:
    # The program is gone: the rest of a cut-off character will not come.
    cdef char line[256]
    cdef char tail[80]
    cdef size_t size
    cdef timespec now
    cdef Carry *carry = carry_of(loop, container.key, stream, False)
    if carry == NULL or container.log_path == NULL:
        return
    carry.size = 0
    clock_gettime(CLOCK_REALTIME, &now)
    size = log_tail(b"stderr" if stream == ROLE_STDERR else b"stdout", now.tv_sec, now.tv_nsec, tail)
    memcpy(line, b"{\"log\":\"\\ufffd", 14)
    memcpy(line + 14, tail, size)
    if open_log(container):
        write_log(container, line, 14 + size)


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


cdef int take_batch(Loop *loop, Container *container, Source *source) noexcept nogil:
    # 1: a batch was moved; 0: nothing there now; -1: the other end is closed.
    cdef int stream = ROLE_STDERR if source.role == ROLE_STDERR else ROLE_STDOUT
    cdef size_t limit = batch_limit(container)
    cdef Journal *journal = loop.journal
    cdef ssize_t moved
    cdef ssize_t got
    cdef size_t done = 0
    if container.log_path != NULL and container.log < 0:
        open_log(container)
    journal.key = container.key
    journal.stream = stream
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
    finish_batch(loop, container, stream, moved, False)
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
            if source.role == ROLE_TTY and not container.ended:
                # No slave is open just now; a later program may open one. Looked at again at exit.
                arm(loop, source, 0)
            elif source.role != ROLE_TTY:
                shut(loop, source)
            return
        if clients_are_slow(container) and not container.ended:
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
    if container.stdin.fd >= 0:
        shut(loop, &container.stdin)
        note(loop, KIND_STDIN, container.key, 0)


cdef size_t without_keys(Attachment *attachment, const char *data, size_t size, char *out, bint *detach) noexcept nogil:
    # Copies input, holding back a beginning of the detach keys until a byte decides.
    cdef size_t i
    cdef size_t made = 0
    cdef int k
    detach[0] = False
    if attachment.keys_size == 0:
        memcpy(out, data, size)
        return size
    for i in range(size):
        if data[i] == attachment.keys[attachment.matched]:
            attachment.matched += 1
            if attachment.matched == attachment.keys_size:
                attachment.matched = 0
                detach[0] = True
                return made
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
    if attachment.input.is_socket:
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
    empty(&attachment.out_queue)
    empty(&attachment.err_queue)
    empty(&attachment.in_queue)
    note(loop, KIND_ATTACHMENT, attachment.number, why)
    attachment.next = loop.attachment_graves
    loop.attachment_graves = attachment
    if gave_input and container.stdin_once and why != WHY_DETACHED and not container.announced:
        close_stdin(loop, container)
    resume(loop, container)


cdef void close_if_flushed(Loop *loop, Attachment *attachment) noexcept nogil:
    if attachment.container.announced and not queued(&attachment.out_queue) and not queued(&attachment.err_queue):
        close_attachment(loop, attachment, WHY_ENDED)


cdef void client_takes_output(Loop *loop, Attachment *attachment, int stream) noexcept nogil:
    cdef Source *source = client_end(attachment, stream)
    cdef Queue *queue = client_queue(attachment, stream)
    cdef ssize_t done = put(source, queue.data + queue.start, queued(queue))
    cdef Container *container = attachment.container
    if done < 0:
        close_attachment(loop, attachment, WHY_BROKEN)
        return
    queue.start += done
    if queued(queue) == 0:
        empty(queue)
        arm(loop, source, 0)
        if container.announced:
            close_if_flushed(loop, attachment)
        else:
            resume(loop, container)


cdef void drain(Loop *loop, Container *container, Source *source) noexcept nogil:
    while source.fd >= 0:
        if take_batch(loop, container, source) <= 0:
            break
    shut(loop, source)


cdef void exited(Loop *loop, Container *container) noexcept nogil:
    cdef siginfo_t info
    cdef Attachment *attachment
    cdef Attachment *following
    cdef int status = -1
    memset(&info, 0, sizeof(info))
    if waitid(P_PIDFD, container.exit.fd, &info, WEXITED) == 0:
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
    flush_carry(loop, container, ROLE_STDOUT)
    flush_carry(loop, container, ROLE_STDERR)
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


cdef void drop_carry(Loop *loop, uint64_t key, int stream) noexcept nogil:
    cdef Carry *carry = carry_of(loop, key, stream, False)
    if carry != NULL:
        carry.size = 0


cdef void unlink_container(Loop *loop, Container *container) noexcept nogil:
    cdef Container **link = &loop.containers
    while link[0] != NULL and link[0] != container:
        link = &link[0].next
    if link[0] == container:
        link[0] = container.next
    container.removed = True
    container.announced = True
    while container.attachments != NULL:
        close_attachment(loop, container.attachments, WHY_CLOSED)
    drop_carry(loop, container.key, ROLE_STDOUT)
    drop_carry(loop, container.key, ROLE_STDERR)
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


# -- the loop ----------------------------------------------------------------------------------

cdef void serve(Loop *loop, Source *source, uint32_t events) noexcept nogil:
    cdef uint64_t count
    if source.role == ROLE_WAKE:
        read(loop.wake, &count, 8)
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


cdef void recover(Loop *loop) noexcept nogil:
    # Finish what a killed pump had in flight.
    cdef Journal *journal = loop.journal
    cdef Container *container = loop.containers
    cdef int left = 0
    cdef size_t have
    cdef ssize_t got
    if journal.phase == IDLE:
        return
    if journal.phase == COMMIT:
        commit(loop)
        return
    ioctl(loop.staging_out, FIONREAD, &left)
    if journal.phase == FILLING:
        journal.size = left
        have = 0
    elif journal.phase == READING:
        have = journal.size - left
    else:
        have = journal.size
    while have < journal.size:
        got = read(loop.staging_out, loop.buffer + have, journal.size - have)
        if got <= 0:
            break
        have += got
    while container != NULL and container.key != journal.key:
        container = container.next
    if container == NULL or journal.size == 0:
        journal.phase = IDLE
        return
    if (
        container.log_path != NULL
        and journal.log_length >= 0
        and open_log(container)
        and container.log_length > journal.log_length
    ):
        ftruncate(container.log, journal.log_length)
        container.log_length = journal.log_length
    dockpy_fence()
    journal.phase = WRITING
    finish_batch(loop, container, journal.stream, journal.size, False)


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
    pthread_mutex_unlock(&loop.lock)


cdef void enter(Loop *loop) noexcept nogil:
    # Other threads announce themselves, so that a busy loop lets them in.
    dockpy_add(&loop.waiting, 1)
    pthread_mutex_lock(&loop.lock)
    dockpy_add(&loop.waiting, -1)


cdef Container *find(Loop *loop, uint64_t key) noexcept nogil:
    cdef Container *container = loop.containers
    while container != NULL and container.key != key:
        container = container.next
    return container


cdef class Pump:
    """One loop for many containers. Its methods may be called from any thread."""

    cdef Loop loop
    cdef char *mapping
    cdef readonly int event_fd

    def __cinit__(self, object staging, int journal):
        memset(&self.loop, 0, sizeof(Loop))
        self.mapping = NULL
        self.loop.epoll = self.loop.wake = self.loop.event = -1

    def __init__(self, object staging, int journal):
        cdef epoll_event event
        cdef void *mapped = mmap(NULL, JOURNAL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, journal, 0)
        if mapped == MAP_FAILED:
            raise OSError(errno, "map the journal")
        self.mapping = <char *> mapped
        self.loop.staging_out, self.loop.staging_in = staging
        fcntl(self.loop.staging_in, F_SETPIPE_SZ, BIG_PIPE)
        self.loop.journal = <Journal *> mapped
        # A carry goes right before the buffer: the last bytes of the journal's page are free.
        self.loop.buffer = self.mapping + PAGE
        self.loop.encoded = <char *> malloc(OUT_ROOM + 64)
        self.loop.input = <char *> malloc(2 * INPUT + 64)
        self.loop.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.loop.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.loop.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.event_fd = self.loop.event
        if self.loop.encoded == NULL or self.loop.input == NULL:
            raise MemoryError
        if self.loop.epoll < 0 or self.loop.wake < 0 or self.loop.event < 0:
            raise OSError(errno, "make the pump's descriptors")
        pthread_mutex_init(&self.loop.lock, NULL)
        begin(&self.loop.wake_source, ROLE_WAKE, self.loop.wake, NULL, NULL)
        arm(&self.loop, &self.loop.wake_source, EPOLLIN)

    def __dealloc__(self):
        while self.loop.containers != NULL:
            unlink_container(&self.loop, self.loop.containers)
        bury(&self.loop)
        for fd in (self.loop.epoll, self.loop.wake, self.loop.event):
            if fd >= 0:
                close(fd)
        if self.mapping != NULL:
            munmap(self.mapping, JOURNAL_SIZE)
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
                fresh.next = container.attachments
                container.attachments = fresh
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
    cdef char data[4096]
    cdef char out[4200]
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
