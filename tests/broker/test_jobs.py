"""Pages of events behind a cursor, the archive, the directory of offers."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.auction.events import AcceptanceArrived
from broker.auction.machine import Auction
from broker.protocol.api import MAX_BODY_BYTES, Advanced, Announced, Delivered, Ended, Events, JobEvent
from broker.service import directory as directory_module
from broker.service import jobs as jobs_module
from broker.service.blobs import BlobStore
from broker.service.directory import SKEW_MS, Directory
from broker.service.jobs import Archive, Job, LiveJob, page
from broker.service.node import STORE_KIND, STORE_VERSION, open_stores
from broker.service.settings import BrokerSettings
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import SegmentRecord, Span
from chain.runtime.database import open_database
from tests.broker.play import Play, make_map, start_train
from tests.broker.world import BROKER, HOUSE, NOW, PROVIDERS, REQUESTER, STRANGER, make_acceptance, make_offer

A, B = compute_digest(b"a"), compute_digest(b"b")
LEASE = b"l" * 32


def document(number: int) -> Announced:
    return Announced(number, 0, (Span(0, 1),), 0, 0)


def progress(number: int, records: int = 0, log: bytes = b"") -> Advanced:
    record = make_record()
    return Advanced(number, LEASE, 0, 1, (record,) * records, 0, log)


def make_record() -> SegmentRecord:
    return SegmentRecord(LEASE, 0, PROVIDERS[0].key, A, A, A, Cause.OK, Usage(), NOW, "generic")


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.data())
def test_a_reader_hears_everything_once_and_in_order(story: list[bool], size: int, data: st.DataObject) -> None:
    """Whatever comes between two reads: True is a document, False progress."""
    jobs_module.PAGE_ITEMS, before = size, jobs_module.PAGE_ITEMS
    try:
        documents: list[JobEvent] = []
        steps: list[tuple[int, Advanced]] = []
        seen: list[Any] = []
        cursor = 0
        for number, is_document in enumerate(story):
            if is_document:
                documents.append(document(number))
            else:
                steps.append((len(documents), progress(number)))
            if data.draw(st.booleans()):
                got = page(documents, steps, 0, cursor)
                seen, cursor = [*seen, *got.items], got.next
        while (got := page(documents, steps, 0, cursor)).items:
            seen, cursor = [*seen, *got.items], got.next
    finally:
        jobs_module.PAGE_ITEMS = before
    assert [one.at for one in seen] == list(range(len(story)))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 6), st.integers(0, 2**62))
def test_no_cursor_hides_a_document_behind_it(documents: int, steps: int, dropped: int, cursor: int) -> None:
    """Also one of an earlier life that counted progress which is gone, and one made up."""
    told: list[JobEvent] = [document(number) for number in range(documents)]
    known = [(min(number, documents), progress(number)) for number in range(steps)]
    got = page(told, known, dropped, cursor)
    behind = told[min(cursor >> 32, documents) :]
    assert [one for one in got.items if isinstance(one, Announced)] == behind
    assert got.next >> 32 == documents


def test_a_page_ends_before_it_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "PAGE_BYTES", 100)
    told = [document(number) for number in range(50)]
    got = page(told, (), 0, 0)
    assert 0 < len(got.items) < 50
    assert page(told, (), 0, got.next).items[0] == told[len(got.items)]


def connect(schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema)
    return connection


def make_job(number: int, posted: int = NOW) -> Job:
    job = Job(bytes([number]) * 32)
    job.leases = {bytes([100 + 10 * part + number]) * 32: PROVIDERS[part].key for part in range(2)}
    job.requester = REQUESTER.key
    job.title, job.posted = f"job {number}", posted
    job.documents = (document(1), Ended(2, "settled", "done"))
    return job


def test_the_archive_gives_back_what_it_was_given() -> None:
    archive = Archive(connect(jobs_module.SCHEMA))
    for number in range(3):
        archive.add(make_job(number, NOW + number), NOW)
    archive.add(make_job(1, NOW + 1), NOW + 5)
    found = archive.find(bytes([1]) * 32)
    assert found is not None
    for name, value in vars(make_job(1, NOW + 1)).items():
        assert getattr(found, name) == value, name
    assert found.state == "settled"
    for lease in (101, 111):
        by_lease = archive.find_lease(bytes([lease]) * 32)
        assert by_lease is not None
        assert by_lease.order_id == found.order_id
    assert [one.title for one in archive.summarize(REQUESTER.key, 2)] == ["job 2", "job 1"]
    assert archive.summarize(STRANGER.key, 2) == []
    archive.sweep(NOW + 1)
    assert [archive.find(bytes([number]) * 32) is None for number in range(3)] == [True, False, True]
    assert [archive.find_lease(bytes([100 + number]) * 32) is None for number in range(3)] == [True, False, True]
    assert archive._connection.execute("SELECT count(*) FROM leases").fetchone() == (2,)


def test_documents_are_read_for_those_who_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order and lease ids are public: a stranger's question must not cost the decoding of 65,536 records."""
    archive = Archive(connect(jobs_module.SCHEMA))
    archive.add(make_job(1), NOW)
    loads: list[bytes] = []
    read = archive._load

    def load(order_id: bytes) -> tuple[JobEvent, ...]:
        loads.append(order_id)
        return read(order_id)

    monkeypatch.setattr(archive, "_load", load)
    found, by_lease = archive.find(bytes([1]) * 32), archive.find_lease(bytes([101]) * 32)
    assert found is not None and by_lease is not None
    assert STRANGER.key not in (found.requester, found.watcher, *by_lease.leases.values())
    assert loads == []
    assert len(found.read(0).items) == len(found.documents) == 2
    assert loads == [found.order_id]


