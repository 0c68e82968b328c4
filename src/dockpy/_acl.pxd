# Access control lists as text, to the attributes Linux keeps them in: see _acl.pyx.

from libc.stdint cimport int64_t

from dockpy._walk cimport Buffer

# Adds the attribute's value to `value`. `unnamed` counts entries left out because they name users or
# groups by names alone. 0, -1 for a text that does not parse, or ENOMEM.
cdef int acl_value(const char *text, size_t size, Buffer *value, int64_t *unnamed) noexcept nogil
