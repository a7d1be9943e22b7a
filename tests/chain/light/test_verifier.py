"""The light verifier: a good proof passes, every lie in the table is refused by its number, no flipped byte passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer
from chain.base.merkle import compute_root, prove_inclusion
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.genesis import Genesis, Seat, compute_chain_id, compute_seats_digest, make_genesis
from chain.ledger.transactions import Transfer, compute_transaction_id, sign_transaction
from chain.light.verifier import BadProof, verify_finality, verify_transaction
from chain.rpc.proofs import Finality, TxProof

SEATS = [Signer(bytes([n + 1]) * 32) for n in range(4)]
PAYER = Signer(b"p" * 32)


def make_chain(name: str) -> Genesis:
    return make_genesis(name, 1_000, [Seat(seat.key, bytes(32)) for seat in SEATS], [(PAYER.key, 10**9)])


GENESIS, OTHER = make_chain("this"), make_chain("other")
CHAIN = compute_chain_id(GENESIS)
SIZE = 5
TXS = [sign_transaction(PAYER, CHAIN, Transfer(PAYER.key, n), 9_000, bytes(15) + bytes([n])) for n in range(SIZE)]
IDS = [compute_transaction_id(signed.body) for signed in TXS]


def make_headers(count: int, chain: bytes = CHAIN) -> list[Header]:
    """Headers that follow each other; the first holds the transactions."""
    seats = compute_seats_digest(chain, 0, [seat.key for seat in SEATS])
    headers: list[Header] = []
    for n in range(count):
        parent = compute_block_id(chain, headers[-1]) if headers else compute_digest(b"parent")
        root = compute_root(IDS) if n == 0 else compute_root([])
        filler = compute_digest(b"%d" % n)
        headers.append(Header(0, 7 + 2 * n, 5 + n, 2_000 + n, parent, seats, 0, root, filler, filler, filler))
    return headers


def certify(header: Header, *places: int, step: Step = Step.FINALIZE, chain: bytes = CHAIN) -> Certificate:
    vote = Vote(step, header.epoch, header.slot, compute_block_id(chain, header))
    signatures = (SeatSignature(place, SEATS[place].sign(Tag.VOTE, chain, vote).signature) for place in places)
    return Certificate(vote, tuple(signatures))


def make_finality(count: int = 1) -> Finality:
    headers = make_headers(count)
    return Finality(headers[0], tuple(headers[1:]), certify(headers[-1], 0, 1, 3))


def make_proof(index: int = 2, count: int = 1) -> TxProof:
    return TxProof(make_finality(count), TXS[index], index, SIZE, prove_inclusion(IDS, index))


GOOD, LONG = make_proof(), make_proof(count=3)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("index", range(SIZE))
def test_a_good_proof_gives_the_transaction(index: int, count: int) -> None:
    proof = decode(encode(make_proof(index, count)), TxProof)
    assert verify_transaction(GENESIS, proof) == TXS[index].body
    assert verify_finality(GENESIS, proof.finality) == make_headers(1)[0]


def with_finality(proof: TxProof, finality: Finality) -> TxProof:
    return replace(proof, finality=finality)


def resign(header: Header) -> Finality:
    """Even with the seats' own signatures: the seats are faulty, the rule still holds."""
    return Finality(header, (), certify(header, 0, 1, 2))


HEADER = GOOD.finality.header
FIRST, SECOND, THIRD = make_headers(3)
LATER = replace(THIRD, slot=SECOND.slot)
OLDER = replace(THIRD, time=SECOND.time)
FORGED = Signer(b"f" * 32)

