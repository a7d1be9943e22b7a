"""law.md's table of the lease as data: which row a (state, event or timer) pair takes. What is not listed is refused by
name.

Rows 4 and 14 to 17 (faults, disputes) are part of the table but no transaction leads there yet: see SPEC.md.
"""

from __future__ import annotations

from enum import StrEnum

from chain.base.errors import Refused
from chain.ledger.entries import LIVE, LeaseRecord, LeaseState


class Event(StrEnum):
    """What can happen to a lease that exists: transactions first, then timers."""

    RECEIPT = "receipt"
    SETTLE = "settle"
    FAULT = "fault"
    RETURN = "return"
    CANCEL = "cancel"
    CALL = "call"
    ANSWER = "answer"
    DELIVER = "deliver"
    DISPUTE = "dispute"
    TIMER = "timer"


_OPEN, _CALLED, _CANCELLING = LeaseState.OPEN, LeaseState.CALLED, LeaseState.CANCELLING

ROWS: dict[tuple[LeaseState, Event], tuple[int, ...]] = {
    **{(state, Event.RECEIPT): (2,) for state in (_OPEN, _CALLED, _CANCELLING)},
    **{(state, Event.SETTLE): (3,) for state in LIVE},
    **{(state, Event.FAULT): (4,) for state in LIVE},
    **{(state, Event.RETURN): (5, 7) for state in (_OPEN, _CALLED)},
    **{(state, Event.CANCEL): (6,) for state in (_OPEN, _CALLED)},
    (_OPEN, Event.CALL): (8,),
    (_CALLED, Event.ANSWER): (9,),
    **{(state, Event.TIMER): (10,) for state in (_OPEN, _CALLED)},
    **{(state, Event.DELIVER): (11,) for state in (_OPEN, _CALLED, _CANCELLING)},
    (_CANCELLING, Event.TIMER): (12,),
    (LeaseState.DELIVERED, Event.TIMER): (13,),
    (LeaseState.DELIVERED, Event.DISPUTE): (14,),
    (LeaseState.DISPUTED, Event.TIMER): (15, 16, 17),
}
"""(state, event) -> the rows it may take."""


def check_row(lease: LeaseRecord, event: Event) -> None:
    """Raise `Refused` (`lease.<state>.<event>`) unless the table lists the pair."""
    if (lease.state, event) not in ROWS:
        raise Refused(f"{event.value} has no place in state {lease.state.value}", rule=f"lease.{lease.state}.{event}")
