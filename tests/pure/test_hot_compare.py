"""Saved ratios beside those of now: what is told, and what fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.hot import compare


def saved_run(path: Path, **ratios: float) -> Path:
    """A file as pytest-benchmark writes it."""
    benchmarks = [
        {
            "name": f"test_{name}",
            "extra_info": {
                "ratio": ratio,
                "ratio_p10": ratio * 0.9,
                "ratio_p90": ratio * 1.2,
                "reference": "the slow one",
            },
        }
        for name, ratio in ratios.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": {"node": "secret"}}))
    return path


def kept(path: Path, **ratios: float) -> str:
    path.write_text(json.dumps(ratios))
    return str(path)


@pytest.mark.parametrize(("ratio", "code"), [(2.2, 0), (2.3, 1)])
def test_only_a_ratio_whose_best_tenth_is_beyond_the_bound_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: float, code: int
) -> None:
    now = saved_run(tmp_path / "now.json", spawn=ratio, diff=0.1)
    against = kept(tmp_path / "kept.json", spawn=1.0, diff=0.1)
    assert compare.main([str(now), "--against", against]) == code
    assert ("too slow: spawn" in capsys.readouterr().out) == bool(code)


def test_new_and_missing_benchmarks_are_told_and_do_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = saved_run(tmp_path / "now.json", fresh=99.0)
    against = kept(tmp_path / "kept.json", old=1.0)
    assert compare.main([str(now), "--against", against]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fresh") and "new" in line for line in lines)
    assert any(line.startswith("old") and "not run" in line for line in lines)


def test_what_is_kept_is_the_median_ratio_and_nothing_of_the_machine(tmp_path: Path) -> None:
    runs = [str(saved_run(tmp_path / f"{n}.json", spawn=float(n))) for n in (1, 7, 3)]
    target = tmp_path / "kept.json"
    assert compare.main([*runs, "--keep", str(target)]) == 0
    assert json.loads(target.read_text()) == {"spawn": 3.0}


def test_a_run_can_be_compared_with_a_run(tmp_path: Path) -> None:
    now = saved_run(tmp_path / "now.json", spawn=4.0)
    before = saved_run(tmp_path / "before.json", spawn=1.0)
    assert compare.main([str(now), "--against", str(before)]) == 1
    assert compare.main([str(before), "--against", str(now)]) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": [{"name": "x"}]}', "nonsense"])
def test_a_file_that_is_no_run_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    now = tmp_path / "now.json"
    now.write_text(text)
    assert compare.main([str(now)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("compare: ")
    assert str(now) in said
    assert said.count("\n") == 1
