"""The broker's dealings with the chain: opens leases and watches them, calls providers, asks for accounts (R3, R6, R12
f).

One long poll serves all watched leases (events of a lease stand under its auctioneer, which is us); it goes on behind
the height it has seen, after a restart of the node too, and each newly watched lease is asked for its present state.
Expected failures come back as events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, assert_never

from broker.auction.events import (
    LeaseChanged,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    SubmitCall,
    SubmitExtend,
    SubmitOpen,
    find_blame,
)
from broker.auction.lots import NO_RECEIPT
from chain.base.errors import Refused, TallyError
from chain.base.hashing import Tag, compute_id
from chain.base.keys import Signer, show_key
from chain.base.units import MICRO, format_credits
from chain.ledger.transactions import Body, Call, SignedTransaction, sign_transaction
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, TxOutcome
from chain.runtime.clock import Clock
from chain.runtime.logs import get_logger

WAIT_MS = 20_000
"""Longest wait of one poll."""

PAUSE_FIRST, PAUSE_MOST = 0.1, 2.0
"""Seconds between tries while the node is away."""

FRESH_MS = 30_000
"""How long what the chain said of an account's standing is believed where only nuisance hangs on it."""

MAX_REMEMBERED = 10_000


class Chain(Protocol):
    """What the broker needs of `chain.rpc.client.ChainClient`."""

    url: str

    async def info(self) -> ChainInfo:
        """The node and its chain."""
        ...

    async def submit(self, tx: SignedTransaction, wait_ms: int = ...) -> TxOutcome:
        """Hand in a transaction and wait until it is final."""
        ...

    async def account(self, key: bytes) -> AccountView:
        """An account."""
        ...

    async def lease(self, lease: bytes) -> LeaseView | None:
        """A lease or None."""
        ...

    async def events(self, topics: list[bytes], after: int, wait_ms: int = ...) -> EventsPage:
        """Events behind a height."""
        ...

    async def close(self) -> None:
        """End."""
        ...


FEW_CREDITS = 100
"""Below this balance, in credits, a busy broker soon meets the quota of R15 (d)."""


