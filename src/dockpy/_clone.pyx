# cython: language_level=3
"""Spawns: a packed plan is checked, a child is cloned with the parent's memory, and the child runs
the plan's steps until it executes the program.

Rules of the code between clone and exec, which a test over the generated C enforces: no GIL, no
allocation, no Python object, no glibc call that locks or tells other threads (setuid and its family
are raw system calls). The parent's thread sleeps meanwhile (CLONE_VFORK), so the child may use its
own small stack and write its failure where the parent reads it. Source: clone(2), vfork(2).

The layout of a plan is described in `plan.py`; nothing in it is trusted.
"""

from libc.errno cimport EACCES, EEXIST, EINVAL, ELOOP, ENOENT, ENOTDIR, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset, strlen

from dockpy._sys cimport *

cdef extern from "<fcntl.h>" nogil:
    int open(const char *path, int flags, ...)
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
        O_RDWR
        O_WRONLY

cdef extern from "<unistd.h>" nogil:
    int chdir(const char *path)
    int close(int fd)
    int dup3(int old, int new, int flags)
    int execve(const char *path, char **argv, char **envp)
    int fchdir(int fd)
    int fchown(int fd, uint32_t uid, uint32_t gid)
    char *getcwd(char *buffer, size_t size)
    int setdomainname(const char *name, size_t size)
    int sethostname(const char *name, size_t size)
    int setsid()
    int symlinkat(const char *target, int directory, const char *path)
    ssize_t write(int fd, const void *data, size_t size)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat:
        uint32_t st_mode
    int fchmodat(int directory, const char *path, uint32_t mode, int flags)
    int fstat(int fd, stat *status)
    int mkdirat(int directory, const char *path, uint32_t mode)
    int mknodat(int directory, const char *path, uint32_t mode, uint64_t device)
    uint32_t umask(uint32_t mask)
    bint S_ISDIR(uint32_t mode)

cdef extern from "<sys/mount.h>" nogil:
    int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data)
    int umount2(const char *target, int flags)
    enum:
        MNT_DETACH
        MS_PRIVATE
        MS_REC

cdef extern from "<sched.h>" nogil:
    int setns(int fd, int kind)
    int unshare(int flags)
    enum:
        CLONE_NEWCGROUP
        CLONE_NEWIPC
        CLONE_NEWNET
        CLONE_NEWNS
        CLONE_NEWPID
        CLONE_NEWUTS
        CLONE_VFORK
        CLONE_VM

cdef extern from "<signal.h>" nogil:
    ctypedef void (*handler_t)(int) noexcept nogil
    cdef struct sigaction_t "sigaction":
        handler_t sa_handler
    int sigaction(int number, const sigaction_t *new, sigaction_t *old)
    handler_t SIG_DFL
    enum:
        SIGCHLD
        SIG_SETMASK

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum:
        TIOCSCTTY

cdef extern from "<sys/socket.h>" nogil:
    int socket(int family, int kind, int protocol)
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
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_CAPBSET_DROP
        PR_CAP_AMBIENT
        PR_CAP_AMBIENT_CLEAR_ALL
        PR_SET_NO_NEW_PRIVS

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rlimit:
        uint64_t rlim_cur
        uint64_t rlim_max
    int prlimit(int pid, int resource, const rlimit *new, rlimit *old)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t size)
    int mprotect(void *at, size_t size, int protection)
    enum:
        MAP_ANONYMOUS
        MAP_PRIVATE
        MAP_STACK
        PROT_NONE
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED

