"""Metrics of a job: one line of its output each, which whoever reads the output may find again.

    ::report {"segment": 3, "loss": 0.25}

They are live output like everything a job prints, bounded like it and committed to by the digest of the log. A line is
the job's own word: nothing is paid by it, and one made up looks like any other. Imports nothing of the project, because
a copy runs inside the sandbox; json is imported with the first report, because most jobs have none.
"""

from __future__ import annotations

import math
import os
import sys

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from typing import Any, Final

    Metric = float | int | bool | str

__all__ = ["MAX_LINE", "MAX_NAMES", "MAX_TEXT", "PREFIX", "Report", "parse_line", "report", "set_segment"]

PREFIX: Final = b"::report "
MAX_LINE: Final = 4000
"""Bytes of a line: below what a pipe takes whole (4,096), so that no other process writes into the middle of it."""
MAX_NAMES: Final = 64
MAX_TEXT: Final = 256
"""Characters of a value that is text."""
_MAX_READ: Final = 4096
_FIRST: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
"""What a name begins with; not a regular expression, because importing those costs 5 ms at each start."""
_LETTERS: Final = _FIRST | frozenset("0123456789./-")
_MAX_NAME: Final = 64
_SEGMENT: Final = "segment"
_MAX_INT: Final = 1 << 63

_running: int | None = None
"""The segment that runs in this process; None outside the sandbox."""


class Report:
    """The metrics of one line. `values` holds numbers, truth values and texts; what is not finite is one of the texts
    `nan`, `inf` and `-inf`, so that it can be written as JSON again.
    """

    __slots__ = ("segment", "values")

    def __init__(self, segment: int, values: dict[str, Metric]) -> None:
        self.segment = segment
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and (self.segment, self.values) == (other.segment, other.values)

    __hash__ = None  # type: ignore[assignment]  # it holds a dict

    def __repr__(self) -> str:
        return f"Report(segment={self.segment}, values={self.values})"


def set_segment(index: int) -> None:
    """Reports of this process belong to this segment from now on, and go to the output that the sandbox reads."""
    global _running  # noqa: PLW0603  # one process runs one segment, and the job's code has no handle to pass
    _running = index


def report(**values: Any) -> None:
    """Report metrics of the running segment, e.g. `report(loss=0.3, accuracy=0.9)`; whoever ordered the job sees them
    while it runs.

    A value is a float, int, bool or short text; a NumPy scalar (anything with `item()`) counts as what it holds.
    Outside the sandbox the line is printed, so that a job can be tried at home. Raises `TypeError` and `ValueError` for
    what has no form.
    """
    line = _write_line(_running or 0, values)
    if _running is None:
        sys.stdout.write(line)
        return
    try:
        sys.stdout.flush()  # what was printed before stands before it
    except (OSError, ValueError, AttributeError):
        pass  # the job closed or replaced it
    os.write(1, line.encode())


def _write_line(segment: int, values: dict[str, Any]) -> str:
    import json  # most jobs report nothing

    if not values or len(values) > MAX_NAMES:
        raise ValueError(f"a report has 1 to {MAX_NAMES} values, not {len(values)}")
    for name in values:
        if name == _SEGMENT or not _is_name(name):
            raise ValueError(f"{name!r:.100} can't name a value: letters, digits and `_./-`, and not {_SEGMENT}")
    plain = {name: _make_plain(name, value) for name, value in values.items()}
    line = f"{PREFIX.decode()}{json.dumps({_SEGMENT: segment, **plain}, allow_nan=False)}\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a report of {len(line)} bytes; at most {MAX_LINE}")
    return line


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and name[0] in _FIRST and _LETTERS.issuperset(name)


def _make_plain(name: str, value: Any) -> Metric:
    kind = type(value)
    if kind not in (float, int, bool, str) and hasattr(value, "item"):
        value = value.item()
        kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is bool or (kind is int and abs(value) < _MAX_INT) or (kind is str and len(value) <= MAX_TEXT):
        return value  # type: ignore[no-any-return]  # its type was just looked at
    if kind in (int, str):
        raise ValueError(f"{name} is too long for a report: {MAX_TEXT} characters, 63 bits")
    raise TypeError(f"{name} is {kind.__name__}; a report holds float, int, bool and str")


# ---- reading ----


def parse_line(line: bytes) -> Report | None:
    """The metrics of one line of output (its line feed may be there); None for every other line, whatever it holds.
    Never raises.
    """
    if not line.startswith(PREFIX) or len(line) > _MAX_READ:
        return None
    import json  # most output holds no report

    try:
        found: Any = json.loads(
            line[len(PREFIX) :].decode(),
            object_pairs_hook=_take_pairs,
            parse_int=_take_int,
            parse_float=_take_float,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        return None
    if type(found) is not dict or len(found) - 1 not in range(1, MAX_NAMES + 1):
        return None
    segment = found.pop(_SEGMENT, None)
    if type(segment) is not int or not 0 <= segment < 1 << 32 or not all(map(_is_metric, found.items())):
        return None
    return Report(segment, found)


def _is_metric(pair: tuple[str, object]) -> bool:
    name, value = pair
    if not _is_name(name) or (type(value) is str and not (len(value) <= MAX_TEXT and _is_text(value))):
        return False
    return type(value) in (float, int, bool, str)


def _is_text(value: str) -> bool:
    """Whether it can be encoded: JSON has escapes for halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _take_int(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) >= _MAX_INT:
        raise ValueError("a number beyond 63 bits")
    return number


def _take_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("a number beyond float64")
    return number


def _refuse(text: str) -> object:
    raise ValueError(f"{text} is no JSON")
