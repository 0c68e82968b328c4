"""Lines of --change, moments, the page about the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dockpy.cli.change import apply_changes
from dockpy.cli.reference import reference
from dockpy.cli.times import parse_duration, parse_moment
from dockpy.cli.words import expand, split_words
from dockpy.errors import UsageError
from dockpy.model import Config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('CMD ["/bin/sh", "-c", "true"]', Config(cmd=("/bin/sh", "-c", "true"))),
        ("CMD echo hello", Config(cmd=("/bin/sh", "-c", "echo hello"))),
        ("cmd [broken", Config(cmd=("/bin/sh", "-c", "[broken"))),
        ("CMD []", Config()),
        ('ENTRYPOINT ["top", "-b"]', Config(entrypoint=("top", "-b"))),
        ("ENTRYPOINT top -b", Config(entrypoint=("/bin/sh", "-c", "top -b"))),
        ("ENV A=1 B='two words' C=x=y", Config(env=("A=1", "B=two words", "C=x=y"))),
        ("ENV A the rest of it", Config(env=("A=the rest of it",))),
        ("EXPOSE 80 443/TCP 53/udp", Config(exposed_ports=("80/tcp", "443/tcp", "53/udp"))),
        ("EXPOSE 7000-7002", Config(exposed_ports=("7000/tcp", "7001/tcp", "7002/tcp"))),
        ('LABEL a=1 b="x y"', Config(labels={"a": "1", "b": "x y"})),
        ("STOPSIGNAL SIGUSR1", Config(stop_signal="SIGUSR1")),
        ("USER worker:crew", Config(user="worker:crew")),
        ("VOLUME /data /log", Config(volumes=("/data", "/log"))),
        ('VOLUME ["/data"]', Config(volumes=("/data",))),
        ("WORKDIR /srv", Config(working_dir="/srv")),
        ("WORKDIR srv", Config(working_dir="/srv")),
        ("ENV\tA=1", Config(env=("A=1",))),
        ("LABEL 'a b'=c", Config(labels={"a b": "c"})),
        ("# a comment\nENV A=1 \\\n  B=2\n\nUSER me", Config(env=("A=1", "B=2"), user="me")),
    ],
)
def test_an_instruction_presets_its_part(line: str, expected: Config) -> None:
    assert apply_changes(Config(), [line]) == expected


def test_later_instructions_add_to_earlier_ones() -> None:
    lines = ["ENV A=1", "ENV A=2 B=3", "EXPOSE 80", "EXPOSE 80 81", "CMD a", 'CMD ["b"]']
    assert apply_changes(Config(), lines) == Config(
        env=("A=2", "B=3"), exposed_ports=("80/tcp", "81/tcp"), cmd=("b",)
    )
    assert apply_changes(Config(), ["WORKDIR /a", "WORKDIR b/c"]).working_dir == "/a/b/c"


def test_a_new_entry_point_takes_an_old_command_away() -> None:
    """As Docker 20.10 does, and not with an empty one, which is none."""
    old = Config(cmd=("sh", "-c", "make"))
    assert apply_changes(old, ['ENTRYPOINT ["a"]']) == Config(entrypoint=("a",))
    both = Config(entrypoint=("a",), cmd=("b",))
    assert apply_changes(old, ['ENTRYPOINT ["a"]', 'CMD ["b"]']) == both
    assert apply_changes(old, ['CMD ["b"]', 'ENTRYPOINT ["a"]']) == both
    assert apply_changes(old, ["ENTRYPOINT []"]).cmd == old.cmd
    assert apply_changes(both, ["USER me"]) == both.with_(user="me")


def test_instructions_know_the_variables_that_are_set_before_them() -> None:
    """What Docker 20.10 makes of the same lines."""
    lines = [
        "ENV A=1 P=$P:/x Q=${Q:-z} R=${P:+set}",
        "ENV A=2 B=$A",
        "LABEL l=$A m='$A' n=\"$A $B\" o=\\$A",
        *("WORKDIR /w$A", "USER u$B:$A", "EXPOSE 8$A", 'VOLUME ["/v$A"]', "CMD echo $A"),
    ]
    assert apply_changes(Config(env=("P=/p",)), lines) == Config(
        env=("P=/p:/x", "A=2", "Q=z", "R=set", "B=1"),
        labels={"l": "2", "m": "$A", "n": "2 1", "o": "$A"},
        working_dir="/w2",
        user="u1:2",
        exposed_ports=("82/tcp",),
        volumes=("/v2",),
        cmd=("/bin/sh", "-c", "echo $A"),
    )


VARIABLES = {"A": "1", "E": "", "S": "two 'words"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a$A${A}b$A.c", "a11b1.c"),
        ("$NONE|${NONE}|${NONE:-x}|${E:-x}|${A:-x}", "||x|x|1"),
        ("${NONE:+x}|${E:+x}|${A:+x}|${A:+}", "||x|"),
        ("${NONE:-${E:-$A}}", "1"),
        ("'$A'\"$A\"\\$A", "$A1$A"),
        ('"a\\"b\\\\c\\d\\$A"', 'a"b\\c\\d$A'),
        ("'a\\b'", "a\\b"),
        ("a\\ b\\c", "a bc"),
        ("$S", "two 'words"),
        ("$ $. 5$ $1", "$ $. 5$ $1"),
        ("end\\", "end\\"),
    ],
)
def test_quotes_go_and_variables_are_replaced(text: str, expected: str) -> None:
    assert expand(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  a  b\tc ", ["a", "b", "c"]),
        ("a='x y' \"b c\"=d e\\ f", ["a='x y'", '"b c"=d', "e\\ f"]),
        ('"a\\" b" \'c\\\' d', ['"a\\" b"', "'c\\'", "d"]),
    ],
)
def test_words_end_at_spaces_that_are_not_quoted(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RUN ls", "'RUN' is not one of CMD"),
        ("", "there is no instruction in it"),
        ("CMD", "CMD needs a value"),
        ("ENV A", "key=value expected"),
        ("ENV A=1 B", "'B' is not key=value"),
        ("ENV A='1", "No closing quotation"),
        ("EXPOSE http", "'http' is not a port"),
        ("EXPOSE 70000", "ports go from 1 to 65535"),
        ("VOLUME data", "'data' is not an absolute path"),
        ("CMD [1]", "texts in double quotes only"),
        ("ENV A=${B", "not closed by '}'"),
        ("ENV A=${B?x}", "only :- and :+ may follow a name"),
        ("ENV A=${}", "the name of a variable expected"),
        ("ENV A=" + "${B:-" * 30 + "}" * 30, "too deep"),
        ("STOPSIGNAL HELLO", "HELLO"),
    ],
)
def test_a_wrong_instruction_is_named(line: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_changes(Config(), [line])
    assert str(caught.value).startswith(f"--change {line!r}: ")
    assert expected in str(caught.value)


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", 1_700_000_000.0),
        ("1700000000.123456789", 1_700_000_000.123456789),
        ("2026-01-02T03:04:05Z", 1_767_323_045.0),
        ("2026-01-02T03:04:05.250Z", 1_767_323_045.25),
        ("2026-01-02T03:04:05+01:00", 1_767_319_445.0),
        ("2026-01-02T03:04Z", 1_767_323_040.0),
        ("2026-01-02Z", 1_767_312_000.0),
        ("10m", NOW - 600),
        ("1h30m", NOW - 5400),
        ("1.5s", NOW - 1.5),
        ("250ms", NOW - 0.25),
        ("-5m", NOW + 300),
        ("0", 0.0),
    ],
)
def test_a_moment_is_read_in_all_its_forms(text: str, expected: float) -> None:
    assert parse_moment("--since", text, NOW) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("text", ["", "soon", "10", "10x", "m", "1h30", "2026-13-01Z", "--1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "2026-01-02T25:00Z", "10x"])
def test_what_is_no_moment_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--until "):
        parse_moment("--until", text, NOW)


def test_the_page_about_the_command_line_is_made_from_the_option_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text() == reference()
