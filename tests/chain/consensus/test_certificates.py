"""Seats, votes, tally and certificates: a table of everything a certificate may lie about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chain.base.codec import BadEncoding, decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer
from chain.consensus.messages import MAX_SEATS, NO_BLOCK, Certificate, SeatSignature, Step, Vote
from chain.consensus.seats import Seats, check_supported
from chain.consensus.tally import BadCertificate, Tally, verify_certificate

CHAIN = compute_digest(b"chain")
SIGNERS = [Signer(bytes([n + 1]) * 32) for n in range(7)]
VOTE = Vote(Step.FINALIZE, 0, 5, compute_digest(b"block"))


def make_seats(count: int) -> Seats:
    return Seats(0, [signer.key for signer in SIGNERS[:count]])


def sign(place: int, vote: Vote = VOTE, chain: bytes = CHAIN, tag: Tag = Tag.VOTE) -> SeatSignature:
    return SeatSignature(place, SIGNERS[place].sign(tag, chain, vote).signature)


def certify(*places: int, vote: Vote = VOTE) -> Certificate:
    return Certificate(vote, tuple(sign(place, vote) for place in places))


@pytest.mark.parametrize(("seats", "quorum"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5)])
def test_the_quorum_is_more_than_two_thirds(seats: int, quorum: int) -> None:
    """R16 (a): floor(2n/3)+1; so two quorums share more than the (n-1)//3 seats that may be faulty."""
    assert make_seats(seats).quorum == quorum
    assert 2 * quorum - seats > (seats - 1) // 3


def test_seats_lead_in_turns() -> None:
    seats = make_seats(3)
    assert [seats.get_leader(slot) for slot in range(5)] == [0, 1, 2, 0, 1]


def test_a_key_is_found_at_its_place() -> None:
    assert make_seats(3).find(SIGNERS[2].key) == 2
    with pytest.raises(Refused) as caught:
        make_seats(3).find(SIGNERS[3].key)
    assert caught.value.rule == "R16.no-seat"


@pytest.mark.parametrize(
    "keys", [[], [SIGNERS[0].key, SIGNERS[0].key], [n.to_bytes(32, "big") for n in range(MAX_SEATS + 1)]]
)
def test_seats_that_are_none_or_too_many_or_double_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(Refused) as caught:
        Seats(0, keys)
    assert caught.value.rule == "R16.seats"


def test_one_seat_is_supported_and_two_are_not() -> None:
    assert check_supported(make_seats(1)).quorum == 1
    with pytest.raises(Refused) as caught:
        check_supported(make_seats(2))
    assert caught.value.rule == "R16.seats-unsupported"


@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_a_tally_certifies_exactly_once_at_the_quorum_in_canonical_order(count: int, order: object) -> None:
    seats, tally = make_seats(count), Tally(make_seats(count))
    places = list(range(count))
    getattr(order, "shuffle")(places)  # noqa: B009  # the strategy's type is not public
    made = [tally.add(place, SIGNERS[place].sign(Tag.VOTE, CHAIN, VOTE)) for place in places]
    certificates = [one for one in made if one is not None]
    assert made.index(certificates[0]) == seats.quorum - 1
    assert len(certificates) == 1
    assert verify_certificate(certificates[0], seats, CHAIN) == VOTE
    assert decode(encode(certificates[0]), Certificate) == certificates[0]


def test_a_seat_counts_once_and_only_for_the_same_vote() -> None:
    tally = Tally(make_seats(4))
    other = replace(VOTE, block=NO_BLOCK, step=Step.DUMMY)
    for place, vote in ((0, VOTE), (0, VOTE), (1, other), (1, VOTE), (2, replace(VOTE, epoch=1))):
        assert tally.add(place, SIGNERS[place].sign(Tag.VOTE, CHAIN, vote)) is None
    assert tally.add(2, SIGNERS[2].sign(Tag.VOTE, CHAIN, VOTE)) == certify(0, 1, 2)


def test_decided_slots_are_forgotten_and_later_ones_kept() -> None:
    tally, later = Tally(make_seats(4)), replace(VOTE, slot=6)
    for vote in (VOTE, later):
        tally.add(0, SIGNERS[0].sign(Tag.VOTE, CHAIN, vote))
        tally.add(1, SIGNERS[1].sign(Tag.VOTE, CHAIN, vote))
    tally.forget(5)
    assert tally.add(2, SIGNERS[2].sign(Tag.VOTE, CHAIN, VOTE)) is None
    assert tally.add(2, SIGNERS[2].sign(Tag.VOTE, CHAIN, later)) == certify(0, 1, 2, vote=later)


GOOD = certify(0, 1, 2)
FLIPPED = bytes([GOOD.signatures[1].signature[0] ^ 1]) + GOOD.signatures[1].signature[1:]
ATTACKS: dict[str, tuple[str, Callable[[], Certificate]]] = {
    "another epoch": ("certificate.epoch", lambda: certify(0, 1, 2, vote=replace(VOTE, epoch=1))),
    "a seat twice": ("certificate.seats", lambda: certify(0, 1, 1)),
    "seats out of order": ("certificate.seats", lambda: certify(1, 0, 2)),
    "a seat that is none": ("certificate.seats", lambda: certify(0, 1, 4)),
    "one too few": ("certificate.quorum", lambda: certify(0, 1)),
    "a flipped signature": (
        "certificate.signature",
        lambda: replace(GOOD, signatures=(GOOD.signatures[0], SeatSignature(1, FLIPPED), GOOD.signatures[2])),
    ),
    "signatures of each other": (
        "certificate.signature",
        lambda: replace(
            GOOD,
            signatures=(
                GOOD.signatures[0],
                SeatSignature(1, GOOD.signatures[2].signature),
                SeatSignature(2, GOOD.signatures[1].signature),
            ),
        ),
    ),
    "another block": ("certificate.signature", lambda: replace(GOOD, vote=replace(VOTE, block=NO_BLOCK))),
    "another slot": ("certificate.signature", lambda: replace(GOOD, vote=replace(VOTE, slot=6))),
    "another step": ("certificate.signature", lambda: replace(GOOD, vote=replace(VOTE, step=Step.NOTARISE))),
    "another chain": (
        "certificate.signature",
        lambda: replace(GOOD, signatures=tuple(sign(n, chain=bytes(32)) for n in range(3))),
    ),
    "another tag": (
        "certificate.signature",
        lambda: replace(GOOD, signatures=tuple(sign(n, tag=Tag.BLOCK) for n in range(3))),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_certificate_that_lies_is_refused_by_name(name: str) -> None:
    rule, make = ATTACKS[name]
    with pytest.raises(BadCertificate) as caught:
        verify_certificate(make(), make_seats(4), CHAIN)
    assert caught.value.rule == rule


def test_the_control_is_good_with_a_quorum_and_with_all() -> None:
    assert verify_certificate(GOOD, make_seats(4), CHAIN) == VOTE
    assert verify_certificate(certify(0, 1, 2, 3), make_seats(4), CHAIN) == VOTE


def test_a_certificate_of_nobody_has_no_encoding_that_is_taken() -> None:
    with pytest.raises(BadEncoding):
        decode(encode(Certificate(VOTE, ())), Certificate)
