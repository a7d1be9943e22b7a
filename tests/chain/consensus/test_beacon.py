"""The beacon's hash chains (R17): every reveal leads to the head, none can be chosen."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.errors import Fault, Refused
from chain.consensus.beacon import CHAIN_SLOTS, BeaconChain, compute_beacon, compute_checkpoints, verify_reveal

SECRET = b"x" * 32
SLOTS, SPAN = 64, 8
CHECKPOINTS = compute_checkpoints(SECRET, SLOTS, SPAN)


def hash_times(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = hashlib.sha256(value).digest()
    return value


def make_chain() -> BeaconChain:
    return BeaconChain(CHECKPOINTS, SPAN)


def test_the_head_is_the_secret_hashed_once_per_slot() -> None:
    assert make_chain().head == hash_times(SECRET, SLOTS)
    assert make_chain().slots == SLOTS


@given(st.lists(st.integers(1, SLOTS), min_size=1))
def test_each_slot_reveals_its_value_in_any_order(slots: list[int]) -> None:
    chain = make_chain()
    assert [chain.get_reveal(slot) for slot in slots] == [hash_times(SECRET, SLOTS - slot) for slot in slots]


@given(st.integers(0, SLOTS - 1), st.integers(1, SLOTS))
def test_a_reveal_is_checked_against_any_earlier_one(earlier: int, distance: int) -> None:
    chain = make_chain()
    slot = min(SLOTS, earlier + distance)
    known = chain.get_reveal(earlier) if earlier else chain.head
    verify_reveal(chain.get_reveal(slot), slot, known, earlier)


@pytest.mark.parametrize("slot", [2, 3, 5])
def test_any_other_value_is_refused(slot: int) -> None:
    chain = make_chain()
    for wrong in (chain.get_reveal(slot + 1), chain.get_reveal(slot - 1), bytes(32)):
        with pytest.raises(Refused) as caught:
            verify_reveal(wrong, slot, chain.head, 0)
        assert caught.value.rule == "R17.reveal"


@pytest.mark.parametrize(("slot", "earlier"), [(3, 3), (2, 3), (CHAIN_SLOTS + 1, CHAIN_SLOTS)])
def test_slots_that_cannot_follow_are_refused_before_hashing(slot: int, earlier: int) -> None:
    with pytest.raises(Refused) as caught:
        verify_reveal(bytes(32), slot, bytes(32), earlier)
    assert caught.value.rule == "R17.reveal"


@pytest.mark.parametrize("slot", [0, SLOTS + 1])
def test_a_used_up_chain_says_so(slot: int) -> None:
    with pytest.raises(Fault) as caught:
        make_chain().get_reveal(slot)
    assert caught.value.rule == "R17.used-up"


def test_damaged_checkpoints_are_noticed() -> None:
    damaged = (*CHECKPOINTS[:3], bytes(32), *CHECKPOINTS[4:])
    chain = BeaconChain(damaged, SPAN)
    assert chain.get_reveal(1) == hash_times(SECRET, SLOTS - 1)
    with pytest.raises(Fault) as caught:
        chain.get_reveal(SLOTS - 3 * SPAN + 1)
    assert caught.value.rule == "R17.checkpoints"


def test_the_beacon_depends_on_chain_parent_and_reveal() -> None:
    base = (b"c" * 32, b"p" * 32, b"r" * 32)
    variants = {
        compute_beacon(*(bytes(32) if n == changed else part for n, part in enumerate(base))) for changed in range(3)
    }
    assert len(variants | {compute_beacon(*base)}) == 4
