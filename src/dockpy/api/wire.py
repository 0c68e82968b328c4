"""What client and daemon say to each other. Pure, and quick to import: no module at all.

The socket is a Unix SEQPACKET one: a packet comes whole or not at all, so nobody waits for the
other half of a message, and one byte written by the kernel's signal handler is a message too.

Client to daemon: first one request, with descriptors 0, 1, 2, the working directory, then (flag
TERMINAL) the terminal whose keys the client forwards through the descriptor sent as stdin, then
(flag SPILLED) a memfd that holds the words when they do not fit a packet. After that one packet of
one byte for each signal the client gets (`signal.set_wakeup_fd` writes just that).

    magic 6, protocol 1, kind 1, flags 1, number of arguments 4, of environment entries 4,
    then every word with a NUL behind it. Numbers are little-endian.

Daemon to client: packets whose first byte tells what they are (EXIT ... CLOSING).
"""

MAGIC = b"dockpy"
PROTOCOL = 1
"""Changes when a client and a daemon of different versions would misunderstand each other."""
HEADER = 17
PACKET_LIMIT = 60_000
"""Bytes of one packet; safely below any socket buffer's size."""
REQUEST_LIMIT = 8 << 20
"""Bytes of all words; execve(2) gives a process at most 6 MiB of arguments and environment."""
WORD_LIMIT = 1 << 18
"""Number of words; each takes at least a NUL and a pointer of execve's space."""
DESCRIPTOR_LIMIT = 6

RUN, RESUME = 1, 2
"""RUN: the arguments are a command line. RESUME: they are what FOLLOW told."""
TERMINAL, SPILLED, READING, TRACED = 1, 2, 4, 8
"""READING: this client was told STDIN already. TRACED: it asks for a timeline if the command is to
be traced (see `trace`); DOCKPY_TRACE_BEGAN and _UP in its environment tell when its process began
and when its interpreter was up, in nanoseconds of CLOCK_MONOTONIC."""

EXIT = b"x"
"""One byte more: leave with this code."""
RAW, COOKED = b"R", b"c"
"""Switch the terminal to raw mode, and say IS_RAW when it is; switch it back."""
IS_RAW = b"\0"
"""From the client, where no signal has that number: what the program writes next is shown raw,
and keys typed in answer to it are the program's."""
STDIN = b"i"
"""Begin to forward the terminal's keys."""
FOLLOW = b"f"
"""The rest: arguments for RESUME, in case this daemon dies."""
SAY = b"s"
"""The rest: text for standard error."""
TRACE = b"t"
"""Just before EXIT, the timeline: when it begins and ends, in nanoseconds, a newline, the table."""
CLOSING = b"q"
"""This daemon is ended on purpose: wait for another one, start none."""


class WireError(ValueError):
    """A request that no client of this protocol sends; the text is for the client's user."""


class Request:
    """What a client asks."""

    __slots__ = ("argv", "env", "flags", "kind")

    def __init__(self, kind: int, flags: int, argv: list[bytes], env: list[bytes]) -> None:
        self.kind = kind
        self.flags = flags
        self.argv = argv
        self.env = env


def pack(request: Request) -> tuple[bytes, bytes]:
    """The packet, and the words that go into a memfd (b"": all is in the packet).

    WireError when the words are too many or too large.
    """
    words = join([*request.argv, *request.env])
    if len(words) > REQUEST_LIMIT or len(request.argv) + len(request.env) > WORD_LIMIT:
        raise WireError("the arguments and the environment are too large together")
    spilled = len(words) > PACKET_LIMIT - HEADER
    flags = request.flags & ~SPILLED | (SPILLED if spilled else 0)
    head = (
        MAGIC
        + bytes((PROTOCOL, request.kind, flags))
        + len(request.argv).to_bytes(4, "little")
        + len(request.env).to_bytes(4, "little")
    )
    return (head, words) if spilled else (head + words, b"")


def flags_of(packet: bytes) -> int:
    """The flags of a request: how many descriptors come with it. WireError as `unpack`."""
    if packet[:6] != MAGIC or len(packet) < HEADER:
        raise WireError("this is not a dockpy client")
    if packet[6] != PROTOCOL:
        raise WireError(
            f"client and daemon are of different versions (protocols {packet[6]} and {PROTOCOL}); "
            "restart the daemon: its containers go on"
        )
    return packet[8]


def descriptors_of(flags: int) -> int:
    """How many descriptors a request with these flags brings."""
    return 4 + bool(flags & TERMINAL) + bool(flags & SPILLED)


def unpack(packet: bytes, spilled: bytes = b"") -> Request:
    """The request in a packet and in its memfd. WireError unless it is exactly one."""
    flags = flags_of(packet)
    argc = int.from_bytes(packet[9:13], "little")
    envc = int.from_bytes(packet[13:17], "little")
    words = spilled if flags & SPILLED else packet[HEADER:]
    if argc + envc > WORD_LIMIT or len(words) > REQUEST_LIMIT:
        raise WireError("the request is too large")
    if packet[7] not in (RUN, RESUME) or (flags & SPILLED and len(packet) != HEADER):
        raise WireError("the request makes no sense")
    found = split(words)
    if len(found) != argc + envc:
        raise WireError("the request is torn")
    return Request(packet[7], flags, found[:argc], found[argc:])


def join(words: list[bytes]) -> bytes:
    """Each word with a NUL behind it. WireError when one holds a NUL."""
    text = b"\0".join([*words, b""])
    if text.count(b"\0") != len(words):
        raise WireError("a word holds a NUL")
    return text


def split(text: bytes) -> list[bytes]:
    """The words `join` joined. WireError when the last NUL is missing."""
    words = text.split(b"\0")
    if words.pop():
        raise WireError("the request is torn")
    return words
