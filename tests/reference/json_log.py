"""The log encoder, slow and obvious: bytes of output to lines of JSON, and those back."""

from __future__ import annotations

import codecs
import datetime
import json

LONGEST = 16384
SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def timestamp(seconds: int, nanoseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z".rjust(30, "0")


def character(data: bytes, at: int) -> int:
    """Length of the UTF-8 character at `at`, 0 when it is none, -1 when it is cut off."""
    if data[at] < 0x80:
        return 1
    for size in range(2, 5):
        try:
            data[at : at + size].decode()
        except UnicodeDecodeError:
            continue
        return size if at + size <= len(data) else -1
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return -1 if decoder.decode(data[at : at + 4]) == "" else 0
    except UnicodeDecodeError:
        return 0


def escaped(text: str) -> str:
    return "".join(
        SHORT[one] if one in SHORT else f"\\u{ord(one):04x}" if ord(one) < 32 else one
        for one in text
    )


def encode(
    data: bytes, stream: bytes, partial: bool, seconds: int, nanoseconds: int
) -> tuple[bytes, int]:
    """Entries, and how many bytes they hold; an unfinished line only if `partial`."""
    entries = bytearray()
    start = 0
    while start < len(data):
        at = start
        pieces = []
        whole = False
        while not whole and at < len(data):
            size = character(data, at)
            if size < 0 or at - start + max(size, 1) > LONGEST:
                break
            # A byte that is no character is marked; the mark is written as an escape.
            pieces.append(escaped(data[at : at + size].decode()) if size else "\\ufffd")
            whole = data[at : at + 1] == b"\n"
            at += max(size, 1)
        if at == start or not (whole or partial or at - start >= LONGEST - 3):
            break
        entries += (
            f'{{"log":"{"".join(pieces)}","stream":"{stream.decode()}",'
            f'"time":"{timestamp(seconds, nanoseconds)}"}}\n'
        ).encode()
        start = at
    return bytes(entries), start


def marked(data: bytes) -> str:
    """The text of bytes, with one U+FFFD for each that belongs to no character."""
    text = []
    at = 0
    while at < len(data):
        size = character(data, at)
        text.append(data[at : at + size].decode() if size > 0 else "\ufffd")
        at += max(size, 1)
    return "".join(text)


def messages(log: bytes, since: str = "", until: str = "~") -> dict[str, str]:
    """Text by stream; lines that are not entries are passed over."""
    texts = {"stdout": "", "stderr": ""}
    for line in log.split(b"\n"):
        try:
            entry = json.loads(line.lstrip(b"\0"))
        except ValueError:
            continue
        if entry["time"] > until:
            break
        if entry["time"] >= since:
            texts[entry["stream"]] += entry["log"]
    return texts
