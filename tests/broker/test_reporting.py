"""Metrics: what a job reports is read back as it was, and no line of output makes the reader fail or grow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import reporting
from broker.protocol.reporting import MAX_LINE, Report, parse_line, report, set_segment

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]{0,63}", fullmatch=True).filter(lambda one: one != "segment")
metrics = st.one_of(
    st.floats(), st.integers(-(2**63) + 1, 2**63 - 1), st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _outside() -> Iterator[None]:
    yield
    reporting._running = None


def write(values: dict[str, Any], segment: int = 0) -> bytes:
    return reporting._write_line(segment, values).encode()


# ---- writing ----


@given(st.dictionaries(names, metrics, min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_what_is_reported_is_read_back(values: dict[str, Any], segment: int) -> None:
    line = write(values, segment)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    expected = {
        name: str(one) if isinstance(one, float) and not math.isfinite(one) else one for name, one in values.items()
    }
    for form in (line, line[:-1], line[:-1] + b"\r\n"):
        found = parse_line(form)
        assert found == Report(segment, expected)
        assert [*map(type, found.values.values())] == [*map(type, expected.values())]


def test_the_line_is_as_said(capsys: pytest.CaptureFixture[str]) -> None:
    report(loss=0.1, n=3, best=True, note="warm-up", bad=float("nan"), far=-float("inf"))
    assert capsys.readouterr().out == (
        '::report {"segment": 0, "loss": 0.1, "n": 3, "best": true, "note": "warm-up", "bad": "nan", "far": "-inf"}\n'
    )


def test_scalars_of_numpy_count_as_what_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    report(loss=numpy.float32(0.5), n=numpy.int64(3), good=numpy.bool_(True), one=numpy.array(2.5))
    found = parse_line(capsys.readouterr().out.encode())
    assert found == Report(0, {"loss": 0.5, "n": 3, "good": True, "one": 2.5})


def test_inside_the_sandbox_it_goes_to_the_descriptor_behind_what_was_printed() -> None:
    program = (
        "import sys; from broker.protocol.reporting import report, set_segment; set_segment(7);"
        "print('before'); report(loss=0.5); sys.stdout = None; report(loss=0.25)"
    )
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=buffered)
    assert done.stdout.splitlines()[0] == b"before"
    assert [parse_line(one) for one in done.stdout.splitlines()[1:]] == [
        Report(7, {"loss": 0.5}),
        Report(7, {"loss": 0.25}),
    ]


def test_one_report_is_one_write_that_no_pipe_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(os, "write", lambda fd, data: written.append((fd, data)))
    set_segment(0)
    report(**{f"name_{n:02}": "x" * 30 for n in range(64)})
    assert [fd for fd, _ in written] == [1]
    assert len(written[0][1]) <= MAX_LINE < 4096
    assert parse_line(written[0][1]) is not None


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, "1 to 64 values"),
        ({f"n{n}": n for n in range(65)}, "1 to 64 values"),
        ({"segment": 1}, "can't name a value"),
        ({"": 1}, "can't name a value"),
        ({"1st": 1}, "can't name a value"),
        ({"a b": 1}, "can't name a value"),
        ({"a\n::report": 1}, "can't name a value"),
        ({"ü": 1}, "can't name a value"),
        ({"x" * 65: 1}, "can't name a value"),
        ({"n": 2**63}, "too long"),
        ({"n": -(2**63)}, "too long"),
        ({"t": "x" * 257}, "too long"),
        ({f"n{n:02}": "x" * 100 for n in range(60)}, "bytes; at most 4000"),
        ({"t": "\x1b" * 256, "u": "\x1b" * 256, "v": "\x1b" * 256}, "bytes; at most 4000"),
        ({"x": None}, "x is NoneType"),
        ({"x": [1]}, "x is list"),
        ({"x": 1j}, "x is complex"),
        ({"x": b"a"}, "x is bytes"),
    ],
)
def test_what_has_no_form_is_refused_at_the_job(values: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        report(**values)


def test_an_array_is_no_metric() -> None:
    with pytest.raises(ValueError, match="size 1"):
        report(x=numpy.zeros(3))


# ---- reading what strangers wrote ----

NO_REPORTS = [
    b"", b"\n", b"loss 0.3", b"::report", b"::report ", b" ::report {}", b"x::report {\"segment\": 0, \"a\": 1}",
    b"::report {}", b"::report []", b"::report 1", b"::report null", b"::report \"x\"",
    b"::report {\"segment\": 0}", b"::report {\"a\": 1}", b"::report {\"a\": 1, \"b\": 2}",
    b"::report {\"segment\": -1, \"a\": 1}", b"::report {\"segment\": 4294967296, \"a\": 1}",
    b"::report {\"segment\": true, \"a\": 1}", b"::report {\"segment\": 0.0, \"a\": 1}",
    b"::report {\"segment\": \"0\", \"a\": 1}", b"::report {\"segment\": null, \"a\": 1}",
    b"::report {\"segment\": 0, \"a\": 1, \"a\": 2}", b"::report {\"segment\": 0, \"segment\": 0, \"a\": 2}",
    b"::report {\"segment\": 0, \"a\": null}", b"::report {\"segment\": 0, \"a\": [1]}",
    b"::report {\"segment\": 0, \"a\": {\"b\": 1}}", b"::report {\"segment\": 0, \"a\": NaN}",
    b"::report {\"segment\": 0, \"a\": Infinity}", b"::report {\"segment\": 0, \"a\": -Infinity}",
    b"::report {\"segment\": 0, \"a\": 1e999}", b"::report {\"segment\": 0, \"a\": -1e999}",
    b"::report {\"segment\": 0, \"a\": 9223372036854775808}", b"::report {\"segment\": 0, \"a\": " + b"9" * 4000 + b"}",
    b"::report {\"segment\": 0, \"a\": 1} x", b"::report {\"segment\": 0, \"a\": 1}{\"segment\": 0, \"a\": 1}",
    b"::report {\"segment\": 0, \"\": 1}", b"::report {\"segment\": 0, \"a b\": 1}",
    b"::report {\"segment\": 0, \"a\\u0000\": 1}", b"::report {\"segment\": 0, \"\\u001b[2J\": 1}",
    b"::report {\"segment\": 0, \"\xc3\xbc\": 1}", b"::report {\"segment\": 0, \"" + b"x" * 65 + b"\": 1}",
    b"::report {\"segment\": 0, \"a\": \"\\ud800\"}", b"::report {\"segment\": 0, \"a\": \"" + b"x" * 257 + b"\"}",
    b"::report {\"segment\": 0, \"a\": \"\xff\"}", b"::report \xff\xfe{\"segment\": 0, \"a\": 1}",
    b"::report \xef\xbb\xbf{\"segment\": 0, \"a\": 1}", b"::report " + b"[" * 4000, b"::report " + b"{\"a\":" * 700,
    b"::report {\"segment\": 0, \"a\": 1}" + b" " * 4096, b"::report {\"segment\": 0, \"a\": 01}",
    b"::report {\"segment\": 0, \"a\": 1,}", b"::report {'segment': 0, 'a': 1}",
    b"::report {\"segment\": 0, " + b", ".join(b"\"n%d\": 1" % n for n in range(65)) + b"}",
    b"::report {\"segment\": 0, \"a\": \"x\ny\"}",
]  # fmt: skip


@pytest.mark.parametrize("line", NO_REPORTS, ids=lambda one: ascii(one[:60]))
def test_every_other_line_is_none(line: bytes) -> None:
    assert parse_line(line) is None


@given(st.binary(max_size=200))
def test_noise_never_raises(noise: bytes) -> None:
    for line in (
        noise,
        b"::report " + noise,
        b'::report {"segment": 0, ' + noise,
        b'::report {"segment": 0, "a": ' + noise,
    ):
        parse_line(line)


@given(st.recursive(st.one_of(metrics, st.none()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_a_report_of_plain_values_or_none(value: object) -> None:
    for one in (value, {"segment": 0, "a": value}):
        found = parse_line(b"::report " + json.dumps(one).encode())
        if found is not None:
            assert {type(one) for one in found.values.values()} <= {float, int, bool, str}
            json.dumps(found.values, allow_nan=False).encode()


def test_each_byte_changed_is_a_report_or_none() -> None:
    line = write({"loss": 0.5, "note": "a", "n": 12, "ok": True}, 3)
    for place in range(len(line)):
        for byte in range(256):
            found = parse_line(line[:place] + bytes([byte]) + line[place + 1 :])
            assert found is None or 0 <= found.segment < 2**32


def test_reports_say_what_they_hold() -> None:
    assert repr(Report(3, {"loss": 0.5})) == "Report(segment=3, values={'loss': 0.5})"
    assert Report(3, {"loss": 0.5}) != Report(4, {"loss": 0.5})
    assert Report(3, {}) != (3, {})
