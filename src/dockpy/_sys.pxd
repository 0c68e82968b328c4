# Kernel declarations shared by the native modules, and the record of a failed step. No code.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef struct Failure:
    int step
    int err

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_bpf
        SYS_capset
        SYS_clone3
        SYS_close_range
        SYS_execveat
        SYS_exit_group
        SYS_fsconfig
        SYS_fsmount
        SYS_fsopen
        SYS_mount_setattr
        SYS_move_mount
        SYS_open_tree
        SYS_openat2
        SYS_pivot_root
        SYS_rt_sigprocmask
        SYS_seccomp
        SYS_setgroups
        SYS_setresgid
        SYS_setresuid
        SYS_waitid

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
