"""Structured logs: one line per event on standard error, the field `job` (16 hex digits of the order id) following a
job through all parts.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logs(*, json: bool = False, level: str = "info") -> None:
    """Set up the process's logs; called once by a shell. `json` gives one JSON object a line for machines."""
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if json else console
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(part: str) -> Any:
    """Logger of a part; bind more fields with `.bind(job=…)`."""
    return structlog.get_logger().bind(part=part)


def show_job(order: bytes) -> str:
    """The id that follows a job through all logs: the first 16 hex digits of its order id."""
    return order.hex()[:16]
