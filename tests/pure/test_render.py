"""Tables and wording of lists."""

from __future__ import annotations

import pytest

from dockpy.cli.render import Listing, ago, columns, ellipsis, json_time, status_text
from dockpy.model import State, Status

NOW = 1_800_000_000.0


def test_columns_are_ten_wide_or_three_wider_than_their_longest_cell() -> None:
    assert columns([["A", "B", "C"], ["long enough", "", "x"], ["s", "t", ""]]) == (
        "A             B         C\nlong enough             x\ns             t         \n"
    )


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "Created"),
        (State(status=Status.RUNNING, started_at=NOW), "Up Less than a second"),
        (State(status=Status.RUNNING, started_at=NOW - 180), "Up 3 minutes"),
        (State(status=Status.RUNNING, started_at=NOW - 60), "Up About a minute"),
        (State(status=Status.RUNNING, started_at=NOW + 60), "Up Less than a second"),
        (State(status=Status.EXITED, finished_at=NOW - 7200), "Exited (0) 2 hours ago"),
        (
            State(status=Status.EXITED, exit_code=137, finished_at=NOW - 3 * 86400),
            "Exited (137) 3 days ago",
        ),
        (State(status=Status.REMOVING), "Removal In Progress"),
        (State(status=Status.DEAD), "Dead"),
    ],
)
def test_a_state_has_dockers_words(state: State, text: str) -> None:
    assert status_text(state, NOW) == text


def test_what_never_was_is_said_so() -> None:
    assert ago(0.0, NOW) == "N/A"
    assert json_time(0.0) == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "expected"), [("abc", "abc"), ("abcd", "abcd"), ("abcde", "abc…"), ("äöüßé", "äöü…")]
)
def test_an_ellipsis_counts_as_a_character(text: str, expected: str) -> None:
    assert ellipsis(text, 4) == expected


LISTING = Listing(headers={"ID": "ID", "Name": "NAME"}, default="{{.ID}}\t{{.Name}}", quiet="ID")
ROWS = [{"ID": "1", "Name": "one"}, {"ID": "2", "Name": "two"}]


@pytest.mark.parametrize(
    ("form", "quiet", "expected"),
    [
        ("", False, "ID        NAME\n1         one\n2         two\n"),
        ("table", False, "ID        NAME\n1         one\n2         two\n"),
        ("", True, "1\n2\n"),
        ("table {{.Name}}", False, "NAME\none\ntwo\n"),
        (r"table {{.Name}}\t{{.ID}}", True, "NAME      ID\none       1\ntwo       2\n"),
        ("{{.Name}}", True, "one\ntwo\n"),
        (r"{{.ID}}\t{{.Name}}", False, "1\tone\n2\ttwo\n"),
        ("json", False, '{"ID":"1","Name":"one"}\n{"ID":"2","Name":"two"}\n'),
        ("{{upper .Name}}", False, "ONE\nTWO\n"),
        ("json {{.ID}}", False, "json 1\njson 2\n"),
    ],
)
def test_a_list_is_shown_as_asked(form: str, quiet: bool, expected: str) -> None:
    assert LISTING.render(ROWS, form=form, quiet=quiet) == expected
