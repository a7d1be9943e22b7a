"""A case file: everything about one job in one file that anyone can check offline, with the genesis file alone.

Papers, records, provenance, error texts and logs are always in it; outputs, code and inputs on request, else their
digests only. Never a key. Bytes come and go in pieces, blobs are not held in memory. What is checked is `verify`; how
the bytes lie is `caseframes`; the format for outsiders is `docs/case-file.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from chain.base.codec import Record, decode, encode
from chain.base.hashing import Digest, compute_digest
from chain.base.units import Amount, Count
from chain.ledger.terms.agreement import compute_order_id
from chain.ledger.terms.work import SegmentRecord
from requester.purchase.caseframes import BLOBS, BadCase, FrameReader, FrameWriter, Part, PartName
from requester.purchase.documents import (
    MAX_PART_BYTES,
    Documents,
    RecordChunk,
    join_chunks,
    join_documents,
    make_chunks,
    split_documents,
)

CASE_VERSION = 1
"""Version of what the parts mean; another one is refused by name (`case.version`)."""

EMPTY = compute_digest(b"")

Records = Mapping[bytes, Sequence[SegmentRecord]]
"""The records of each lease, by its id, in order from the lease's first."""


class Manifest(Record, frozen=True, tag="case-manifest"):
    """What the file says of itself, all of which follows from the rest: chain and order id, how many leases, records
    and blobs, and whether outputs, and code and inputs, were asked for.
    """

    version: Count
    chain: Digest
    order: Digest
    leases: Count
    records: Amount
    blobs: Amount
    outputs: bool
    inputs: bool


@dataclass(frozen=True)
class Place:
    """Where a blob lies in the file."""

    name: PartName
    offset: int
    size: int


@dataclass(frozen=True)
class Case:
    """A case as it was read: whole, but nothing in it is verified. `provenance` are envelopes by their digest, `blobs`
    the places of all blobs, envelopes among them, in order.
    """

    manifest: Manifest
    documents: Documents
    records: Records
    provenance: Mapping[bytes, bytes]
    blobs: Mapping[bytes, Place]


@dataclass(frozen=True)
class BlobSource:
    """A blob that is to be written: its size, and its bytes piece by piece, opened when it is its turn."""

    size: int
    read: Callable[[], Iterable[bytes | memoryview]]


@dataclass(frozen=True)
class CaseContent:
    """What is written: papers, records, and where blobs are found (None: it is not here, and is left out)."""

    documents: Documents
    records: Records
    find: Callable[[bytes], BlobSource | None] = field(repr=False)
    outputs: bool = False
    inputs: bool = False


def list_named(documents: Documents, records: Records, left_out: Set[PartName] = frozenset()) -> dict[bytes, PartName]:
    """Digest of every blob that the papers name, each once, in the order in which they stand in a file, and as which
    part; none that is only named as what is `left_out`. The empty blob is never carried.
    """
    receipts = [papers.receipt.body for papers in documents.leases if papers.receipt]
    rows = [record for papers in documents.leases for record in records.get(papers.lease, ())]
    named = {
        PartName.PROVENANCE: [receipt.provenance for receipt in receipts],
        PartName.ERROR: [record.error for record in rows],
        PartName.LOG: [receipt.log for receipt in receipts],
        PartName.CODE: [documents.spec.code],
        PartName.INPUT: [documents.spec.inputs],
        PartName.OUTPUT: [record.output for record in rows],
    }
    found: dict[bytes, PartName] = {}
    for name in sorted(named.keys() - left_out, key=list(PartName).index):
        for digest in named[name]:
            found.setdefault(digest, name)
    found.pop(EMPTY, None)
    return found


def list_missing(content: CaseContent) -> list[tuple[bytes, PartName]]:
    """Blobs that belong into this file and are not here."""
    return [(digest, name) for digest, name in _list_wanted(content).items() if content.find(digest) is None]


def write_case(content: CaseContent) -> Iterator[bytes | memoryview]:
    """The file's bytes, piece by piece. Raises `BadCase` under `case.size` or `case.blob` where a blob is not what it
    was said to be; what was written by then is no case file.
    """
    documents, writer = content.documents, FrameWriter()
    blobs = [
        (digest, name, source)
        for digest, name in _list_wanted(content).items()
        if (source := content.find(digest)) is not None
    ]
    parts = [(PartName.MANIFEST, encode(_make_manifest(content, len(blobs))))]
    parts += _make_papers(documents)
    parts += _make_records(documents, content.records)
    for name, data in parts:
        yield from writer.write(name, len(data), (data,))
    for digest, name, source in blobs:
        yield from writer.write(name, source.size, _check_pieces(digest, source.read()))
    yield writer.close()


