"""A bus inside one process, for tests and simulation: same promises, no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from broker.bus.protocol import Will


def is_match(pattern: str, topic: str) -> bool:
    """Whether a topic fits an MQTT topic filter."""
    wanted, parts = pattern.split("/"), topic.split("/")
    for place, part in enumerate(wanted):
        if part == "#":
            return True
        if place >= len(parts) or part not in ("+", parts[place]):
            return False
    return len(wanted) == len(parts)


class LocalHub:
    """What all buses of one test share: who listens, and what is retained."""

    def __init__(self) -> None:
        self.buses: list[LocalBus] = []
        self.retained: dict[str, bytes] = {}

    def send(self, topic: str, data: bytes, *, retain: bool) -> None:
        """Deliver to everybody who subscribed."""
        if retain:
            self.retained.pop(topic, None)
            if data:
                self.retained[topic] = data
        for bus in list(self.buses):
            bus.hear(topic, data)


class LocalBus:
    """One client of a hub."""

    def __init__(self, hub: LocalHub, will: Will | None = None) -> None:
        self._hub = hub
        self._will = will
        self._topics: list[str] = []
        self._heard: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()

    async def start(self) -> None:
        """Join the hub."""
        self._hub.buses.append(self)

    async def publish(self, topic: str, data: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        """Deliver at once."""
        self._hub.send(topic, data, retain=retain)

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Hear these topics from now on, what is retained first."""
        self._topics += topics
        for topic, data in list(self._hub.retained.items()):
            if any(is_match(pattern, topic) for pattern in topics):
                self._heard.put_nowait((topic, data))

    def hear(self, topic: str, data: bytes) -> None:
        """Called by the hub."""
        if any(is_match(pattern, topic) for pattern in self._topics):
            self._heard.put_nowait((topic, data))

    async def messages(self) -> AsyncIterator[tuple[str, bytes]]:
        """All that was heard, until `close`."""
        while (item := await self._heard.get()) is not None:
            yield item

    async def close(self) -> None:
        """Leave the hub; the will is published."""
        if self in self._hub.buses:
            self._hub.buses.remove(self)
            if self._will is not None:
                self._hub.send(self._will.topic, self._will.data, retain=True)
        self._heard.put_nowait(None)
