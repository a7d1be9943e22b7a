"""From work and wishes to a signed order: what it would cost, whether anybody can do it, and the signature."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from broker.protocol.api import Enquiry, ProviderView
from broker.protocol.jobs import Entry
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import show_key
from chain.base.units import format_credits
from chain.ledger.terms.agreement import Order
from requester.client.connection import Connection
from requester.client.news import NO_HOOKS, Hooks, News, NewsKind
from requester.client.packing import Work
from requester.client.transfers import OnBytes, Transfers
from requester.client.wishes import ANY_CAP, Wishes, get_python, make_spec
from requester.purchase.order import MAX_COMMISSION, Parties, compute_cost, make_order
from requester.purchase.quote import Quote, compute_quote


@dataclass(frozen=True)
class Estimated:
    """What the market would say to a job just now, by the providers' list prices; nothing is promised.

    Amounts in micro-credits. `cap` is the most that can leave the requester, None where none was named; `likely` is
    the whole job at the lowest list price, commission included, `median` the same at the middle one; both are 0 where
    nobody fits. `matching` of `providers` fit; `advice` is the smallest change that would bring more bids.
    """

    cap: int | None
    segments: int
    price: int
    likely: int
    median: int
    commission_bps: int
    matching: int
    providers: int
    advice: str


class Buying(Connection):
    """Quotes, estimates, signatures."""

    async def quote(self, work: Work, wishes: Wishes) -> Quote:
        """What signing would mean, without signing (`--dry-run`)."""
        leases = make_spec(work, wishes).parallelism
        return compute_quote(await self._make_order(work, wishes), leases=leases)

    async def estimate_work(self, work: Work, wishes: Wishes) -> Estimated:
        """What the market would say. Needs no cap; nothing is signed."""
        broker, _ = await self.check()
        asked = msgspec.structs.replace(wishes, cap=ANY_CAP) if wishes.cap is None else wishes
        order = await self._make_order(work, asked)
        found = await self.broker.estimate(Enquiry(order, make_spec(work, wishes)))
        at = [compute_cost(price, work.segments, order.commission) for price in (found.lowest, found.median)]
        return Estimated(
            cap=None if wishes.cap is None else order.cap,
            segments=work.segments,
            price=found.lowest,
            likely=at[0],
            median=at[1],
            commission_bps=broker.commission_bps,
            matching=found.matching,
            providers=found.providers,
            advice=found.advice,
        )

    async def sign(self, work: Work, wishes: Wishes, hooks: Hooks = NO_HOOKS) -> bytes:
        """Show the price, sign the order and store it; returns the job's id. The order is not sent yet; large inputs
        are, since a signed order has no time to wait for them.

        Raises `Refused`: `account.unknown`, `account.funds`, `order.commission`, `order.python` (a function of a Python
        that nobody has), `order.declined` (`on_quote` said no).
        """
        await self.check()
        await asyncio.to_thread(work.inputs.keep, self.store.blobs)
        spec = make_spec(work, wishes)
        order = await self._make_order(work, wishes)
        await self._check_account(order)
        await self._check_python(work, wishes)
        if hooks.on_quote is not None and hooks.on_quote(compute_quote(order, leases=spec.parallelism)) is False:
            raise Refused("nothing was signed", rule="order.declined")
        chain = bytes.fromhex((await self.check())[1].chain)
        self.store.blobs.put(work.code.blob)
        if await Transfers(self.store.blobs, self.broker, _make_teller(hooks)).send_ahead(spec):
            order = await self._make_order(work, wishes)
        signed = self.signer.sign(Tag.ORDER, chain, order)
        urls = (self.settings.broker, self.settings.chain)
        return self.store.add(chain, signed, spec, self.clock.now(), urls, work.items)

    async def _make_order(self, work: Work, wishes: Wishes) -> Order:
        broker, chain = await self.check()
        if broker.commission_bps > MAX_COMMISSION:
            message = f"the broker asks {broker.commission_bps} basis points; at most {MAX_COMMISSION} are agreed to"
            raise Refused(message, rule="order.commission")
        terms = wishes.make_terms(broker.commission_bps, work.segments, work.item_root)
        parties = Parties(bytes.fromhex(chain.chain), self.signer.key, bytes.fromhex(broker.broker))
        spec = make_spec(work, wishes)
        return make_order(spec, terms, parties, now=self.clock.now(), salt=secrets.token_bytes(16))

    async def _check_account(self, order: Order) -> None:
        account = await self.account()
        if not account.known:
            message = (
                f"the chain does not know your account {show_key(self.signer.key)}; get credits from somebody who has "
                f"some, for example the treasury: `tally-chain send {show_key(self.signer.key)} CREDITS`"
            )
            raise Refused(message, rule="account.unknown")
        if account.balance < order.cap:
            message = (
                f"your balance is {format_credits(account.balance)} credits, the cap {format_credits(order.cap)}; "
                "lower --cap or get more credits"
            )
            raise Refused(message, rule="account.funds")

    async def _check_python(self, work: Work, wishes: Wishes) -> None:
        """A pickled function runs under the minor version that made it and under no other; a source asks for it too,
        but may ask for another one. Where nobody is there at all, the auction says so.
        """
        wanted = wishes.python or get_python()
        text = describe_pythons(await self.providers(), wanted, work.code.entry)
        if text:
            raise Refused(text, rule="order.python")


def _make_teller(hooks: Hooks) -> OnBytes:
    """Tells of bytes that go before their job has an id."""
    return lambda text, done, total: hooks.tell(News(NewsKind.TRANSFER, "", text=text, done=done, total=total))


def describe_pythons(providers: Sequence[ProviderView], wanted: str, entry: Entry) -> str:
    """What to do where no provider has the Python that is wanted; empty where one has, or where nobody is there."""
    offered = sorted({python for provider in providers for python in provider.pythons}, key=_rank)
    if not offered or wanted in offered:
        return ""
    there = ", ".join(offered)
    if entry is Entry.FUNCTION:
        return (
            f"no provider offers Python {wanted}, which a function of this program needs; on offer: {there}. Run your "
            f"program under one of these, or send a script (run_script, `FILE.py:function`) with python={offered[-1]!r}"
        )
    return f"no provider offers Python {wanted}; on offer: {there}. Choose one: --python {offered[-1]}"


def _rank(python: str) -> tuple[int, ...]:
    return tuple(int(part) for part in python.split(".") if part.isdigit())
