"""What shells need of a bus, whoever carries it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class Will(NamedTuple):
    """What the server publishes, retained, when a client vanishes: by default the empty message, which removes what was
    retained under the topic.
    """

    topic: str
    data: bytes = b""


class Bus(Protocol):
    """Publish and subscribe. `start` first, `close` last."""

    async def start(self) -> None:
        """Connect; raises `Unavailable` (`bus.unreachable`) with the address after its own deadline. From then on it
        reconnects by itself.
        """
        ...

    async def publish(self, topic: str, data: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        """Hand over a message; does not wait for anybody to have it. Raises `Refused` (`bus.size`) for one that the
        server would cut the connection for. While the server is away messages wait, the oldest giving way.
        """
        ...

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Hear these topics (`+` and `#` as in MQTT), also after a reconnect; what is retained under them comes
        first.
        """
        ...

    def messages(self) -> AsyncIterator[tuple[str, bytes]]:
        """All (topic, data) heard, until `close`. For one reader."""
        ...

    async def close(self) -> None:
        """Say goodbye, publishing the will."""
        ...
