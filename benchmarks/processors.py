"""Processor time of programs that a benchmark started, daemons too.

On a machine that others work on, times on the clock of a program with many threads suffer more than
those of one with a single thread; processor seconds are what each of them costs everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Container

_TICK = os.sysconf("SC_CLK_TCK")


def spent(without: Container[int] = ()) -> float:
    """Processor seconds, user and system, of all below this process, the dead that were waited
    for included, so far. `without`: processes that do not count, nor what is below them.

    What ends unseen between two calls (a grandchild whose parent went first) is lost.
    """
    below: dict[int, list[tuple[int, float]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in without:
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            ticks = sum(map(int, fields[11:15]))  # utime stime cutime cstime, see proc(5)
            below.setdefault(int(fields[1]), []).append((int(name), ticks / _TICK))
    times = os.times()
    total = times.children_user + times.children_system
    todo = [os.getpid()]
    while todo:
        for pid, seconds in below.get(todo.pop(), ()):
            total += seconds
            todo.append(pid)
    return total
