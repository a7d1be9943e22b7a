"""Handing a transaction in until the chain has an answer: through outages, restarts, and periods in which the account
is short of credits (R15).

The same body in the same window of time is the same transaction, so that trying again never pays a second fee. When a
window has passed it is framed anew.
"""

from __future__ import annotations

import hashlib

from chain.base.codec import encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.keys import Signer
from chain.ledger.transactions import Body, SignedTransaction, sign_transaction
from chain.rpc.schema import TxOutcome
from chain.runtime.clock import Clock
from chain.runtime.logs import get_logger
from provider.daemon.links import Backoff, ChainLink

VALIDITY_MS = 60_000
"""How long a framed transaction is tried (R15 a allows 120 s ahead of block time)."""

_PASSING = ("R15.", "R13.balance", "mempool.")
"""Refusals that pass: window over, quota or fee short at present, node full."""


class Submitter:
    """Hands in transactions of one account."""

    def __init__(self, signer: Signer, chain_id: bytes, chain: ChainLink, clock: Clock) -> None:
        self._signer = signer
        self._chain_id = chain_id
        self._chain = chain
        self._clock = clock
        self._log = get_logger("chain")

    async def submit(self, body: Body) -> TxOutcome:
        """Returns once final; raises `Refused` under the rule that will not pass. Cancel it to stop trying."""
        backoff, transaction = Backoff(), self._frame(body)
        while True:
            now = self._clock.now()
            if transaction.body.valid_until <= now:
                transaction = self._frame(body)
            try:
                return await self._chain.submit(transaction)
            except (Unavailable, Fault) as error:
                self._log.info("chain is waited for", why=str(error))
            except Refused as error:
                if not error.rule.startswith(_PASSING) or error.rule == "R15.chain":
                    raise
                self._log.warning("the chain refuses at present", why=str(error))
                if error.rule.startswith("R15.a"):
                    transaction = self._frame(body)
            await backoff.wait()

    def _frame(self, body: Body) -> SignedTransaction:
        window = self._clock.now() // VALIDITY_MS
        salt = hashlib.sha256(encode(body) + window.to_bytes(8, "big")).digest()[:16]
        return sign_transaction(self._signer, self._chain_id, body, (window + 1) * VALIDITY_MS + VALIDITY_MS // 2, salt)
