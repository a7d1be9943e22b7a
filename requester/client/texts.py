"""Sizes, spans and hostile text, as people write and read them."""

from __future__ import annotations

import math
import re

from chain.base.errors import Refused

_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,3})?)\s*(|B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*", re.IGNORECASE)
_SPAN = re.compile(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|min|h|)\s*", re.IGNORECASE)
_UNITS: dict[str, int] = {"": 1, "b": 1, **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)}}
_UNITS |= {f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", 1)}
_SPANS = {"ms": 1, "": 1_000, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000}

MAX_SHOWN = 4_096
"""Characters of one piece of hostile text that are shown (threats.md A9)."""

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Controls (C0 but tab and line feed, DEL, C1), separators, direction and invisible marks, lone surrogates."""


def parse_size(size: int | str) -> int:
    """Bytes of `512 MiB`, `2GB` or a number; raises `Refused` under `units.size`."""
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size)
    if match is None:
        raise Refused(f"{size!r} is no size; write for example 512MiB or 2GB", rule="units.size")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_span(span: float | str) -> int:
    """Milliseconds of `90s`, `10 min`, `2h`, or of a number of seconds; raises `Refused` under `units.span`."""
    if not isinstance(span, str):
        if not math.isfinite(span):
            raise Refused(f"{span} is no span of time; write for example 90 or 10min", rule="units.span")
        return round(span * 1_000)
    match = _SPAN.fullmatch(span)
    if match is None:
        raise Refused(f"{span!r} is no span of time; write for example 90s, 10min or 2h", rule="units.span")
    return int(float(match[1]) * _SPANS[match[2].lower()])


def show_size(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1, e.g. `1.5 GiB`."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def show_span(milliseconds: int) -> str:
    """A span in seconds, or in minutes, hours, days where it is longer than two of them."""
    for unit, size in (("days", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:.3g} {unit}"
    return f"{milliseconds / 1_000:.3g} s"


def escape(text: str | bytes, *, limit: int = MAX_SHOWN) -> str:
    """Text of others made harmless for a terminal: what could move the cursor or the reader is shown as `\\x1b`,
    `\\u202e`; tabs and line feeds stay. Of a long text the end is kept.
    """
    whole = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    shown = whole if len(whole) <= limit else f"[{len(whole) - limit} characters left out]\n{whole[-limit:]}"
    return _UNSAFE.sub(_show, shown)


def escape_line(text: str | bytes, *, limit: int = 200) -> str:
    """As `escape`, in one line."""
    return escape(text, limit=limit).replace("\n", "\\n").replace("\t", "\\t")


def _show(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
