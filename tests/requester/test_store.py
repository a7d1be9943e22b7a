"""The store: the signed order before it is sent, one driver per job, spoiled rows refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from chain.base.errors import Refused, Unavailable
from requester.purchase.deliveries import EMPTY
from requester.purchase.documents import RecordChunk
from requester.store.jobs import JobStore
from tests.requester.test_verify import MAP
from tests.requester.world import NOW, World, change

URLS = ("http://broker", "http://chain")


def add(store: JobStore, world: World, signed: int = NOW) -> bytes:
    return store.add(world.chain, world.order, world.spec, signed, URLS)


def test_a_signed_order_is_there_after_a_restart(tmp_path: Path) -> None:
    store, world = JobStore(tmp_path), World()
    job = add(store, world)
    store.close()
    again = JobStore(tmp_path)
    row = again.get(job)
    assert (row.id, row.title, row.phase, (row.broker, row.chain)) == (world.order_id, "a job", "signed", URLS)
    assert again.load_documents(job).order == world.order


def test_papers_and_proofs_are_kept_apart_and_read_together(tmp_path: Path) -> None:
    store, (world, _) = JobStore(tmp_path), MAP.worlds
    job = store.add(world.chain, world.order, world.spec, NOW, URLS, world.items)
    assert store.load_documents(job).items == world.items
    for papers in MAP.documents.leases:
        store.keep_proof(job, papers.lease, papers.proof, None)
        store.keep_proof(job, papers.lease, None, papers.state)
    bare = tuple(change(papers, proof=None, state=None) for papers in MAP.documents.leases)
    store.update(job, "partly", ("a.rule", "a text"), change(MAP.documents, leases=bare))
    assert store.load_documents(job) == MAP.documents
    row = store.get(job)
    assert (row.phase, row.rule, row.text) == ("partly", "a.rule", "a text")
    store.update(job, "partly", ("", ""), change(MAP.documents, leases=bare[:1], books=()))
    assert store.load_documents(job) == change(MAP.documents, leases=MAP.documents.leases[:1], books=())


def test_an_update_writes_only_what_changed(tmp_path: Path) -> None:
    """A phase of a long job costs its papers, not its ten thousand items."""
    store, (world, _) = JobStore(tmp_path), MAP.worlds
    job = store.add(world.chain, world.order, world.spec, NOW, URLS, world.items)
    store.update(job, "running", ("", ""), MAP.documents)
    before = store._connection.total_changes
    store.update(job, "settled", ("", ""), MAP.documents)
    assert store._connection.total_changes == before + 1
    first, second = MAP.documents.leases
    store.update(job, "settled", ("", ""), change(MAP.documents, leases=(first, change(second, acceptance=None))))
    assert store._connection.total_changes == before + 3


def test_an_update_that_fails_changes_nothing(tmp_path: Path) -> None:
    store, (world, _) = JobStore(tmp_path), MAP.worlds
    job = store.add(world.chain, world.order, world.spec, NOW, URLS, world.items)
    with pytest.raises(sqlite3.Error):
        store.update(job, object(), ("", ""), MAP.documents)  # type: ignore[arg-type]  # what SQLite cannot take
    with pytest.raises(sqlite3.Error):
        store.add(world.chain, world.order, world.spec, NOW, URLS, world.items)
    assert store.get(job).phase == "signed"
    assert store.load_documents(job).leases == ()


def keep(store: JobStore, job: bytes, world: World, *counts: int) -> None:
    """Records as a machine hands them on: delivery by delivery."""
    since = 0
    for count in counts:
        store.keep_records(job, RecordChunk(world.lease, since, world.record_bodies[since:count]))
        since = count


def test_records_are_read_as_far_as_the_receipt_covers_them(tmp_path: Path) -> None:
    store, (first, rest) = JobStore(tmp_path), MAP.worlds
    job = store.add(first.chain, first.order, first.spec, NOW, URLS, first.items)
    keep(store, job, first, 1, 2)
    keep(store, job, first, 1, 2)
    keep(store, job, rest, 2)
    assert store.load_records(job, MAP.documents) == MAP.records
    short = change(MAP.documents.leases[0], receipt=first.prefix(1).delivery.receipt)
    none = change(MAP.documents.leases[1], receipt=None)
    found = store.load_records(job, change(MAP.documents, leases=(short, none)))
    assert found == {first.lease: first.record_bodies[:1], rest.lease: ()}
    store._connection.execute("DELETE FROM records WHERE since = 0 AND lease = ?", (first.lease,))
    with pytest.raises(Refused, match="where 0 follow"):
        store.load_records(job, MAP.documents)


def test_blobs_are_those_that_receipts_and_records_name(tmp_path: Path) -> None:
    store, (first, rest) = JobStore(tmp_path), MAP.worlds
    assert set(store.load_blobs(MAP.documents, MAP.records)) == {EMPTY}
    for blob in (*first.blobs.values(), *rest.blobs.values(), b"something else"):
        store.blobs.put(blob)
    assert store.load_blobs(MAP.documents, MAP.records) == {EMPTY: b"", **MAP.blobs}


def test_jobs_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = [add(store, World(cap=2_000_000 + number), NOW + number) for number in range(20)]
    assert [row.id for row in store.list_jobs()] == jobs[::-1]
    assert store.find(jobs[3].hex().upper()).id == jobs[3]
    digits = max((job.hex()[0] for job in jobs), key=[job.hex()[0] for job in jobs].count)
    for prefix, rule in ((digits, "job.ambiguous"), ("", "job.ambiguous"), ("zz", "job.unknown")):
        with pytest.raises(Refused) as refused:
            store.find(prefix)
        assert refused.value.rule == rule
    with pytest.raises(Refused) as unknown:
        store.get(bytes(32))
    assert unknown.value.rule == "job.unknown"


def test_one_process_drives_a_job(tmp_path: Path) -> None:
    store, other = JobStore(tmp_path), JobStore(tmp_path)
    job = add(store, World())
    with store.own(job), pytest.raises(Unavailable) as owned, other.own(job):
        pass
    assert owned.value.rule == "folder.owned"
    with other.own(job):
        pass


def test_a_store_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    JobStore(tmp_path).close()
    for column, value, rule in (("version", 99, "store.version"), ("kind", "broker", "store.kind")):
        connection = sqlite3.connect(tmp_path / "jobs.db")
        connection.execute(f"UPDATE identity SET {column} = ?", (value,))
        connection.commit()
        connection.close()
        with pytest.raises(Refused) as refused:
            JobStore(tmp_path)
        assert refused.value.rule == rule


def test_spoiled_documents_are_refused(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = add(store, World())
    store._connection.execute("UPDATE parts SET data = ?", (b"\x93",))
    with pytest.raises(Refused, match="codec"):
        store.load_documents(job)
