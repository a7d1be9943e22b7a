"""Counting votes into certificates, and checking certificates of others (R16 a).

A certificate is for one vote: step, epoch, slot and block together. Checks of `verify_certificate` are numbered,
cheap ones first.
"""

from __future__ import annotations

from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_signed_bytes
from chain.base.keys import is_signature
from chain.consensus.messages import Certificate, SeatSignature, SignedVote, Vote
from chain.consensus.seats import Seats

__all__ = ["BadCertificate", "Tally", "verify_certificate"]


class BadCertificate(Refused):
    """Signatures that are no quorum over the vote they stand under."""


class Tally:
    """Collects verified votes of one epoch's seats; a seat counts once per vote."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._votes: dict[Vote, dict[int, bytes]] = {}

    def add(self, seat: int, signed: SignedVote) -> Certificate | None:
        """Count a vote whose signature was verified. Returns the certificate when this vote completes the quorum,
        else None.
        """
        signatures = self._votes.setdefault(signed.body, {})
        if seat in signatures or signed.body.epoch != self._seats.epoch:
            return None
        signatures[seat] = signed.signature
        if len(signatures) != self._seats.quorum:
            return None
        return Certificate(signed.body, tuple(SeatSignature(place, signatures[place]) for place in sorted(signatures)))

    def forget(self, slot: int) -> None:
        """Drop the votes of all slots up to `slot`: they are decided."""
        self._votes = {vote: signatures for vote, signatures in self._votes.items() if vote.slot > slot}


def verify_certificate(certificate: Certificate, seats: Seats, chain_id: bytes) -> Vote:
    """The vote a quorum of `seats` signed. Raises `BadCertificate` under `certificate.epoch`, `.seats`, `.quorum` or
    `.signature`.
    """
    vote = certificate.vote
    # 1. It is of this epoch.
    if vote.epoch != seats.epoch:
        raise BadCertificate(f"a certificate of epoch {vote.epoch}, not {seats.epoch}", rule="certificate.epoch")
    # 2. Its seats exist and ascend, so none counts twice.
    places = [entry.seat for entry in certificate.signatures]
    if places != sorted(set(places)) or places[-1] >= len(seats.keys):
        raise BadCertificate(f"seats {places} do not ascend within {len(seats.keys)}", rule="certificate.seats")
    # 3. They are a quorum.
    if len(places) < seats.quorum:
        raise BadCertificate(f"{len(places)} seats signed, {seats.quorum} must", rule="certificate.quorum")
    # 4. Each signature is by its seat, over this vote.
    message = compute_signed_bytes(Tag.VOTE, chain_id, vote)
    for entry in certificate.signatures:
        if not is_signature(seats.keys[entry.seat], message, entry.signature):
            raise BadCertificate(f"seat {entry.seat} did not sign this vote", rule="certificate.signature")
    return vote
