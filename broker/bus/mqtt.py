"""The bus over MQTT 5, by aiomqtt.

One task connects, subscribes, sends what waits and hears what comes; when the connection breaks it begins anew, after
a pause that grows to two seconds. Each connect has our own deadline, since a refusal may be silence (threats.md row
28). What this client retained is published again after a reconnect, because its will may have removed it. Doubles are
not filtered: signatures and sequence numbers are (row 26).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from broker.bus.protocol import Will
from broker.protocol.messages import MAX_MESSAGE_BYTES
from chain.base.errors import Refused, Unavailable
from chain.runtime.logs import get_logger

CONNECT_SECONDS = 5.0
"""Our own deadline for a connection and its subscriptions."""

KEEPALIVE_SECONDS = 10
"""After one and a half of these without a sign of life the server publishes our will."""

PAUSE_FIRST, PAUSE_MOST = 0.05, 2.0
"""Seconds between tries to connect."""

NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
"""Without it a message that follows an acknowledgement waits for the server's delayed one: 40 ms."""

QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux alone has it; it holds for a moment only."""

SETTLE_SECONDS = 0.5
"""After a reconnect nothing is sent for so long: the server has forgotten who hears what, and others, who lost it at
the same moment, must subscribe first or never hear it.
"""

OUTBOX = 1_000
"""Messages that wait while the server is away; beyond it the oldest are dropped."""

START_A_BROKER = "start a broker with `tally-broker run`, or name another"
"""What to do where no server answers; the broker itself has another advice."""

INBOX = 10_000
"""Messages heard and not yet read; beyond it the library drops new ones."""


class _Outgoing(NamedTuple):
    topic: str
    data: bytes
    retain: bool
    expiry_s: int | None
    dropped_at: float


class _Client(aiomqtt.Client):
    """The library's client, with a hand on its socket."""

    def acknowledge_now(self) -> None:
        """Let TCP acknowledge at once what was read. A server that collects small packets (Nagle; rumqttd can't be told
        otherwise) keeps its next message back until the last one, here a PUBACK, is acknowledged: 40 ms by default.
        """
        connection = self._client.socket()
        if QUICK_ACK is not None and isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)


