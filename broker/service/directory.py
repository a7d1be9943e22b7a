"""Which providers are there and what they offer: their retained presence, as far as the chain knows them."""

from __future__ import annotations

from collections.abc import Iterator

from broker.protocol.messages import Offer
from chain.base.errors import Refused

MAX_OFFERS = 4_096
"""Providers remembered."""

SKEW_MS = 60_000
"""How far ahead of our clock an offer may begin to count."""


class Directory:
    """The newest offer of each provider. A higher sequence replaces a lower one; what has run out is left out
    (threats.md row 27). An offer without slots is a farewell: it stays remembered while it stands, so that an older
    offer that somebody says again does not bring its provider back.
    """

    def __init__(self) -> None:
        self._offers: dict[bytes, Offer] = {}

    def take(self, offer: Offer, now: int) -> None:
        """Remember an offer whose signature holds; raises `Refused` (`offer.stale`, `offer.early`, `offer.full`)."""
        known = self._offers.get(offer.provider)
        if offer.valid_until < now or (known is not None and offer.sequence < known.sequence):
            raise Refused("an offer that has run out or was replaced", rule="offer.stale")
        if offer.sequence > now + SKEW_MS:
            raise Refused("an offer from the future", rule="offer.early")
        if known is None and len(self._offers) >= MAX_OFFERS:
            self.sweep(now)
            if len(self._offers) >= MAX_OFFERS:
                raise Refused(f"more than {MAX_OFFERS} providers", rule="offer.full")
        self._offers[offer.provider] = offer

    def drop(self, provider: bytes) -> None:
        """Forget a key that is no provider."""
        self._offers.pop(provider, None)

    def sweep(self, now: int) -> None:
        """Forget offers that have run out."""
        for provider in [one.provider for one in self._offers.values() if one.valid_until < now]:
            del self._offers[provider]

    def list_standing(self, now: int) -> list[Offer]:
        """Offers of providers that are there now."""
        return [offer for offer in self._offers.values() if _stands(offer, now)]

    def is_there(self, provider: bytes, now: int) -> bool:
        """Whether a provider's offer stands now."""
        offer = self._offers.get(provider)
        return offer is not None and _stands(offer, now)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._offers)

    def is_refresh(self, offer: Offer) -> bool:
        """Whether a provider that is there goes on offering. The same offer again is none: its connection, ours or the
        server was gone, so that it may have missed something.
        """
        known = self._offers.get(offer.provider)
        return known is not None and known.slots > 0 and known.sequence < offer.sequence

    def __len__(self) -> int:
        return len(self._offers)


def _stands(offer: Offer, now: int) -> bool:
    return offer.slots > 0 and offer.valid_until >= now
