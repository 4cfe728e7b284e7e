"""Plots: finite numbers are drawn at the right place, others not at all."""

import re
from math import inf, nan

import pytest

from eval.report.svg import LARGE, Area, Axis, Band, Line, Scale, intervals, number, panel

X, Y = Axis("step"), Axis("loss")


def path(shown):
    (found,) = re.findall(r'<path class="line[^"]*" d="([^"]*)"', shown)
    return [tuple(float(value) for value in point.split()) for point in found[1:].split("L")]


def test_a_line_goes_from_corner_to_corner():
    (x0, y0), (x1, y1) = path(panel([Line([(0, 1), (10, 3)])], X, Y, summary="s"))
    assert (x0, y0) == (46, 186) and (x1, y1) == (LARGE.width - 12, 22)


@pytest.mark.parametrize("points", [[], [(0.0, nan)], [(nan, 1.0)], [(0.0, inf)]])
def test_without_a_finite_number_a_panel_says_so(points):
    shown = panel([Line(points)], X, Y, summary="loss")
    assert "no finite number" in shown and "<path" not in shown and "nan" not in shown.lower()


@pytest.mark.parametrize(
    "shapes, x, y",
    [
        ([Line([(0, 1), (1, nan), (2, 3)])], X, Y),
        ([Line([(0, 5), (1, 5)])], X, Y),
        ([Line([(3, 5)])], X, Y),
        ([Line([(0, 0), (1, 1e-9), (10, 100)])], Axis(log=True), Axis(log=True)),
        ([Line([(1, 7), (1, 7)])], Axis(log=True), Axis(log=True)),
        ([Area([0, 1, 2], [nan, nan]), Line([(0, -4)])], X, Y),
        ([Area([0, 1, 2], [0, 3])], X, Axis(low=0)),
    ],
)
def test_little_or_odd_numbers_are_drawn_all_the_same(shapes, x, y):
    shown = panel(shapes, x, y, summary="s")
    assert "no finite number" not in shown and not re.search(r"nan|inf", shown)


def test_many_points_are_averaged_and_few_have_dots():
    long = panel([Line([(step, 1.0) for step in range(10_000)])], X, Y, summary="s")
    assert len(path(long)) == 240 and "<circle" not in long
    assert panel([Line([(0, 1), (1, 2)])], X, Y, summary="s").count("<circle") == 2


def test_bands_are_where_the_axis_is_and_words_are_escaped():
    bands = [Band(-5, 5, "stage 1"), Band(5, 50, "<b>"), Band(90, 99, "beyond")]
    shown = panel([Line([(0, 1), (10, 2)])], X, Y, summary="<s>", bands=bands)
    assert shown.count("<rect") == 2 and "<b>" not in shown and 'aria-label="&lt;s&gt;"' in shown


def test_intervals_mark_what_they_are_judged_against():
    shown = intervals([("a", 5.0, 3.0, 7.0, 1.0), ("b", -2.0, -3.0, -1.0, nan)], summary="s", unit="points")
    assert shown.count("line k1") == 1 and shown.count("dot k0") == 2 and ">points<" in shown


def test_ticks_are_round_numbers_within_the_limits():
    assert Scale(0, 60, 0, 1).ticks(6) == [0, 10, 20, 30, 40, 50, 60]
    assert Scale(3.44, 3.48, 0, 1).ticks(4) == pytest.approx([3.44, 3.45, 3.46, 3.47, 3.48])
    assert Scale(1, 500, 0, 1, log=True).ticks() == [1, 10, 100]
    assert [number(value) for value in (0, 0.12345, 12.34, 1234, 12_345)] == ["0", "0.123", "12.3", "1234", "12.3k"]
