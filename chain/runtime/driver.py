"""The one asyncio driver of all machines (`chain.base.machine`).

For each event: settle due deadlines, store the event, ask the machine, carry out its effects in order, arm one timer.
Store before send holds because nothing
follows from an event before the journal has it. The driver decides nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from chain.base.codec import encode
from chain.base.errors import Fault
from chain.base.machine import Machine
from chain.runtime.clock import Clock
from chain.runtime.journal import Journal
from chain.runtime.logs import get_logger

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")
ResultT = TypeVar("ResultT", covariant=True)
RequestT = TypeVar("RequestT", contravariant=True)

_WOKEN = b""
"""What the journal holds for a call of `wake`: no event encodes to nothing."""

_LONGEST_SLEEP = 3600.0
"""Seconds after which a far timer is looked at again, so that a changed clock is noticed."""


class Performer(Protocol[ResultT, RequestT]):
    """Carries out one effect. What is synchronous happens at once and in order; a returned coroutine runs beside, and
    its result, if not None, comes back as an event.

    Failures that can be expected must come back as events: an exception out of here stops the machine.
    """

    def __call__(self, effect: RequestT, /) -> Coroutine[Any, Any, ResultT | None] | None:
        """Carry out `effect`."""
        ...


class Driver(Generic[EventT, EffectT]):
    """Runs one machine.

    `events` is the (union) type of its events, used to read the journal; an event type whose class variable `durable`
    is False is handled but not stored. The attribute `on_fault`, if set, is told when the machine or its performer
    breaks (`failed` holds the error from then on).
    """

    def __init__(
        self,
        name: str,
        machine: Machine[EventT, EffectT],
        perform: Performer[EventT, EffectT],
        *,
        journal: Journal,
        events: Any,
        restarted: EventT,
        clock: Clock,
    ) -> None:
        self.name = name
        self.machine = machine
        self.failed: BaseException | None = None
        self.on_fault: Callable[[BaseException], None] | None = None
        self._perform = perform
        self._journal = journal
        self._decoder = msgspec.msgpack.Decoder(events)
        self._restarted = restarted
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[EventT] = deque()
        self._busy = False
        self._closed = False
        self._log = get_logger("driver").bind(machine=name)

    async def start(self) -> None:
        """Rebuild the machine from its journal, dropping the effects, then let it ask again for what is outstanding."""
        self.replay()
        self.post(self._restarted)

    def replay(self) -> int:
        """Feed the stored events to the machine; returns their number. Raises `Fault` under `journal.form` for a row
        that is no event of this machine.
        """
        rows = self._journal.load(self.name)
        for now, payload in rows:
            if payload == _WOKEN:
                self.machine.wake(now)
                continue
            try:
                event: EventT = self._decoder.decode(payload)
            except msgspec.MsgspecError as error:
                raise Fault(f"journal of {self.name} holds what is no event: {error}", rule="journal.form") from error
            self.machine.handle(event, now)
        return len(rows)

    def post(self, event: EventT) -> None:
        """Take an event. Called from the loop's thread; events posted while effects are carried out wait for their
        turn.
        """
        if self._closed or self.failed is not None:
            return
        self._queue.append(event)
        self._drain()

    async def close(self) -> None:
        """Stop the timer, cancel what runs beside, and wait for it."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, event: EventT) -> None:
        now = self._clock.now()
        self._settle(now)
        if getattr(event, "durable", True):
            event = self._store(event, now)
        self._carry_out(self.machine.handle(event, now))

    def _store(self, event: EventT, now: int) -> EventT:
        """Journal `event` and return it as a replay will read it. Raises `Fault` under `journal.form` for one that
        could not be read back: better to stop here than at each restart from now on.
        """
        payload = encode(event)
        try:
            read: EventT = self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise Fault(f"{event!r:.200} is no event of {self.name}: {error}", rule="journal.form") from error
        self._journal.append(self.name, now, payload)
        return read

    def _settle(self, now: int) -> None:
        due = self.machine.wake_at()
        if due is not None and due <= now:
            self._journal.append(self.name, now, _WOKEN)
            self._carry_out(self.machine.wake(now))

    def _carry_out(self, effects: Sequence[EffectT]) -> None:
        for effect in effects:
            beside = self._perform(effect)
            if beside is not None:
                task = asyncio.get_running_loop().create_task(self._run_beside(beside))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run_beside(self, work: Coroutine[Any, Any, EventT | None]) -> None:
        try:
            event = await work
        except Exception as error:  # noqa: BLE001  # as in `_drain`
            self._fail(error)
            return
        if event is not None:
            self.post(event)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.machine.wake_at()
        if due is None:
            return
        delay = min(max(0, due - self._clock.now()) / 1000, _LONGEST_SLEEP)
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._closed and self.failed is None:
            self._drain()

    def _drain(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._settle(self._clock.now())
            while self._queue:
                self._take(self._queue.popleft())
            self._arm()
        except Exception as error:  # noqa: BLE001  # a broken machine stops alone and visibly, never with its neighbours
            self._fail(error)
        finally:
            self._busy = False

    def _fail(self, error: BaseException) -> None:
        self.failed = error
        if self._timer is not None:
            self._timer.cancel()
        self._log.error("machine stopped", error=repr(error), exc_info=error)
        if self.on_fault is not None:
            self.on_fault(error)
