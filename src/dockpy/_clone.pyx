# cython: language_level=3, cdivision=True
"""Spawns: a packed plan is checked, a child is cloned with the parent's memory, and the child runs
the plan's steps until it executes the program.

Rules of the code between clone and exec, which a test over the generated C enforces: no GIL, no
allocation, no Python object, and of libc only memory and string functions: every system call is
`call` of `_sys.pxd`, because libc's own may lock, tell other threads (setuid) or allocate (getcwd).
The parent's thread sleeps meanwhile (CLONE_VFORK), so the child may use a small stack of its own
and write its failure where the parent reads it. Several threads may spawn at once: each spawn has
its own everything. Source: clone(2), vfork(2).

The layout of a plan is described in `plan.py`; nothing in it is trusted. A plan that passes `check`
can name no descriptor and no text outside of it, and does its mounts in namespaces of its own.
"""

from libc.errno cimport EACCES, EEXIST, EINTR, EINVAL, EISDIR, ELIBACC, ELOOP, ENAMETOOLONG, ENOENT, ENOSYS, ENOTDIR, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memchr, memcpy, memset, strlen

from dockpy._sys cimport *

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)
    enum:
        AT_EMPTY_PATH
        AT_FDCWD
        AT_RECURSIVE
        AT_SYMLINK_NOFOLLOW
        F_DUPFD_CLOEXEC
        O_CLOEXEC
        O_CREAT
        O_DIRECTORY
        O_EXCL
        O_NOCTTY
        O_NOFOLLOW
        O_PATH
        O_RDONLY
        O_WRONLY

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct statx_t "statx":
        uint32_t stx_mode
    enum:
        STATX_TYPE
    bint S_ISDIR(uint32_t mode)
    bint S_ISFIFO(uint32_t mode)
    bint S_ISSOCK(uint32_t mode)

cdef extern from "<sys/mount.h>" nogil:
    enum:
        MNT_DETACH
        MS_PRIVATE
        MS_REC

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_FILES
        CLONE_NEWCGROUP
        CLONE_NEWIPC
        CLONE_NEWNET
        CLONE_NEWNS
        CLONE_NEWPID
        CLONE_NEWUTS
        CLONE_VFORK
        CLONE_VM

cdef extern from "<signal.h>" nogil:
    enum:
        SIG_SETMASK

cdef extern from "<sys/ioctl.h>" nogil:
    enum:
        TIOCSCTTY

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        SOCK_CLOEXEC
        SOCK_DGRAM

cdef extern from "<net/if.h>" nogil:
    enum:
        IFF_RUNNING
        IFF_UP
        SIOCSIFFLAGS

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_CAPBSET_DROP
        PR_CAP_AMBIENT
        PR_CAP_AMBIENT_CLEAR_ALL
        PR_SET_NO_NEW_PRIVS

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t size)
    int mprotect(void *at, size_t size, int protection)
    enum:
        MAP_ANONYMOUS
        MAP_PRIVATE
        MAP_SHARED
        MAP_STACK
        PROT_NONE
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED

cdef extern from "<sys/wait.h>" nogil:
    enum:
        P_PIDFD
        WEXITED
        WALL "__WALL"

cdef extern from *:
    """
    #ifndef PIDFD_GET_MNT_NAMESPACE /* <linux/pidfd.h> since Linux 6.11 */
    #define PIDFD_GET_MNT_NAMESPACE _IO(0xFF, 3)
    #endif
    """
    enum:
        PIDFD_GET_MNT_NAMESPACE

cdef extern from "<linux/filter.h>" nogil:
    cdef struct sock_filter:
        pass
    cdef struct sock_fprog:
        unsigned short len
        sock_filter *filter

cdef extern from "<linux/seccomp.h>" nogil:
    enum:
        SECCOMP_FILTER_FLAG_SPEC_ALLOW
        SECCOMP_SET_MODE_FILTER

cdef extern from *:
    """
    #include <errno.h>
    #include <net/if.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef CLONE_PIDFD
    #define CLONE_PIDFD 0x00001000
    #endif
    #ifndef P_PIDFD
    #define P_PIDFD 3
    #endif
    #define DOCKPY_INTO_CGROUP 0x200000000ULL

    typedef int (*dockpy_entry)(void *);

    #if defined(__x86_64__)
    struct dockpy_clone_args {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
        uint64_t set_tid, set_tid_size, cgroup;
    };

    /* clone3(2) on a stack of the child's own: the child must never return through a frame that the
     * sleeping parent still needs, so it is called from here and leaves by exit_group. */
    static long dockpy_clone3(uint64_t flags, int *pidfd, int cgroup, char *stack, size_t size,
                              dockpy_entry entry, void *context) {
        struct dockpy_clone_args args;
        memset(&args, 0, sizeof args);
        args.flags = flags | CLONE_PIDFD;
        args.pidfd = (uint64_t)(uintptr_t)pidfd;
        args.exit_signal = SIGCHLD;
        args.stack = (uint64_t)(uintptr_t)stack;
        args.stack_size = size;
        if (cgroup >= 0) {
            args.flags |= DOCKPY_INTO_CGROUP;
            args.cgroup = cgroup;
        }
        register long result __asm__("rax") = SYS_clone3;
        register void *first __asm__("rdi") = &args;
        register size_t second __asm__("rsi") = sizeof args;
        register dockpy_entry call __asm__("r12") = entry;
        register void *data __asm__("r13") = context;
        __asm__ volatile(
            "syscall; testq %%rax, %%rax; jnz 1f;"
            "xorl %%ebp, %%ebp; movq %%r13, %%rdi; callq *%%r12;"
            "movl %%eax, %%edi; movl $231, %%eax; syscall;" /* exit_group */
            "1:"
            : "+r"(result)
            : "r"(first), "r"(second), "r"(call), "r"(data)
            : "rcx", "r11", "memory", "cc");
        return result;
    }
    #else
    static long dockpy_clone3(uint64_t flags, int *pidfd, int cgroup, char *stack, size_t size,
                              dockpy_entry entry, void *context) {
        (void)flags, (void)pidfd, (void)cgroup, (void)stack, (void)size, (void)entry, (void)context;
        return -ENOSYS;
    }
    #endif

    /* clone(2) by libc, for other machines: it cannot start the child in a cgroup. */
    static long dockpy_clone(uint64_t flags, int *pidfd, char *stack, size_t size,
                             dockpy_entry entry, void *context) {
        int pid = clone(entry, stack + size, (int)(flags | CLONE_PIDFD | SIGCHLD), context, pidfd);
        return pid < 0 ? -(long)errno : pid;
    }

    /* struct ifreq as SIOCSIFFLAGS reads it. */
    struct dockpy_interface { char name[16]; short flags; char rest[22]; };
    """
    ctypedef int (*entry_t "dockpy_entry")(void *) noexcept nogil
    long dockpy_clone3(uint64_t flags, int *pidfd, int cgroup, char *stack, size_t size, entry_t entry, void *context) nogil
    long dockpy_clone(uint64_t flags, int *pidfd, char *stack, size_t size, entry_t entry, void *context) nogil
    cdef struct dockpy_interface:
        char name[16]
        short flags

