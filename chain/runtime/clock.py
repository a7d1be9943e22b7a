"""The one place where wall-clock time is read."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Gives the present Instant."""

    def now(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000
