"""The market as an asyncio API: sign an order, follow it, get its result; take up jobs of earlier commands.

The signed order is on disk before it is sent. A job is driven by one process at a time; another one that waits for it
reads the store. Not here: what to do at each event (`requester.purchase`), words for terminals (`requester.cli`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from broker.protocol.api import Advanced, Cancellation, Delivered, Ended, Info, Unmatched
from broker.rpc.client import BrokerClient
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import Signer, show_key
from chain.base.units import format_credits
from chain.ledger.genesis import compute_chain_id
from chain.ledger.terms.agreement import Order
from chain.ledger.transactions import Cancel, sign_transaction
from chain.rpc.client import ChainClient
from chain.rpc.schema import AccountView, ChainInfo
from chain.runtime.clock import SystemClock
from requester.client.news import Hooks, News
from requester.client.opening import Opening
from requester.client.outcomes import JobResult, read_outcome
from requester.client.runner import VALID_MS, JobRunner, Means
from requester.client.settings import (
    RequesterSettings,
    get_folder,
    load_genesis,
    load_requester_settings,
    open_wallet,
)
from requester.client.wishes import Wishes, Work, make_spec, pack_function, pack_script
from requester.purchase.order import MAX_COMMISSION, Parties, make_order
from requester.purchase.phases import Phase
from requester.purchase.quote import Quote, compute_quote
from requester.store.jobs import JobRow, JobStore

SETTLE_SECONDS = 60.0
"""How long `run` waits for the payment once the result was accepted; the result is there without it."""

STORE_SECONDS = 0.2
"""How often a job that another process drives is looked up."""

NO_HOOKS = Hooks()


class AsyncMarket:
    """One requester at one broker and one chain. Make it by `connect`; close it, or use it as a context manager."""

    def __init__(self, settings: RequesterSettings, signer: Signer, folder: Path | None = None) -> None:
        self.settings = settings
        self.signer = signer
        self.store = JobStore(folder or get_folder())
        self.clock = SystemClock()
        self.chain = ChainClient(settings.chain)
        self.broker = BrokerClient(settings.broker, signer)
        self._others: list[BrokerClient | ChainClient] = []
        self._info: tuple[Info, ChainInfo] | None = None
        self._closed = False

    @classmethod
    def connect(cls, *, passphrase: str | None = None, **settings: str | None) -> Opening[Self]:
        """A market that answers. `settings` are those of `RequesterSettings`: broker, chain, key, genesis.

            async with AsyncMarket.connect() as market:
                print((await market.run(sum, [1, 2, 3], cap=1)).value)

        or `market = await AsyncMarket.connect()`, closed by `await market.close()`.

        Raises `Unavailable` naming the part that is not running, `Refused` for a key that can't be used, for parts of
        another protocol version, or for a broker and a node of two different chains (`chain.other`).
        """

        async def open_it() -> Self:
            found = load_requester_settings(**settings)
            market = cls(found, open_wallet(found, passphrase))
            try:
                await market.check()
            except BaseException:
                await market.close()
                raise
            return market

        return Opening(open_it)

    async def close(self) -> None:
        """Close connections and store. Jobs go on without us; further calls raise `Refused` under `market.closed`."""
        self._closed = True
        for client in (self.broker, self.chain, *self._others):
            await client.close()
        self.store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check(self) -> tuple[Info, ChainInfo]:
        """Ask both parts who they are, once."""
        self._require_open()
        if self._info is None:
            chain, broker = await self.chain.info(), await self.broker.info()
            if broker.chain != chain.chain:
                message = (
                    f"the broker at {self.settings.broker} serves chain {broker.chain[:16]}, the node at "
                    f"{self.settings.chain} is of chain {chain.chain[:16]}; name parts of one chain"
                )
                raise Refused(message, rule="chain.other")
            self._check_genesis(chain)
            self._info = broker, chain
        return self._info

    def find(self, job: bytes | str) -> JobRow:
        """A job by its id, or by the beginning of its id as text; raises `Refused` under `job.unknown` or
        `job.ambiguous`.
        """
        self._require_open()
        return self.store.find(job) if isinstance(job, str) else self.store.get(job)

    def list_jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        self._require_open()
        return self.store.list_jobs()

    def _require_open(self) -> None:
        if self._closed:
            raise Refused("this market is closed; open another one by `connect`", rule="market.closed")

    def _check_genesis(self, chain: ChainInfo) -> None:
        """Where a genesis file is at hand, the node has to be of its chain."""
        path = self.settings.genesis_path
        if path is None:
            return
        if compute_chain_id(load_genesis(path)).hex() != chain.chain:
            message = f"the node at {self.settings.chain} is not of the chain of {path}; name that chain's node"
            raise Refused(message, rule="chain.genesis")

    # ---- buying ----

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        cap: str | float | None = None,
        **rest: Any,
    ) -> JobResult:
        """Run `function(*args, **kwargs)` on the market and return its result.

        Names of `Wishes` among the keyword arguments are wishes: cap, memory, wall, acceptance, within, auction, cores,
        output, packages, level, seed, title, python; `Market.run` says what each is. All others go to the function;
        one that needs such a name gets it by `functools.partial`. Raises `NoBid`, `JobFailed`, `CheckFailed`,
        `JobEnded`, `Refused`, `Unavailable`.
        """
        wanted, kwargs = split_wishes(wishes, {"cap": cap, **rest})
        return await self.buy(pack_function(function, args, kwargs), wanted, hooks)

    async def run_script(
        self, path: str | Path, args: Sequence[str] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a script; its result is the global `result` that it leaves. Raises as `run`."""
        wanted, inputs = split_wishes(None, wishes)
        return await self.buy(pack_script(Path(path), args, inputs), wanted, hooks)

    async def buy(self, work: Work, wishes: Wishes, hooks: Hooks = NO_HOOKS) -> JobResult:
        """Sign, send, wait, check, accept."""
        return await self.result(await self.sign(work, wishes, hooks), hooks)

    async def quote(self, work: Work, wishes: Wishes) -> Quote:
        """What signing would mean, without signing (`--dry-run`)."""
        return compute_quote(await self._make_order(work, wishes))

    async def sign(self, work: Work, wishes: Wishes, hooks: Hooks = NO_HOOKS) -> bytes:
        """Show the price, sign the order and store it; returns the job's id. Nothing is sent yet.

        Raises `Refused`: `account.unknown`, `account.funds`, `order.commission`, `order.declined` (`on_quote` said no).
        """
        order = await self._make_order(work, wishes)
        await self._check_account(order)
        if hooks.on_quote is not None and hooks.on_quote(compute_quote(order)) is False:
            raise Refused("nothing was signed", rule="order.declined")
        chain = bytes.fromhex((await self.check())[1].chain)
        self.store.blobs.put(work.code)
        self.store.blobs.put(work.inputs)
        signed = self.signer.sign(Tag.ORDER, chain, order)
        urls = (self.settings.broker, self.settings.chain)
        return self.store.add(chain, signed, make_spec(work, wishes), self.clock.now(), urls)

    async def account(self) -> AccountView:
        """The requester's own account on the chain."""
        self._require_open()
        return await self.chain.account(self.signer.key)

    async def _make_order(self, work: Work, wishes: Wishes) -> Order:
        broker, chain = await self.check()
        if broker.commission_bps > MAX_COMMISSION:
            message = f"the broker asks {broker.commission_bps} basis points; at most {MAX_COMMISSION} are agreed to"
            raise Refused(message, rule="order.commission")
        terms = wishes.make_terms(broker.commission_bps)
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

    # ---- jobs that exist ----

    async def result(self, job: bytes | str, hooks: Hooks = NO_HOOKS) -> JobResult:
        """The result of a job (see `find`), waited for and driven to its end if need be. Raises as `run`."""
        row = self.find(job)
        if not Phase(row.phase).is_over or row.phase == Phase.LOST:
            await self._follow(row, hooks)
        return read_outcome(self.store, self.store.get(row.id))

    async def send(self, job: bytes, hooks: Hooks = NO_HOOKS) -> None:
        """Send a signed order and return once the broker has it (or refused it, see `result`)."""
        self._require_open()
        with self.store.own(job):
            runner = JobRunner(self._make_means(self.store.get(job)), job, hooks)
            try:
                await runner.start()
                await runner.wait(lambda phase: phase is not Phase.SIGNED)
            finally:
                await runner.close()

    async def cancel(self, job: bytes | str) -> str:
        """Stop a job (see `find`): before its lease opens at the broker, afterwards on the chain (row 6, with its fee).

        Returns what was done, in words. Raises `Refused` under `job.over` where there is nothing to stop.
        """
        row = self.find(job)
        job = row.id
        if Phase(row.phase).is_over or row.phase == Phase.ACCEPTED:
            raise Refused(f"job {job.hex()[:16]} is {row.phase}; there is nothing to cancel", rule="job.over")
        means = self._make_means(row)
        body = Cancellation(job, self.signer.key, self.clock.now())
        chain = self.store.load_documents(job).chain
        refused: Refused | Unavailable
        try:
            await means.broker.cancel(self.signer.sign(Tag.CANCELLATION, chain, body))
            return "the broker has withdrawn the order; nothing is paid"
        except (Refused, Unavailable) as error:
            refused = error
        leases = await means.chain.leases(order=job, live=True)
        if not leases:
            raise refused
        if all(lease.state == "cancelling" for lease in leases):
            return "the job is being cancelled already; the provider has a moment to hand in what it has done"
        for lease in leases:
            until, salt = self.clock.now() + VALID_MS, secrets.token_bytes(16)
            await means.chain.submit(sign_transaction(self.signer, chain, Cancel(bytes.fromhex(lease.id)), until, salt))
        return "the chain is ending the lease; the provider gets the cancelling fee and the rest comes back"

    async def logs(self, job: bytes) -> AsyncIterator[bytes]:
        """What the job wrote, as it comes, until it is over. Hostile text."""
        row, documents = self.find(job), self.store.load_documents(job)
        if documents.delivery is not None:
            kept = self.store.blobs.get(documents.delivery.receipt.body.log)
            if kept is not None:
                yield kept
                return
        broker, after, shown = self._make_means(row).broker, 0, 0
        while True:
            page = await broker.events(job, after, 25_000)
            after = page.next
            for item in page.items:
                if isinstance(item, Advanced):
                    yield item.log[max(0, shown - item.log_offset) :]
                    shown = max(shown, item.log_offset + len(item.log))
                elif isinstance(item, Delivered | Ended | Unmatched):
                    return

    async def _follow(self, row: JobRow, hooks: Hooks) -> None:
        """Drive a job to its end; while another process does, look on, and take over if that one dies."""
        shown = ""
        while not Phase(row.phase).is_over or row.phase == Phase.LOST:
            try:
                with self.store.own(row.id):
                    return await self._drive(row, hooks)
            except Unavailable as error:
                if error.rule != "folder.owned":
                    raise
            if row.phase != shown:
                shown = row.phase
                hooks.tell(News("phase", row.id.hex(), row.phase, text=row.text, rule=row.rule))
            await asyncio.sleep(STORE_SECONDS)
            row = self.store.get(row.id)

    async def _drive(self, row: JobRow, hooks: Hooks) -> None:
        runner = JobRunner(self._make_means(row), row.id, hooks)
        try:
            await runner.start()
            await runner.wait(lambda phase: phase.is_over or phase is Phase.ACCEPTED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await runner.wait(lambda phase: phase.is_over)
        finally:
            await runner.close()

    def _make_means(self, row: JobRow) -> Means:
        """Clients of the parts that this job was sent to, which may be others than those of today's settings."""
        owner = self.store.load_documents(row.id).order.body.requester
        if owner != self.signer.key:
            message = f"job {row.id.hex()[:16]} was signed by {show_key(owner)}, not by your key; name its key by --key"
            raise Refused(message, rule="job.owner")
        broker, chain = self.broker, self.chain
        if row.broker != self.settings.broker:
            broker = BrokerClient(row.broker, self.signer)
            self._others.append(broker)
        if row.chain != self.settings.chain:
            chain = ChainClient(row.chain)
            self._others.append(chain)
        return Means(self.store, broker, chain, self.signer, self.clock)


def split_wishes(wishes: Wishes | None, given: dict[str, Any]) -> tuple[Wishes, dict[str, Any]]:
    """(wishes, other keyword arguments). Wishes that are None are as if not given. Raises `Refused` (`spec.form`)."""
    names = set(Wishes.__struct_fields__)
    wanted = {name: value for name, value in given.items() if name in names and value is not None}
    rest = {name: value for name, value in given.items() if name not in names}
    try:
        changed = msgspec.structs.replace(wishes or Wishes(), **wanted)
        return msgspec.convert(msgspec.structs.asdict(changed), Wishes), rest
    except msgspec.ValidationError as error:
        raise Refused(f"wishes: {error}", rule="spec.form") from error
