# Kernel declarations shared by the native modules, the record of a failed step, a system call
# that is nothing but one, and openat2 as everybody needs it.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define DOCKPY_EMPTY "/dockpy-empty" /* a supervisor's empty directory, in its own root */
    """
    const char *EMPTY "DOCKPY_EMPTY"

cdef struct Failure:
    int step
    int err

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <errno.h>
    #include <unistd.h>

    /* call(number, ...): the kernel's answer, minus errno when it refuses. Where it is written in
     * assembly it touches no thread-local storage, so a child that shares its parent's memory may
     * use it: no errno, no cancellation point, no broadcast to other threads. */
    #if defined(__x86_64__)
    static inline __attribute__((always_inline)) long dockpy_call_6(
            long number, long a, long b, long c, long d, long e, long f) {
        register long fourth __asm__("r10") = d;
        register long fifth __asm__("r8") = e;
        register long sixth __asm__("r9") = f;
        long result;
        __asm__ volatile("syscall"
                         : "=a"(result)
                         : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                         : "rcx", "r11", "memory", "cc");
        return result;
    }
    #else
    static inline long dockpy_call_6(long number, long a, long b, long c, long d, long e, long f) {
        long result = syscall(number, a, b, c, d, e, f);
        return result < 0 ? -(long)errno : result;
    }
    #endif
    #define dockpy_call_0(n) dockpy_call_6(n, 0, 0, 0, 0, 0, 0)
    #define dockpy_call_1(n, a) dockpy_call_6(n, (long)(a), 0, 0, 0, 0, 0)
    #define dockpy_call_2(n, a, b) dockpy_call_6(n, (long)(a), (long)(b), 0, 0, 0, 0)
    #define dockpy_call_3(n, a, b, c) dockpy_call_6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
    #define dockpy_call_4(n, a, b, c, d) \\
        dockpy_call_6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
    #define dockpy_call_5(n, a, b, c, d, e) \\
        dockpy_call_6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
    #define dockpy_call_pick(n, a, b, c, d, e, name, ...) name
    #define dockpy_call(...) \\
        dockpy_call_pick(__VA_ARGS__, dockpy_call_5, dockpy_call_4, dockpy_call_3, \\
                         dockpy_call_2, dockpy_call_1, dockpy_call_0)(__VA_ARGS__)
    """
    # At most five arguments, each an integer or a pointer.
    long call "dockpy_call"(long number, ...) nogil

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_bpf
        SYS_capset
        SYS_chdir
        SYS_chroot
        SYS_clock_gettime
        SYS_clone3
        SYS_close
        SYS_close_range
        SYS_dup3
        SYS_execve
        SYS_execveat
        SYS_exit_group
        SYS_fchdir
        SYS_fchown
        SYS_fcntl
        SYS_fsconfig
        SYS_fsmount
        SYS_fsopen
        SYS_getcwd
        SYS_ioctl
        SYS_mkdirat
        SYS_mknodat
        SYS_mount
        SYS_mount_setattr
        SYS_move_mount
        SYS_open_tree
        SYS_openat
        SYS_openat2
        SYS_pivot_root
        SYS_prctl
        SYS_prlimit64
        SYS_readlinkat
        SYS_rt_sigaction
        SYS_rt_sigprocmask
        SYS_seccomp
        SYS_setdomainname
        SYS_setgroups
        SYS_sethostname
        SYS_pidfd_open
        SYS_setns
        SYS_setresgid
        SYS_setresuid
        SYS_setsid
        SYS_socket
        SYS_statx
        SYS_symlinkat
        SYS_umask
        SYS_umount2
        SYS_unshare
        SYS_waitid
        SYS_write

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<linux/openat2.h>" nogil:
    cdef struct open_how:
        uint64_t flags
        uint64_t mode
        uint64_t resolve
    enum:
        RESOLVE_NO_MAGICLINKS
        RESOLVE_NO_SYMLINKS
        RESOLVE_IN_ROOT

cdef extern from *:
    """
    #include <linux/openat2.h>

    /* openat2(2) below a root: a descriptor, or minus errno. The kernel says EAGAIN when anything
     * on the whole host was renamed or mounted while it went up by a `..` (handle_dots in
     * fs/namei.c): on a busy host one time in a hundred, and the next time it works. */
    static inline long dockpy_openat2(int root, const char *path, struct open_how *how) {
        long answer;
        int attempts = 0;
        do
            answer = dockpy_call(SYS_openat2, root, path, how, sizeof(*how));
        while ((answer == -EAGAIN || answer == -EINTR) && ++attempts < 1000);
        return answer;
    }
    """
    long openat2 "dockpy_openat2"(int root, const char *path, open_how *how) nogil

cdef extern from "<linux/mount.h>" nogil:
    cdef struct mount_attr:
        uint64_t attr_set
        uint64_t attr_clr
        uint64_t propagation
        uint64_t userns_fd
    enum:
        MOVE_MOUNT_F_EMPTY_PATH
        MOVE_MOUNT_T_EMPTY_PATH
        OPEN_TREE_CLONE
        OPEN_TREE_CLOEXEC
        FSOPEN_CLOEXEC
        FSMOUNT_CLOEXEC
        FSCONFIG_SET_FLAG
        FSCONFIG_SET_STRING
        FSCONFIG_CMD_CREATE
        MOUNT_ATTR_RDONLY
        MOUNT_ATTR_NOSUID
        MOUNT_ATTR_NODEV
        MOUNT_ATTR_NOEXEC
