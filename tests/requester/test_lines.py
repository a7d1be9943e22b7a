"""Reports among the output of a job, however it is cut; and what is none is never held back for long."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.reporting import MAX_LINE
from requester.client.lines import ReportReader, list_metrics

GOOD = b'::report {"segment": 3, "loss": 0.25, "name": "x"}\n'
LOG = b"epoch 1\n" + GOOD + b"no newline::report {\n" + GOOD + b"\r\n::report nonsense\nend"


def read(log: bytes, cuts: list[int]) -> tuple[bytes, list[dict[str, Any]]]:
    reader, shown, found = ReportReader(), b"", []
    edges = [0, *sorted(cut % (len(log) + 1) for cut in cuts), len(log)]
    for start, end in pairwise(edges):
        text, reports = reader.feed(log[start:end])
        shown += text
        found += [{"segment": one.segment, **one.values} for one in reports]
    return shown + reader.skip(), found


@given(cuts=st.lists(st.integers(min_value=0)))
def test_reports_are_found_however_the_output_is_cut(cuts: list[int]) -> None:
    row = {"segment": 3, "loss": 0.25, "name": "x"}
    assert read(LOG, cuts) == (LOG.replace(GOOD, b""), [row, row])


@given(log=st.binary(max_size=300), cuts=st.lists(st.integers(min_value=0)))
def test_output_without_reports_goes_through_as_it_came(log: bytes, cuts: list[int]) -> None:
    shown, found = read(log, cuts)
    assert found == [] and shown == log


@pytest.mark.parametrize(
    "line",
    [
        b"::report {}\n",
        b"::report []\n",
        b'::report {"segment": -1, "a": 1}\n',
        b'::report {"segment": 0, "a": NaN}\n',
        b'::report {"segment": 0, "a": {"b": 1}}\n',
        b"::report " + b"[" * 3_000 + b"\n",
        b" " + GOOD,
        b"::reporting\n",
    ],
)
def test_hostile_lines_are_output(line: bytes) -> None:
    assert ReportReader().feed(line) == (line, [])


def test_no_more_is_held_back_than_a_report_may_hold() -> None:
    reader = ReportReader()
    held = 0
    for _ in range(100):
        shown, _ = reader.feed(b"::report " + b"x" * 91)
        held += 100 - len(shown)
        assert held <= MAX_LINE
    assert held <= 0
    shown, reports = reader.feed(b"\n" + GOOD)
    assert shown.endswith(b"\n") and len(reports) == 1


def test_output_that_is_not_the_beginning_of_a_report_is_shown_at_once() -> None:
    reader = ReportReader()
    assert reader.feed(b"50 %") == (b"50 %", [])
    assert reader.feed(b"::rep") == (b"::rep", [])
    assert reader.feed(b"\n::rep") == (b"\n", [])
    assert reader.skip() == b"::rep"


def test_whoever_begins_at_a_later_line_finds_its_reports() -> None:
    """A job that is taken up again: nothing of what was before is known."""
    reader = ReportReader()
    assert reader.skip() == b""
    shown, reports = reader.feed(GOOD + b"epoch 2\n" + GOOD)
    assert (shown, [one.values["loss"] for one in reports]) == (b"epoch 2\n", [0.25, 0.25])
    assert reader.feed(b"half") == (b"half", [])
    assert reader.skip() == b""
    assert reader.feed(GOOD[:12]) == (b"", [])
    assert len(reader.feed(GOOD[12:])[1]) == 1


def test_the_metrics_of_a_log() -> None:
    assert list_metrics(LOG + b"\n" + GOOD.rstrip()) == [{"segment": 3, "loss": 0.25, "name": "x"}] * 3
