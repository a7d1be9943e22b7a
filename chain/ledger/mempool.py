"""Transactions that wait for a block, in the order they came, within bounds (pure; R15 b).

Only what `Ledger.check` has admitted belongs here; its signatures are then in the ledger's memo and are not verified
again. A waiting transaction may still fail in its block: `Ledger.propose`
says so and its owner removes it. Not here: fairness between kinds of transactions (R15 e), which comes with disputes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from chain.base.codec import encode
from chain.base.errors import Refused, Unavailable
from chain.ledger.transactions import SignedTransaction, compute_transaction_id

MAX_COUNT = 16_384
"""Most transactions waiting: four full blocks."""

MAX_BYTES = 32 << 20
"""Most bytes waiting."""

MAX_PER_ACCOUNT = 1_024
"""Most transactions of one sender waiting, so that no account fills the pool alone."""


class Mempool:
    """Waiting transactions by id."""

    __slots__ = ("_bytes", "_max_bytes", "_max_count", "_max_per_account", "_senders", "_waiting")

    def __init__(
        self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES, max_per_account: int = MAX_PER_ACCOUNT
    ) -> None:
        self._max_count, self._max_bytes, self._max_per_account = max_count, max_bytes, max_per_account
        self._waiting: dict[bytes, tuple[SignedTransaction, int]] = {}
        self._senders: Counter[bytes] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transaction: bytes) -> bool:
        return transaction in self._waiting

    def add(self, signed: SignedTransaction) -> bytes:
        """Take in an admitted transaction and return its id; one that waits already is left as it is.

        Raises `Refused` (`mempool.account`) where its sender has too many waiting, `Unavailable` (`mempool.full`) where
        there is no room.
        """
        identity, sender, size = compute_transaction_id(signed.body), signed.body.sender, len(encode(signed))
        if identity in self._waiting:
            return identity
        if self._senders[sender] >= self._max_per_account:
            raise Refused(
                f"{self._max_per_account} transactions of this account wait; try again later", rule="mempool.account"
            )
        if len(self._waiting) >= self._max_count or self._bytes + size > self._max_bytes:
            raise Unavailable("too many transactions wait; try again in a moment", rule="mempool.full")
        self._waiting[identity] = (signed, size)
        self._senders[sender] += 1
        self._bytes += size
        return identity

    def remove(self, transactions: Iterable[bytes]) -> None:
        """Forget transactions that are in a block or were refused; unknown ids do no harm."""
        for identity in transactions:
            found = self._waiting.pop(identity, None)
            if found is not None:
                signed, size = found
                self._bytes -= size
                self._senders[signed.body.sender] -= 1
                if not self._senders[signed.body.sender]:
                    del self._senders[signed.body.sender]

    def pending(self) -> tuple[SignedTransaction, ...]:
        """All waiting transactions, the oldest first."""
        return tuple(signed for signed, _ in self._waiting.values())
