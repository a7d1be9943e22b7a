"""Forgeries of how a lease ended: acceptance, state on the chain, the transaction, and which leases there were."""

from __future__ import annotations

from typing import Any

from broker.protocol.api import Unmatched
from broker.protocol.messages import Decline, Reason
from chain.base.codec import decode, encode
from chain.base.hashing import Tag
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.entries import LeaseRecord
from chain.ledger.terms.work import Span
from chain.ledger.transactions import compute_transaction_id
from chain.ledger.tree import StateTree, get_hash
from chain.rpc.proofs import Finality
from tests.attacks.case_chain import ALICE, change
from tests.attacks.case_hand import MALLORY, OTHER, Forge, Hand, Row, sign_own


def swap_acceptances(hand: Hand) -> None:
    one, two = hand.get(0).acceptance, hand.get(2).acceptance
    hand.put(0, acceptance=two)
    hand.put(2, acceptance=one)


def accept_by_mallory(hand: Hand) -> None:
    sign_own(hand, "acceptance", Tag.ACCEPTANCE, signer=MALLORY.key)


def accept_in_the_owners_name(hand: Hand) -> None:
    sign_own(hand, "acceptance", Tag.ACCEPTANCE)


def accept_less(hand: Hand) -> None:
    hand.set_body("acceptance", segments=(Span(0, 2),))


def get_proof(hand: Hand, place: int = 0) -> Any:
    proof = hand.get(place).proof
    assert proof is not None
    return proof


def bend_proof(**fields: Any) -> Forge:
    return lambda hand: hand.put(0, proof=change(get_proof(hand), **fields))


def bend_finality(**fields: Any) -> Forge:
    def forge(hand: Hand) -> None:
        proof = get_proof(hand)
        hand.put(0, proof=change(proof, finality=change(proof.finality, **fields)))

    return forge


def header_of_another_height(hand: Hand) -> None:
    other = hand.other.leases[0].proof
    assert other is not None
    bend_finality(header=other.finality.header)(hand)


def certificate_of_another_block(hand: Hand) -> None:
    other = hand.other.leases[0].proof
    assert other is not None
    bend_finality(certificate=other.finality.certificate)(hand)


def prove_by(hand: Hand, proof: Any, place: int = 0) -> None:
    """Another proof, and what was seen agrees with it."""
    tx = compute_transaction_id(proof.transaction.body).hex() if proof else ""
    hand.put(place, proof=proof, seen=change(hand.get(place).seen, tx=tx))


def settle_of_another_lease(hand: Hand) -> None:
    prove_by(hand, hand.other.leases[0].proof)


def settle_signed_by_nobody(hand: Hand) -> None:
    proof = get_proof(hand)
    hand.put(0, proof=change(proof, transaction=change(proof.transaction, signature=bytes(64))))


def state_of_another_lease(hand: Hand) -> None:
    hand.put(0, state=hand.other.leases[0].state)


def earlier_state(hand: Hand) -> None:
    hand.put(0, state=hand.play.leases[0].earlier)


def bend_state(hand: Hand) -> None:
    state = hand.get().state
    assert state is not None
    hand.put(0, state=change(state, value=encode(change(decode(state.value, LeaseRecord), paid=1))))


def say(**fields: Any) -> Forge:
    return lambda hand: hand.put(0, seen=change(hand.get().seen, **fields))


def silence_to_come(hand: Hand) -> None:
    """Silence is said to have accepted in a block behind the one that proves it."""
    state = hand.get(1).state
    assert state is not None
    hand.put(1, seen=change(hand.get(1).seen, height=state.finality.header.height + 1))


def without_lease(place: int) -> Forge:
    def forge(hand: Hand) -> None:
        gone = hand.get(place)
        hand.set(leases=tuple(one for one in hand.documents.leases if one is not gone))
        del hand.records[gone.lease]

    return forge


def silent_acceptance(hand: Hand) -> None:
    """What silence accepted is said to have been accepted by the requester."""
    genuine = hand.get(0).acceptance
    hand.put(1, acceptance=genuine)


def unsaid_acceptance(hand: Hand) -> None:
    """What the requester accepted is said to have been accepted by silence."""
    hand.put(0, acceptance=None)
    prove_by(hand, None)


def state_of_her_own(hand: Hand) -> None:
    """A state in which it cost nothing, under a header of her own."""
    state = hand.get().state
    assert state is not None
    tree = StateTree(hand.documents.chain)
    value = encode(change(decode(state.value, LeaseRecord), paid=0, commission=0))
    root = tree.update(None, {state.key: value})
    header = change(state.finality.header, state=get_hash(root))
    proof = change(state, value=value, proof=tree.prove(root, state.key), finality=certify(hand, header))
    hand.put(0, state=proof, seen=change(hand.get().seen, paid=0, commission=0))


