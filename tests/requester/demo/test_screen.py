"""The screen: a live frame is replaced and stays within the terminal; elsewhere only lines are written."""

from __future__ import annotations

import io
import os
import re
import shutil

import pytest

from requester.demo.screen import Screen, make_sayer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 5)))


def render(text: str) -> list[str]:
    """What a terminal of unlimited height shows after `text`."""
    lines, row = [""], 0
    for part in re.split("(\x1b\\[\\d*[A-Z]|\r|\n)", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A"):
            row -= int(part[2:-1])
            assert row >= 0
        elif part == "\x1b[J":
            del lines[row:]
            lines.append("")
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r":
            lines[row] += part
    return lines


def test_a_frame_takes_the_place_of_the_one_before() -> None:
    out = io.StringIO()
    screen = Screen(out, is_live=True)
    screen.draw(["one", "two", "three"])
    screen.draw(["four"])
    assert render(out.getvalue()) == ["four", ""]


def test_a_line_stays_above_the_frames() -> None:
    out = io.StringIO()
    screen = Screen(out, is_live=True)
    screen.draw(["frame"])
    screen.say("a line")
    screen.draw(["frame 2"])
    screen.draw(["frame 3"])
    assert render(out.getvalue()) == ["a line", "frame 3", ""]


def test_what_comes_after_the_last_frame_is_written_below_it() -> None:
    out = io.StringIO()
    screen = Screen(out, is_live=True)
    screen.draw(["frame"])
    screen.leave()
    screen.say("the end")
    assert render(out.getvalue()) == ["frame", "the end", ""]


def test_a_frame_has_no_more_lines_and_columns_than_the_terminal() -> None:
    out = io.StringIO()
    Screen(out, is_live=True).draw(["x" * 50] * 50)
    assert [len(line) for line in render(out.getvalue())] == [19, 19, 19, 19, 0]


def test_no_frame_moves_the_cursor_by_what_is_in_it() -> None:
    out = io.StringIO()
    Screen(out, is_live=True).draw(["a\x1b[5Ab\nc\x9b1Ad"])
    assert render(out.getvalue()) == ["a?[5Ab?c?1Ad", ""]


def test_without_a_terminal_nothing_is_drawn_and_lines_are_written() -> None:
    out, kept = io.StringIO(), list[str]()
    screen = Screen(out, is_live=False)
    screen.draw(["frame"])
    make_sayer(screen, kept.append)("a line")
    assert (out.getvalue(), kept) == ("a line\n", [])


def test_on_a_live_screen_lines_go_to_the_foot_of_the_picture() -> None:
    out, kept = io.StringIO(), list[str]()
    make_sayer(Screen(out, is_live=True), kept.append)("a line")
    assert (out.getvalue(), kept) == ("", ["a line"])
