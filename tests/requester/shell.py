"""A machine fed as the driver feeds it, and what it asked for: the ground of the tests of the purchase machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from broker.protocol.api import Ended
from chain.base.codec import encode
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from requester.purchase import events as e
from requester.purchase.deliveries import DeliveryFacts, Prefix
from requester.purchase.documents import Documents
from requester.purchase.lots import Lot, Mandate
from requester.purchase.machine import Purchase
from requester.purchase.rounds import Rounds
from tests.requester.world import NOW, REQUESTER, World


class Shell:
    """Due deadlines first, then the event; what it was told is kept for a replay."""

    def __init__(self, world: World | None = None, *others: World) -> None:
        self.world = world or World()
        self.worlds = (self.world, *others)
        self.machine = make_machine(self.world)
        self.now = NOW
        self.told: list[tuple[int, Any]] = []
        self.asked: list[Any] = []

    def tell(self, *items: Any, at: int | None = None) -> list[Any]:
        """Hand over events (the broker's bare, as heard); returns what the machine asks for."""
        self.now = self.now if at is None else at
        asked: list[Any] = []
        for item in items:
            event = item if isinstance(item, get_args(e.PurchaseEvent)) else e.Heard(item, len(self.told))
            asked += self.wake()
            if getattr(event, "durable", True):
                self.told.append((self.now, event))
            asked += self.machine.handle(event, self.now)
        self.asked += asked
        return asked

    def wake(self) -> Sequence[Any]:
        due = self.machine.wake_at()
        if due is None or due > self.now:
            return []
        self.told.append((self.now, None))
        return self.machine.wake(self.now)

    def sleep(self) -> list[Any]:
        """Until the machine's next deadline."""
        due = self.machine.wake_at()
        assert due is not None
        self.now = max(self.now, due)
        asked = list(self.wake())
        self.asked += asked
        return asked

    def serve(self, asked: Sequence[Any]) -> list[Any]:
        """Answer each `FetchBlobs` with what the worlds have, until nothing more is fetched; returns all asked for."""
        here = {digest: size for world in self.worlds for digest, size in world.found.items()}
        done = list(asked)
        waiting = [effect for effect in asked if isinstance(effect, e.FetchBlobs)]
        while waiting:
            fetch = waiting.pop(0)
            found = tuple(e.Found(digest, here[digest]) for digest in fetch.digests if digest in here)
            more = self.tell(e.BlobsFetched(fetch.lease, found))
            done += more
            waiting += [effect for effect in more if isinstance(effect, e.FetchBlobs)]
        return done

    def feed(self, *items: Any) -> list[Any]:
        """Like `tell`, blobs fetched at once."""
        return [effect for item in items for effect in self.serve(self.tell(item))]

    def get(self, kind: type) -> list[Any]:
        """All effects of a kind that were asked for."""
        return [effect for effect in self.asked if isinstance(effect, kind)]


def make_machine(world: World) -> Purchase:
    return Purchase(world.chain, REQUESTER, world.order, world.spec, world.items)


def make_found(world: World) -> e.BlobsFetched:
    """All blobs of a lease."""
    return e.BlobsFetched(world.lease, tuple(e.Found(digest, size) for digest, size in world.found.items()))


def see(world: World, state: str = "open", height: int = 5, **fields: Any) -> e.LeaseSeen:
    """A lease as the chain shows it; by default whole and, if it has ended, by the transaction `ab`."""
    count = world.award_body.count
    price = world.award_body.price * count
    settled = state == "settled"
    shown = e.LeaseSeen(
        lease=world.lease,
        state=state,
        first=world.first,
        count=count,
        held=count,
        served=len(world.causes) if settled else 0,
        receipt=b"",
        paid=price if settled else 0,
        commission=price // 50 if settled else 0,
        refunded=0 if settled or state in ("open", "called", "delivered") else price + price // 50,
        damages=0,
        burned=0,
        height=height,
        time=NOW,
        tx="ab",
    )
    return msgspec.structs.replace(shown, **fields)


def end(state: str = "settled", text: str = "") -> Ended:
    return Ended(NOW, state, text)


def make_map(segments: int = 6, **fields: Any) -> tuple[World, World]:
    """A map of two leases in one round: the provider's part, then the rival's."""
    half = segments // 2
    settings = {"causes": (Cause.OK,) * half, "segments": segments, "kind": Kind.MAP, "parallelism": 2}
    settings |= {"prices": (200_000, 300_000), "count": half} | fields
    mine = World(**settings)  # type: ignore[arg-type]  # a mapping of fields
    return mine, mine.also(causes=(Cause.OK,) * (segments - half), first=half, count=segments - half)


def make_train(*causes: Cause, segments: int = 4) -> World:
    return World(causes=causes, segments=segments, kind=Kind.TRAIN, prices=(200_000, 300_000))


def go_on(world: World, *causes: Cause) -> World:
    """The lease of the next round that goes on where this one ended; the provider that left does not bid."""
    state = compute_digest(world.get_output(world.first + len(world.causes) - 1))
    start = state if world.kind is Kind.TRAIN else None
    other = world.also(causes=causes, round=world.round + 1, first=world.first + len(world.causes), start=start)
    other.count = None
    other.bids = (other.bids[0],)
    return other


# ---- comparison ----


def look(value: Any) -> Any:
    """All that a machine holds, for comparison."""
    match value:
        case Purchase() | Rounds() | Lot():
            names = {name: one for name, one in vars(value).items() if name not in ("_signer", "_mandate", "mandate")}
            return {name: look(one) for name, one in names.items()}
        case Prefix():
            return (value.count, value.frontier.root, value.last, value.usage)
        case DeliveryFacts():
            return (value.body, value.since, value.records, look(value.before))
        case dict():
            return {key: look(one) for key, one in value.items()}
        case list() | tuple():
            return [look(one) for one in value]
        case Mandate():
            return None
        case Exception():
            return str(value)
        case _:
            return value


def settle_down(machine: Purchase) -> tuple[Any, ...]:
    """What the owner has in the end: phase, words, documents, which acceptances."""
    documents: Documents = machine.documents
    leases = sorted(documents.leases, key=lambda papers: papers.lease)
    return machine.outcome, documents.books, documents.tried, leases


def replay(shell: Shell) -> Purchase:
    machine = make_machine(shell.world)
    decoder = msgspec.msgpack.Decoder(e.PurchaseEvent)
    for now, event in shell.told:
        if event is None:
            machine.wake(now)
        else:
            machine.handle(decoder.decode(encode(event)), now)
    return machine


def kinds(asked: Sequence[Any]) -> list[type]:
    return [type(effect) for effect in asked]


def up_to_delivery(world: World | None = None, *others: World) -> Shell:
    shell = Shell(world, *others)
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, w.opened, w.delivered)
    return shell
