"""What containers may ask of the kernel when no other profile is given. Pure data.

Equal in meaning to the default profile that Docker publishes (moby/profiles, seccomp), whose names
and conditions are taken as facts and grouped here by purpose; tests compare the two for every
number. Everything that is not named is refused with EPERM.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

AF_ALG, AF_VSOCK = 38, 40
"""Address families that are refused: their code has given away whole kernels. socket(2)."""

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, none of which may be set
(a mask; what has to be left of it is 0 where it is not given). clone(2)."""

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26 with each, and the question. personality(2)."""

_ARCHITECTURES = {
    "X86_64": ("X86", "X32"),
    "AARCH64": ("ARM",),
    "MIPS64": ("MIPS", "MIPS64N32"),
    "MIPS64N32": ("MIPS", "MIPS64"),
    "MIPSEL64": ("MIPSEL", "MIPSEL64N32"),
    "MIPSEL64N32": ("MIPSEL", "MIPSEL64"),
    "S390X": ("S390",),
    "RISCV64": (),
    "LOONGARCH64": (),
}

ALLOWED = {
    "files by name": """
        access chdir chmod chown chown32 creat execve execveat faccessat faccessat2 fchmodat
        fchmodat2 fchownat fstatat64 futimesat lchown lchown32 link linkat lstat lstat64 mkdir
        mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat
        rename renameat renameat2 rmdir stat stat64 statx symlink symlinkat truncate truncate64
        umask unlink unlinkat utime utimensat utimensat_time64 utimes getcwd""",
    "extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr
        listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr
        setxattrat""",
    "open files": """
        _llseek close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate
        fchdir fchmod fchown fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fsync ftruncate
        ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64
        pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync_file_range tee
        vmsplice write writev""",
    "file systems": """
        fstatfs fstatfs64 listmount statfs statfs64 statmount sync syncfs""",
    "file events": """
        fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch""",
    "waiting for descriptors": """
        _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
        epoll_wait epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6
        pselect6_time64 select""",
    "asynchronous input and output": """
        io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
        ioprio_get ioprio_set""",
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom
        recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown
        socketcall socketpair""",
    "memory": """
        brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
        mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
        pkey_mprotect process_mrelease remap_file_pages cachestat membarrier""",
    "processes": """
        exit exit_group fork vfork wait4 waitid waitpid getpgid getpgrp getpid getppid getsid
        gettid setpgid setsid pidfd_open pidfd_send_signal prctl get_thread_area set_thread_area
        set_tid_address get_robust_list set_robust_list restart_syscall rseq riscv_hwprobe
        uretprobe""",
    "locks": """
        futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake""",
    "identity": """
        capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
        getresgid getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid
        setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid
        setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32""",
    "own restrictions": """
        landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp""",
    "signals": """
        kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack
        signalfd signalfd4 sigprocmask sigreturn tgkill tkill""",
    "time": """
        adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
        clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer
        gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun
        timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
        timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times""",
    "scheduling and limits": """
        getcpu getpriority getrlimit getrusage prlimit64 sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield setpriority setrlimit ugetrlimit""",
    "messages between processes": """
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
        semtimedop_time64 shmat shmctl shmdt shmget""",
    "about the system": """
        getrandom sysinfo uname""",
}
"""Allowed to everyone, whatever the arguments."""

ALLOWED_WITH = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        clone clone3 setns unshare sethostname setdomainname
        mount umount umount2 fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr
        quotactl quotactl_fd fanotify_init lookup_dcookie bpf perf_event_open syslog
        lsm_get_self_attr lsm_set_self_attr lsm_list_modules""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": """
        kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace""",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
"""Allowed to containers that have the capability in their bounding set."""

ALLOWED_ON = {
    ("amd64", "x32"): "arch_prctl",
    ("amd64", "x32", "x86"): "modify_ldt",
    ("arm", "arm64"): """
        arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls""",
    ("ppc64le",): "sync_file_range2 swapcontext",
    ("riscv64",): "riscv_flush_icache",
    ("s390", "s390x"): "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}
"""Allowed on some machines only."""

TRACING = "process_vm_readv process_vm_writev ptrace"
"""Allowed from Linux 4.8, where a tracer cannot undo a filter any more. seccomp(2)."""

S390 = ("s390", "s390x")
"""Where clone(2) has its flags in the second argument."""


def default_profile() -> dict[str, object]:
    """The profile as Docker's and the OCI runtime spec's JSON would have it; made anew."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {
                "architecture": f"SCMP_ARCH_{name}",
                "subArchitectures": [f"SCMP_ARCH_{each}" for each in below],
            }
            for name, below in _ARCHITECTURES.items()
        ],
        "syscalls": [*_unconditional(), *_sockets(), *_personalities(), *_clones()],
    }


def _unconditional() -> Iterator[dict[str, object]]:
    for purpose, names in ALLOWED.items():
        yield _allow(names) | {"comment": purpose}
    for capability, names in ALLOWED_WITH.items():
        yield _allow(names, includes={"caps": [capability]})
    for arches, names in ALLOWED_ON.items():
        yield _allow(names, includes={"arches": list(arches)})
    yield _allow(TRACING, includes={"minKernel": "4.8"})


def _sockets() -> Iterator[dict[str, object]]:
    for operator, family in (("LT", AF_ALG), ("EQ", AF_ALG + 1), ("GT", AF_VSOCK)):
        yield _allow("socket", args=[_compare(0, operator, family)])


def _personalities() -> Iterator[dict[str, object]]:
    for persona in _PERSONALITIES:
        yield _allow("personality", args=[_compare(0, "EQ", persona)])


def _clones() -> Iterator[dict[str, object]]:
    """Processes and threads, but no new namespaces; clone3's flags are out of a filter's reach."""
    caps = ["CAP_SYS_ADMIN"]
    yield _allow(
        "clone",
        args=[_compare(0, "MASKED_EQ", _NAMESPACE_FLAGS)],
        excludes={"caps": caps, "arches": list(S390)},
    )
    yield _allow(
        "clone",
        args=[_compare(1, "MASKED_EQ", _NAMESPACE_FLAGS)],
        includes={"arches": list(S390)},
        excludes={"caps": caps},
    )
    yield {
        "names": ["clone3"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno.ENOSYS,
        "excludes": {"caps": caps},
    }


def _allow(names: str, **more: object) -> dict[str, object]:
    return {"names": names.split(), "action": "SCMP_ACT_ALLOW", **more}


def _compare(index: int, operator: str, value: int) -> dict[str, object]:
    return {"index": index, "op": f"SCMP_CMP_{operator}", "value": value}
