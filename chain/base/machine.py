"""The one contract of every decision-maker: consensus engine, auction, work, purchase.

A machine is a state and three pure methods. It reads no clock, draws no randomness, opens no file or socket: whatever
it needs comes in with the event. Effects are carried out
in order by a shell that stores before it sends; effects that take long come back as events. Recovery is a replay of
the stored events (their effects are dropped), followed by
the machine's own `Restarted` event, on which it asks again for all that is still outstanding; effects are therefore
idempotent. Deadlines that are due are settled before an event is looked at: `Machine`'s
driver calls `wake` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

EventT = TypeVar("EventT", contravariant=True)
EffectT = TypeVar("EffectT", covariant=True)


class Machine(Protocol[EventT, EffectT]):
    """What the driver and the simulator run."""

    def handle(self, event: EventT, now: int) -> Sequence[EffectT]:
        """Take one event at Instant `now` and return what is to be done, in order. Never raises for what others
        sent.
        """
        ...

    def wake_at(self) -> int | None:
        """The Instant at which `wake` wants to be called, or None."""
        ...

    def wake(self, now: int) -> Sequence[EffectT]:
        """Settle all deadlines that are due at `now`."""
        ...
