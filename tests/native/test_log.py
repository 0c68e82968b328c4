"""The log's encoder and decoder beside the slow reference."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from pathlib import Path

import pytest

from dockpy._log import LONGEST_PART, copy_entries, encode, timestamp
from reference import json_log

ALPHABET = [
    *(bytes([value]) for value in range(256)),
    *(text.encode() for text in ("é", "€", "😀", "\u2028", "\ufffd", "plain text ", "\n")),
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
]


def noise(chance: random.Random, length: int, newlines: float) -> bytes:
    pieces = [
        b"\n" if chance.random() < newlines else chance.choice(ALPHABET) for _ in range(length)
    ]
    return b"".join(pieces)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_encoder_writes_what_the_reference_writes(seed: int, partial: bool) -> None:
    chance = random.Random(seed)
    data = noise(chance, chance.choice([0, 1, 5, 40, 3000]), chance.choice([0.0, 0.02, 0.3]))
    moment = chance.randrange(1 << 32), chance.randrange(10**9)
    assert encode(data, b"stdout", partial, *moment) == json_log.encode(
        data, b"stdout", partial, *moment
    )


@pytest.mark.parametrize("size", range(LONGEST_PART - 5, LONGEST_PART + 6))
@pytest.mark.parametrize("filler", [b"x", b'"', "€".encode(), b"\xff"])
def test_lines_about_as_long_as_a_part_are_split_as_the_reference_does(
    size: int, filler: bytes
) -> None:
    data = (filler * (size // len(filler) + 1))[:size] + "é\nnext\n".encode()
    for partial in (False, True):
        assert encode(data, b"stderr", partial, 1, 2) == json_log.encode(
            data, b"stderr", partial, 1, 2
        )


@pytest.mark.parametrize("value", range(256))
def test_every_byte_value_survives_as_json(value: int) -> None:
    data = b"before" * 3 + bytes([value]) + b"after" * 3 + b"\n"
    entries, taken = encode(data, b"stdout", True, 0, 0)
    assert taken == len(data)
    text = "".join(json.loads(line)["log"] for line in entries.splitlines())
    assert text == json_log.marked(data)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_of_any_size_give_the_text_of_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    data = noise(chance, 2000, 0.02) + b"\n"
    rest = data
    kept = b""
    text = ""
    while rest:
        size = chance.randrange(1, 200)
        chunk, rest = kept + rest[:size], rest[size:]
        entries, taken = encode(chunk, b"stdout", chance.random() < 0.5, 0, 0)
        kept = chunk[taken:]
        text += "".join(json.loads(line)["log"] for line in entries.splitlines())
    assert kept == b""
    assert text == json_log.marked(data)


@pytest.mark.parametrize(
    "seconds", [0, 951782400, 951868799, 1709164800, 4107542399, 253402300799, 2**31, 86399]
)
def test_times_are_those_of_the_calendar(seconds: int) -> None:
    assert timestamp(seconds, 123456789) == json_log.timestamp(seconds, 123456789)


@pytest.mark.parametrize("seed", range(200))
def test_any_day_is_the_calendar_s(seed: int) -> None:
    seconds = random.Random(seed).randrange(253402300800)
    assert timestamp(seconds, seed) == json_log.timestamp(seconds, seed)


# -- and back ----------------------------------------------------------------------------------


def copied(
    tmp_path: Path, log: bytes, since: str = "", until: str = "", stamps: bool = False
) -> tuple[str, str, tuple[int, bool, int, int]]:
    """stdout's and stderr's text, and what the copy says."""
    (tmp_path / "log").write_bytes(log)
    ends = [
        os.open(tmp_path / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY) for name in ("out", "err")
    ]
    source = os.open(tmp_path / "log", os.O_RDONLY)
    said = copy_entries(source, *ends, since.encode(), until.encode(), stamps, 0)
    for one in (*ends, source):
        os.close(one)
    out, err = ((tmp_path / name).read_bytes().decode() for name in ("out", "err"))
    return out, err, said


@pytest.mark.parametrize("seed", range(15))
def test_decoder_reads_what_the_reference_reads(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    log = b""
    for second in range(60):
        data = noise(chance, chance.choice([1, 30, 800]), 0.05) + b"\n"
        stream = chance.choice([b"stdout", b"stderr"])
        log += encode(data, stream, True, second, chance.randrange(10**9))[0]
        if chance.random() < 0.2:
            log += (
                json.dumps(  # other writers escape more, and have other members
                    {
                        "log": "<&>\b\f😀\ud800 é\n",
                        "stream": stream.decode(),
                        "attrs": {"time": "not this", "stream": "nor this"},
                        "time": timestamp(second, 0),
                    }
                )
                .encode()
                .replace(b", ", b",")
                .replace(b": ", b":")
                + b"\n"
            )
    expected = {
        stream: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for stream, text in json_log.messages(log).items()
    }
    out, err, said = copied(tmp_path, log)
    assert out == expected["stdout"]
    assert err == expected["stderr"]
    assert said[:3] == (len(log), False, 0)


def test_only_the_time_asked_for_is_copied_both_ends_included(tmp_path: Path) -> None:
    log = b"".join(encode(b"%d\n" % n, b"stdout", False, n, 500)[0] for n in range(10))
    out, _, said = copied(tmp_path, log, since=timestamp(3, 500), until=timestamp(6, 500))
    assert out == "3\n4\n5\n6\n"
    assert said[1]


def test_fractions_of_other_lengths_compare_as_times(tmp_path: Path) -> None:
    lines = [
        f'{{"log":"{name}\\n","stream":"stdout","time":"2026-01-02T03:04:05{fraction}Z"}}\n'
        for name, fraction in [("a", ""), ("b", ".2"), ("c", ".25"), ("d", ".3")]
    ]
    out, _, _ = copied(tmp_path, "".join(lines).encode(), since="2026-01-02T03:04:05.200000000Z")
    assert out == "b\nc\nd\n"


def test_times_stand_before_whole_lines_only(tmp_path: Path) -> None:
    parts = [(b"a", b"stdout"), (b"error", b"stderr"), (b"b\nc\n", b"stdout"), (b"!\n", b"stderr")]
    log = b"".join(encode(data, stream, True, 1, 0)[0] for data, stream in parts)
    out, err, _ = copied(tmp_path, log, stamps=True)
    stamp = timestamp(1, 0)
    assert out == f"{stamp} ab\n{stamp} c\n"
    assert err == f"{stamp} error!\n"


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 700_000,
        b"x" * 700_000 + b"\n",
        b"not json\n",
        b'{"log":"torn\n',
        b'{"log":"torn \\u00',
        b'{"log":"torn","stre',
        b'{"log":"torn","stream":"stdout","ti',
        b"{}\n\n",
    ],
)
def test_what_a_crash_left_is_passed_over_and_the_next_entry_read(
    tmp_path: Path, junk: bytes
) -> None:
    before, after = (encode(one, b"stdout", False, 1, 0)[0] for one in (b"before\n", b"after\n"))
    out, err, said = copied(tmp_path, before + junk + after)
    assert (out, err) == ("before\nafter\n", "")
    assert said[2] == 0


def test_unfinished_last_line_is_left_for_the_next_time(tmp_path: Path) -> None:
    whole, _ = encode(b"whole\n", b"stdout", False, 1, 0)
    out, _, said = copied(tmp_path, whole + whole[:30])
    assert out == "whole\n"
    assert said[0] == len(whole)


def test_reader_that_has_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(encode(b"text\n", b"stdout", False, 1, 0)[0])
    reader, writer = os.pipe()
    os.close(reader)
    source = os.open(tmp_path / "log", os.O_RDONLY)
    assert copy_entries(source, writer, -1, b"", b"", False, 0)[2] == errno.EPIPE
    os.close(writer)
    os.close(source)


def test_target_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % n for n in range(100_000))
    (tmp_path / "log").write_bytes(encode(data, b"stdout", False, 1, 0)[0])
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 50_000):
            got.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    source = os.open(tmp_path / "log", os.O_RDONLY)
    said = copy_entries(source, writer, -1, b"", b"", False, 0)
    os.close(writer)
    thread.join()
    os.close(reader)
    os.close(source)
    assert said[2] == 0
    assert got == data
