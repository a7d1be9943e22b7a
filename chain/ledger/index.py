"""Which committed leases a party has: an index in memory, rebuilt at start; it decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chain.ledger.entries import LeaseRecord
from chain.ledger.results import LedgerEvent


class LeaseIndex:
    """Lease ids by provider, requester and order."""

    __slots__ = ("_all", "_parties")

    def __init__(self, leases: Iterable[LeaseRecord]) -> None:
        self._all: set[bytes] = set()
        self._parties: dict[bytes, set[bytes]] = {}
        for lease in leases:
            self._add(lease)

    def update(self, events: Iterable[LedgerEvent]) -> None:
        """Take in the leases of a committed block."""
        for event in events:
            if event.lease is not None:
                self._add(event.lease)

    def find(self, parties: Sequence[bytes]) -> set[bytes]:
        """Leases in which all of `parties` take part; all leases for none."""
        found = [self._parties.get(party, set()) for party in parties]
        return set.intersection(*found) if found else set(self._all)

    def _add(self, lease: LeaseRecord) -> None:
        self._all.add(lease.id)
        for party in (lease.terms.provider, lease.terms.requester, lease.terms.order):
            self._parties.setdefault(party, set()).add(lease.id)
