"""Structured logs: one line per event on standard error, the field `job` (16 hex digits of the order id) following a
job through all parts.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

MAX_TEXT = 4096
"""Characters of one field's text that are logged (threats.md A9)."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line and paragraph separators, direction marks, lone surrogates: shown as escapes (threats.md A9)."""


def configure_logs(*, json: bool = False, level: str = "info") -> None:
    """Set up the process's logs; called once by a shell. `json` gives one JSON object a line for machines."""
    console = (_flatten, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    renderers: tuple[Any, ...] = (structlog.processors.JSONRenderer(),) if json else console
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _cut,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _cut(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Long texts are cut: of a traceback the end is kept, of all else the beginning."""
    if "exception" in event:
        event["traceback"] = event.pop("exception")[-MAX_TEXT:]
    for name, value in event.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            event[name] = f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    return event


def _flatten(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """One event stays one line on a terminal, whatever others put into it (JSON escapes by itself)."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _UNSAFE.sub(lambda found: repr(found[0])[1:-1], value)
    return event


def get_logger(part: str) -> Any:
    """Logger of a part; bind more fields with `.bind(job=…)`. May be made before `configure_logs`, at import too."""
    return structlog.get_logger(part=part)


def show_job(order: bytes) -> str:
    """The id that follows a job through all logs: the first 16 hex digits of its order id."""
    return order.hex()[:16]
