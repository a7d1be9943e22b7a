"""The provider daemon: bus, chain and leases held together; what an earlier life left is taken up first.

The chain alone says which leases there are (R3). At the start journal, chain and running sandboxes are reconciled:
sandboxes died with their daemon, journaled leases go on, live leases without a journal are begun from their promise,
and one that nothing is known about is given back. Outages of chain, broker or bus only cost time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from broker.protocol import topics
from broker.protocol.messages import Offer, sign_message
from chain.base.codec import decode
from chain.base.errors import Refused, TallyError
from chain.base.keys import Signed
from chain.base.units import MAX_INT
from chain.ledger.terms.work import Acceptance
from chain.ledger.transactions import GiveBack
from chain.rpc.schema import LeaseView
from chain.runtime.logs import get_logger, show_job
from provider.bidding.desk import Funds, Promise, Rates
from provider.daemon.host import HEARTBEAT_SECONDS, make_farewell, make_offer
from provider.daemon.lease import LeaseKeeper, Office
from provider.daemon.links import Backoff, Gear, TaskSet
from provider.daemon.office import Counter
from provider.daemon.settings import ProviderSettings
from provider.daemon.transactions import Submitter
from provider.daemon.workspace import name_machine
from provider.work.events import LeaseOpened, LeaseState
from provider.work.phases import UNFINISHED

POLL_MS = 20_000
"""One long poll for the chain's events."""

REFRESH_SECONDS = 10.0
"""How often the registered bond is looked up."""

TIDY_SECONDS = 1.0
"""How often rows that are no longer needed are dropped: never while something is in a hurry."""