class MqttBus:
    """One client of the MQTT server at `url` (`mqtt://[user:password@]host:port`, `mqtts://` for TLS); `advice` says
    what to do where none answers.
    """

    def __init__(self, url: str, client_id: str, will: Will | None = None, *, advice: str = START_A_BROKER) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise Refused(f"{url!r} is no MQTT address; it looks like mqtt://127.0.0.1:1883", rule="bus.url")
        self._parts = parts
        self.url = f"{parts.scheme}://{parts.hostname}:{parts.port or 1883}"
        # A second client of the same name ends the session of the first (threats.md row 31): nobody may guess it.
        self._client_id = f"{client_id}-{secrets.token_hex(8)}"
        self._will = will
        self._advice = advice
        self._topics: list[str] = []
        self._retained: dict[str, _Outgoing] = {}
        self._outbox: deque[_Outgoing] = deque(maxlen=OUTBOX)
        self._wake = asyncio.Event()
        self._heard: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(INBOX)
        self._connected = asyncio.Event()
        self._client: _Client | None = None
        self._runner: asyncio.Task[None] | None = None
        self._log = get_logger("bus")

    @property
    def connected(self) -> bool:
        """Whether the server is there just now."""
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        """Return once the server is there."""
        await self._connected.wait()

    async def start(self) -> None:
        """Connect; raises `Unavailable` (`bus.unreachable`) after our own deadline."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner = asyncio.create_task(self._run(first))
        try:
            await first
        except BaseException:
            await self.close()
            raise

    async def publish(self, topic: str, data: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        """Hand over a message; see `Bus.publish`."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise Refused(f"a message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}", rule="bus.size")
        dropped_at = time.monotonic() + (expiry_s if expiry_s is not None else 3600)
        message = _Outgoing(topic, data, retain, expiry_s, dropped_at)
        if retain:
            self._retained[topic] = message
        self._outbox.append(message)
        self._wake.set()

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Hear these topics, also after a reconnect."""
        self._topics += [topic for topic in topics if topic not in self._topics]
        client = self._client
        if client is not None and self.connected:
            with contextlib.suppress(aiomqtt.MqttError):
                await self._subscribe(client, topics)

    async def messages(self) -> AsyncIterator[tuple[str, bytes]]:
        """All (topic, data) heard, until `close`."""
        while (item := await self._heard.get()) is not None:
            yield item

    async def close(self) -> None:
        """Send what waits, remove what was retained, disconnect."""
        if self._will is not None and self.connected:
            await self.publish(self._will.topic, self._will.data, retain=True)
        if self.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while self._outbox and self.connected:
                        await asyncio.sleep(0.005)
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        with contextlib.suppress(asyncio.QueueFull):
            self._heard.put_nowait(None)

    async def _run(self, first: asyncio.Future[None]) -> None:
        pause = PAUSE_FIRST
        while True:
            try:
                await self._live(first)
                pause = PAUSE_FIRST
            except (aiomqtt.MqttError, OSError, TimeoutError) as error:
                if not first.done():
                    first.set_exception(self._unreachable(error))
                    return
                if self.connected:
                    pause = PAUSE_FIRST
                    self._log.warning("bus lost", url=self.url, error=str(error) or type(error).__name__)
            finally:
                self._connected.clear()
                self._client = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MOST)

    async def _live(self, first: asyncio.Future[None]) -> None:
        """One connection, from greeting to break."""
        client = self._make_client()
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(CONNECT_SECONDS):
                await stack.enter_async_context(client)
                if self._topics:
                    await self._subscribe(client, self._topics)
            self._client = client
            waiting = {message.topic for message in self._outbox if message.retain}
            self._outbox.extendleft(one for topic, one in self._retained.items() if one.data and topic not in waiting)
            self._connected.set()
            self._wake.set()
            is_back = first.done()
            if is_back:
                self._log.info("bus is back", url=self.url)
            else:
                first.set_result(None)
            await _run_until_first_ends(self._hear(client), self._send(client, SETTLE_SECONDS if is_back else 0))

    async def _hear(self, client: _Client) -> None:
        async for message in client.messages:
            payload = message.payload
            if isinstance(payload, bytes | bytearray):
                await self._heard.put((str(message.topic), bytes(payload)))
        raise aiomqtt.MqttError("disconnected")

    async def _send(self, client: _Client, pause: float) -> None:
        await asyncio.sleep(pause)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                message = self._outbox[0]
                if message.dropped_at > time.monotonic():
                    await client.publish(
                        message.topic,
                        message.data,
                        qos=1,
                        retain=message.retain,
                        properties=_make_expiry(message.expiry_s),
                        timeout=CONNECT_SECONDS,
                    )
                    client.acknowledge_now()
                if self._outbox and self._outbox[0] is message:
                    self._outbox.popleft()

    async def _subscribe(self, client: _Client, topics: Sequence[str]) -> None:
        await client.subscribe([(topic, 1) for topic in topics], timeout=CONNECT_SECONDS)

    def _make_client(self) -> _Client:
        parts = self._parts
        will = None
        if self._will is not None:
            will = aiomqtt.Will(self._will.topic, self._will.data, qos=1, retain=True)
        return _Client(
            str(parts.hostname),
            parts.port or 1883,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=will,
            keepalive=KEEPALIVE_SECONDS,
            clean_start=True,
            timeout=CONNECT_SECONDS,
            max_queued_incoming_messages=INBOX,
            socket_options=[NO_DELAY],
            tls_params=aiomqtt.TLSParameters() if parts.scheme == "mqtts" else None,
        )

    def _unreachable(self, error: BaseException) -> Unavailable:
        why = str(error) or type(error).__name__
        return Unavailable(f"no MQTT server answers at {self.url} ({why}); {self._advice}", rule="bus.unreachable")


async def _run_until_first_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run all; when one ends, cancel the others and raise its error as it is (a group would hide its type)."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _make_expiry(expiry_s: int | None) -> Properties | None:
    if expiry_s is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # the library's stubs lack it
    properties.MessageExpiryInterval = expiry_s
    return properties
