"""Control groups: limits, counters, and the certain end of a container's processes.

`Hierarchies.detect()` says what the host has, `CgroupTree` keeps dockpy's part of it, `Cgroup` is
one container's. docs/cgroups.md lists which limit becomes which file.
"""

from dockpy.cgroups.group import Cgroup, Join
from dockpy.cgroups.hierarchies import Hierarchies
from dockpy.cgroups.limits import DEFAULT_PIDS, MINIMUM_MEMORY, Host, Limits
from dockpy.cgroups.stats import CgroupStats
from dockpy.cgroups.tree import CgroupTree

__all__ = [
    "DEFAULT_PIDS",
    "MINIMUM_MEMORY",
    "Cgroup",
    "CgroupStats",
    "CgroupTree",
    "Hierarchies",
    "Host",
    "Join",
    "Limits",
]
