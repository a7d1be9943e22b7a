"""One request to a broker and what came back, as plain values: what `client` and `transfer` say and `wire` sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.api import MAX_BODY_BYTES
from chain.base.errors import TallyError, Unavailable

SLACK_SECONDS = 20.0
"""How long a call may take that waits for nothing."""

BLOB_SECONDS = 600.0
"""Deadline of one transfer; a longer one goes on where the deadline cut it."""

UNREACHABLE = "broker.unreachable"
"""Rule of a connection that could not be made or was lost."""


@dataclass(frozen=True)
class Ask:
    """A request. `digest` is the SHA-256 of `body` where it is known already; an answer has at most `max_bytes`;
    `stall` is how many seconds may pass without a byte of it, where that has a deadline of its own.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    digest: bytes | None = None
    seconds: float = SLACK_SECONDS
    max_bytes: int = MAX_BODY_BYTES
    stall: float | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    headers: Mapping[str, str]
    body: bytes


def describe_elsewhere(url: str) -> Unavailable:
    """The error for an address where something else answers."""
    return Unavailable(f"at {url} answers something that is no broker; check the address", rule="broker.address")


def is_lost(error: TallyError) -> bool:
    """Whether the connection is to blame, so that the same request may succeed a moment later."""
    return isinstance(error, Unavailable) and error.rule == UNREACHABLE
