"""A work machine under test, with the effects it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from provider.work.events import (
    AcceptanceArrived,
    BlobsFetched,
    LeaseOpened,
    PostReceipt,
    SlotGranted,
    Stored,
    Submit,
    WorkEffect,
    WorkEvent,
)
from provider.work.machine import Work
from tests.provider.scene import CHAIN, NOW, PROVIDER, accept, store

LATER = NOW + 5_000
EffectT = TypeVar("EffectT", bound=WorkEffect)


@dataclass
class Life:
    """A machine and all that it asked for, in order."""

    work: Work = field(default_factory=lambda: Work(PROVIDER, CHAIN))
    effects: list[WorkEffect] = field(default_factory=list)

    def tell(self, *events: WorkEvent, now: int = LATER) -> list[WorkEffect]:
        """Handle events as the driver does; the effects of the last one."""
        last: Sequence[WorkEffect] = ()
        for event in events:
            self.wake(now)
            last = self.work.handle(event, now)
            self.effects.extend(last)
        return list(last)

    def wake(self, now: int) -> list[WorkEffect]:
        woken: list[WorkEffect] = []
        while (due := self.work.wake_at()) is not None and due <= now:
            woken.extend(self.work.wake(now))
        self.effects.extend(woken)
        return woken

    def find(self, kind: type[EffectT]) -> list[EffectT]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def posted(self) -> PostReceipt:
        """The newest hand-in."""
        return self.find(PostReceipt)[-1]

    def stored(self) -> Stored:
        """The holder's answer to it."""
        return Stored(store(self.posted.receipt), self.posted.receipt.body.count)

    def accepted(self) -> AcceptanceArrived:
        return AcceptanceArrived(accept(self.posted.receipt))


def kinds(effects: Sequence[WorkEffect]) -> list[str]:
    """Names of effects, transactions by their task."""
    return [f"submit {effect.task}" if isinstance(effect, Submit) else type(effect).__name__ for effect in effects]


def begin(opened: LeaseOpened) -> Life:
    """A life whose work runs."""
    life = Life()
    life.tell(opened, BlobsFetched(), SlotGranted())
    return life
