"""Work that several callers wait for and that is done once.

The first to ask for a key starts the job, in a thread of its own; others join it. Who does not want
it any more leaves; when the last has left, a job that still runs is cancelled, and when it has
ended too, its value is disposed of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from dockpy.registry.cancellation import Cancellation
from dockpy.registry.progress import Event, Listener

T = TypeVar("T")


class Job(Generic[T]):
    """One piece of work on a value. `tell` passes an event on to everybody who waits."""

    def __init__(self, value: T) -> None:
        self.value = value
        self.cancellation = Cancellation()
        self._changed = threading.Condition()
        self._listeners: dict[object, Listener] = {}
        self._last: Event | None = None
        self._done = False
        self._failure: BaseException | None = None

    def tell(self, event: Event) -> None:
        with self._changed:
            self._last = event
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener(event)

    def listen(self, key: object, listener: Listener) -> None:
        with self._changed:
            self._listeners[key] = listener
            last = self._last
        if last is not None:
            listener(last)

    def unlisten(self, key: object) -> None:
        with self._changed:
            self._listeners.pop(key, None)

    def finish(self, failure: BaseException | None) -> None:
        with self._changed:
            self._failure, self._done = failure, True
            self._changed.notify_all()

    @property
    def done(self) -> bool:
        with self._changed:
            return self._done

    def wait(self, cancellation: Cancellation) -> T:
        """The value once the work is done. Raises what the job failed with, and Cancelled."""
        with cancellation.waking(self._wake), self._changed:
            self._changed.wait_for(lambda: self._done or cancellation.cancelled)
            if not self._done:
                cancellation.check()
            if self._failure is not None:
                raise self._failure
            return self.value

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Ticket(Generic[T]):
    """One caller's interest in a job. Use as a context: leaving it ends the interest."""

    def __init__(self, jobs: Jobs[T], key: Hashable, job: Job[T], *, first: bool) -> None:
        self.job = job
        self.first = first
        """Whether this caller started it."""
        self._jobs = jobs
        self._key = key

    def __enter__(self) -> Ticket[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def value(self) -> T:
        """What the job works on; there at once."""
        return self.job.value

    def wait(self, cancellation: Cancellation) -> T:
        return self.job.wait(cancellation)

    def leave(self) -> None:
        """May be called twice."""
        self.job.unlisten(self)
        self._jobs.leave(self._key, self)


class Jobs(Generic[T]):
    """The jobs of one kind. Thread-safe. `dispose` gets each value once, when all is over."""

    def __init__(self, name: str, dispose: Callable[[T], None] = lambda _value: None) -> None:
        self._name = name
        self._dispose = dispose
        self._lock = threading.Lock()
        self._current: dict[Hashable, Job[T]] = {}
        self._tickets: dict[Job[T], set[Ticket[T]]] = {}
        self._threads: set[threading.Thread] = set()

    def join(
        self,
        key: Hashable,
        make: Callable[[], T],
        work: Callable[[Job[T]], None],
        listener: Listener = lambda _event: None,
    ) -> Ticket[T]:
        """Take part in the job of that key.

        `make` gives its value and `work` does it, when nobody does it yet. `make` must be quick.
        """
        thread = None
        with self._lock:
            job = self._current.get(key)
            first = job is None
            if job is None:
                job = self._current[key] = Job(make())
                self._tickets[job] = set()
                thread = threading.Thread(
                    target=self._run, args=(key, job, work), name=self._name, daemon=True
                )
                self._threads.add(thread)
            ticket = Ticket(self, key, job, first=first)
            self._tickets[job].add(ticket)
        job.listen(ticket, listener)
        if thread is not None:
            thread.start()
        return ticket

    def leave(self, key: Hashable, ticket: Ticket[T]) -> None:
        """A caller has lost interest."""
        job = ticket.job
        with self._lock:
            tickets = self._tickets.get(job)
            if tickets is None or ticket not in tickets:
                return
            tickets.discard(ticket)
            if tickets:
                return
            if self._current.get(key) is job:
                del self._current[key]
            done = job.done
            if done:
                del self._tickets[job]
        if done:
            self._dispose(job.value)
        else:
            job.cancellation.cancel()

    def close(self) -> None:
        """Cancel what runs, and wait for it."""
        with self._lock:
            running = list(self._tickets)
            threads = list(self._threads)
        for job in running:
            job.cancellation.cancel()
        for thread in threads:
            thread.join()

    def _run(self, key: Hashable, job: Job[T], work: Callable[[Job[T]], None]) -> None:
        failure = None
        try:
            work(job)
        except BaseException as reason:  # raised again where it is waited for
            failure = reason
        with self._lock:
            if failure is not None and self._current.get(key) is job:
                del self._current[key]  # the next caller tries again
            job.finish(failure)
            abandoned = not self._tickets[job]
            if abandoned:
                del self._tickets[job]
            self._threads.discard(threading.current_thread())
        if abandoned:
            self._dispose(job.value)
