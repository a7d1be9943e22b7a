"""A job as it is at this moment, for whoever looks on: segments that are here, metrics, where its leases stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

from chain.ledger.terms.work import SegmentRecord
from requester.client.news import Hooks, News
from requester.purchase.phases import Phase


@dataclass(frozen=True)
class LeaseProgress:
    """One lease of a job. `phase` is a state of law.md's table once the chain shows it, `awarded` before; the segments
    are `first` .. `first + count - 1`; `told` is what the provider says is done, `served` what is verified and here.
    """

    lease: str
    provider: str
    phase: str
    first: int
    count: int
    told: int = 0
    served: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` segments are verified and here, `failed` of them without a value; `cost` so
    far in micro-credits, commission included; the broker keeps the outputs until `kept_until` (an Instant, 0: none).
    """

    phase: str
    done: int
    total: int
    failed: int
    cost: int
    kept_until: int
    leases: tuple[LeaseProgress, ...]


class Board:
    """What is known of one job in this process. Written by whoever follows the job; `moved` wakes those who read."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.phase = Phase.SIGNED
        self.records: dict[int, SegmentRecord] = {}
        self.metrics: list[dict[str, Any]] = []
        self.leases: dict[str, LeaseProgress] = {}
        self.cost = self.kept_until = 0
        self._moved = asyncio.Event()
        self._listeners: list[Hooks] = []

    @contextlib.contextmanager
    def listening(self, hooks: Hooks) -> Iterator[None]:
        """Within, these callbacks hear all news."""
        self._listeners.append(hooks)
        try:
            yield
        finally:
            self._listeners.remove(hooks)

    def tell(self, news: News) -> None:
        """Pass news on to everybody who listens."""
        for hooks in tuple(self._listeners):
            hooks.tell(news)
        self.move()

    def move(self) -> None:
        """Wake everybody who waits."""
        self._moved.set()
        self._moved = asyncio.Event()

    def moved(self) -> Awaitable[object]:
        """Wait until something is new since this call, however late it is awaited."""
        return self._moved.wait()

    def show(self) -> Progress:
        """The picture now."""
        failed = sum(record.cause.value != "ok" for record in self.records.values())
        leases = tuple(self.leases.values())
        return Progress(self.phase, len(self.records), self.total, failed, self.cost, self.kept_until, leases)
