"""Drawings of figures: they are XML, and lengths stand in proportion to what was measured."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from benchmarks import plots, report, svg
from benchmarks.figures import Figures, Group, Row, Step

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, median: float, unit: str = "ms", spread: float = 0.1) -> Row:
    low, high = median * (1 - spread), median * (1 + spread)
    return Row(name, unit, 10, low, median, high, high)


def figures(*groups: Group) -> Figures:
    machine = {
        "kernel": "6.1",
        "hz": 250,
        "processors": 2,
        "processor": "Some <Model>",
        "memory_mib": 1024,
        "cgroups": "v2",
        "python": "3.11.2",
        "load_before": 0.5,
    }
    return Figures(machine, "2026-01-02T03:04:05Z", "abc", list(groups))


def group(*rows: Row, reference: str | None = None, name: str = "cli") -> Group:
    return Group(name, "run <b> & more", reference, rows)


def bars_of(drawing: str) -> list[ElementTree.Element]:
    tree = ElementTree.fromstring(drawing)
    return [one for one in tree.iter(f"{SVG}rect") if one.get("class", "").startswith("bar ")]


def texts_of(drawing: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def test_bars_are_as_long_as_their_medians() -> None:
    drawing = plots.bars([group(row("a", 2.0), row("b", 4.0), row("c", 9.0))], "d")
    lengths = [float(one.get("width", "")) for one in bars_of(drawing)]
    assert lengths[1] / lengths[0] == pytest.approx(2, rel=1e-3)
    assert lengths[2] / lengths[0] == pytest.approx(4.5, rel=1e-3)
    assert all(0 < one <= svg.BAR for one in lengths)


def test_figures_far_apart_are_drawn_by_their_logarithms() -> None:
    drawing = plots.bars([group(row("a", 2.0), row("b", 20.0), row("c", 200.0))], "d")
    first, second, third = (float(one.get("width", "")) for one in bars_of(drawing))
    assert second - first == pytest.approx(third - second, abs=0.02)
    assert first > 0
    assert "ms, logarithmic" in texts_of(drawing)


def test_twenty_times_is_not_yet_far_apart() -> None:
    drawing = plots.bars([group(row("a", 1.0), row("b", 20.0))], "d")
    assert "ms" in texts_of(drawing)


def test_a_zero_keeps_the_scale_linear_and_has_no_length() -> None:
    drawing = plots.bars([group(row("a", 0.0), row("b", 500.0))], "d")
    assert float(bars_of(drawing)[0].get("width", "")) == 0
    assert "ms" in texts_of(drawing)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-4, 1e9])
def test_a_single_figure_of_any_size_is_drawn(value: float) -> None:
    drawing = plots.bars([group(row("a", value))], "d")
    assert len(bars_of(drawing)) == 1


def test_whiskers_reach_from_p10_to_p90() -> None:
    drawing = plots.bars([group(row("a", 10.0, spread=0.2))], "d")
    (bar,) = bars_of(drawing)
    lines = ElementTree.fromstring(drawing).iter(f"{SVG}line")
    whisker = next(one for one in lines if one.get("class") == "whisker")
    length = float(bar.get("width", ""))
    assert float(whisker.get("x1", "")) - svg.LABELS == pytest.approx(length * 0.8, abs=0.02)
    assert float(whisker.get("x2", "")) - svg.LABELS == pytest.approx(length * 1.2, abs=0.02)


def test_names_and_titles_are_text_whatever_they_hold() -> None:
    drawing = plots.bars([group(row("<dockpy> & co", 1.0))], "d")
    assert {"<dockpy> & co", "run <b> & more"} <= set(texts_of(drawing))


def test_ratios_are_told_beside_the_reference() -> None:
    rows = (row("a", 10.0), row("b", 25.0), row("c", 2.5))
    drawing = plots.bars([group(*rows, reference="a")], "d")
    assert {"10 ms", "25 ms, x2.5", "2.5 ms, 1/4"} <= set(texts_of(drawing))


def test_units_are_drawn_apart() -> None:
    rows = (row("a", 1.0), row("b", 5.0, "/s"))
    assert {"ms", "/s, more is better"} <= set(texts_of(plots.bars([group(*rows)], "d")))


def test_our_rows_have_another_colour_than_peers() -> None:
    drawing = plots.bars([group(row("dockpy run", 1.0), row("docker run", 2.0))], "d")
    assert [one.get("class") for one in bars_of(drawing)] == ["bar ours", "bar other"]


def test_the_same_figures_give_the_same_bytes() -> None:
    found = figures(group(row("a", 1 / 3), row("b", 7.1)))
    assert plots.drawings(found) == plots.drawings(found)


def test_steps_of_a_start_stand_where_they_happened() -> None:
    steps = (Step("client", "a", 2.0, 2.0), Step("daemon", "b", 6.0, 4.0))
    drawing = plots.timeline("one start", steps)
    first, second = bars_of(drawing)
    end_of_first = float(first.get("x", "")) + float(first.get("width", ""))
    assert float(second.get("x", "")) == pytest.approx(end_of_first, abs=0.02)
    assert float(second.get("width", "")) / float(first.get("width", "")) == pytest.approx(2)
    assert {"client", "daemon"} <= set(texts_of(drawing))


def test_short_steps_of_one_process_are_drawn_together_and_lose_no_time() -> None:
    steps = [Step("child", f"step {n}", (n + 1) * 0.01, 0.01) for n in range(5)]
    steps += [Step("daemon", "long", 10.0, 9.95)]
    found = plots.folded(steps)
    assert [one.what for one in found] == ["step 0 + 4 more", "long"]
    assert math.isclose(sum(one.took for one in found), 10.0)


def test_a_printed_trace_is_drawn(tmp_path: Path) -> None:
    trace = tmp_path / "start.txt"
    trace.write_text(
        "   at ms    took  who         what\n   0.000   0.000  client      begun\n"
        "   1.500   1.500  daemon      command line parsed\n"
    )
    assert plots.main(["--trace", str(trace), "--to", str(tmp_path)]) == 0
    assert "command line parsed" in texts_of((tmp_path / "start.svg").read_text())


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "nonsense"])
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert plots.main([str(path), "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("plots: ")


def test_tables_between_marks_are_replaced_and_the_rest_stays() -> None:
    page = "before\n<!-- figures: cli -->\nold\n<!-- end -->\nafter\n"
    found = report.written(page, figures(group(row("a", 10.0), row("b", 25.0), reference="a")))
    assert found.startswith("before\n<!-- figures: cli -->\n![cli](plots/cli.svg)\n")
    assert "| b | 10 | 22.5 | 25 ms | 27.5 | 27.5 | 2.5 |" in found
    assert "old" not in found
    assert found.endswith("<!-- end -->\nafter\n")
    again = report.written(found, figures(group(row("a", 10.0), row("b", 25.0), reference="a")))
    assert again == found


def test_a_group_without_rows_keeps_its_table() -> None:
    page = "<!-- figures: pull -->\nold\n<!-- end -->\n"
    assert report.written(page, figures(group(row("a", 1.0)))) == page


def test_the_page_says_on_what_and_what_was_not_measured() -> None:
    found = figures()
    found.skipped.append("cli: docker: not installed; skipped")
    text = report.written("<!-- figures -->\n<!-- end -->", found)
    assert "Linux 6.1, HZ 250, 2 x Some <Model>" in text
    assert "- not measured: cli: docker: not installed; skipped" in text
