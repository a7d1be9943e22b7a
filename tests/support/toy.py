"""A small machine for the tests of its driver, with a clock that stands until it is moved.

It adds numbers up; a sum is due for reporting at a deadline that events set. All it does is seen in its log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, assert_never

import msgspec

from chain.base.codec import Record
from chain.base.units import Amount, Instant


class Added(Record, frozen=True, tag="added"):
    amount: Amount


class Scheduled(Record, frozen=True, tag="scheduled"):
    at: Instant


class Heard(Record, frozen=True, tag="heard"):
    durable: ClassVar[bool] = False
    text: Annotated[str, msgspec.Meta(max_length=20)]


class Restarted(Record, frozen=True, tag="restarted"):
    pass


ToyEvent = Added | Scheduled | Heard | Restarted


class Say(msgspec.Struct, frozen=True):
    """The effect of an event."""

    text: str


class Report(msgspec.Struct, frozen=True):
    """The effect of a deadline."""

    total: int
    late: int


ToyEffect = Say | Report


class Toy:
    """The machine."""

    def __init__(self) -> None:
        self.total = 0
        self.deadlines: list[int] = []
        self.log: list[tuple[str, int]] = []

    def handle(self, event: ToyEvent, now: int) -> Sequence[ToyEffect]:
        match event:
            case Added():
                if event.amount == 13:
                    raise ZeroDivisionError("thirteen breaks this machine")
                self.total += event.amount
            case Scheduled():
                self.deadlines = sorted([*self.deadlines, event.at])
            case Heard():
                return [Say(event.text)]
            case Restarted():
                return [Say("restarted")]
            case _:
                assert_never(event)
        self.log.append((repr(event), now))
        return [Say(repr(event)), Say("done")]

    def wake_at(self) -> int | None:
        return self.deadlines[0] if self.deadlines else None

    def wake(self, now: int) -> Sequence[ToyEffect]:
        due = [at for at in self.deadlines if at <= now]
        self.deadlines = [at for at in self.deadlines if at > now]
        self.log.append(("wake", now))
        return [Report(self.total, now - at) for at in due]

    @property
    def state(self) -> Any:
        """All that a replay must rebuild."""
        return self.total, self.deadlines, self.log


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, now: int = 1_000) -> None:
        self.time = now

    def now(self) -> int:
        return self.time


class Recorder:
    """A performer that keeps what it was told; `also` may do more."""

    def __init__(self, also: Callable[[ToyEffect], Any] | None = None) -> None:
        self.effects: list[ToyEffect] = []
        self.also = also

    def __call__(self, effect: ToyEffect) -> Any:
        self.effects.append(effect)
        return self.also(effect) if self.also else None
