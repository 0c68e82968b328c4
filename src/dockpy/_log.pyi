LONGEST_PART: int

def encode(
    data: bytes, stream: bytes, partial: bool, seconds: int, nanoseconds: int
) -> tuple[bytes, int]: ...
def timestamp(seconds: int, nanoseconds: int) -> str: ...
def copy_entries(
    source: int,
    stdout: int,
    stderr: int,
    since: bytes,
    until: bytes,
    timestamps: bool,
    inside: int,
) -> tuple[int, bool, int, int]: ...
def watch(directory: bytes) -> tuple[int, int]: ...