ATTACKS: dict[str, tuple[str, Callable[[], TxProof]]] = {
    "another epoch": ("F1", lambda: with_finality(GOOD, resign(replace(HEADER, epoch=1)))),
    "other seats": ("F1", lambda: with_finality(GOOD, resign(replace(HEADER, seats=bytes(32))))),
    "seats that changed": ("F1", lambda: with_finality(GOOD, resign(replace(HEADER, seats_changed=3)))),
    "other seats further on": (
        "F1",
        lambda: with_finality(LONG, replace(LONG.finality, descendants=(SECOND, replace(THIRD, seats=bytes(32))))),
    ),
    "genesis as a block": ("F2", lambda: with_finality(GOOD, resign(replace(HEADER, height=0)))),
    "a gap in the path": ("F3", lambda: with_finality(LONG, replace(LONG.finality, descendants=(THIRD,)))),
    "the path turned round": ("F3", lambda: with_finality(LONG, replace(LONG.finality, descendants=(THIRD, SECOND)))),
    "a height left out": (
        "F3",
        lambda: with_finality(
            LONG, Finality(FIRST, (replace(SECOND, height=9),), certify(replace(SECOND, height=9), 0, 1, 2))
        ),
    ),
    "a slot twice": (
        "F4",
        lambda: with_finality(LONG, Finality(FIRST, (SECOND, LATER), certify(LATER, 0, 1, 2))),
    ),
    "time that stands still": (
        "F4",
        lambda: with_finality(LONG, Finality(FIRST, (SECOND, OLDER), certify(OLDER, 0, 1, 2))),
    ),
    "only notarised": (
        "F5",
        lambda: with_finality(GOOD, Finality(HEADER, (), certify(HEADER, 0, 1, 2, step=Step.NOTARISE))),
    ),
    "a certificate of the first for the last": (
        "F5",
        lambda: with_finality(LONG, replace(LONG.finality, certificate=certify(FIRST, 0, 1, 2))),
    ),
    "a certificate of another block": (
        "F5",
        lambda: with_finality(GOOD, Finality(HEADER, (), certify(replace(HEADER, time=1), 0, 1, 2))),
    ),
    "too few seats": ("F6", lambda: with_finality(GOOD, Finality(HEADER, (), certify(HEADER, 0, 1)))),
    "seats of another chain": (
        "F5",
        lambda: with_finality(GOOD, Finality(HEADER, (), certify(HEADER, 0, 1, 2, chain=compute_chain_id(OTHER)))),
    ),
    "a signature of a stranger": (
        "F6",
        lambda: with_finality(
            GOOD,
            replace(
                GOOD.finality,
                certificate=replace(
                    GOOD.finality.certificate,
                    signatures=(
                        *GOOD.finality.certificate.signatures[:2],
                        SeatSignature(3, FORGED.sign(Tag.VOTE, CHAIN, GOOD.finality.certificate.vote).signature),
                    ),
                ),
            ),
        ),
    ),
    "a transaction for another chain": (
        "T1",
        lambda: replace(GOOD, transaction=replace(GOOD.transaction, body=replace(TXS[2].body, chain=bytes(32)))),
    ),
    "another transaction": ("T2", lambda: replace(GOOD, transaction=TXS[3])),
    "another index": ("T2", lambda: replace(GOOD, index=3)),
    "an index outside": ("T2", lambda: replace(GOOD, index=SIZE)),
    "another size": ("T2", lambda: replace(GOOD, size=SIZE + 4)),
    "a path cut short": ("T2", lambda: replace(GOOD, path=GOOD.path[:-1])),
    "a path too long": ("T2", lambda: replace(GOOD, path=(*GOOD.path, bytes(32)))),
    "no path": ("T2", lambda: replace(GOOD, path=())),
    "a path turned round": ("T2", lambda: replace(GOOD, path=GOOD.path[::-1])),
    "a transaction that had run out": (
        "T3",
        lambda: replace(GOOD, finality=resign(replace(HEADER, time=9_001))),
    ),
    "a signature flipped": (
        "T4",
        lambda: replace(GOOD, transaction=replace(TXS[2], signature=bytes(64))),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_lie_is_refused_by_its_number(name: str) -> None:
    number, make = ATTACKS[name]
    with pytest.raises(BadProof) as caught:
        verify_transaction(GENESIS, make())
    assert caught.value.rule == f"light.{number}"


def test_the_proof_of_one_chain_is_worth_nothing_on_another() -> None:
    with pytest.raises(BadProof) as caught:
        verify_transaction(OTHER, GOOD)
    assert caught.value.rule == "light.F1"


def check_flip(good: TxProof, position: int, bit: int) -> None:
    """Refused; or the size alone has changed, to which no header commits, and which decides nothing about this leaf."""
    changed = bytearray(encode(good))
    changed[position] ^= 1 << bit
    try:
        proof = decode(bytes(changed), TxProof)
        assert verify_transaction(GENESIS, proof) == good.transaction.body
    except Refused:
        return
    assert replace(proof, size=good.size) == good


@given(st.integers(0, len(encode(LONG)) - 1), st.integers(0, 7))
def test_no_flipped_bit_changes_what_is_proved(position: int, bit: int) -> None:
    check_flip(LONG, position, bit)


@pytest.mark.parametrize("bit", range(8))
def test_a_flip_of_every_byte_of_a_short_proof_changes_nothing_that_is_proved(bit: int) -> None:
    for position in range(len(encode(GOOD))):
        check_flip(GOOD, position, bit)