cdef extern from "<sys/wait.h>" nogil:
    enum:
        P_PIDFD
        WEXITED

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
    #include <linux/sched.h>
    #include <net/if.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef CLONE_PIDFD
    #define CLONE_PIDFD 0x00001000
    #endif
    #define DOCKPY_INTO_CGROUP 0x200000000ULL

    typedef int (*dockpy_entry)(void *);

    /* clone3(2) on a stack of the child's own: the child must never return through a frame that the
     * sleeping parent still needs, so it is called from here and leaves by exit_group. */
    static long dockpy_clone(uint64_t flags, int *pidfd, int cgroup, char *stack, size_t size,
                             dockpy_entry entry, void *context) {
        struct clone_args args;
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
    #if defined(__x86_64__)
        register long result __asm__("rax") = SYS_clone3;
        register void *first __asm__("rdi") = &args;
        register size_t second __asm__("rsi") = sizeof args;
        register dockpy_entry call __asm__("r12") = entry;
        register void *data __asm__("r13") = context;
        __asm__ volatile(
            "syscall\\n\\t"
            "testq %%rax, %%rax\\n\\t"
            "jnz 1f\\n\\t"
            "xorl %%ebp, %%ebp\\n\\t"
            "movq %%r13, %%rdi\\n\\t"
            "callq *%%r12\\n\\t"
            "movl %%eax, %%edi\\n\\t"
            "movl $231, %%eax\\n\\t"
            "syscall\\n\\t"
            "1:"
            : "+r"(result)
            : "r"(first), "r"(second), "r"(call), "r"(data)
            : "rcx", "r11", "memory", "cc");
        return result;
    #elif defined(__aarch64__)
        register long number __asm__("x8") = SYS_clone3;
        register void *first __asm__("x0") = &args;
        register size_t second __asm__("x1") = sizeof args;
        register dockpy_entry call __asm__("x20") = entry;
        register void *data __asm__("x21") = context;
        __asm__ volatile(
            "svc #0\\n\\t"
            "cbnz x0, 1f\\n\\t"
            "mov x29, xzr\\n\\t"
            "mov x0, x21\\n\\t"
            "blr x20\\n\\t"
            "mov x8, #94\\n\\t"
            "svc #0\\n\\t"
            "1:"
            : "+r"(first)
            : "r"(number), "r"(second), "r"(call), "r"(data)
            : "memory", "cc");
        return (long)first;
    #else
    #error "dockpy knows how to clone on x86_64 and aarch64"
    #endif
    }

    /* SIOCSIFFLAGS for the loopback interface of the calling thread's network namespace. */
    struct dockpy_interface { char name[16]; short flags; char rest[22]; };
    """
    ctypedef int (*entry_t "dockpy_entry")(void *) noexcept nogil
    long dockpy_clone(uint64_t flags, int *pidfd, int cgroup, char *stack, size_t size, entry_t entry, void *context) nogil
    cdef struct dockpy_interface:
        char name[16]
        short flags

cdef enum:
    MAGIC = 0x31595044
    NONE = 0xffffffff
    STACK = 65536
    GUARD = 4096
    MAX_SLOTS = 1024
    MAX_STEPS = 4096

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
    OP_ROOT_READ_ONLY
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
    OP_END

OPERATIONS = {
    "write_fd": OP_WRITE_FD, "unshare": OP_UNSHARE, "setns": OP_SETNS, "loopback": OP_LOOPBACK,
    "hostname": OP_HOSTNAME, "domainname": OP_DOMAINNAME, "setsid": OP_SETSID,
    "private": OP_PRIVATE, "root": OP_ROOT, "mount": OP_MOUNT, "attach": OP_ATTACH,
    "node": OP_NODE, "symlink": OP_SYMLINK, "mkdir": OP_MKDIR, "read_only": OP_READ_ONLY,
    "mask": OP_MASK, "root_read_only": OP_ROOT_READ_ONLY, "pivot": OP_PIVOT,
    "rlimit": OP_RLIMIT, "write_file": OP_WRITE_FILE, "no_new_privs": OP_NO_NEW_PRIVS,
    "seccomp": OP_SECCOMP, "bound": OP_BOUND, "groups": OP_GROUPS, "ids": OP_IDS,
    "capabilities": OP_CAPABILITIES, "make_directory": OP_MAKE_DIRECTORY, "chdir": OP_CHDIR,
    "stdio": OP_STDIO, "terminal": OP_TERMINAL, "console": OP_CONSOLE, "close": OP_CLOSE,
    "signals": OP_SIGNALS, "umask": OP_UMASK, "exec": OP_EXEC, "exec_fd": OP_EXEC_FD,
}

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

cdef struct Context:
    const Step *steps
    uint32_t count
    const char *arena
    int *slots
    int root
    int mask
    char **argv
    char **envp
    volatile int failed
    volatile int err


# -- steps -------------------------------------------------------------------------------------
# Each returns 0 or the errno of the call that failed.

cdef int in_root(int root, const char *path, uint64_t flags, uint64_t resolve) noexcept nogil:
    cdef open_how how
    how.flags = flags | O_CLOEXEC
    how.mode = 0
    how.resolve = resolve
    return <int> syscall(SYS_openat2, root, path, &how, sizeof(how))


cdef int write_text(int fd, const char *text) noexcept nogil:
    cdef size_t size = strlen(text)
    return 0 if write(fd, text, size) == <ssize_t> size else errno


cdef int loopback() noexcept nogil:
    cdef dockpy_interface request
    cdef int err = 0
    cdef int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return errno
    memset(&request, 0, sizeof(request))
    memcpy(request.name, <const char *> b"lo", 3)
    request.flags = IFF_UP | IFF_RUNNING
    if ioctl(fd, SIOCSIFFLAGS, &request) != 0:
        err = errno
    close(fd)
    return err


cdef int attach_to(int tree, int target) noexcept nogil:
    if syscall(SYS_move_mount, tree, b"", target, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0:
        return errno
    return 0


cdef int make_missing(int root, char *path, bint directory) noexcept nogil:
    # Makes what is missing of `path`, one component after the other, never leaving `root`: each
    # prefix is opened with RESOLVE_IN_ROOT and the next name made relative to that descriptor.
    cdef char *cursor = path
    cdef char *name
    cdef char *end
    cdef char saved
    cdef int parent = in_root(root, b".", O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT)
    cdef int err
    cdef int made
    cdef bint last
    if parent < 0:
        return errno
    while True:
        while cursor[0] == c"/":
            cursor += 1
        if cursor[0] == 0:
            close(parent)
            return 0
        name = cursor
        while cursor[0] != 0 and cursor[0] != c"/":
            cursor += 1
        end = cursor
        while end[0] == c"/":
            end += 1
        last = end[0] == 0
        saved = cursor[0]
        cursor[0] = 0
        err = 0
        made = 0
        if last and not directory:
            made = openat(parent, name, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o644)
            if made >= 0:
                close(made)
            elif errno != EEXIST:
                err = errno
        elif mkdirat(parent, name, 0o755) != 0 and errno != EEXIST:
            err = errno
        close(parent)
        if err == 0 and not last:
            # The whole prefix from the root: `..` and links mean what they mean inside.
            parent = in_root(root, path, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            if parent < 0:
                err = errno
        cursor[0] = saved
        if err != 0:
            return err
        if last:
            return 0


cdef int target_of(Context *context, char *path, int create) noexcept nogil:
    # A descriptor of the mount point, or minus errno. create: 0 no, 1 a file, 2 a directory,
    # 3 a real directory that no link stands for.
    cdef uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    cdef int fd
    cdef int err
    if create == 3:
        resolve |= RESOLVE_NO_SYMLINKS
    fd = in_root(context.root, path, O_PATH, resolve)
    if fd >= 0:
        return fd
    if errno != ENOENT or create == 0:
        return -errno
    err = make_missing(context.root, path, create >= 2)
    if err != 0:
        return -err
    fd = in_root(context.root, path, O_PATH, resolve)
    return fd if fd >= 0 else -errno


cdef int new_mount(Context *context, const Step *step) noexcept nogil:
    cdef const char *key = context.arena + step.s3
    cdef const char *value
    cdef int i
    cdef int err
    cdef int tree
    cdef int target
    cdef int configuration = <int> syscall(SYS_fsopen, context.arena + step.s1, FSOPEN_CLOEXEC)
    if configuration < 0:
        return errno
    for i in range(step.a):
        value = key + strlen(key) + 1
        if syscall(SYS_fsconfig, configuration, FSCONFIG_SET_STRING, key, value, 0) != 0:
            err = errno
            close(configuration)
            return err
        key = value + strlen(value) + 1
    if syscall(SYS_fsconfig, configuration, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0:
        err = errno
        close(configuration)
        return err
    tree = <int> syscall(SYS_fsmount, configuration, FSMOUNT_CLOEXEC, <unsigned int> step.n)
    err = errno
    close(configuration)
    if tree < 0:
        return err
    target = target_of(context, <char *> context.arena + step.s2, step.b)
    if target < 0:
        close(tree)
        return -target
    err = attach_to(tree, target)
    close(target)
    close(tree)
    return err


cdef int attach_slot(Context *context, const Step *step) noexcept nogil:
    cdef int target = target_of(context, <char *> context.arena + step.s1, step.b)
    cdef int err
    if target < 0:
        return -target
    err = attach_to(context.slots[step.a], target)
    close(target)
    return err


cdef int read_only(Context *context, const char *path) noexcept nogil:
    # A clone of what is at `path`, made read-only, over itself. A missing path is fine.
    cdef mount_attr attributes
    cdef int tree
    cdef int err
    cdef int target = in_root(context.root, path, O_PATH, RESOLVE_IN_ROOT)
    if target < 0:
        return 0 if errno == ENOENT else errno
    tree = <int> syscall(SYS_open_tree, target, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE)
    if tree < 0:
        err = errno
        close(target)
        return err
    memset(&attributes, 0, sizeof(attributes))
    attributes.attr_set = MOUNT_ATTR_RDONLY
    if syscall(SYS_mount_setattr, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof(attributes)) != 0:
        err = errno
    else:
        err = attach_to(tree, target)
    close(tree)
    close(target)
    return err


cdef int mask_path(Context *context, const char *path) noexcept nogil:
    # A file disappears under /dev/null, a directory under an empty read-only tmpfs that all share.
    cdef stat status
    cdef int tree
    cdef int err
    cdef int target = in_root(context.root, path, O_PATH, RESOLVE_IN_ROOT)
    if target < 0:
        return 0 if errno == ENOENT else errno
    if fstat(target, &status) != 0:
        err = errno
        close(target)
        return err
    if S_ISDIR(status.st_mode):
        if context.mask < 0:
            err = empty_tmpfs(context)
            if err != 0:
                close(target)
                return err
        tree = <int> syscall(SYS_open_tree, context.mask, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    else:
        tree = <int> syscall(SYS_open_tree, context.root, b"dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    if tree < 0:
        err = errno
        close(target)
        return err
    err = attach_to(tree, target)
    close(tree)
    close(target)
    return err


cdef int empty_tmpfs(Context *context) noexcept nogil:
    cdef int err
    cdef int tree
    cdef int configuration = <int> syscall(SYS_fsopen, b"tmpfs", FSOPEN_CLOEXEC)
    if configuration < 0:
        return errno
    if syscall(SYS_fsconfig, configuration, FSCONFIG_SET_STRING, b"mode", b"0755", 0) != 0 or syscall(
        SYS_fsconfig, configuration, FSCONFIG_CMD_CREATE, NULL, NULL, 0
    ) != 0:
        err = errno
        close(configuration)
        return err
    tree = <int> syscall(
        SYS_fsmount, configuration, FSMOUNT_CLOEXEC,
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
    )
    err = errno
    close(configuration)
    if tree < 0:
        return err
    context.mask = tree
    return 0


cdef int node(Context *context, const Step *step) noexcept nogil:
    cdef const char *path = context.arena + step.s1
    if mknodat(context.root, path, <uint32_t> step.a, <uint64_t> step.n) != 0:
        return errno
    return 0


cdef int root_read_only(Context *context) noexcept nogil:
    cdef mount_attr attributes
    memset(&attributes, 0, sizeof(attributes))
    attributes.attr_set = MOUNT_ATTR_RDONLY
    if syscall(SYS_mount_setattr, context.root, b"", AT_EMPTY_PATH, &attributes, sizeof(attributes)) != 0:
        return errno
    return 0


cdef int take_root(Context *context, int fd) noexcept nogil:
    if syscall(SYS_move_mount, fd, b"", AT_FDCWD, b"/", MOVE_MOUNT_F_EMPTY_PATH) != 0:
        return errno
    context.root = fd
    return 0 if fchdir(fd) == 0 else errno


cdef int pivot(Context *context) noexcept nogil:
    if fchdir(context.root) != 0 or syscall(SYS_pivot_root, b".", b".") != 0:
        return errno
    if umount2(b".", MNT_DETACH) != 0 or chdir(b"/") != 0:
        return errno
    return 0


cdef int write_file(Context *context, const Step *step) noexcept nogil:
    cdef int fd = openat(context.root, context.arena + step.s1, O_WRONLY | O_CLOEXEC)
    cdef int err
    if fd < 0:
        return errno
    err = write_text(fd, context.arena + step.s2)
    close(fd)
    return err


cdef int limit(const Step *step) noexcept nogil:
    cdef rlimit value
    value.rlim_cur = <uint64_t> step.n
    value.rlim_max = <uint64_t> step.m
    return 0 if prlimit(0, step.a, &value, NULL) == 0 else errno


cdef int filter_calls(const char *program, int count) noexcept nogil:
    cdef sock_fprog prog
    prog.len = <unsigned short> count
    prog.filter = <sock_filter *> program
    if syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog) != 0:
        return errno
    return 0


cdef int bound(int64_t mask, int last) noexcept nogil:
    cdef int number
    for number in range(last + 1):
        if not (mask >> number) & 1 and prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0 and errno != EINVAL:
            return errno
    return 0


cdef int set_capabilities(int64_t mask) noexcept nogil:
    cdef uint32_t header[2]
    cdef uint32_t data[6]
    header[0] = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
    header[1] = 0
    data[0] = <uint32_t> mask
    data[1] = <uint32_t> mask
    data[2] = 0
    data[3] = <uint32_t> (mask >> 32)
    data[4] = <uint32_t> (mask >> 32)
    data[5] = 0
    if syscall(SYS_capset, header, data) != 0:
        return errno
    if prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 and errno != EINVAL:
        return errno
    return 0


cdef int change_directory(const char *path) noexcept nogil:
    # No magic link can lead the way, and the kernel must say that we are inside the root.
    cdef char buffer[4096]
    cdef int fd = in_root(AT_FDCWD, path, O_PATH | O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
    cdef int err
    if fd < 0:
        return errno
    if fchdir(fd) != 0:
        err = errno
        close(fd)
        return err
    close(fd)
    if getcwd(buffer, sizeof(buffer)) == NULL:
        return errno
    return 0 if buffer[0] == c"/" else ENOENT


cdef int make_directory(Context *context, char *path) noexcept nogil:
    cdef int fd = in_root(AT_FDCWD, path, O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    if fd >= 0:
        close(fd)
        return 0
    if errno != ENOENT:
        return errno
    return make_missing(context.root, path, True)


cdef int standard_streams(Context *context, const Step *step) noexcept nogil:
    # Slots lie above 2; -1 for stdin is the container's own /dev/null.
    cdef int chosen[3]
    cdef int i
    cdef int fd
    chosen[0] = step.a
    chosen[1] = step.b
    chosen[2] = step.c
    for i in range(3):
        if chosen[i] < 0:
            fd = open(b"/dev/null", O_RDONLY if i == 0 else O_WRONLY)
            if fd < 0:
                return errno
            if fd != i:
                if dup3(fd, i, 0) < 0:
                    return errno
                close(fd)
        else:
            fd = context.slots[chosen[i]]
            if step.n > 0 and fchown(fd, <uint32_t> step.n, NONE) != 0:
                return errno
            if dup3(fd, i, 0) < 0:
                return errno
    return 0


cdef int terminal(Context *context, const Step *step) noexcept nogil:
    cdef int fd = context.slots[step.a]
    cdef int i
    if ioctl(fd, TIOCSCTTY, 0) != 0:
        return errno
    if step.n > 0 and fchown(fd, <uint32_t> step.n, NONE) != 0:
        return errno
    for i in range(3):
        if dup3(fd, i, 0) < 0:
            return errno
    return 0


cdef int console(Context *context) noexcept nogil:
    # The first terminal of this devpts instance is number 0.
    cdef int target
    cdef int tree
    cdef int err
    target = openat(context.root, b"dev/console", O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if target < 0:
        return errno
    tree = <int> syscall(SYS_open_tree, context.root, b"dev/pts/0", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    if tree < 0:
        err = errno
        close(target)
        return err
    err = attach_to(tree, target)
    close(tree)
    close(target)
    return err


cdef int reset_signals() noexcept nogil:
    # What is ignored stays ignored over exec; the interpreter ignores SIGPIPE and SIGXFSZ.
    cdef sigaction_t action
    cdef uint64_t none = 0
    cdef int number
    memset(&action, 0, sizeof(action))
    action.sa_handler = SIG_DFL
    for number in range(1, 65):
        sigaction(number, &action, NULL)
    if syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8) != 0:
        return errno
    return 0


cdef int execute(Context *context, const Step *step) noexcept nogil:
    # Candidates follow each other in the arena; a refused one is remembered, a missing one is not.
    cdef const char *candidate = context.arena + step.s3
    cdef int refused = 0
    cdef int i
    for i in range(step.c):
        execve(candidate, context.argv, context.envp)
        if errno == EACCES:
            refused = EACCES
        elif errno != ENOENT and errno != ENOTDIR:
            return errno
        candidate += strlen(candidate) + 1
    return refused if refused != 0 else ENOENT


cdef int run_step(Context *context, const Step *step) noexcept nogil:
    cdef char *text = <char *> context.arena + step.s1 if step.s1 != NONE else NULL
    cdef int op = step.op
    if op == OP_WRITE_FD:
        return write_text(context.slots[step.a], text)
    if op == OP_UNSHARE:
        return 0 if unshare(<int> step.n) == 0 else errno
    if op == OP_SETNS:
        return 0 if setns(context.slots[step.a], <int> step.n) == 0 else errno
    if op == OP_LOOPBACK:
        return loopback()
    if op == OP_HOSTNAME:
        return 0 if sethostname(text, strlen(text)) == 0 else errno
    if op == OP_DOMAINNAME:
        return 0 if setdomainname(text, strlen(text)) == 0 else errno
    if op == OP_SETSID:
        return 0 if setsid() >= 0 else errno
    if op == OP_PRIVATE:
        return 0 if mount(NULL, b"/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 else errno
    if op == OP_ROOT:
        return take_root(context, context.slots[step.a])
    if op == OP_MOUNT:
        return new_mount(context, step)
    if op == OP_ATTACH:
        return attach_slot(context, step)
    if op == OP_NODE:
        return node(context, step)
    if op == OP_SYMLINK:
        return 0 if symlinkat(text, context.root, context.arena + step.s2) == 0 else errno
    if op == OP_MKDIR:
        return 0 if mkdirat(context.root, text, <uint32_t> step.a) == 0 or errno == EEXIST else errno
    if op == OP_READ_ONLY:
        return read_only(context, text)
    if op == OP_MASK:
        return mask_path(context, text)
    if op == OP_ROOT_READ_ONLY:
        return root_read_only(context)
    if op == OP_PIVOT:
        return pivot(context)
    if op == OP_RLIMIT:
        return limit(step)
    if op == OP_WRITE_FILE:
        return write_file(context, step)
    if op == OP_NO_NEW_PRIVS:
        return 0 if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else errno
    if op == OP_SECCOMP:
        return filter_calls(text, step.a)
    if op == OP_BOUND:
        return bound(step.n, step.a)
    if op == OP_GROUPS:
        return 0 if syscall(SYS_setgroups, step.a, text) == 0 else errno
    if op == OP_IDS:
        if syscall(SYS_setresgid, step.b, step.b, step.b) != 0:
            return errno
        return 0 if syscall(SYS_setresuid, step.a, step.a, step.a) == 0 else errno
    if op == OP_CAPABILITIES:
        return set_capabilities(step.n)
    if op == OP_MAKE_DIRECTORY:
        return make_directory(context, text)
    if op == OP_CHDIR:
        return change_directory(text)
    if op == OP_STDIO:
        return standard_streams(context, step)
    if op == OP_TERMINAL:
        return terminal(context, step)
    if op == OP_CONSOLE:
        return console(context)
    if op == OP_CLOSE:
        return 0 if syscall(SYS_close_range, 3, <unsigned int> -1, 4) == 0 else errno  # CLOSE_RANGE_CLOEXEC
    if op == OP_SIGNALS:
        return reset_signals()
    if op == OP_UMASK:
        umask(<uint32_t> step.a)
        return 0
    if op == OP_EXEC:
        return execute(context, step)
    if op == OP_EXEC_FD:
        syscall(SYS_execveat, context.slots[step.c], b"", context.argv, context.envp, AT_EMPTY_PATH)
        return errno
    return EINVAL


cdef int run_plan(void *data) noexcept nogil:
    # The child's whole life before exec.
    cdef Context *context = <Context *> data
    cdef uint32_t i
    cdef int err
    for i in range(context.count):
        err = run_step(context, context.steps + i)
        if err != 0:
            context.err = err
            context.failed = <int> i + 1
            break
    return 127


# -- the parent's side -------------------------------------------------------------------------

cdef bint text_is_inside(uint32_t offset, uint32_t size) noexcept nogil:
    return offset == NONE or offset < size


cdef const char *check(const Header *header, const Step *steps, const char *arena, int slots) noexcept nogil:
    """What is wrong with a plan, or NULL. After this the child may trust every offset and slot."""
    cdef uint32_t i
    cdef uint32_t size = header.size
    cdef const Step *step
    cdef int op
    if header.flags & ~<uint64_t> (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET):
        return b"unknown clone flags"
    if size == 0 or arena[size - 1] != 0:
        return b"text does not end"
    for i in range(header.count):
        step = steps + i
        op = step.op
        if op <= 0 or op >= OP_END:
            return b"unknown step"
        if not (text_is_inside(step.s1, size) and text_is_inside(step.s2, size) and text_is_inside(step.s3, size)):
            return b"text outside the plan"
        if op in (
            OP_WRITE_FD, OP_HOSTNAME, OP_DOMAINNAME, OP_MOUNT, OP_ATTACH, OP_NODE, OP_SYMLINK,
            OP_MKDIR, OP_READ_ONLY, OP_MASK, OP_WRITE_FILE, OP_SECCOMP, OP_GROUPS,
            OP_MAKE_DIRECTORY, OP_CHDIR, OP_EXEC, OP_EXEC_FD,
        ) and step.s1 == NONE:
            return b"step without its text"
        if op in (OP_MOUNT, OP_SYMLINK, OP_WRITE_FILE, OP_EXEC, OP_EXEC_FD) and step.s2 == NONE:
            return b"step without its second text"
        if op in (OP_WRITE_FD, OP_SETNS, OP_ROOT, OP_ATTACH, OP_TERMINAL) and not 0 <= step.a < slots:
            return b"no such slot"
        if op == OP_STDIO and not (-1 <= step.a < slots and -1 <= step.b < slots and -1 <= step.c < slots):
            return b"no such slot"
        if op == OP_EXEC_FD and not 0 <= step.c < slots:
            return b"no such slot"
        if op == OP_MOUNT and (step.a < 0 or not texts_fit(arena, size, step.s3, 2 * <int64_t> step.a)):
            return b"mount options outside the plan"
        if op == OP_EXEC and (step.c < 1 or not texts_fit(arena, size, step.s3, step.c)):
            return b"programs outside the plan"
        if op in (OP_EXEC, OP_EXEC_FD) and (
            step.a < 1 or step.b < 0 or not texts_fit(arena, size, step.s1, step.a)
            or not texts_fit(arena, size, step.s2, step.b)
        ):
            return b"arguments outside the plan"
        if op == OP_SECCOMP and not (0 < step.a <= 4096 and <uint64_t> step.s1 + 8 * <uint64_t> step.a <= size):
            return b"filter outside the plan"
        if op == OP_GROUPS and not (0 <= step.a <= 65536 and <uint64_t> step.s1 + 4 * <uint64_t> step.a <= size):
            return b"groups outside the plan"
        if op == OP_BOUND and not 0 <= step.a < 63:
            return b"unknown capability"
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


cdef void reap(int pidfd) noexcept nogil:
    syscall(SYS_waitid, P_PIDFD, pidfd, NULL, WEXITED, NULL)
    close(pidfd)


def try_spawn(bytes plan not None, object descriptors, int cgroup):
    """(pid, pidfd, 0, 0), or (0, -1, step, errno): step counts from 1, 0 is the clone itself.

    ValueError for a plan that is not one. Blocks until the child executes or fails.
    """
    cdef Header header
    cdef Context context
    cdef int slots[MAX_SLOTS]
    cdef int count = len(descriptors)
    cdef Py_ssize_t length = len(plan)
    cdef const char *wrong
    cdef const Step *step
    cdef char *stack
    cdef bytearray copy
    cdef int pidfd = -1
    cdef long pid
    cdef uint64_t every = <uint64_t> -1
    cdef uint64_t before = 0
    cdef uint64_t flags
    cdef int low[3]
    cdef int lows = 0
    cdef int i
    cdef int fd
    if count > MAX_SLOTS:
        raise ValueError("too many descriptors for one plan")
    if length < <Py_ssize_t> sizeof(Header):
        raise ValueError("plan is too short")
    copy = bytearray(plan)  # the walk over path components writes into it
    cdef char *base = copy
    memcpy(&header, base, sizeof(Header))
    if (
        header.magic != MAGIC
        or header.count == 0
        or header.count > MAX_STEPS
        or header.arena != sizeof(Header) + header.count * sizeof(Step)
        or <uint64_t> header.arena + header.size != <uint64_t> length
    ):
        raise ValueError("not a plan")
    memset(&context, 0, sizeof(context))
    context.steps = <const Step *> (base + sizeof(Header))
    context.count = header.count
    context.arena = base + header.arena
    context.root = AT_FDCWD
    context.mask = -1
    wrong = check(&header, context.steps, context.arena, count)
    if wrong != NULL:
        raise ValueError(f"bad plan: {wrong.decode()}")
    for i in range(count):
        slots[i] = descriptors[i]
    context.slots = slots
    step = context.steps + header.count - 1
    if step.op != OP_EXEC and step.op != OP_EXEC_FD:
        raise ValueError("bad plan: it does not end in a program")
    context.argv = pointers(context.arena + step.s1, step.a)
    context.envp = pointers(context.arena + step.s2, step.b)
    stack = <char *> mmap(NULL, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)
    try:
        if context.argv == NULL or context.envp == NULL or stack == <char *> MAP_FAILED:
            raise MemoryError
        mprotect(stack, GUARD, PROT_NONE)
        for i in range(count):
            if 0 <= slots[i] <= 2 and lows < 3:
                fd = fcntl(slots[i], F_DUPFD_CLOEXEC, 3)
                if fd < 0:
                    return 0, -1, 0, errno
                slots[i] = low[lows] = fd
                lows += 1
        flags = header.flags | CLONE_VM | CLONE_VFORK
        with nogil:
            syscall(SYS_rt_sigprocmask, SIG_SETMASK, &every, &before, 8)
            pid = dockpy_clone(flags, &pidfd, cgroup, stack + GUARD, STACK, run_plan, &context)
            syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, 8)
            if pid > 0 and context.failed:
                reap(pidfd)
        if pid < 0:
            return 0, -1, 0, <int> -pid
        if context.failed:
            return 0, -1, context.failed, context.err
        return pid, pidfd, 0, 0
    finally:
        for i in range(lows):
            close(low[i])
        free(context.argv)
        free(context.envp)
        if stack != <char *> MAP_FAILED:
            munmap(stack, STACK + GUARD)