class CaseReader:
    """Takes a file's bytes in order and gives the case. Every failure is a `Refused` by name."""

    def __init__(self) -> None:
        self._frames = FrameReader()

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises `BadCase` (see `FrameReader.feed`)."""
        self._frames.feed(data)

    def close(self) -> Case:
        """The case, once all bytes were given. Nothing is decoded before the closing digest holds.

        Raises `BadCase` under `case.short`, `case.version`, `case.parts` (papers or records not in their one form),
        `case.blob` (one twice), or a `codec.` or `documents.` rule.
        """
        parts = self._frames.close()
        manifest = decode(parts[0].data, Manifest, max_bytes=MAX_PART_BYTES)
        if manifest.version != CASE_VERSION:
            raise BadCase(
                f"a case of version {manifest.version}; this program reads {CASE_VERSION}", rule="case.version"
            )
        documents = _read_papers(parts)
        records = _read_records(documents, [part.data for part in parts if part.name is PartName.RECORDS])
        blobs = [part for part in parts if part.name in BLOBS]
        places = {part.digest: Place(part.name, part.offset, part.size) for part in blobs}
        if len(places) != len(blobs):
            raise BadCase("a blob stands in the file twice", rule="case.blob")
        envelopes = {part.digest: part.data for part in blobs if part.name is PartName.PROVENANCE}
        return Case(manifest, documents, records, envelopes, places)


def is_manifest_true(case: Case) -> bool:
    """Whether the manifest says what is in the file."""
    return case.manifest == _make_manifest(_get_content(case), len(case.blobs))


def are_blobs_named(case: Case) -> bool:
    """Whether each blob is one that the papers name as what it stands for, in their order. Some may be left out."""
    wanted = iter(_list_wanted(_get_content(case)).items())
    return all((digest, place.name) in wanted for digest, place in case.blobs.items())  # `in` goes on from the last


def _get_content(case: Case) -> CaseContent:
    return CaseContent(case.documents, case.records, lambda _: None, case.manifest.outputs, case.manifest.inputs)


def _list_wanted(content: CaseContent) -> dict[bytes, PartName]:
    left_out = set() if content.outputs else {PartName.OUTPUT}
    left_out |= set() if content.inputs else {PartName.CODE, PartName.INPUT}
    return list_named(content.documents, content.records, left_out)


def _make_manifest(content: CaseContent, blobs: int) -> Manifest:
    documents = content.documents
    return Manifest(
        CASE_VERSION,
        documents.chain,
        compute_order_id(documents.chain, documents.order.body),
        len(documents.leases),
        sum(len(content.records.get(papers.lease, ())) for papers in documents.leases),
        blobs,
        content.outputs,
        content.inputs,
    )


def _make_papers(documents: Documents) -> list[tuple[PartName, bytes]]:
    """The parts of the documents: their number is their place among those of one name."""
    parts = [(PartName(name.partition("/")[0]), data) for name, data in split_documents(documents).items()]
    return sorted(parts, key=lambda part: list(PartName).index(part[0]))


def _make_records(documents: Documents, records: Records) -> list[tuple[PartName, bytes]]:
    return [
        (PartName.RECORDS, encode(chunk))
        for papers in documents.leases
        for chunk in make_chunks(papers.lease, records.get(papers.lease, ()))
    ]


def _read_papers(parts: Sequence[Part]) -> Documents:
    named: dict[str, bytes] = {}
    for name in (PartName.HEAD, PartName.ITEMS, PartName.BOOK, PartName.LEASE):
        rows = [part.data for part in parts if part.name is name]
        whole = name is PartName.HEAD
        named |= {name.value if whole else f"{name.value}/{number:04}": data for number, data in enumerate(rows)}
    return join_documents(named)


def _read_records(documents: Documents, parts: Sequence[bytes]) -> Records:
    chunks: dict[bytes, list[RecordChunk]] = {papers.lease: [] for papers in documents.leases}
    for data in parts:
        chunk = decode(data, RecordChunk, max_bytes=MAX_PART_BYTES)
        chunks.setdefault(chunk.lease, []).append(chunk)
    records = {lease: join_chunks(lease, rows) for lease, rows in chunks.items()}
    if [data for _, data in _make_records(documents, records)] != list(parts):
        raise BadCase("the records do not lie in full chunks, in the order of the leases", rule="case.parts")
    return records


def _check_pieces(digest: bytes, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
        yield piece
    if whole.digest() != digest:
        raise BadCase(f"the blob {digest.hex()[:16]} has other bytes than its digest says", rule="case.blob")