def forbid(order_id: bytes) -> tuple[JobEvent, ...]:
    raise AssertionError("documents are decoded")


def make_papers() -> tuple[Job, Play]:
    """A job with two storage receipts and two acceptances."""
    play = start_train(20)
    for count in (3, 20):
        play.hand_in(count)
    [part, whole] = [one.delivery for one in play.auction.news if isinstance(one, Delivered)]
    for delivery in (part, whole):
        play.tell(AcceptanceArrived(make_acceptance(delivery)))
    job = make_job(1)
    job.documents, job.leases = play.auction.news, {play.lease(): PROVIDERS[0].key}
    return job, play


@pytest.mark.parametrize("release", ["this", "earlier"])
def test_what_providers_ask_of_a_job_that_is_over_decodes_no_documents(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """A request of some bytes, at will, would else hold up everybody while 65,536 records are decoded."""
    job, play = make_papers()
    rows = connect(jobs_module.SCHEMA)
    archive = Archive(rows)
    archive.add(job, NOW)
    archive.add(make_job(2), NOW)
    if release == "earlier":
        rows.execute("DELETE FROM papers")
        archive = Archive(rows)
    monkeypatch.setattr(archive, "_load", forbid)
    found, other = archive.find_lease(play.lease()), archive.find(bytes([2]) * 32)
    assert found is not None and other is not None
    receipts = play.lot().receipts
    assert len(receipts) == 2
    assert {receipt: found.find_storage(receipt) for receipt in receipts} == receipts
    assert found.find_acceptance(play.lease()) == play.lot().acceptance is not None
    for job, name in ((found, bytes(32)), (other, next(iter(receipts))), (other, play.lease())):
        assert job.find_storage(name) is None
        assert job.find_acceptance(name) is None
    archive.sweep(NOW + 1)
    assert rows.execute("SELECT count(*) FROM papers").fetchone() == (0,)


def test_a_store_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    """One that knows one lease per order is not read on trust."""
    settings = BrokerSettings(home=str(tmp_path))
    open_database(tmp_path / "broker.db", kind=STORE_KIND, version=STORE_VERSION - 1, schema="").close()
    with pytest.raises(Refused) as refused:
        open_stores(settings)
    assert refused.value.rule == "store.version"
    assert "older" in refused.value.message


def make_live() -> LiveJob:
    auction = Auction(BROKER, HOUSE)
    driver: Any = None
    return LiveJob(bytes(32), auction, driver)


@pytest.mark.parametrize(("records", "log"), [(64, b""), (0, b"x" * 16_384)], ids=["records", "log"])
def test_progress_in_memory_is_bounded_by_what_it_holds(records: int, log: bytes) -> None:
    job = make_live()
    one = progress(1, records, log)
    each = len(log) + jobs_module.RECORD_BYTES * records
    for _ in range(3 * jobs_module.PROGRESS_BYTES // each):
        job.add_progress(one)
    assert len(job.read(0).items) > 0
    held = sum(len(step.log) + jobs_module.RECORD_BYTES * len(step.records) for _, step in job._progress)
    assert jobs_module.PROGRESS_BYTES - each < held <= jobs_module.PROGRESS_BYTES


def test_a_page_of_full_deliveries_can_be_decoded() -> None:
    """Elements of one object are bounded by the codec, however much a job has to say."""
    play = make_map(5_000, parallelism=1, deadline=NOW + 10**9, expiry=NOW + 10**10, cap=10**11)
    play.bid(0)
    for number in (1, 2):
        play.decline(number)
    play.open()
    for count in (1_024, 2_048, 3_072, 4_096, 5_000):
        play.hand_in(count)
    seen: list[Any] = []
    after = 0
    while (got := page(play.auction.news, (), 0, after)).items:
        blobs = (b"",) * 2_048
        decoded = decode(encode(replace(got, blobs=blobs)), Events, max_bytes=MAX_BODY_BYTES)
        seen, after = [*seen, *decoded.items], got.next
    assert seen == play.auction.news


def test_the_newest_offer_stands_until_it_has_run_out() -> None:
    """Row 27: a stale retained offer and one from the future don't count."""
    directory = Directory()
    directory.take(make_offer(NOW), NOW)
    assert not directory.is_refresh(make_offer(NOW))
    assert directory.is_refresh(make_offer(NOW + 1))
    directory.take(make_offer(NOW + 5, slots=7), NOW)
    for bad, rule in [
        (make_offer(NOW + 4), "offer.stale"),
        (make_offer(NOW, signer=PROVIDERS[1], valid_until=NOW - 1), "offer.stale"),
        (make_offer(NOW + SKEW_MS + 1, signer=PROVIDERS[1]), "offer.early"),
    ]:
        with pytest.raises(Refused) as refused:
            directory.take(bad, NOW)
        assert refused.value.rule == rule
    assert [one.slots for one in directory.list_standing(NOW)] == [7]
    assert directory.is_there(PROVIDERS[0].key, NOW)
    assert not directory.is_there(PROVIDERS[0].key, NOW + 60_006)
    assert directory.list_standing(NOW + 60_006) == []
    directory.sweep(NOW + 60_006)
    assert len(directory) == 0


def test_a_farewell_stands_against_older_offers() -> None:
    """Who says an old offer again does not bring its provider back."""
    directory = Directory()
    directory.take(make_offer(NOW), NOW)
    directory.take(make_offer(NOW + 5, slots=0), NOW + 5)
    assert directory.list_standing(NOW + 5) == []
    with pytest.raises(Refused) as refused:
        directory.take(make_offer(NOW + 4), NOW + 5)
    assert refused.value.rule == "offer.stale"
    assert not directory.is_refresh(make_offer(NOW + 6))
    directory.take(make_offer(NOW + 6), NOW + 6)
    assert directory.is_there(PROVIDERS[0].key, NOW + 6)


def test_offers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_OFFERS", 2)
    directory = Directory()
    for signer in PROVIDERS[:2]:
        directory.take(make_offer(NOW, signer), NOW)
    with pytest.raises(Refused) as refused:
        directory.take(make_offer(NOW, PROVIDERS[2]), NOW)
    assert refused.value.rule == "offer.full"
    later = NOW + 60_001
    directory.take(make_offer(later, PROVIDERS[2]), later)
    assert list(directory) == [PROVIDERS[2].key]


async def test_what_is_just_coming_in_is_not_removed(tmp_path: Path) -> None:
    """A blob that ran out and is uploaded again at that moment stays."""
    store = BlobStore(tmp_path, 100)
    store.prepare()
    with store.arriving([A]):
        await store.write(A, b"a")
        store.remove([A])
        assert store.measure(A) == 1
    store.remove([A, B])
    assert store.measure(A) is None


async def test_a_killed_upload_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 100)
    store.prepare()
    (tmp_path / "incoming" / "half").write_bytes(b"half")
    await store.write(A, b"a")
    store.prepare()
    assert list((tmp_path / "incoming").iterdir()) == []
    assert store.measure(A) == 1
    with pytest.raises(Refused) as refused:
        store.get_path(b"short")
    assert refused.value.rule == "blob.name"
