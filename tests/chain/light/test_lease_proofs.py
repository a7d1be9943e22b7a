"""Proofs of a lease: a good one gives the record, every lie is refused by its number, no flipped byte passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.entries import LeaseRecord, LeaseState, get_account_key, get_lease_key, get_order_key
from chain.ledger.tree import DEPTH, MapProof, StateTree, Witness
from chain.light.verifier import BadProof, verify_lease
from chain.rpc.proofs import MAX_LEASE_BYTES, Finality, LeaseProof
from tests.chain.ledger.world import SIGNERS, World, make_params, make_test_genesis, salt


def make_world() -> World:
    """A chain with two leases, one of them settled."""
    w = World()
    first = w.open_lease()
    w.send("rival", w.extend(first, 4))
    w.open_lease(salt=salt("second"))
    return w


def finalise(w: World, header: Header, *, step: Step = Step.FINALIZE) -> Finality:
    """A header with its seat's certificate."""
    vote = Vote(step, header.epoch, header.slot, compute_block_id(w.chain_id, header))
    signature = SIGNERS["seat"].sign(Tag.VOTE, w.chain_id, vote).signature
    return Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))


def prove(w: World, lease: LeaseRecord) -> LeaseProof:
    """What the node hands out."""
    key = get_lease_key(lease.id)
    return LeaseProof(finalise(w, w.ledger.head), key, encode(w.lease(lease.id)), w.ledger.prove(key))


W = make_world()
LEASE, OTHER = W.ledger.leases()
GOOD = prove(W, LEASE)
STALE = finalise(W, W.history[-2].header)
FORGED = replace(LEASE, paid=LEASE.terms.price, state=LeaseState.SETTLED)
ACCOUNT_KEY, ORDER_KEY = get_account_key(W.key("provider")), get_order_key(LEASE.terms.order)
ACCOUNT = encode(W.ledger.account(W.key("provider")))
TREE = StateTree(W.chain_id)
SPELT = b"\xdd" + bytes(2) + encode(LEASE)[1:3]
"""The header of the same array, longer than it needs to be."""
ABSENT = get_lease_key(compute_digest(b"no lease"))


def plant(key: bytes, value: bytes) -> LeaseProof:
    """A state whose seats certified an entry that no ledger would hold."""
    tree = TREE.update(None, {key: value, ACCOUNT_KEY: ACCOUNT})
    assert tree is not None
    header = replace(W.ledger.head, state=tree.hash)
    return LeaseProof(finalise(W, header), key, value, TREE.prove(tree, key))


def with_path(*siblings: bytes) -> LeaseProof:
    return replace(GOOD, proof=MapProof(siblings, None))


