"""Pictures in text: the right number of lines and columns, whatever the numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requester.demo.plots import draw_bar, draw_confusion, draw_curve, draw_plot, shorten

NUMBERS = st.lists(st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=200)


@pytest.mark.parametrize(
    ("done", "total", "bar"),
    [(0, 4, "░░░░"), (1, 4, "█░░░"), (4, 4, "████"), (9, 4, "████"), (1, 3, "█░░░"), (0, 0, "░░░░"), (3, 0, "░░░░")],
)
def test_a_bar_is_full_exactly_when_all_is_done(done: int, total: int, bar: str) -> None:
    assert draw_bar(done, total, 4) == bar


def test_a_curve_falls_as_its_values_do() -> None:
    assert draw_curve([7, 6, 5, 4, 3, 2, 1, 0], 8) == "█▇▆▅▄▃▂▁"
    assert draw_curve([3, 3, 3], 8) == "▄▄▄"
    assert draw_curve([], 8) == draw_curve([math.nan], 8) == ""


@given(NUMBERS, st.integers(1, 70))
def test_a_curve_is_never_wider_than_asked(values: list[float], width: int) -> None:
    assert len(draw_curve(values, width)) <= width


@given(NUMBERS, st.integers(1, 70), st.integers(2, 12))
def test_a_plot_has_its_height_and_never_more_than_its_width(values: list[float], width: int, height: int) -> None:
    lines = draw_plot(values, width, height)
    finite = [value for value in values if math.isfinite(value)]
    assert len(lines) == (height + 2 if finite else 0)
    for line in lines[:height]:
        cells = line.split("│")[1]
        assert len(cells) == min(len(finite), width)
        assert set(cells) <= set(" ▁▂▃▄▅▆▇█")


def test_a_plot_names_its_bounds_and_its_last_index() -> None:
    lines = draw_plot([2.0, 1.0, 0.5], height=4)
    assert lines[0].startswith("   2.000 │█")
    assert lines[3].startswith("   0.000 │███")
    assert lines[-1].split() == ["0", "2"]


@given(NUMBERS, st.integers(1, 70))
def test_shortening_keeps_every_value_in_exactly_one_mean(values: list[float], width: int) -> None:
    whole = [value for value in values if math.isfinite(value)]
    found = shorten(whole, width)
    assert len(found) == min(len(whole), width)
    if len(whole) <= width:
        assert found == whole


def test_a_confusion_matrix_shows_each_cell_where_it_belongs() -> None:
    lines = draw_confusion([[44, 0], [3, 120]])
    assert lines[0].split() == ["guess", "0", "1"]
    assert [line.split("│")[1].split() for line in lines[2:]] == [["44", "·"], ["3", "120"]]
    assert len({len(line) for line in lines}) == 1
