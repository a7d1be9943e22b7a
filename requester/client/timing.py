"""Until when the broker keeps what a job brought, in words."""

from __future__ import annotations

from datetime import UTC, datetime

from requester.client.texts import show_span

SOON_MS = 24 * 3_600_000
"""Outputs that are not here are warned of so long before they go."""


def is_going_soon(kept_until: int, now: int) -> bool:
    """Whether outputs kept until that Instant (0: there are none) go within a day, or are gone."""
    return 0 < kept_until < now + SOON_MS


def describe_retention(kept_until: int, now: int) -> str:
    """Until when outputs are kept, as a sentence's end for people."""
    if not kept_until:
        return "no outputs are kept at the broker yet"
    if kept_until <= now:
        return "the broker no longer promises to keep the outputs"
    when = datetime.fromtimestamp(kept_until / 1_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"the broker keeps the outputs until {when} (for {show_span(kept_until - now)})"
