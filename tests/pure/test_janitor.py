from __future__ import annotations

import threading

from dockpy.janitor import Janitor


def test_jobs_run_in_order_and_drain_waits_for_them() -> None:
    janitor = Janitor()
    done: list[int] = []
    for number in range(100):
        janitor.put(lambda number=number: done.append(number))  # type: ignore[misc]
    janitor.drain()
    janitor.close()
    assert done == list(range(100))


def test_a_job_that_fails_does_not_stop_the_next() -> None:
    janitor = Janitor()
    done: list[str] = []

    def fail() -> None:
        raise ValueError("on purpose")

    janitor.put(fail)
    janitor.put(lambda: done.append("next"))
    janitor.close()
    assert done == ["next"]


def test_no_thread_before_the_first_job() -> None:
    before = threading.active_count()
    janitor = Janitor()
    assert threading.active_count() == before
    janitor.close()


def test_wait_below_blocks_until_the_backlog_is_small() -> None:
    janitor = Janitor()
    gate = threading.Event()
    janitor.put(gate.wait)  # type: ignore[arg-type]
    janitor.put(lambda: None)
    janitor.put(lambda: None)
    threading.Timer(0.05, gate.set).start()
    janitor.wait_below(1)
    assert gate.is_set()
    janitor.close()


def test_all_who_wait_for_room_go_on_whatever_they_wait_for() -> None:
    janitor = Janitor()
    gate = threading.Event()
    janitor.put(gate.wait)  # type: ignore[arg-type]
    for _ in range(5):
        janitor.put(lambda: None)
    waiting = [threading.Thread(target=janitor.wait_below, args=(1 + n % 4, 60)) for n in range(20)]
    for one in waiting:
        one.start()
    gate.set()
    for one in waiting:
        one.join(30)
    assert not any(one.is_alive() for one in waiting)
    janitor.close()


def test_jobs_of_one_key_stay_in_order_while_another_key_is_not_held_up() -> None:
    janitor = Janitor(2)
    gate = threading.Event()
    stuck, free = "a", next(one for one in map(str, range(1000)) if hash(one) % 2 != hash("a") % 2)
    done: list[str] = []
    janitor.put(gate.wait, stuck)  # type: ignore[arg-type]
    janitor.put(lambda: done.append("stuck"), stuck)
    passed = threading.Event()
    janitor.put(passed.set, free)
    assert passed.wait(30)
    assert done == []
    janitor.wait_below(2)  # the stuck lane's thread may not have begun yet
    assert janitor.backlog == 1
    gate.set()
    janitor.drain()
    assert done == ["stuck"]
    janitor.close()
