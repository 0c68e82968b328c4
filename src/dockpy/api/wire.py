"""Frames between the client and the daemon, over a Unix stream socket. Pure, and imports nothing:
the client pays for every import.

A frame is one letter, four bytes of length (big-endian) and that many bytes. The first frame of a
connection asks for something and carries descriptors of stdin, stdout, stderr and the working
directory; what follows goes both ways until the daemon's `EXIT`.
"""

VERSION = b"1"

RUN = b"R"
"""Client: a command line. Fields: version, terminal flags, rows, columns, number of arguments,
arguments, then NAME=VALUE of the environment."""
RESUME = b"A"
"""Client: its daemon was lost while a container ran in the foreground; wait on. Fields: version,
the container's id."""
SIGNAL = b"S"
"""Client: it got a signal; its number in digits."""
WINDOW = b"W"
"""Client: rows and columns of its window, in digits with a space between."""

EXIT = b"X"
"""Daemon: leave with this code, in digits."""
RAW = b"T"
"""Daemon: terminal to raw mode (1) or back (0)."""
CONTAINER = b"I"
"""Daemon: the id of the container the command stays with; empty when it no longer does."""
STDIN = b"N"
"""Daemon: a container takes the client's input from now on."""

HEADER = 5
LONGEST = 8 << 20
"""No frame is longer; the kernel's own limit for arguments and environment is 6 MiB."""
MOST_FIELDS = 100_000


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame."""
    return kind + len(payload).to_bytes(4, "big") + payload


def length(header: bytes) -> int:
    """How many bytes follow a header."""
    return int.from_bytes(header[1:HEADER], "big")


def request(argv: list[bytes], env: list[bytes], flags: bytes, rows: int, columns: int) -> bytes:
    """The payload of `RUN`; `flags` has a letter for each of stdin (i) and stdout (o) that is a
    terminal. Arguments cannot hold a NUL, so NUL divides them."""
    head = [VERSION, flags, b"%d" % rows, b"%d" % columns, b"%d" % len(argv)]
    return b"\0".join([*head, *argv, *env])


class BadFrame(Exception):
    """Bytes that are not what this protocol says."""


def parse_request(payload: bytes) -> tuple[list[bytes], list[bytes], bytes, int, int]:
    """Arguments, environment, flags, rows and columns of a `RUN`. BadFrame."""
    fields = payload.split(b"\0", MOST_FIELDS)
    if len(fields) < 5 or len(fields) > MOST_FIELDS:
        raise BadFrame("a request has at least five fields")
    version, flags, rows, columns, count = fields[:5]
    if version != VERSION:
        raise BadFrame("client and daemon are of different versions; restart the daemon")
    if not (rows.isdigit() and columns.isdigit() and count.isdigit()):
        raise BadFrame("a request's figures are not figures")
    if max(len(rows), len(columns)) > 5 or int(count) > len(fields) - 5:
        raise BadFrame("a request's figures are out of range")
    arguments = int(count)
    return fields[5 : 5 + arguments], fields[5 + arguments :], flags, int(rows), int(columns)
