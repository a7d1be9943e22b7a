"""The store: the signed order before it is sent, one driver per job, spoiled rows refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from requester.purchase.deliveries import EMPTY
from requester.store.jobs import JobStore
from tests.requester.test_verify import GOOD
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


def test_documents_and_proof_are_kept_apart_and_read_together(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = add(store, World())
    assert GOOD.proof is not None
    store.keep_proof(job, GOOD.proof)
    store.update(job, "settled", ("a.rule", "a text"), change(GOOD, proof=None))
    assert store.load_documents(job) == GOOD
    row = store.get(job)
    assert (row.phase, row.rule, row.text) == ("settled", "a.rule", "a text")
    assert set(store.load_blobs(GOOD)) == {EMPTY}
    assert GOOD.delivery is not None
    store.blobs.put(b"packed result")
    assert set(store.load_blobs(GOOD)) == {EMPTY, compute_digest(b"packed result")}


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
    store._connection.execute("UPDATE jobs SET documents = ?", (b"\x93",))
    with pytest.raises(Refused, match="codec"):
        store.load_documents(job)