def certify(hand: Hand, header: Header) -> Finality:
    """A certificate for any header, by the forger in the place of the seat."""
    vote = Vote(Step.FINALIZE, 0, header.slot, compute_block_id(hand.documents.chain, header))
    signature = MALLORY.sign(Tag.VOTE, hand.documents.chain, vote).signature
    return Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))


def block_of_her_own(hand: Hand) -> None:
    proof = get_proof(hand)
    hand.put(0, proof=change(proof, finality=certify(hand, proof.finality.header)))


def without_receipt(hand: Hand) -> None:
    hand.put(0, receipt=None, storage=None)


def without_work(hand: Hand) -> None:
    """Neither receipt nor records, as if nothing had been done."""
    without_receipt(hand)
    hand.set_records(0, ())
    hand.put(0, acceptance=None)


def lease_twice(hand: Hand) -> None:
    """The same lease again under another id."""
    twin = change(hand.get(0), lease=OTHER)
    hand.set(leases=(*hand.documents.leases, twin))
    hand.records[OTHER] = ()


def invented_decline(hand: Hand) -> None:
    decline = Decline(hand.play.order_id, ALICE.key, Reason.PRICE, 1, "")
    signed = MALLORY.sign(Tag.DECLINE, hand.documents.chain, decline)
    hand.set(unmatched=Unmatched(1, 1, "nobody wanted it", (signed,)))


ENDS: list[Row] = [
    ("acceptances swapped", "map", swap_acceptances, 42),
    ("an acceptance by a stranger", "run", accept_by_mallory, 41),
    ("an acceptance signed by a stranger", "run", accept_in_the_owners_name, 41),
    ("a watcher's acceptance by a stranger", "watched", accept_by_mallory, 41),
    ("a watcher's acceptance signed by a stranger", "watched", accept_in_the_owners_name, 41),
    ("an acceptance of less", "map", accept_less, 41),
    ("an acceptance where there was silence", "map", silent_acceptance, 42),
    ("silence where there was an acceptance", "run", unsaid_acceptance, 94),
    ("no acceptance of what was settled", "run", lambda h: h.put(0, acceptance=None), 45),
    ("a truncated path", "run", bend_proof(path=()), 43),
    ("another leaf", "run", bend_proof(index=1), 43),
    ("a tree of another size", "run", bend_proof(size=2), 43),
    ("the header of another height", "run", header_of_another_height, 43),
    ("the certificate of another block", "run", certificate_of_another_block, 43),
    ("a block of her own", "run", block_of_her_own, 43),
    ("a settle that nobody signed", "run", settle_signed_by_nobody, 43),
    ("the settle of another lease", "run", settle_of_another_lease, 44),
    ("no proof of the settle", "run", lambda h: h.put(0, proof=None), 56),
    ("another transaction", "run", say(tx="00" * 32), 56),
    ("the lease as it was before", "run", earlier_state, 52),
    ("the state of another lease", "run", state_of_another_lease, 50),
    ("a state with other bytes", "run", bend_state, 50),
    ("a state of her own", "run", state_of_her_own, 50),
    ("no proof of the state", "run", lambda h: h.put(0, state=None), 50),
    ("no receipt", "run", without_receipt, 20),
    ("no work at all", "run", without_work, 53),
    ("more was paid", "run", say(paid=2_000_000), 55),
    ("less was paid", "run", say(paid=1), 55),
    ("damages that were none", "run", say(damages=5), 55),
    ("an end that was none", "run", say(state="slashed"), 55),
    ("less was served", "map", say(served=1), 55),
    ("nothing was ever seen", "run", lambda h: h.put(0, seen=None), 55),
    ("another time of the end", "run", say(time=1), 94),
    ("another height of the end", "run", say(height=1), 94),
    ("silence in a block that was still to come", "map", silence_to_come, 94),
    ("a lease twice", "run", lease_twice, 60),
    ("a bid that did not open, but did", "run", lambda h: h.set(tried=(h.get().award.body.bid,)), 60),
    ("a bid that nobody made, tried", "run", lambda h: h.set(tried=(OTHER,)), 61),
    ("a decline that nobody signed", "run", invented_decline, 63),
    ("a missing lease", "map", without_lease(2), 93),
    ("a missing lease at a low commission", "cheap broker", without_lease(1), 93),
    ("a missing first lease of a train", "train", without_lease(0), 10),
    ("a missing last lease of a train", "train", without_lease(1), 93),
]