cdef extern from *:
    """
    #ifndef CLOSE_RANGE_UNSHARE /* <linux/close_range.h> since Linux 5.9 */
    #define CLOSE_RANGE_UNSHARE 2u
    #endif
    """
    enum:
        CLOSE_RANGE_UNSHARE

cdef enum:
    MAGIC = 0x31595044
    NONE = 0xffffffff
    STACK = 65536
    GUARD = 65536
    MAX_SLOTS = 1024
    MAX_STEPS = 4096
    PATH_SIZE = 4096
    MAX_LINKS = 40
    LAST_CAPABILITY = 63
    KEPT = 3

cdef enum Operation:
    OP_WRITE_FD = 1
    OP_UNSHARE
    OP_SETNS
    OP_LOOPBACK
    OP_HOSTNAME
    OP_DOMAINNAME
    OP_SETSID
    OP_PRIVATE
    OP_ROOT
    OP_MOUNT
    OP_ATTACH
    OP_NODE
    OP_SYMLINK
    OP_MKDIR
    OP_READ_ONLY
    OP_MASK
    OP_MASK_CPUS
    OP_SET_READ_ONLY
    OP_PIVOT
    OP_RLIMIT
    OP_WRITE_FILE
    OP_NO_NEW_PRIVS
    OP_SECCOMP
    OP_BOUND
    OP_GROUPS
    OP_IDS
    OP_CAPABILITIES
    OP_MAKE_DIRECTORY
    OP_CHDIR
    OP_STDIO
    OP_TERMINAL
    OP_CONSOLE
    OP_CLOSE
    OP_SIGNALS
    OP_UMASK
    OP_EXEC
    OP_EXEC_FD
    OP_ENTER
    OP_END

OPERATIONS = {
    "write_fd": OP_WRITE_FD, "unshare": OP_UNSHARE, "setns": OP_SETNS, "loopback": OP_LOOPBACK,
    "hostname": OP_HOSTNAME, "domainname": OP_DOMAINNAME, "setsid": OP_SETSID,
    "private": OP_PRIVATE, "root": OP_ROOT, "mount": OP_MOUNT, "attach": OP_ATTACH,
    "node": OP_NODE, "symlink": OP_SYMLINK, "mkdir": OP_MKDIR, "read_only": OP_READ_ONLY,
    "mask": OP_MASK, "mask_cpus": OP_MASK_CPUS, "set_read_only": OP_SET_READ_ONLY,
    "pivot": OP_PIVOT, "rlimit": OP_RLIMIT, "write_file": OP_WRITE_FILE,
    "no_new_privs": OP_NO_NEW_PRIVS, "seccomp": OP_SECCOMP, "bound": OP_BOUND,
    "groups": OP_GROUPS, "ids": OP_IDS, "capabilities": OP_CAPABILITIES,
    "make_directory": OP_MAKE_DIRECTORY, "chdir": OP_CHDIR, "stdio": OP_STDIO,
    "terminal": OP_TERMINAL, "console": OP_CONSOLE, "close": OP_CLOSE, "signals": OP_SIGNALS,
    "umask": OP_UMASK, "exec": OP_EXEC, "exec_fd": OP_EXEC_FD,
    "enter": OP_ENTER,
}

# How far a plan has come. A step is refused where it would act on the host.
cdef enum Stage:
    STARTED
    PRIVATE
    ROOTED
    PIVOTED
    CLOSED

# What a process that enters a container takes of it, besides its pid namespace.
cdef enum:
    ENTERED = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP

# What a step needs; the stages it may stand in are bits from STAGES on.
cdef enum Needs:
    TEXT_1 = 1
    TEXT_2 = 2
    SLOT_A = 4
    STAGES = 8

cdef struct Header:
    uint32_t magic
    uint32_t count
    uint64_t flags
    uint32_t arena
    uint32_t size

cdef struct Step:
    int32_t op
    int32_t a
    int32_t b
    int32_t c
    int64_t n
    int64_t m
    uint32_t s1
    uint32_t s2
    uint32_t s3
    uint32_t pad

cdef struct Report:  # how it went, where both processes see it
    int step
    int err

cdef struct Context:
    const Step *steps
    uint32_t count
    const char *arena
    int *slots
    int root
    int mask
    int group
    bint entered
    int descriptors  # those below this number are the child's, all others stay the parent's alone
    char **argv
    char **envp
    Report *report
    int64_t *moments  # when the child began and when each step was done, or NULL: nobody asks


# -- steps -------------------------------------------------------------------------------------
# Each returns 0 or the errno of the call that failed.

cdef int result(long answer) noexcept nogil:
    return 0 if answer >= 0 else <int> -answer


cdef int drop(int fd, int err) noexcept nogil:
    call(SYS_close, fd)
    return err


cdef int in_root(int root, const char *path, uint64_t flags, uint64_t resolve) noexcept nogil:
    # A descriptor, or minus errno.
    cdef open_how how
    how.flags = flags | O_CLOEXEC
    how.mode = 0
    how.resolve = resolve | RESOLVE_IN_ROOT
    return <int> openat2(root, path, &how)


cdef int write_text(int fd, const char *text) noexcept nogil:
    cdef size_t size = strlen(text)
    cdef long written = call(SYS_write, fd, text, size)
    if written < 0:
        return <int> -written
    return 0 if <size_t> written == size else EINVAL


