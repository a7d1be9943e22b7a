"""The papers of a job in parts: they survive it, keep to the codec's bounds, and no bit of them may change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from requester.purchase.documents import (
    MAX_ITEM_DIGESTS,
    LeasePapers,
    RecordChunk,
    join_chunks,
    join_documents,
    make_chunks,
    split_documents,
)
from tests.requester.test_verify import MAP, OTHER, RUN, Job, first_failure
from tests.requester.world import change

PARTS = split_documents(MAP.documents)
CHUNKS = [encode(chunk) for world in MAP.worlds for chunk in make_chunks(world.lease, world.record_bodies)]


def test_documents_survive_their_parts() -> None:
    assert join_documents(PARTS) == MAP.documents
    assert list(PARTS) == ["book/0000", "book/0001", "head", "items/0000", "lease/0000", "lease/0001"]
    for world in MAP.worlds:
        assert join_chunks(world.lease, make_chunks(world.lease, world.record_bodies)) == world.record_bodies


@given(data=st.data(), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_in_the_papers_is_refused(data: st.DataObject, bit: int) -> None:
    name = data.draw(st.sampled_from(sorted(PARTS)))
    spoiled = bytearray(PARTS[name])
    spoiled[data.draw(st.integers(0, len(spoiled) - 1))] ^= 1 << bit
    try:
        documents = join_documents({**PARTS, name: bytes(spoiled)})
    except Refused:
        return
    same = [forget_when(one) for one in documents.leases] == [forget_when(one) for one in MAP.documents.leases]
    assert (same and name.startswith("lease/")) or first_failure(Job(documents, MAP.records, MAP.blobs, MAP.worlds))


@given(data=st.data(), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_in_the_records_is_refused(data: st.DataObject, bit: int) -> None:
    place = data.draw(st.integers(0, len(CHUNKS) - 1))
    spoiled = bytearray(CHUNKS[place])
    spoiled[data.draw(st.integers(0, len(spoiled) - 1))] ^= 1 << bit
    try:
        records = join_chunks(MAP.worlds[place].lease, [decode(bytes(spoiled), RecordChunk)])
    except Refused:
        return
    assert first_failure(MAP.rerecord(MAP.worlds[place].lease, records)) > 0


def forget_when(papers: LeasePapers) -> LeasePapers:
    """Papers without height and time of the news, which nothing here leans on (`caseverify` does)."""
    bare: LeasePapers = change(papers, seen=papers.seen and change(papers.seen, height=0, time=0))
    return bare


def drop(name: str) -> dict[str, bytes]:
    return {key: data for key, data in PARTS.items() if key != name}


SPOILED = [
    drop("head"),
    drop("book/0000"),
    drop("lease/0000"),
    {**PARTS, "other/0000": b""},
    {**PARTS, "lease/0003": PARTS["lease/0001"]},
    {**PARTS, "items/0001": PARTS["items/0000"]},
    {**PARTS, **{f"book/{number:04}": PARTS["book/0000"] for number in range(5_000)}},
]


@pytest.mark.parametrize("parts", SPOILED, ids=range(len(SPOILED)))
def test_parts_that_are_missing_or_too_many_are_refused(parts: dict[str, bytes]) -> None:
    with pytest.raises(Refused) as refused:
        join_documents(parts)
    assert refused.value.rule == "documents.parts"


def test_chunks_that_leave_a_gap_or_are_of_another_lease_are_refused() -> None:
    chunk = make_chunks(RUN.lease, RUN.record_bodies)[0]
    for chunks in ([change(chunk, since=1)], [chunk, chunk], [change(chunk, lease=OTHER)]):
        with pytest.raises(Refused) as refused:
            join_chunks(RUN.lease, chunks)
        assert refused.value.rule == "documents.records"


def test_papers_of_the_largest_jobs_keep_to_the_bounds_of_the_codec() -> None:
    """10,000 segments over 100 leases, and more items than go into one part."""
    leases = MAP.documents.leases * 50
    items = tuple(compute_digest(b"%d" % index) for index in range(MAX_ITEM_DIGESTS + 1))
    documents = change(MAP.documents, leases=leases, items=items)
    assert join_documents(split_documents(documents)) == documents
    records = RUN.record_bodies * 10_000
    chunks = [decode(encode(chunk), RecordChunk, max_bytes=4 << 20) for chunk in make_chunks(RUN.lease, records)]
    assert join_chunks(RUN.lease, chunks) == records
