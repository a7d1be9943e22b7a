"""How the command speaks: results on stdout, everything else on stderr; with --json one versioned object on stdout.

Exit codes: 0 ok, 1 refused, 2 usage, 3 a part is not running, 4 a fault of ours, 5 the job itself failed, 6 no bid,
7 a case is verified, but more may have been paid than it says, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click

from chain.base.errors import Fault, Refused, TallyError, Unavailable
from requester.client.outcomes import JobFailed, NoBid
from requester.client.texts import escape

JSON_VERSION = 1
"""Version of what --json prints, in its member `version`."""

OK, REFUSED, USAGE, ABSENT, FAULT, FAILED, NO_BID, LOWER_BOUND, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 7, 130

MAX_ITEMS = 10_000
"""Elements of an array that --json spells out; of a larger one it gives type and shape."""


def get_exit_code(error: BaseException) -> int:
    """The exit code of an error, by its class."""
    table: tuple[tuple[type[BaseException], int], ...] = (
        (JobFailed, FAILED),
        (NoBid, NO_BID),
        (Unavailable, ABSENT),
        (Fault, FAULT),
        (Refused, REFUSED),
        (TallyError, REFUSED),
        (click.UsageError, USAGE),
        (KeyboardInterrupt, INTERRUPTED),
    )
    return next((code for kind, code in table if isinstance(error, kind)), FAULT)


MAX_DIGITS = 20_000
"""Digits of the largest int that a value may hold (2^16 bits); Python itself would write no more than 4,300."""


def print_json(**members: Any) -> None:
    """One object on stdout, with its version first."""
    text = json.dumps({"version": JSON_VERSION, **members}, allow_nan=False, ensure_ascii=True)
    click.echo(text)


def say(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


def report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong, once and clearly; returns the exit code."""
    code = get_exit_code(error)
    if isinstance(error, TallyError):
        text, rule = error.message, error.rule
    else:
        text, rule = f"{type(error).__name__}: {error}", "internal"
    traceback = error.traceback if isinstance(error, JobFailed) else ""
    if as_json:
        members: dict[str, Any] = {"rule": rule, "message": text, "exit": code}
        if isinstance(error, JobFailed):
            members |= {"job": error.job, "cause": error.cause.value, "figure": error.figure, "traceback": traceback}
        if isinstance(error, NoBid):
            members |= {"lowest": error.lowest}
        print_json(error=members)
        return code
    if traceback:
        say(escape(traceback).rstrip())
    say(f"tally: {escape(text)} [{escape(rule)}]")
    for note in getattr(error, "__notes__", ()):
        say(escape(note))
    return code


def to_json(value: Any) -> Any:
    """A job value as JSON can hold it: arrays as type, shape and (if not large) elements; bytes as hex; complex as a
    pair; what is not finite as text.
    """
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return {"complex": [to_json(value.real), to_json(value.imag)]}
    if hasattr(value, "ndim") and value.ndim == 0:
        return to_json(value.item())
    described = {"dtype": str(value.dtype), "shape": list(value.shape)}
    lists = math.prod(max(1, length) for length in value.shape)  # an array without elements may still be of 2^62 lists
    return described | ({"data": to_json(value.tolist())} if lists <= MAX_ITEMS else {})


def show_value(value: Any) -> str:
    """A job value for a person: its repr, escaped and bounded."""
    return escape(value if isinstance(value, str) else repr(value), limit=100_000)


def is_terminal() -> bool:
    """Whether somebody watches stderr."""
    return sys.stderr.isatty()