PATH = GOOD.proof.siblings
ATTACKS: dict[str, tuple[str, Callable[[], LeaseProof]]] = {
    "a block that is only notarised": (
        "F5",
        lambda: replace(GOOD, finality=finalise(W, W.ledger.head, step=Step.NOTARISE)),
    ),
    "a header that nobody finalised": (
        "F5",
        lambda: replace(GOOD, finality=replace(GOOD.finality, header=replace(W.ledger.head, state=bytes(32)))),
    ),
    "the path of an absence": (
        "S2",
        lambda: replace(GOOD, key=ABSENT, proof=replace(W.ledger.prove(ABSENT), witness=None)),
    ),
    "a witness beside the path": ("S1", lambda: replace(GOOD, proof=MapProof(PATH, Witness(bytes(32), bytes(32))))),
    "a path longer than a tree is deep": ("S1", lambda: with_path(*PATH, *(bytes(32),) * DEPTH)),
    "an older header": ("S2", lambda: replace(GOOD, finality=STALE)),
    "a forged value": ("S2", lambda: replace(GOOD, value=encode(FORGED))),
    "a value cut short": ("S2", lambda: replace(GOOD, value=GOOD.value[:-1])),
    "no value": ("S2", lambda: replace(GOOD, value=b"")),
    "a value with a byte too many": ("S2", lambda: replace(GOOD, value=GOOD.value + b"\x00")),
    "another lease's value": ("S2", lambda: replace(GOOD, value=encode(OTHER))),
    "another lease's key": ("S2", lambda: replace(GOOD, key=get_lease_key(OTHER.id))),
    "another lease's path": ("S2", lambda: replace(GOOD, proof=prove(W, OTHER).proof)),
    "a path cut short at the root": ("S2", lambda: with_path(*PATH[1:])),
    "a path cut short at the leaf": ("S2", lambda: with_path(*PATH[:-1])),
    "a path with a node too many": ("S2", lambda: with_path(*PATH, bytes(32))),
    "no path": ("S2", with_path),
    "a path turned round": ("S2", lambda: with_path(*PATH[::-1])),
    "an entry of another kind under its own key": (
        "S3",
        lambda: replace(GOOD, key=ACCOUNT_KEY, value=ACCOUNT, proof=W.ledger.prove(ACCOUNT_KEY)),
    ),
    "an order's record": (
        "S3",
        lambda: replace(
            GOOD, key=ORDER_KEY, value=encode(W.ledger.order(LEASE.terms.order)), proof=W.ledger.prove(ORDER_KEY)
        ),
    ),
    "a lease in a second spelling": (
        "S3",
        lambda: plant(get_lease_key(LEASE.id), SPELT + encode(LEASE)[3:]),
    ),
    "a lease larger than any": ("S3", lambda: plant(get_lease_key(LEASE.id), bytes(MAX_LEASE_BYTES + 1))),
    "a lease under another lease's key": ("S4", lambda: plant(get_lease_key(OTHER.id), encode(LEASE))),
    "a lease under the key of another kind": ("S4", lambda: plant(get_order_key(LEASE.id), encode(LEASE))),
}


@pytest.mark.parametrize("lease", [LEASE, OTHER], ids=["with a receipt", "just opened"])
def test_a_good_proof_gives_the_record_that_the_ledger_holds(lease: LeaseRecord) -> None:
    proof = decode(encode(prove(W, lease)), LeaseProof)
    assert verify_lease(W.genesis, proof) == W.lease(lease.id)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_lie_is_refused_by_its_number(name: str) -> None:
    number, make = ATTACKS[name]
    with pytest.raises(BadProof) as caught:
        verify_lease(W.genesis, make())
    assert caught.value.rule == f"light.{number}"


def test_the_proof_of_one_chain_is_worth_nothing_on_another() -> None:
    other = make_test_genesis(make_params(fee=7))
    with pytest.raises(BadProof) as caught:
        verify_lease(other, GOOD)
    assert caught.value.rule == "light.F1"


def test_every_block_proves_the_lease_as_it_left_it() -> None:
    """The state of an older final header is true of that height, and stays provable by whoever kept it."""
    w = World()
    lease = w.open_lease()
    early = prove(w, lease)
    w.send("broker", w.settle(lease))
    late = prove(w, lease)
    assert verify_lease(w.genesis, early).state is LeaseState.OPEN
    assert verify_lease(w.genesis, late) == w.lease(lease.id)
    assert verify_lease(w.genesis, late).state is LeaseState.SETTLED
    assert early.finality.header.height < late.finality.header.height
    with pytest.raises(BadProof) as caught:
        verify_lease(w.genesis, replace(late, finality=early.finality))
    assert caught.value.rule == "light.S2"


def check_flip(position: int, bit: int) -> None:
    changed = bytearray(encode(GOOD))
    changed[position] ^= 1 << bit
    with pytest.raises(Refused):
        verify_lease(W.genesis, decode(bytes(changed), LeaseProof))


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_no_flipped_byte_passes(bit: int) -> None:
    """Nothing in a proof of a lease is free: every byte decides."""
    for position in range(len(encode(GOOD))):
        check_flip(position, bit)


@settings(max_examples=200)
@given(st.integers(0, len(encode(GOOD)) - 1), st.integers(0, 7))
def test_no_flipped_bit_passes(position: int, bit: int) -> None:
    check_flip(position, bit)


@pytest.mark.parametrize("cut", [1, 33, 200])
def test_a_truncated_proof_is_refused(cut: int) -> None:
    with pytest.raises(Refused):
        decode(encode(GOOD)[:-cut], LeaseProof)
