"""Pictures and tables of a benchmark run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from benchmarks.plots import END, MARK, Row, markdown, page_part, picture, put

SVG = "{http://www.w3.org/2000/svg}"


def group(**medians: float) -> dict[str, Any]:
    rows = [
        {"name": name, "unit": "ms", "n": 3, "p10": one, "median": one, "p90": one, "p99": one}
        for name, one in medians.items()
    ]
    return {"title": "a & b", "reference": next(iter(medians)), "rows": rows}


def widths(text: str) -> list[float]:
    return [float(one.attrib["width"]) for one in ElementTree.fromstring(text).iter(f"{SVG}rect")]


def test_bars_are_as_long_as_their_medians() -> None:
    text = picture("a & b <c>", [Row("x", 1, 10, 12, "ms"), Row("dockpy", 2, 5, 6, "ms")])
    first, second = widths(text)
    assert first == pytest.approx(2 * second, abs=0.2)
    assert "a & b <c>" in "".join(ElementTree.fromstring(text).itertext())
    assert "logarithmic" not in text


def test_far_figures_are_drawn_by_their_logarithms_and_it_says_so() -> None:
    text = picture(
        "far", [Row("x", 1, 1, 1, "ms"), Row("y", 10, 10, 10, "ms"), Row("z", 100, 100, 100, "")]
    )
    first, second, third = widths(text)
    assert (first, second) == (0, pytest.approx(third / 2, abs=0.1))
    assert "logarithmic" in text


def test_a_table_tells_ratios_to_its_reference() -> None:
    lines = markdown(group(docker=10.0, dockpy=2.5)).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1.00", "0.25"]


def test_a_page_keeps_what_is_outside_its_marks() -> None:
    run = {"machine": {"kernel": "6"}, "skipped": ["crun: no"], "groups": [group(a=1.0)]}
    page = put(f"before\n{MARK}\nold\n{END}\nafter\n", page_part(run, "plots"))
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert "![a & b](plots/a-b.svg)" in page
    assert put(page, page_part(run, "plots")) == page
    with pytest.raises(ValueError, match="has no"):
        put("no marks", "")
