from collections.abc import Sequence

EXITED: int
ATTACHMENT_CLOSED: int
LOG_FAILED: int
STDIN_CLOSED: int
JOURNAL_SIZE: int

class Pump:
    @property
    def event_fd(self) -> int: ...
    def __init__(self, staging: Sequence[int], journal: int) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def events(self) -> list[tuple[int, int, int, float]]: ...
    def add(
        self,
        key: int,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        tty: int,
        log_path: bytes,
        log_max_size: int,
        log_max_file: int,
        stdin_once: bool,
    ) -> None: ...
    def watch(self, key: int, pidfd: int) -> None: ...
    def remove(self, key: int) -> None: ...
    def attach(
        self,
        key: int,
        attachment: int,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        detach_keys: bytes,
    ) -> None: ...
    def detach(self, attachment: int) -> None: ...
    def close_stdin(self, key: int) -> None: ...
    def duplicates(self, key: int) -> tuple[int, int, int, int, int]: ...

def escapable_copy(source: int, target: int, keys: bytes) -> tuple[int, bool, int]: ...
