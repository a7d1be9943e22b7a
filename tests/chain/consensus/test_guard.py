"""The sign guard's rules (R16 b): the whole table of two votes, and slots that are decided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.hashing import compute_digest
from chain.consensus.guard import SignedTwice, check_vote, is_conflict
from chain.consensus.messages import NO_BLOCK, Step, Vote

A, B = compute_digest(b"a"), compute_digest(b"b")

PAIRS = [
    # earlier, later, conflict
    ((Step.NOTARISE, A), (Step.NOTARISE, B), True),
    ((Step.NOTARISE, A), (Step.NOTARISE, A), False),
    ((Step.FINALIZE, A), (Step.FINALIZE, B), True),
    ((Step.FINALIZE, A), (Step.FINALIZE, A), False),
    ((Step.NOTARISE, A), (Step.FINALIZE, A), False),
    ((Step.NOTARISE, A), (Step.DUMMY, NO_BLOCK), False),
    ((Step.DUMMY, NO_BLOCK), (Step.NOTARISE, A), False),
    ((Step.DUMMY, NO_BLOCK), (Step.DUMMY, NO_BLOCK), False),
    ((Step.FINALIZE, A), (Step.DUMMY, NO_BLOCK), True),
    ((Step.DUMMY, NO_BLOCK), (Step.FINALIZE, A), True),
]


@pytest.mark.parametrize(("earlier", "later", "conflict"), PAIRS)
def test_two_votes_in_one_slot(earlier: tuple[Step, bytes], later: tuple[Step, bytes], conflict: bool) -> None:
    first, second = Vote(earlier[0], 0, 7, earlier[1]), Vote(later[0], 0, 7, later[1])
    assert is_conflict(first, second) is is_conflict(second, first) is conflict
    if not conflict:
        check_vote(second, [first], decided=6)
        return
    with pytest.raises(SignedTwice) as caught:
        check_vote(second, [first], decided=6)
    assert caught.value.rule == "R16.guard"
    assert (caught.value.vote, caught.value.earlier) == (second, first)


@pytest.mark.parametrize("other", [Vote(Step.NOTARISE, 0, 8, B), Vote(Step.NOTARISE, 1, 7, B)])
def test_other_slots_and_epochs_do_not_matter(other: Vote) -> None:
    assert not is_conflict(Vote(Step.NOTARISE, 0, 7, A), other)


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from(Step))
def test_nothing_is_signed_in_a_slot_that_is_decided(slot: int, decided: int, step: Step) -> None:
    vote = Vote(step, 0, slot, A)
    if slot > decided:
        check_vote(vote, [], decided)
        return
    with pytest.raises(SignedTwice) as caught:
        check_vote(vote, [], decided)
    assert caught.value.earlier is None