cdef int loopback() noexcept nogil:
    cdef dockpy_interface request
    cdef int fd = <int> call(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -fd
    memset(&request, 0, sizeof(request))
    memcpy(request.name, <const char *> b"lo", 3)
    request.flags = IFF_UP | IFF_RUNNING
    return drop(fd, result(call(SYS_ioctl, fd, SIOCSIFFLAGS, &request)))


cdef int attach_to(int tree, int target) noexcept nogil:
    return result(
        call(SYS_move_mount, tree, b"", target, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    )


cdef int clone_of(int directory, const char *path, unsigned int flags) noexcept nogil:
    # A detached copy of a mount, or minus errno.
    return <int> call(SYS_open_tree, directory, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags)


cdef uint32_t mode_of(int directory, const char *path, int flags) noexcept nogil:
    # The type bits of a file; 0 when it is not there.
    cdef statx_t status
    if call(SYS_statx, directory, path, flags, STATX_TYPE, &status) < 0:
        return 0
    return status.stx_mode


cdef bint is_directory(int fd) noexcept nogil:
    return S_ISDIR(mode_of(fd, b"", AT_EMPTY_PATH))


cdef int splice_link(char *path, size_t start, size_t end, const char *link, size_t size) noexcept nogil:
    # path[start:end] is a link that says `link`: the path it stands for replaces `path`.
    cdef char rest[PATH_SIZE]
    cdef size_t remaining = strlen(path + end)
    if link[0] == c"/":
        start = 0
    if start + size + remaining + 1 > PATH_SIZE:
        return ENAMETOOLONG
    memcpy(rest, path + end, remaining + 1)
    memcpy(path + start, link, size)
    memcpy(path + start + size, rest, remaining + 1)
    return 0


cdef int make_missing(int root, const char *wanted, bint directory) noexcept nogil:
    # Makes what is missing of `wanted`, one name after the other, never leaving `root`: the part
    # before a name is opened with RESOLVE_IN_ROOT, and the name made relative to that descriptor.
    # A link that leads nowhere yet is followed: what it names is made.
    cdef char path[PATH_SIZE]
    cdef char link[PATH_SIZE]
    cdef size_t size = strlen(wanted)
    cdef size_t start = 0
    cdef size_t end
    cdef int links = 0
    cdef int parent
    cdef int made
    cdef int err
    cdef long length
    cdef char saved
    cdef bint last
    if size >= PATH_SIZE:
        return ENAMETOOLONG
    memcpy(path, wanted, size + 1)
    while True:
        while path[start] == c"/":
            start += 1
        if path[start] == 0:
            return 0
        end = start
        while path[end] != 0 and path[end] != c"/":
            end += 1
        saved = path[end]
        path[end] = 0
        made = in_root(root, path, O_PATH, RESOLVE_NO_MAGICLINKS)
        if made >= 0:
            call(SYS_close, made)
            path[end] = saved
            start = end
            continue
        if made != -ENOENT:
            return -made
        path[end] = saved
        size = end
        while path[size] == c"/":
            size += 1
        last = path[size] == 0
        saved = path[start]
        path[start] = 0
        if start > 0:
            parent = in_root(root, path, O_PATH | O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
        else:
            parent = in_root(root, b".", O_PATH | O_DIRECTORY, 0)
        path[start] = saved
        if parent < 0:
            return -parent
        saved = path[end]
        path[end] = 0
        length = call(SYS_readlinkat, parent, path + start, link, PATH_SIZE - 1)
        err = 0
        if length > 0:
            links += 1
        elif last and not directory:
            made = <int> call(
                SYS_openat, parent, path + start, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o644
            )
            err = drop(made, 0) if made >= 0 else -made
        else:
            err = result(call(SYS_mkdirat, parent, path + start, 0o755))
        call(SYS_close, parent)
        path[end] = saved
        if err != 0 and err != EEXIST:
            return err
        if length > 0:
            if links > MAX_LINKS:
                return ELOOP
            err = splice_link(path, start, end, link, <size_t> length)
            if err != 0:
                return err
            start = 0
        else:
            start = end


cdef int target_of(Context *context, const char *path, int create) noexcept nogil:
    # A descriptor of the mount point, or minus errno. create: 0 no, 1 a file, 2 a directory,
    # 3 a real directory that no link stands for.
    cdef uint64_t resolve = RESOLVE_NO_MAGICLINKS
    cdef uint64_t flags = O_PATH
    cdef int fd
    cdef int err
    if create == 3:
        resolve |= RESOLVE_NO_SYMLINKS
        flags |= O_DIRECTORY
    fd = in_root(context.root, path, flags, resolve)
    if fd != -ENOENT or create == 0:
        return fd
    err = make_missing(context.root, path, create >= 2)
    if err != 0:
        return -err
    return in_root(context.root, path, flags, resolve)


cdef int new_file_system(const char *kind, const char *options, int count, unsigned int attributes) noexcept nogil:
    # A detached mount, or minus errno. Options: `count` pairs of key and value; an empty value is a flag.
    cdef const char *key = options
    cdef const char *value
    cdef int i
    cdef int tree
    cdef long answer
    cdef int configuration = <int> call(SYS_fsopen, kind, FSOPEN_CLOEXEC)
    if configuration < 0:
        return configuration
    for i in range(count):
        value = key + strlen(key) + 1
        if value[0] == 0:
            answer = call(SYS_fsconfig, configuration, FSCONFIG_SET_FLAG, key, NULL, 0)
        else:
            answer = call(SYS_fsconfig, configuration, FSCONFIG_SET_STRING, key, value, 0)
        if answer < 0:
            return drop(configuration, <int> answer)
        key = value + strlen(value) + 1
    answer = call(SYS_fsconfig, configuration, FSCONFIG_CMD_CREATE, NULL, NULL, 0)
    if answer < 0:
        return drop(configuration, <int> answer)
    tree = <int> call(SYS_fsmount, configuration, FSMOUNT_CLOEXEC, attributes)
    return drop(configuration, tree)


cdef int new_mount(Context *context, const Step *step) noexcept nogil:
    cdef int target
    cdef int err
    cdef int tree = new_file_system(
        context.arena + step.s1, context.arena + step.s3, step.a, <unsigned int> step.n
    )
    if tree < 0:
        return -tree
    target = target_of(context, context.arena + step.s2, step.b)
    if target < 0:
        return drop(tree, -target)
    err = attach_to(tree, target)
    call(SYS_close, target)
    return drop(tree, err)


cdef int attach_slot(Context *context, const Step *step) noexcept nogil:
    cdef int tree = context.slots[step.a]
    cdef int err
    cdef int target = target_of(context, context.arena + step.s1, step.b)
    if target < 0:
        return -target
    err = attach_to(tree, target)
    if err == EINVAL and is_directory(tree) != is_directory(target):
        err = ENOTDIR  # which the kernel does not tell apart
    return drop(target, err)


cdef int read_only(Context *context, const char *path) noexcept nogil:
    # A clone of what is at `path`, made read-only, over itself. A missing path is fine.
    cdef mount_attr attributes
    cdef int tree
    cdef int err
    cdef int target = in_root(context.root, path, O_PATH, RESOLVE_NO_MAGICLINKS)
    if target < 0:
        return 0 if target == -ENOENT else -target
    tree = clone_of(target, b"", AT_EMPTY_PATH | AT_RECURSIVE)
    if tree < 0:
        return drop(target, -tree)
    memset(&attributes, 0, sizeof(attributes))
    attributes.attr_set = MOUNT_ATTR_RDONLY
    err = result(
        call(SYS_mount_setattr, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof(attributes))
    )
    if err == 0:
        err = attach_to(tree, target)
    call(SYS_close, tree)
    return drop(target, err)


cdef int empty_directory() noexcept nogil:
    # A supervisor has one in its own root, for all: another file system for each container would make
    # the end of every cgroup longer, which walks through all there are. Elsewhere a tmpfs is made.
    cdef unsigned int closed = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    cdef mount_attr attributes
    cdef int err
    cdef int tree = clone_of(AT_FDCWD, EMPTY, 0)
    if tree == -ENOENT:
        return new_file_system(b"tmpfs", b"mode\x000755", 1, closed)
    if tree < 0:
        return tree
    memset(&attributes, 0, sizeof(attributes))
    attributes.attr_set = closed
    err = result(call(SYS_mount_setattr, tree, b"", AT_EMPTY_PATH, &attributes, sizeof(attributes)))
    return tree if err == 0 else drop(tree, -err)


cdef int mask_path(Context *context, const char *path) noexcept nogil:
    # A file disappears under /dev/null, a directory under an empty read-only tmpfs that all share.
    # The first one gets the tmpfs itself: to close a mount that is nowhere waits for the kernel.
    cdef int tree
    cdef int err
    cdef int target = in_root(context.root, path, O_PATH, RESOLVE_NO_MAGICLINKS)
    if target < 0:
        return 0 if target == -ENOENT else -target
    if is_directory(target):
        if context.mask < 0:
            context.mask = empty_directory()
            err = -context.mask if context.mask < 0 else attach_to(context.mask, target)
            return drop(target, err)
        tree = clone_of(context.mask, b"", AT_EMPTY_PATH)
    else:
        tree = clone_of(context.root, b"dev/null", 0)
    if tree < 0:
        return drop(target, -tree)
    return drop(target, drop(tree, attach_to(tree, target)))


cdef int mask_cpus(Context *context) noexcept nogil:
    # The thermal_throttle directory of each cpu. Numbers may have gaps, the first has none below.
    cdef char path[64]
    cdef char digits[8]
    cdef int number
    cdef int rest
    cdef int count
    cdef int length
    cdef int err
    cdef int missing = 0
    memcpy(path, <const char *> b"sys/devices/system/cpu/cpu", 26)
    for number in range(8192):
        rest = number
        count = 0
        while count == 0 or rest > 0:
            digits[count] = <char> (c"0" + rest % 10)
            rest //= 10
            count += 1
        length = 26
        while count > 0:
            count -= 1
            path[length] = digits[count]
            length += 1
        memcpy(path + length, <const char *> b"/thermal_throttle", 18)
        if mode_of(context.root, path, 0) == 0:
            missing += 1
            if number == 0 or missing > 64:
                return 0
            continue
        missing = 0
        err = mask_path(context, path)
        if err != 0:
            return err
    return 0


cdef int set_read_only(Context *context, const char *path) noexcept nogil:
    cdef mount_attr attributes
    cdef int target = in_root(context.root, path, O_PATH, RESOLVE_NO_MAGICLINKS)
    if target < 0:
        return -target
    memset(&attributes, 0, sizeof(attributes))
    attributes.attr_set = MOUNT_ATTR_RDONLY
    return drop(
        target,
        result(call(SYS_mount_setattr, target, b"", AT_EMPTY_PATH, &attributes, sizeof(attributes))),
    )


cdef int take_root(Context *context, int fd) noexcept nogil:
    # Any directory of the old root will do as the place: it is left with the old root.
    cdef int err = result(call(SYS_move_mount, fd, b"", AT_FDCWD, b"/", MOVE_MOUNT_F_EMPTY_PATH))
    if err == 0:
        context.root = fd
        err = result(call(SYS_fchdir, fd))
    return err


cdef int pivot(Context *context) noexcept nogil:
    cdef int err = result(call(SYS_fchdir, context.root))
    if err == 0:
        err = result(call(SYS_pivot_root, b".", b"."))
    if err == 0:
        err = result(call(SYS_umount2, b".", MNT_DETACH))
    if err == 0:
        err = result(call(SYS_chdir, b"/"))
    return err


cdef int enter_container(Context *context, const Step *step) noexcept nogil:
    # The pid namespace is the parent's doing: it only counts for processes that are made later.
    # setns(2) leads to the root of the mount namespace, which is the container's only where nothing
    # lies beneath (an initramfs that was left by chroot does): the process's own root is told.
    cdef int err = result(call(SYS_setns, context.slots[step.a], step.n))
    if err == 0:
        err = result(call(SYS_fchdir, context.slots[step.b]))
    if err == 0:
        err = result(call(SYS_chroot, b"."))
    if err == 0:
        context.root = <int> call(SYS_openat, AT_FDCWD, b"/", O_PATH | O_DIRECTORY | O_CLOEXEC)
        err = 0 if context.root >= 0 else -context.root
    return err


cdef int write_file(Context *context, const Step *step) noexcept nogil:
    cdef int fd = in_root(context.root, context.arena + step.s1, O_WRONLY, RESOLVE_NO_MAGICLINKS)
    if fd < 0:
        return -fd
    return drop(fd, write_text(fd, context.arena + step.s2))


cdef int limit(const Step *step) noexcept nogil:
    cdef uint64_t value[2]
    value[0] = <uint64_t> step.n
    value[1] = <uint64_t> step.m
    return result(call(SYS_prlimit64, 0, step.a, value, NULL))


cdef int filter_calls(const char *program, int count) noexcept nogil:
    cdef sock_fprog prog
    prog.len = <unsigned short> count
    prog.filter = <sock_filter *> program
    return result(call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog))


cdef int bound(int64_t mask) noexcept nogil:
    # The kernel says EINVAL to the first capability it does not know.
    cdef int number
    cdef long answer
    for number in range(LAST_CAPABILITY + 1):
        if (mask >> number) & 1:
            continue
        answer = call(SYS_prctl, PR_CAPBSET_DROP, number, 0, 0, 0)
        if answer == -EINVAL:
            return 0
        if answer < 0:
            return <int> -answer
    return 0


cdef int set_capabilities(int64_t mask) noexcept nogil:
    cdef uint32_t header[2]
    cdef uint32_t data[6]
    cdef int err
    header[0] = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
    header[1] = 0
    data[0] = <uint32_t> mask
    data[1] = <uint32_t> mask
    data[2] = 0
    data[3] = <uint32_t> (mask >> 32)
    data[4] = <uint32_t> (mask >> 32)
    data[5] = 0
    err = result(call(SYS_capset, header, data))
    if err == 0:
        err = result(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    return err


cdef int set_ids(int uid, int gid) noexcept nogil:
    cdef int err = result(call(SYS_setresgid, gid, gid, gid))
    return err if err != 0 else result(call(SYS_setresuid, uid, uid, uid))


cdef int change_directory(const char *path) noexcept nogil:
    # No descriptor of a directory is open any more, so no /proc/self/fd/N leads out; and the kernel
    # must say where we are: it answers "(unreachable)..." for a directory outside the root.
    cdef char buffer[PATH_SIZE]
    cdef int err = result(call(SYS_chdir, path))
    if err == 0:
        err = result(call(SYS_getcwd, buffer, PATH_SIZE))
    if err == 0 and buffer[0] != c"/":
        err = ENOENT
    return err


cdef int enter(Context *context, const char *path, bint early) noexcept nogil:
    # Before the user's ids are taken and again after: what only root may enter is entered, and so is
    # what root may not (a network file system's), each at the moment when it can be.
    cdef int err
    if context.entered:
        return 0
    err = change_directory(path)
    context.entered = err == 0
    return 0 if early and err == EACCES else err


cdef int make_directory(Context *context, const char *path) noexcept nogil:
    cdef int fd = in_root(context.root, path, O_PATH, RESOLVE_NO_MAGICLINKS)
    if fd >= 0:
        return drop(fd, 0)
    return make_missing(context.root, path, True) if fd == -ENOENT else -fd


cdef int give(int fd, int64_t owner) noexcept nogil:
    # So that the owner may open /dev/stdout again. Only what is made for this container: a pipe.
    cdef uint32_t mode
    if owner <= 0:
        return 0
    mode = mode_of(fd, b"", AT_EMPTY_PATH)
    if not (S_ISFIFO(mode) or S_ISSOCK(mode)):
        return 0
    return result(call(SYS_fchown, fd, owner, NONE))


cdef int standard_streams(Context *context, const Step *step) noexcept nogil:
    # Slots lie above 2; -1 is the container's own /dev/null.
    cdef int chosen[3]
    cdef int i
    cdef int fd
    cdef int err
    chosen[0] = step.a
    chosen[1] = step.b
    chosen[2] = step.c
    for i in range(3):
        if chosen[i] >= 0:
            fd = context.slots[chosen[i]]
            err = give(fd, step.n)
            if err == 0:
                err = result(call(SYS_dup3, fd, i, 0))
            if err != 0:
                return err
            continue
        fd = in_root(context.root, b"dev/null", (O_RDONLY if i == 0 else O_WRONLY) | O_NOCTTY, 0)
        if fd < 0:
            return -fd
        if fd == i:  # was closed in the parent: opened close-on-exec, which it must not be
            fd = <int> call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3)
            if fd < 0:
                return -fd
        err = drop(fd, result(call(SYS_dup3, fd, i, 0)))
        if err != 0:
            return err
    return 0


cdef int terminal(Context *context, const Step *step) noexcept nogil:
    cdef int fd = context.slots[step.a]
    cdef int i
    cdef int err = result(call(SYS_ioctl, fd, TIOCSCTTY, 0))
    if err == 0 and step.n > 0:
        err = result(call(SYS_fchown, fd, step.n, NONE))
    for i in range(3):
        if err == 0:
            err = result(call(SYS_dup3, fd, i, 0))
    return err


cdef int console(Context *context, const Step *step) noexcept nogil:
    cdef int tree
    cdef int err
    cdef int target = <int> call(
        SYS_openat, context.root, b"dev/console", O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600
    )
    if target < 0:
        return -target
    tree = clone_of(context.slots[step.a], b"", AT_EMPTY_PATH)
    if tree < 0:
        return drop(target, -tree)
    err = attach_to(tree, target)
    call(SYS_close, tree)
    return drop(target, err)


cdef int close_all(Context *context, const Step *step) noexcept nogil:
    # Everything but 0, 1, 2 and, if asked, one slot, which becomes number 3 until exec.
    cdef int err = 0
    cdef int first = KEPT
    if step.a >= 0:
        if context.slots[step.a] != KEPT:
            err = result(call(SYS_dup3, context.slots[step.a], KEPT, O_CLOEXEC))
        first = KEPT + 1
    return err if err != 0 else result(call(SYS_close_range, first, <unsigned int> -1, 0))


cdef int reset_signals() noexcept nogil:
    # What is ignored stays ignored over exec; the interpreter ignores SIGPIPE and SIGXFSZ.
    cdef uint64_t action[4]  # the kernel's struct sigaction: SIG_DFL, no flags, no mask
    cdef uint64_t none = 0
    cdef int number
    memset(action, 0, sizeof(action))
    for number in range(1, 65):
        call(SYS_rt_sigaction, number, action, NULL, 8)
    return result(call(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8))


cdef int execute(Context *context, const Step *step) noexcept nogil:
    # Candidates follow each other in the arena; a refused one is remembered, a missing one is not.
    # What the errno hides is said by another one: EISDIR, and ELIBACC when the file is there but
    # its interpreter is not.
    cdef const char *candidate = context.arena + step.s3
    cdef int refused = 0
    cdef int err
    cdef int i
    for i in range(step.c):
        err = result(call(SYS_execve, candidate, context.argv, context.envp))
        if err == EACCES:
            refused = EISDIR if S_ISDIR(mode_of(AT_FDCWD, candidate, 0)) else EACCES
        elif err == ENOENT and mode_of(AT_FDCWD, candidate, 0) != 0:
            return ELIBACC
        elif err != ENOENT and err != ENOTDIR:
            return err
        candidate += strlen(candidate) + 1
    return refused if refused != 0 else ENOENT


cdef int run_step(Context *context, const Step *step) noexcept nogil:
    cdef const char *text = context.arena + step.s1 if step.s1 != NONE else NULL
    cdef const char *second = context.arena + step.s2 if step.s2 != NONE else NULL
    cdef int op = step.op
    if op == OP_WRITE_FD:
        return write_text(context.slots[step.a], text)
    if op == OP_UNSHARE:
        return result(call(SYS_unshare, step.n))
    if op == OP_SETNS:
        return result(call(SYS_setns, context.slots[step.a], step.n))
    if op == OP_ENTER:
        return enter_container(context, step)
    if op == OP_LOOPBACK:
        return loopback()
    if op == OP_HOSTNAME:
        return result(call(SYS_sethostname, text, strlen(text)))
    if op == OP_DOMAINNAME:
        return result(call(SYS_setdomainname, text, strlen(text)))
    if op == OP_SETSID:
        return result(call(SYS_setsid))
    if op == OP_PRIVATE:
        return result(call(SYS_mount, NULL, b"/", NULL, MS_REC | MS_PRIVATE, NULL))
    if op == OP_ROOT:
        return take_root(context, context.slots[step.a])
    if op == OP_MOUNT:
        return new_mount(context, step)
    if op == OP_ATTACH:
        return attach_slot(context, step)
    if op == OP_NODE:
        return result(call(SYS_mknodat, context.root, text, step.a, step.n))
    if op == OP_SYMLINK:
        return result(call(SYS_symlinkat, text, context.root, second))
    if op == OP_MKDIR:
        return result(call(SYS_mkdirat, context.root, text, step.a))
    if op == OP_READ_ONLY:
        return read_only(context, text)
    if op == OP_MASK:
        return mask_path(context, text)
    if op == OP_MASK_CPUS:
        return mask_cpus(context)
    if op == OP_SET_READ_ONLY:
        return set_read_only(context, text)
    if op == OP_PIVOT:
        return pivot(context)
    if op == OP_RLIMIT:
        return limit(step)
    if op == OP_WRITE_FILE:
        return write_file(context, step)
    if op == OP_NO_NEW_PRIVS:
        return result(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if op == OP_SECCOMP:
        return filter_calls(text, step.a)
    if op == OP_BOUND:
        return bound(step.n)
    if op == OP_GROUPS:
        return result(call(SYS_setgroups, step.a, text))
    if op == OP_IDS:
        return set_ids(step.a, step.b)
    if op == OP_CAPABILITIES:
        return set_capabilities(step.n)
    if op == OP_MAKE_DIRECTORY:
        return make_directory(context, text)
    if op == OP_CHDIR:
        return enter(context, text, step.a != 0)
    if op == OP_STDIO:
        return standard_streams(context, step)
    if op == OP_TERMINAL:
        return terminal(context, step)
    if op == OP_CONSOLE:
        return console(context, step)
    if op == OP_CLOSE:
        return close_all(context, step)
    if op == OP_SIGNALS:
        return reset_signals()
    if op == OP_UMASK:
        return result(call(SYS_umask, step.a))
    if op == OP_EXEC:
        return execute(context, step)
    if op == OP_EXEC_FD:
        return result(call(SYS_execveat, KEPT, b"", context.argv, context.envp, AT_EMPTY_PATH))
    return EINVAL


cdef int64_t now() noexcept nogil:
    # Nanoseconds of the clock that all processes share.
    cdef int64_t moment[2]
    call(SYS_clock_gettime, CLOCK_MONOTONIC, moment)
    return moment[0] * 1000000000 + moment[1]


cdef int run_plan(void *data) noexcept nogil:
    # The child's whole life before exec.
    cdef Context *context = <Context *> data
    cdef int64_t *moments = context.moments
    cdef uint32_t i
    # The table of descriptors is shared until here: a copy of the low ones costs nothing, while one
    # of a supervisor's thousands, each to be closed again, would cost a millisecond.
    cdef int err = result(
        call(SYS_close_range, context.descriptors, <unsigned int> -1, CLOSE_RANGE_UNSHARE)
    )
    if err == 0 and context.group >= 0:
        err = write_text(context.group, b"0")
    if err != 0:
        context.report.err = err
        return 127
    if moments != NULL:
        moments[0] = now()
    for i in range(context.count):
        err = run_step(context, context.steps + i)
        if err != 0:
            context.report.step = <int> i + 1
            context.report.err = err
            break
        if context.steps[i].op == OP_SECCOMP:
            moments = NULL  # a filter may answer a look at the clock with death
        if moments != NULL:
            moments[i + 1] = now()
    return 127


# -- the parent's side -------------------------------------------------------------------------

cdef int needs(int op) noexcept nogil:
    """What a step of this kind needs, or 0 for a kind there is not."""
    cdef int joined = (STAGES << STARTED) | (STAGES << PRIVATE)
    cdef int rooted = STAGES << ROOTED
    cdef int inside = STAGES << PIVOTED
    cdef int closed = STAGES << CLOSED
    cdef int anywhere = joined | rooted | inside | closed
    if op == OP_WRITE_FD:
        return joined | TEXT_1 | SLOT_A
    if op == OP_SETNS:
        return joined | SLOT_A
    if op == OP_PRIVATE:
        return STAGES << STARTED
    if op == OP_ENTER:
        return (STAGES << STARTED) | SLOT_A
    if op == OP_ROOT:
        return (STAGES << PRIVATE) | SLOT_A
    if op in (OP_MOUNT, OP_SYMLINK):
        return rooted | TEXT_1 | TEXT_2
    if op == OP_WRITE_FILE:
        return rooted | inside | TEXT_1 | TEXT_2
    if op == OP_ATTACH:
        return rooted | TEXT_1 | SLOT_A
    if op in (OP_NODE, OP_MKDIR, OP_READ_ONLY, OP_MASK, OP_SET_READ_ONLY):
        return rooted | TEXT_1
    if op == OP_MAKE_DIRECTORY:
        return rooted | inside | TEXT_1
    if op == OP_CONSOLE:
        return rooted | SLOT_A
    if op in (OP_MASK_CPUS, OP_PIVOT):
        return rooted
    if op in (OP_STDIO, OP_CLOSE):
        return inside
    if op == OP_TERMINAL:
        return inside | SLOT_A
    if op in (OP_SECCOMP, OP_GROUPS, OP_HOSTNAME, OP_DOMAINNAME):
        return anywhere | TEXT_1
    if op in (
        OP_UNSHARE, OP_LOOPBACK, OP_SETSID, OP_RLIMIT, OP_NO_NEW_PRIVS, OP_BOUND, OP_IDS,
        OP_CAPABILITIES, OP_SIGNALS, OP_UMASK,
    ):
        return anywhere
    if op == OP_CHDIR:
        return closed | TEXT_1
    if op in (OP_EXEC, OP_EXEC_FD):
        return closed
    return 0


cdef const char *check_step(const Step *step, const char *arena, uint32_t size, int slots, int stage, bint last) noexcept nogil:
    cdef int wanted = needs(step.op)
    if wanted == 0:
        return b"unknown step"
    if not wanted & (STAGES << stage):
        return b"step out of order"
    if (step.op in (OP_EXEC, OP_EXEC_FD)) != last:
        return b"the program is not the last step"
    if (step.s1 != NONE and step.s1 >= size) or (step.s2 != NONE and step.s2 >= size):
        return b"text outside the plan"
    if (wanted & TEXT_1 and step.s1 == NONE) or (wanted & TEXT_2 and step.s2 == NONE):
        return b"step without its text"
    if wanted & SLOT_A and not 0 <= step.a < slots:
        return b"no such slot"
    if step.op == OP_CLOSE and not -1 <= step.a < slots:
        return b"no such slot"
    if step.op == OP_STDIO and not (-1 <= step.a < slots and -1 <= step.b < slots and -1 <= step.c < slots):
        return b"no such slot"
    if step.op == OP_UNSHARE and step.n != CLONE_NEWCGROUP:
        return b"unknown namespace"
    if step.op == OP_ENTER and not 0 <= step.b < slots:
        return b"no such slot"
    if step.op == OP_ENTER and step.n & ~<int64_t> ENTERED != 0:
        return b"unknown namespace"
    if step.op == OP_MOUNT and (step.a < 0 or not texts_fit(arena, size, step.s3, 2 * <int64_t> step.a)):
        return b"mount options outside the plan"
    if step.op == OP_EXEC and (step.c < 1 or not texts_fit(arena, size, step.s3, step.c)):
        return b"programs outside the plan"
    if last and (
        step.a < 1 or step.b < 0 or not texts_fit(arena, size, step.s1, step.a)
        or not texts_fit(arena, size, step.s2, step.b)
    ):
        return b"arguments outside the plan"
    if step.op == OP_SECCOMP and not (0 < step.a <= 4096 and <uint64_t> step.s1 + 8 * <uint64_t> step.a <= size):
        return b"filter outside the plan"
    if step.op == OP_GROUPS and not (0 <= step.a <= 65536 and <uint64_t> step.s1 + 4 * <uint64_t> step.a <= size):
        return b"groups outside the plan"
    return NULL


cdef const char *check(const char *plan, Py_ssize_t length, int slots) noexcept nogil:
    """What is wrong with a plan, or NULL. After this the child may trust every offset and slot."""
    cdef Header header
    cdef uint64_t own = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC
    cdef const Step *step
    cdef const char *arena
    cdef const char *wrong
    cdef int stage = STARTED
    cdef uint32_t i
    if length < <Py_ssize_t> sizeof(Header):
        return b"too short"
    memcpy(&header, plan, sizeof(Header))
    if (
        header.magic != MAGIC
        or header.count == 0
        or header.count > MAX_STEPS
        or header.arena != sizeof(Header) + header.count * sizeof(Step)
        or <uint64_t> header.arena + header.size != <uint64_t> length
    ):
        return b"not a plan"
    if header.flags != 0 and header.flags & ~<uint64_t> CLONE_NEWNET != own:
        return b"wrong namespaces"
    arena = plan + header.arena
    if header.size == 0 or arena[header.size - 1] != 0:
        return b"text does not end"
    for i in range(header.count):
        step = <const Step *> (plan + sizeof(Header)) + i
        wrong = check_step(step, arena, header.size, slots, stage, i + 1 == header.count)
        if wrong != NULL:
            return wrong
        if step.op in (OP_PRIVATE, OP_ENTER) and (step.op == OP_ENTER) != (header.flags == 0):
            return b"namespaces are either made or entered"
        if step.op == OP_ENTER:
            stage = PIVOTED
        elif step.op in (OP_PRIVATE, OP_ROOT, OP_PIVOT, OP_CLOSE):
            stage += 1
    return NULL


cdef bint texts_fit(const char *arena, uint32_t size, uint32_t offset, int64_t count) noexcept nogil:
    """Whether `count` texts, each with its NUL, follow each other from `offset` on."""
    cdef const char *found
    cdef int64_t i
    if count == 0:
        return True
    if offset == NONE or count > size:
        return False
    for i in range(count):
        if offset >= size:
            return False
        found = <const char *> memchr(arena + offset, 0, size - offset)
        if found == NULL:
            return False
        offset = <uint32_t> (found - arena) + 1
    return True


cdef char **pointers(const char *text, int count) noexcept:
    cdef char **vector = <char **> calloc(<size_t> count + 1, sizeof(char *))
    cdef int i
    if vector != NULL:
        for i in range(count):
            vector[i] = <char *> text
            text += strlen(text) + 1
    return vector


cdef const Step *entering(const Context *context) noexcept nogil:
    """The step that enters a container, or NULL."""
    cdef uint32_t i
    for i in range(context.count):
        if context.steps[i].op == OP_ENTER:
            return context.steps + i
    return NULL


cdef int children_in(int pidfd) noexcept nogil:
    """Children of this thread are made in the pid namespace of a process."""
    return result(call(SYS_setns, pidfd, CLONE_NEWPID))


cdef void reap(int pidfd) noexcept nogil:
    while call(SYS_waitid, P_PIDFD, pidfd, NULL, WEXITED | WALL, NULL) == -EINTR:
        pass
    close(pidfd)


def check_plan(bytes plan not None, int slots):
    """What is wrong with a plan for so many slots, or None."""
    cdef const char *text = plan
    cdef const char *wrong = check(text, len(plan), slots)
    return None if wrong == NULL else wrong.decode()


def try_hold_mounts(int pidfd):
    """A descriptor of a process's mount namespace, or minus errno."""
    return <int> call(SYS_ioctl, pidfd, PIDFD_GET_MNT_NAMESPACE, 0)


def try_network():
    """A new network namespace whose `lo` is up, and its sysfs: (descriptor, detached mount, errno).

    The calling thread visits it and comes back; if it cannot, it aborts. Without a sysfs the mount
    is minus errno: that is for the start to say.
    """
    cdef int home
    cdef int made = -1
    cdef int sysfs = -1
    cdef int err
    with nogil:
        home = openat(AT_FDCWD, b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
        if home < 0:
            err = errno
        else:
            err = result(call(SYS_unshare, CLONE_NEWNET))
            if err == 0:
                err = loopback()
                if err == 0:
                    made = openat(AT_FDCWD, b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
                    err = errno if made < 0 else 0
                if err == 0:
                    sysfs = new_file_system(
                        b"sysfs", b"", 0,
                        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                    )
                if call(SYS_setns, home, CLONE_NEWNET) < 0:
                    abort()  # a thread in a container's network must not go on
            close(home)
    return made, sysfs, err


def try_spawn(
    bytes plan not None, object descriptors, int cgroup, bint by_libc=False, list moments=None
):
    """(pid, pidfd, 0, 0), or (0, -1, step, errno): step counts from 1, 0 is the clone itself.

    ValueError for a plan that is not one. Blocks until the child executes or fails. `by_libc`
    clones as on machines where we know no better. `moments` gets when the child began and when
    each of its steps was done, up to the one that sets a filter or executes the program, in
    nanoseconds of CLOCK_MONOTONIC; nothing of a child with memory of its own.
    """
    cdef Header header
    cdef Context context
    cdef int slots[MAX_SLOTS]
    cdef int low[3]
    cdef int count = len(descriptors)
    cdef const char *base = plan
    cdef const char *wrong
    cdef const Step *step
    cdef char *stack
    cdef int pidfd = -1
    cdef long pid
    cdef uint64_t every = <uint64_t> -1
    cdef uint64_t before = 0
    cdef uint64_t flags
    cdef const Step *inside
    cdef Report local
    cdef Report *report
    cdef bint own_memory
    cdef int home = -1
    cdef int err = 0
    cdef int i
    cdef uint32_t each
    if count > MAX_SLOTS:
        raise ValueError("too many descriptors for one plan")
    wrong = check(base, len(plan), count)
    if wrong != NULL:
        raise ValueError(f"bad plan: {wrong.decode()}")
    for i in range(count):
        slots[i] = descriptors[i]
    memcpy(&header, base, sizeof(Header))
    memset(&context, 0, sizeof(context))
    context.steps = <const Step *> (base + sizeof(Header))
    context.count = header.count
    context.arena = base + header.arena
    context.slots = slots
    context.root = -1
    context.mask = -1
    context.group = -1
    step = context.steps + header.count - 1
    low[0] = low[1] = low[2] = -1
    context.argv = pointers(context.arena + step.s1, step.a)
    context.envp = pointers(context.arena + step.s2, step.b)
    inside = entering(&context)
    stack = <char *> mmap(NULL, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)
    own_memory = inside != NULL and inside.m != 0
    memset(&local, 0, sizeof(local))
    report = &local
    if own_memory:
        report = <Report *> mmap(NULL, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    context.report = report
    try:
        if (
            context.argv == NULL or context.envp == NULL
            or stack == <char *> MAP_FAILED or report == <Report *> MAP_FAILED
        ):
            raise MemoryError
        if moments is not None:
            context.moments = <int64_t *> calloc(context.count + 1, sizeof(int64_t))
        mprotect(stack, GUARD, PROT_NONE)
        for i in range(count):
            if 0 <= slots[i] <= 2:  # the child's own 0, 1 and 2 will take their place
                if low[slots[i]] < 0:
                    low[slots[i]] = fcntl(slots[i], F_DUPFD_CLOEXEC, 3)
                if low[slots[i]] < 0:
                    return 0, -1, 0, errno
                slots[i] = low[slots[i]]
        flags = header.flags | CLONE_VFORK | CLONE_FILES
        if not own_memory:
            flags |= CLONE_VM
        if inside != NULL:
            home = <int> call(SYS_pidfd_open, getpid(), 0)
            if home < 0:
                return 0, -1, 0, -home
        context.descriptors = KEPT + 1
        for i in range(count):
            context.descriptors = max(context.descriptors, slots[i] + 1)
        with nogil:
            call(SYS_rt_sigprocmask, SIG_SETMASK, &every, &before, 8)
            pid = -ENOSYS
            if inside != NULL:
                err = children_in(slots[inside.a])
                if err != 0:
                    pid = -err
            if not by_libc and err == 0:
                pid = dockpy_clone3(flags, &pidfd, cgroup, stack + GUARD, STACK, run_plan, &context)
            if pid == -ENOSYS:
                if cgroup >= 0:
                    context.group = openat(cgroup, b"cgroup.procs", O_WRONLY | O_CLOEXEC)
                if cgroup >= 0 and context.group < 0:
                    pid = -<long> errno
                else:
                    context.descriptors = max(context.descriptors, context.group + 1)
                    pid = dockpy_clone(flags, &pidfd, stack + GUARD, STACK, run_plan, &context)
            if inside != NULL and err == 0 and children_in(home) != 0:
                abort()  # this thread's next container would be born in somebody's
            if pid > 0 and report.err != 0:
                reap(pidfd)
            call(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, 8)
        if pid < 0:
            return 0, -1, 0, <int> -pid
        if context.moments != NULL:
            for each in range(context.count + 1):
                if context.moments[each] != 0:
                    moments.append(context.moments[each])
        if report.err != 0:
            return 0, -1, report.step, report.err
        return pid, pidfd, 0, 0
    finally:
        for i in range(3):
            if low[i] >= 0:
                close(low[i])
        if context.group >= 0:
            close(context.group)
        free(context.argv)
        free(context.envp)
        free(context.moments)
        if home >= 0:
            close(home)
        if own_memory and report != <Report *> MAP_FAILED:
            munmap(report, sizeof(Report))
        if stack != <char *> MAP_FAILED:
            munmap(stack, STACK + GUARD)
