"""What a seat may sign, given what it has signed (R16 b): the rules of the sign guard, which `chain.store` keeps on
disk.

No two votes for one slot and step that differ; never both finalize and dummy in one slot; nothing for a slot that is
decided.
"""

from __future__ import annotations

from collections.abc import Iterable

from chain.base.errors import Fault
from chain.consensus.messages import Step, Vote

__all__ = ["SignedTwice", "check_vote", "is_conflict"]


class SignedTwice(Fault):
    """Signing this would contradict what this seat's key signed before: `vote` against `earlier` (None: the slot is
    decided).
    """

    def __init__(self, vote: Vote, earlier: Vote | None) -> None:
        what = f"{vote.step} in slot {vote.slot}"
        why = f"this seat already signed {earlier.step} there for another block" if earlier else "that slot is decided"
        message = f"refuses to sign {what}: {why}. Does a second copy of this seat run, or was its folder restored?"
        super().__init__(message, rule="R16.guard")
        self.vote = vote
        self.earlier = earlier


def is_conflict(earlier: Vote, vote: Vote) -> bool:
    """Whether no honest seat signs both. Signing the very same vote again is harmless: signatures are deterministic."""
    if (earlier.epoch, earlier.slot) != (vote.epoch, vote.slot):
        return False
    if earlier.step == vote.step:
        return earlier.block != vote.block
    return {earlier.step, vote.step} == {Step.FINALIZE, Step.DUMMY}


def check_vote(vote: Vote, recorded: Iterable[Vote], decided: int) -> None:
    """Raise `SignedTwice` if `vote` contradicts a recorded one, or its slot is not above `decided`."""
    if vote.slot <= decided:
        raise SignedTwice(vote, None)
    for earlier in recorded:
        if is_conflict(earlier, vote):
            raise SignedTwice(vote, earlier)