class Daemon(Office):
    """One provider at work. `start`, then `close`; `broker` is the broker's key, `max_blob` the longest blob it takes:
    a longer output could never be handed in.
    """

    def __init__(self, gear: Gear, settings: ProviderSettings, broker: bytes, max_blob: int = MAX_INT) -> None:
        self.gear = gear
        self.leases: dict[bytes, LeaseKeeper] = {}
        self._settings = settings
        self._views: dict[bytes, LeaseView] = {}
        self._bond = 0
        self._tasks = TaskSet()
        self._submitter = Submitter(gear.signer, gear.chain_id, gear.chain, gear.clock)
        self._changed = asyncio.Event()
        self._log = get_logger("provider")
        policy = settings.policy
        policy = msgspec.structs.replace(policy, output_bytes=min(policy.output_bytes, max_blob))
        rates = Rates(settings.prices, policy, settings.pool)
        offer = make_offer(gear.signer.key, gear.host, settings, Funds(0, 0, 0), gear.clock.now())
        self.counter = Counter(gear, rates, broker, offer)
        self.counter.on_acceptance = self._hear_acceptance

    # Start

    async def start(self) -> None:
        """Take up what was left, then listen. Raises `Unavailable` where chain or bus do not answer."""
        gear = self.gear
        height = (await gear.chain.info()).height
        self._bond = (await gear.chain.account(gear.signer.key)).bond
        live = await gear.chain.leases(provider=gear.signer.key, live=True)
        await self._reconcile({bytes.fromhex(view.id): view for view in live})
        await gear.bus.start()
        await gear.bus.subscribe([topics.orders(gear.chain_id), topics.down(gear.chain_id, gear.signer.key)])
        self.counter.is_open = True
        await self._say_offer()
        self._tasks.start(self.counter.listen())
        self._tasks.start(self.counter.keep_forgetting())
        self._tasks.start(self._follow_chain(height))
        self._tasks.start(self._keep_present())
        self._tasks.start(self._keep_bond())
        self._tasks.start(self._keep_tidy())

    async def _reconcile(self, live: dict[bytes, LeaseView]) -> None:
        gear = self.gear
        swept = gear.workspace.sweep()
        self.counter.load()
        journaled = gear.workspace.list_leases()
        for lease in journaled:
            await self._resume(lease, live.get(lease))
        for lease, view in live.items():
            self._views[lease] = view
            if lease not in journaled:
                self._see_new(lease, view)
        self.counter.recover()
        self._count_funds()
        if journaled or swept:
            self._log.info("takes up earlier work", leases=len(journaled), leftovers=len(swept))

    async def _resume(self, lease: bytes, view: LeaseView | None) -> None:
        opened = read_opening(self.gear, lease)
        if opened is None:
            return
        keeper = self._keep(opened)
        unfinished = keeper.replay() in UNFINISHED
        if view is None:
            view = await self.gear.chain.lease(lease)
        if unfinished and (view is None or LeaseState(view.state).is_live):
            self.counter.adopt(Promise(opened.announcement, opened.bid), opened.count)
        keeper.resume(view)

    # Stop

    async def close(self) -> None:
        """Take no more orders; let running jobs end for a moment, give back the rest; leave no task or sandbox
        behind.
        """
        self.counter.is_open = False
        with contextlib.suppress(Refused):
            await self._publish(make_farewell(self.counter.offer, self.gear.clock.now()))
        await self._wait_quiet(self._settings.drain_s)
        for keeper in list(self.leases.values()):
            if not keeper.machine.is_quiet:
                keeper.stop()
        await self._wait_quiet(self._settings.drain_s)
        await self._tasks.close()
        await self.counter.close()
        for keeper in list(self.leases.values()):
            await keeper.close()

    async def _wait_quiet(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(keeper.machine.is_quiet for keeper in self.leases.values()):
                    self._changed.clear()
                    await self._changed.wait()

    # What leases ask of us

    def ask_slot(self, order_id: bytes, grant: Callable[[], None]) -> None:
        """See `Office`."""
        self.counter.ask_slot(order_id, grant)

    def free_slot(self, order_id: bytes) -> None:
        """See `Office`."""
        self.counter.free_slot(order_id)
        self._changed.set()

    def retire(self, lease: bytes, state: LeaseState) -> None:
        """See `Office`."""
        self._changed.set()
        self._tasks.start(self._retire(lease, state))

    async def _retire(self, lease: bytes, state: LeaseState) -> None:
        keeper = self.leases.get(lease)
        if keeper is None:
            return
        await keeper.close()
        self.leases.pop(lease, None)
        self.counter.end_lease(keeper.order_id)
        self.gear.workspace.drop_lease(lease)
        keeper.log.info("over", state=state.value)

    # The chain

    async def _follow_chain(self, after: int) -> None:
        backoff = Backoff()
        while True:
            try:
                page = await self.gear.chain.events([self.gear.signer.key], after, POLL_MS)
            except TallyError as error:
                self._log.info("chain is waited for", why=str(error))
                await backoff.wait()
                continue
            backoff, after = Backoff(), page.next
            for event in page.events:
                if event.lease is not None and event.lease.provider == self.gear.signer.key.hex():
                    self._see(event.lease)

    def _see(self, view: LeaseView) -> None:
        """A lease of ours as a final block left it."""
        lease, state = bytes.fromhex(view.id), LeaseState(view.state)
        if state.is_live:
            self._views[lease] = view
        else:
            self._views.pop(lease, None)
        keeper = self.leases.get(lease)
        if keeper is None:
            self._see_new(lease, view)
        else:
            keeper.move(view)
        self._count_funds()
        self._changed.set()

    def _see_new(self, lease: bytes, view: LeaseView) -> None:
        if LeaseState(view.state) not in (LeaseState.OPEN, LeaseState.CALLED):
            return
        order_id = bytes.fromhex(view.order)
        promise = self.counter.take_promise(order_id, view.count) if view.served == 0 else None
        if promise is None:
            self._log.error("a lease on a bid that is not known here is given back", job=show_job(order_id))
            self._tasks.start(self._give_back(lease))
            return
        opened = LeaseOpened(
            lease=lease,
            announcement=promise.announcement,
            bid=promise.bid,
            first=view.first,
            count=view.count,
            start=bytes.fromhex(view.start),
            opened=view.opened,
            deadline=view.deadline,
        )
        keeper = self._keep(opened)
        keeper.begin()
        keeper.move(view)
        keeper.log.info("has a lease", segments=view.count, price=view.price)
        self.gear.workspace.drop_promise(order_id)

    async def _keep_tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            self.gear.workspace.tidy()

    def _keep(self, opened: LeaseOpened) -> LeaseKeeper:
        keeper = LeaseKeeper(self.gear, self, opened)
        self.leases[opened.lease] = keeper
        return keeper

    async def _give_back(self, lease: bytes) -> None:
        try:
            await self._submitter.submit(GiveBack(lease))
        except Refused as error:
            self._log.warning("could not be given back", rule=error.rule)

    def _hear_acceptance(self, acceptance: Signed[Acceptance]) -> None:
        keeper = self.leases.get(acceptance.body.lease)
        if keeper is not None:
            keeper.hear_acceptance(acceptance)

    # Presence and funds

    def _count_funds(self) -> None:
        views = self._views.values()
        self.counter.funds = Funds(self._bond, sum(one.bond for one in views), sum(one.price for one in views))

    async def _say_offer(self) -> None:
        gear = self.gear
        self._count_funds()
        now = gear.clock.now()
        self.counter.offer = make_offer(gear.signer.key, gear.host, self._settings, self.counter.funds, now)
        await self._publish(self.counter.offer)

    async def _publish(self, offer: Offer) -> None:
        gear = self.gear
        data = sign_message(gear.signer, gear.chain_id, offer)
        await gear.bus.publish(topics.presence(gear.chain_id, gear.signer.key), data, retain=True)

    async def _keep_present(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self._say_offer()

    async def _keep_bond(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            with contextlib.suppress(TallyError):
                self._bond = (await self.gear.chain.account(self.gear.signer.key)).bond
                self._count_funds()


def read_opening(gear: Gear, lease: bytes) -> LeaseOpened | None:
    """The first event of a lease's journal; None where the journal is empty. Raises `Refused` for another event."""
    rows = gear.workspace.journal.load(name_machine(lease))
    if not rows:
        return None
    return decode(rows[0][1], LeaseOpened)