class LedgerSide:
    """Everything the broker asks the chain. `report` is told of each change of a watched lease."""

    def __init__(self, chain: Chain, signer: Signer, chain_id: bytes, clock: Clock) -> None:
        self.report: Callable[[bytes, LeaseChanged], None] = lambda _lease, _event: None
        self.note = ""
        self._chain = chain
        self._signer = signer
        self._chain_id = chain_id
        self._clock = clock
        self._watched: set[bytes] = set()
        self._new: asyncio.Queue[bytes] = asyncio.Queue()
        self._after = self._fee = 0
        self._standing: dict[bytes, tuple[int, AccountView]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._log = get_logger("chain")

    async def start(self, info: ChainInfo) -> None:
        """Check that we can pay for openings, begin to poll."""
        self._after, self._fee = info.height, info.fee
        self._tasks = [asyncio.create_task(self._repeat(work)) for work in (self._poll, self._look)]
        await self.check_funds()

    async def close(self) -> None:
        """Stop polling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def check_funds(self) -> None:
        """Say clearly, in the log and in `note`, when our account can't pay the fee of an opening; in the log alone,
        when its balance allows but few openings in the window of R15 (d).
        """
        account, fee = await self._chain.account(self._signer.key), self._fee
        before, self.note = self.note, ""
        if not account.known or account.balance < fee:
            who = show_key(self._signer.key)
            self.note = (
                f"the broker's account {who} has {format_credits(account.balance)} credits and can't pay the fee of "
                f"{format_credits(fee)} for opening a lease; send it some: tally-chain send {who} 1000"
            )
            if self.note != before:
                self._log.error("the broker has no credits", note=self.note)
        elif account.balance < FEW_CREDITS * MICRO:
            self._log.warning(
                "few credits make requesters wait: four signatures an opening, one a credit in two minutes (R15 d)",
                credits=format_credits(account.balance),
            )

    async def get_balance(self, account: bytes) -> int:
        """Free balance on the chain, now."""
        view = await self._chain.account(account)
        self._remember(account, view)
        return view.balance

    async def is_known(self, account: bytes) -> bool:
        """Whether an account has a balance; what was heard lately is believed."""
        view = await self._get_standing(account)
        return view.known and (view.balance > 0 or view.provider)

    async def is_provider(self, account: bytes) -> bool:
        """Whether an account is registered as a provider; what was heard lately is believed if it was yes."""
        view = await self._get_standing(account)
        if not view.provider:
            self._standing.pop(account, None)
        return view.provider

    def knows_provider(self, account: bytes) -> bool:
        """Whether `is_provider` said yes before."""
        return account in self._standing and self._standing[account][1].provider

    async def submit(
        self, effect: SubmitOpen | SubmitExtend | SubmitCall
    ) -> OpenFinal | OpenRefused | OpenDelayed | None:
        """Carry out one of the effects that are transactions. Only an opening has an outcome: what the chain makes of a
        prefix or a call is heard as a change of its lease, a refusal is logged.
        """
        match effect:
            case SubmitOpen():
                return await self.open(effect)
            case SubmitExtend(lease=lease, body=body, valid_until=until):
                await self._try("extend", self._sign(lease, body, until))
            case SubmitCall(lease=lease, valid_until=until):
                await self._try("call", self._sign(lease, Call(lease), until))
            case _:
                assert_never(effect)
        return None

    async def open(self, effect: SubmitOpen) -> OpenFinal | OpenRefused | OpenDelayed:
        """Submit an opening and wait until it is final. Whatever the refusal, a lease that stands did open."""
        tx = self._sign(effect.lease, effect.body, effect.valid_until)
        try:
            try:
                outcome = await self._chain.submit(tx)
                return OpenFinal(effect.lease, outcome.height)
            except Refused as refusal:
                if await self._chain.lease(effect.lease) is not None:
                    return OpenFinal(effect.lease, self._after)
                self._log.warning("the chain refused to open a lease", rule=refusal.rule, why=refusal.message)
                blame = find_blame(refusal.rule)
                return OpenRefused(effect.lease, blame, refusal.rule[:500], refusal.message[:500])
        except TallyError as error:
            self._log.warning("opening waits for the chain", rule=error.rule, why=error.message)
            return OpenDelayed(effect.lease, error.message[:500])

    def watch(self, lease: bytes) -> None:
        """Report the lease's state, and its changes from now on."""
        self._watched.add(lease)
        self._new.put_nowait(lease)

    def unwatch(self, lease: bytes) -> None:
        """Report it no more."""
        self._watched.discard(lease)

    def _sign(self, lease: bytes, body: Body, valid_until: int) -> SignedTransaction:
        """A transaction about a lease; the same one for the same body and end."""
        salt = compute_id(Tag.TX, self._chain_id, (lease, valid_until))[:16]
        return sign_transaction(self._signer, self._chain_id, body, valid_until, salt)

    async def _try(self, what: str, tx: SignedTransaction) -> None:
        try:
            await self._chain.submit(tx)
        except TallyError as error:
            self._log.warning(f"the chain did not take our {what}", rule=error.rule, why=error.message)

    async def _get_standing(self, account: bytes) -> AccountView:
        known = self._standing.get(account)
        if known is not None and self._clock.now() - known[0] < FRESH_MS:
            return known[1]
        view = await self._chain.account(account)
        self._remember(account, view)
        return view

    def _remember(self, account: bytes, view: AccountView) -> None:
        if len(self._standing) >= MAX_REMEMBERED:
            self._standing.pop(next(iter(self._standing)))
        self._standing[account] = (self._clock.now(), view)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` for ever; while the chain is away, with pauses between."""
        pause = PAUSE_FIRST
        while True:
            try:
                await work()
                pause = PAUSE_FIRST
            except TallyError as error:
                self._log.warning("the chain does not answer", rule=error.rule, why=error.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_MOST)

    async def _poll(self) -> None:
        page = await self._chain.events([self._signer.key], self._after, WAIT_MS)
        self._after = max(self._after, page.next)
        for event in page.events:
            if event.lease is not None:
                self._tell(bytes.fromhex(event.lease.id), event.lease)

    async def _look(self) -> None:
        lease = await self._new.get()
        try:
            self._tell(lease, await self._chain.lease(lease))
        except TallyError:
            self._new.put_nowait(lease)
            raise

    def _tell(self, lease: bytes, view: LeaseView | None) -> None:
        if view is None or lease not in self._watched:
            return
        receipt = bytes.fromhex(view.receipt) or NO_RECEIPT
        self.report(
            lease, LeaseChanged(lease, view.state[:500], self._after, view.served, view.held, view.cause[:500], receipt)
        )
