"""bpf(2) for the v2 device controller: load a program, attach, list and detach it.

Failures come back as numbers (a negative or plain errno); devices.py makes exceptions of them.
Descriptors made here are close-on-exec, as the kernel makes all bpf descriptors.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport close

cdef extern from "<linux/bpf.h>" nogil:
    enum:
        BPF_PROG_LOAD
        BPF_PROG_ATTACH
        BPF_PROG_DETACH
        BPF_PROG_QUERY
        BPF_PROG_GET_FD_BY_ID
        BPF_PROG_TYPE_CGROUP_DEVICE
        BPF_CGROUP_DEVICE
        BPF_F_ALLOW_MULTI

    struct _Query "bpf_attr_query_unused":
        uint32_t target_fd
        uint32_t attach_type
        uint64_t prog_ids
        uint32_t prog_cnt

    union bpf_attr:
        uint32_t prog_type
        uint32_t insn_cnt
        uint64_t insns
        uint64_t license
        uint32_t log_level
        uint32_t log_size
        uint64_t log_buf
        uint32_t target_fd
        uint32_t attach_bpf_fd
        uint32_t attach_type
        uint32_t attach_flags
        uint32_t prog_id
        _Query query

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_bpf

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    INSTRUCTION_SIZE = 8
    MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS: the kernel attaches no more to one group

cdef int call(int command, bpf_attr *attr) noexcept nogil:
    """The call's result, or a negative errno."""
    cdef long result = syscall(SYS_bpf, command, attr, sizeof(bpf_attr))
    return <int>result if result >= 0 else -errno

cdef int load(const char *instructions, size_t length, char *log, uint32_t log_size) noexcept nogil:
    cdef bpf_attr attr
    memset(&attr, 0, sizeof(attr))
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE
    attr.insns = <uintptr_t>instructions
    attr.insn_cnt = <uint32_t>(length // INSTRUCTION_SIZE)
    attr.license = <uintptr_t><const char *>b"Apache-2.0"
    if log_size:
        attr.log_level = 1
        attr.log_buf = <uintptr_t>log
        attr.log_size = log_size
    return call(BPF_PROG_LOAD, &attr)

def load_device_program(bytes instructions not None):
    cdef const char *start = instructions
    cdef size_t length = len(instructions)
    cdef int result
    if length % INSTRUCTION_SIZE:
        raise ValueError("a program is a whole number of 8-byte instructions")
    with nogil:
        result = load(start, length, NULL, 0)
    return result

def verifier_log(bytes instructions not None):
    cdef const char *start = instructions
    cdef size_t length = len(instructions)
    cdef bytearray text = bytearray(65536)
    cdef char *log = text
    cdef int result
    with nogil:
        result = load(start, length, log, 65536)
        if result >= 0:
            close(result)
    return bytes(text).split(b"\0", 1)[0].decode("utf-8", "replace")

def attach_device_program(int directory, int program):
    cdef bpf_attr attr
    cdef int result
    memset(&attr, 0, sizeof(attr))
    attr.target_fd = directory
    attr.attach_bpf_fd = program
    attr.attach_type = BPF_CGROUP_DEVICE
    attr.attach_flags = BPF_F_ALLOW_MULTI
    with nogil:
        result = call(BPF_PROG_ATTACH, &attr)
    return -result

def detach_device_program(int directory, int program):
    cdef bpf_attr attr
    cdef int result
    memset(&attr, 0, sizeof(attr))
    attr.target_fd = directory
    attr.attach_bpf_fd = program
    attr.attach_type = BPF_CGROUP_DEVICE
    with nogil:
        result = call(BPF_PROG_DETACH, &attr)
    return -result

def device_programs(int directory):
    cdef bpf_attr attr
    cdef uint32_t ids[MOST_PROGRAMS]
    cdef int result
    memset(&attr, 0, sizeof(attr))
    attr.query.target_fd = directory
    attr.query.attach_type = BPF_CGROUP_DEVICE
    attr.query.prog_ids = <uintptr_t>&ids[0]
    attr.query.prog_cnt = MOST_PROGRAMS
    with nogil:
        result = call(BPF_PROG_QUERY, &attr)
    if result < 0:
        return -result
    cdef uint32_t count = attr.query.prog_cnt
    found = []
    for index in range(count):
        memset(&attr, 0, sizeof(attr))
        attr.prog_id = ids[index]
        result = call(BPF_PROG_GET_FD_BY_ID, &attr)
        if result < 0:
            for fd in found:
                close(fd)
            return -result
        found.append(result)
    return found
