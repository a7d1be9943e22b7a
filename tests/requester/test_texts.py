"""Sizes, spans, and the escaping of hostile text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.errors import Refused
from requester.client.texts import MAX_SHOWN, escape, escape_line, parse_size, parse_span, show_size, show_span

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
SIZES = [("512MiB", 512 << 20), ("2 GB", 2 * 10**9), ("1.5kib", 1536), ("7", 7), (9, 9), ("3B", 3), ("1TiB", 1 << 40)]
SPANS = [
    ("90s", 90_000),
    ("10 min", 600_000),
    ("2h", 7_200_000),
    ("250ms", 250),
    ("5", 5_000),
    (1.5, 1_500),
    (3, 3_000),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "span"), SPANS)
def test_spans(text: float | str, span: int) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "much", "-1", "1 XB", "1e9", "1.2345 GiB", "9" * 20])
def test_what_is_no_size_and_no_span(text: str) -> None:
    with pytest.raises(Refused, match="is no size") as size:
        parse_size(text)
    with pytest.raises(Refused, match="is no span") as span:
        parse_span(text)
    assert (size.value.rule, span.value.rule) == ("units.size", "units.span")


@given(size=st.integers(0, 1 << 45))
def test_shown_sizes_are_read_back_about_the_same(size: int) -> None:
    if size < 1 << 40:
        assert abs(parse_size(show_size(size)) - size) <= size / 1_000
    assert show_span(90_000) == "90 s"
    assert show_span(600_000) == "10 min"


@given(text=st.text(max_size=200))
def test_nothing_that_moves_a_cursor_or_a_reader_gets_through(text: str) -> None:
    """threats.md A9: no C0 but tab and line feed, no C1, no direction marks, no separators, no lone surrogates."""
    shown = escape(text)
    for character in shown:
        assert character in "\t\n" or unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
        assert unicodedata.bidirectional(character) not in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }
    assert "\n" not in escape_line(text)
    printable = "".join(character for character in text if character.isascii() and character.isprintable())
    assert escape(printable) == printable


def test_long_text_keeps_its_end_and_bytes_are_decoded() -> None:
    shown = escape("x" * 10_000 + "end")
    assert shown.endswith("xend")
    assert shown.startswith(f"[{10_003 - MAX_SHOWN} characters left out]\n")
    assert escape(b"\xff\x1b") == "\ufffd\\x1b"
