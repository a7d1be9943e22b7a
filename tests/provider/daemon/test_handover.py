"""Handing in: which blob travels how, what is tried again, and what an answer means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auction.admission import Agreed
from broker.protocol.api import INLINE_BYTES, MAX_PARCEL_BYTES, Delivery
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.work import StorageReceipt
from provider.daemon.folder import LeaseFolder
from provider.daemon.handover import MAX_INLINE, MAX_REFUSALS, HandOver, divide_blobs
from provider.work.events import HolderLost, LeaseOpened, PostReceipt, Stored, StoreFailed
from provider.work.handing import Handing
from provider.work.papers import Papers
from tests.provider import scene
from tests.provider.daemon.doubles import FakeBroker

BIG = 300_000


class Scene:
    """One lease of a map with outputs of the given sizes, none of them handed in yet."""

    def __init__(self, tmp_path: Path, sizes: list[int], broker: FakeBroker | None = None) -> None:
        spec = scene.make_spec(kind=Kind.MAP)
        order = scene.make_order(spec=spec, segments=len(sizes) + 1)
        self.opened: LeaseOpened = scene.open_lease(order, spec)
        self.folder, self.broker = LeaseFolder(tmp_path), broker or FakeBroker()
        self.papers = Papers(scene.PROVIDER, scene.CHAIN, self.opened)
        self.outputs = [bytes([n]) * size for n, size in enumerate(sizes)]
        award = scene.make_award(order, self.opened.bid)
        self.broker.agreed[self.opened.lease] = Agreed(self.opened.lease, award, self.opened.bid.body, Kind.MAP)
        for index, output in enumerate(self.outputs):
            if len(output) >= BIG:
                tmp_path.mkdir(exist_ok=True)
                (tmp_path / "spooled").write_bytes(output)
                self.folder.adopt(tmp_path / "spooled", compute_digest(output))
            else:
                self.folder.put(output)
            self.papers.add_record(scene.make_segment(index, output=output), "ns", "openblas")

    def prefix(self) -> PostReceipt:
        handing = Handing(self.papers)
        handing.note(0)
        return handing.post(0)[0]

    async def post(self, effect: PostReceipt | None = None) -> Any:
        gear: Any = type("Gear", (), {"broker": self.broker, "chain_id": scene.CHAIN})()
        return await HandOver(gear, self.opened, self.folder).post(effect or self.prefix())


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provider.daemon.links.Backoff.FIRST", 0)


async def test_small_outputs_ride_along_others_go_in_parcels_and_large_ones_as_files(tmp_path: Path) -> None:
    sizes = [10, 200_000, 200_001, BIG, 5]
    made = Scene(tmp_path, sizes)
    answer = await made.post()
    assert isinstance(answer, Stored) and answer.count == len(sizes)
    [delivery] = made.broker.posts
    assert sorted(map(len, delivery.blobs)) == [5, 10, 200_000]
    assert made.broker.files == [compute_digest(made.outputs[3])] and made.broker.parcels == [1]
    assert all(compute_digest(output) in made.broker.blobs for output in made.outputs)


async def test_an_outage_sends_nothing_twice_that_arrived(tmp_path: Path) -> None:
    made = Scene(tmp_path, [BIG])
    tries = 0
    deliver = made.broker.deliver

    async def flaky(lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("away", rule="broker.unreachable")
        return await deliver(lease, delivery)

    made.broker.deliver = flaky  # type: ignore[method-assign]  # it is away twice
    assert isinstance(await made.post(), Stored)
    assert len(made.broker.files) == 1


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [("R5.since", HolderLost), ("R5.root", StoreFailed), ("R9.cause", StoreFailed), ("lease.unknown", StoreFailed)],
)
async def test_what_a_refusal_means(tmp_path: Path, rule: str, outcome: type) -> None:
    made = Scene(tmp_path, [3])
    made.broker.refuse = rule
    assert isinstance(await made.post(), outcome)


async def test_a_broker_that_does_not_know_the_lease_yet_is_asked_again(tmp_path: Path) -> None:
    made = Scene(tmp_path, [3])
    tries = 0
    deliver = made.broker.deliver

    async def late(lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        nonlocal tries
        tries += 1
        if tries < MAX_REFUSALS:
            raise Refused("not yet", rule="lease.unknown")
        return await deliver(lease, delivery)

    made.broker.deliver = late  # type: ignore[method-assign]  # its chain lags
    assert isinstance(await made.post(), Stored)


async def test_an_output_that_is_gone_or_rotten_cannot_be_handed_in(tmp_path: Path) -> None:
    made = Scene(tmp_path / "a", [BIG])
    made.folder.get_path(compute_digest(made.outputs[0])).unlink()
    assert isinstance(await made.post(), StoreFailed)
    other = Scene(tmp_path / "b", [3])
    pack = tmp_path / "b" / "pack"
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    assert isinstance(await other.post(), StoreFailed)


def forge(storage: Signed[StorageReceipt], **changes: Any) -> Signed[StorageReceipt]:
    return scene.BROKER.sign(Tag.STORAGE, scene.CHAIN, msgspec.structs.replace(storage.body, **changes))


STRANGER = scene.make_signer("stranger")


@pytest.mark.parametrize("name", ["another holder", "another lease", "another receipt", "no signature", "too short"])
async def test_a_storage_receipt_that_the_chain_would_not_take_is_none(tmp_path: Path, name: str) -> None:
    made = Scene(tmp_path, [3])
    good, order = scene.store(made.prefix().receipt), made.opened.announcement.order.body
    forged = {
        "another holder": forge(good, holder=STRANGER.key),
        "another lease": forge(good, lease=bytes(32)),
        "another receipt": forge(good, receipt=bytes(32)),
        "too short": forge(good, kept_until=order.deadline + order.windows.acceptance - 1),
        "no signature": msgspec.structs.replace(good, signature=bytes(64)),
    }[name]

    async def lie(lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        return forged

    made.broker.deliver = lie  # type: ignore[method-assign]  # a broker that lies
    answer = await made.post()
    assert isinstance(answer, StoreFailed)


async def test_the_provenance_goes_along_with_the_final_receipt(tmp_path: Path) -> None:
    made = Scene(tmp_path, [3, 4])
    made.papers.add_record(scene.make_segment(2), "ns", "openblas")
    made.folder.put(scene.OUTPUT)
    made.folder.put(scene.LOG)
    receipt = made.papers.sign_final(scene.run_ended())
    assert isinstance(await made.post(), Stored)
    assert made.broker.blobs[receipt.body.provenance] == made.papers.provenance


@given(st.lists(st.integers(1, 2 * MAX_PARCEL_BYTES), max_size=700))
def test_blobs_ride_along_as_far_as_they_fit(sizes: list[int]) -> None:
    named = {number.to_bytes(32, "big"): size for number, size in enumerate(sizes)}
    inline, parcels = divide_blobs(named)
    assert sorted([*inline, *(one for parcel in parcels for one in parcel)]) == sorted(named)
    assert sum(named[one] for one in inline) <= INLINE_BYTES and len(inline) <= MAX_INLINE
    for parcel in parcels:
        assert parcel and len(parcel) <= MAX_INLINE
        assert len(parcel) == 1 or sum(named[one] for one in parcel) <= MAX_PARCEL_BYTES
    if parcels:
        smallest = min(named[one] for parcel in parcels for one in parcel)
        assert len(inline) == MAX_INLINE or sum(named[one] for one in inline) + smallest > INLINE_BYTES
