"""What a run of the benchmarks writes, reads back, and takes from tables that were printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import __main__ as run
from benchmarks import figures
from benchmarks.figures import Figures, Group, NotFigures, Row
from benchmarks.groups import GROUPS, Asked, Module
from benchmarks.samples import Samples, table


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = (Row("a b", "ms", 2, 1.0, 1.5, 2.0, 2.0, (1.0, 2.0)),)
    groups = [Group("cli", "title", "a b", rows, (figures.Step("child", "clone", 2.0, 0.5),))]
    written = Figures({"kernel": "6"}, "2026", "abc", groups, ["b: skipped"], ["c"])
    written.write(tmp_path / "run.json")
    assert Figures.read(tmp_path / "run.json") == written


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(NotFigures, match="format 2, this reads 1"):
        Figures.read(path)


def test_a_printed_table_gives_its_rows_and_reference() -> None:
    rows = [Samples("docker pull", [100.0, 300.0, 200.0]), Samples("dockpy pull", [50.0, 60.0])]
    nothing = Samples("podman pull")
    text = ["noise", *table("pull, 4 layers", [*rows, nothing], rows[0]).splitlines(), "more noise"]
    (group,) = figures.from_text("pull", text)
    assert (group.name, group.title, group.reference) == ("pull", "pull, 4 layers", "docker pull")
    assert [(one.name, one.n, one.median) for one in group.rows] == [
        ("docker pull", 3, 200.0),
        ("dockpy pull", 2, 55.0),
    ]
    assert group.ratio(group.rows[1]) == pytest.approx(0.275)


def test_tables_after_each_other_are_groups_of_their_own() -> None:
    one, two = Samples("a", [1.0]), Samples("b", [2.0], "/s")
    text = [*table("first", [one]).splitlines(), *table("second", [two]).splitlines()]
    found = figures.from_text("x", text)
    assert [(group.title, group.reference) for group in found] == [
        ("first", None),
        ("second", None),
    ]


def test_a_record_without_a_reference_has_it_in_its_first_row() -> None:
    record = {"title": "t", "rows": [Samples("a", [1.0]).record(), Samples("b", [2.0]).record()]}
    assert Group.of("wire", record).reference == "a"
    assert Group.of("wire", {**record, "reference": None}).reference is None


def test_rows_of_another_unit_have_no_ratio() -> None:
    a, b = Samples("a", [1.0]), Samples("b", [2.0], "/s")
    group = Group.of("x", figures.group_record("t", [a, b], a))
    assert group.ratio(group.rows[1]) is None


def test_what_has_no_sample_is_not_written() -> None:
    record = figures.group_record("t", [Samples("a")], Samples("a"))
    assert (record["rows"], record["reference"]) == ([], None)


def test_short_runs_leave_out_what_takes_long() -> None:
    short = {one.name for one in GROUPS if run.chosen(one, [], short=True)}
    usual = {one.name for one in GROUPS if run.chosen(one, [], short=False)}
    assert {"start", "cli", "burst", "streams", "density"} <= short < usual
    assert usual < {one.name for one in GROUPS}


def test_named_groups_run_and_no_others() -> None:
    assert [one.name for one in GROUPS if run.chosen(one, ["store"], short=True)] == ["store"]


def test_groups_that_need_a_root_say_so_without_one() -> None:
    refused = [one.name for one in GROUPS if isinstance(one.arguments(Asked(None, True)), str)]
    assert refused == ["images", "pull", "commit"]
    root = Asked(Path("/root.tar"), False)
    assert all("/root.tar" in one.arguments(root) for one in GROUPS if one.name in refused)


def module(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Module:
    """A group of the given source."""
    (tmp_path / "madegroup.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Module("made", "says", "madegroup", lambda _: [])


def test_a_group_that_fails_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Figures({}, "", "")
    made = module(tmp_path, "raise SystemExit('no bridge here')", monkeypatch)
    run.run(made, Asked(None, True), found, tmp_path)
    assert found.failures == ["made: no bridge here (exit status 1)"]


def test_ratios_too_high_and_missing_peers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Figures({}, "", "")
    text = "print('crun: not installed; skipped'); print('too slow: start is 9 x floor'); exit(1)"
    run.run(module(tmp_path, text, monkeypatch), Asked(None, True), found, tmp_path)
    assert found.skipped == ["made: crun: not installed; skipped"]
    assert found.failures == ["made: too slow: start is 9 x floor"]


def test_what_a_group_writes_is_taken_with_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Figures({}, "", "")
    record = figures.group_record("t", [Samples("a", [1.0, 3.0])], None)
    text = f"import sys; open(sys.argv[2], 'w').write({json.dumps([record])!r})"
    run.run(module(tmp_path, text, monkeypatch), Asked(None, True), found, tmp_path)
    assert [(one.name, one.rows[0].values) for one in found.groups] == [("made", (1.0, 3.0))]
