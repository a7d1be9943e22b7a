"""What a finished job gives its caller: values with what they cost and the proof of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from broker.protocol.folders import check_files
from broker.protocol.values import BadValue, unpack
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.base.units import format_credits
from chain.ledger.genesis import Genesis
from chain.ledger.terms.outcome import Usage
from chain.ledger.terms.work import Receipt, SegmentRecord
from requester.client.settings import load_genesis
from requester.client.texts import escape
from requester.purchase.checking import Verdict
from requester.purchase.documents import Documents
from requester.purchase.verify import BlobsAtHand, verify_job
from requester.store.blobs import BlobFolder


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What every finished job has.

    `cost` is what left the requester in micro-credits (a millionth of a credit each; `credits` says it in credits),
    as final blocks show it, or as awards and receipts say where `settled` is False. It includes `commission`, which is
    in micro-credits too. `checks` counts the checks that passed. `metrics` are the job's reports in
    the order of its logs, each a dict with its `segment`; `log` is all else that it wrote (hostile text).
    """

    job: str
    cost: int
    commission: int
    settled: bool
    usage: Usage
    log: str
    metrics: list[dict[str, Any]] = field(repr=False)
    checks: int
    documents: Documents = field(repr=False)
    records: Mapping[bytes, Sequence[SegmentRecord]] = field(repr=False)
    blobs: BlobFolder = field(repr=False)

    @property
    def credits(self) -> str:
        """The cost in credits, as text such as `0.25`; `cost` is the same in micro-credits."""
        return format_credits(self.cost)

    @property
    def receipts(self) -> list[Signed[Receipt]]:
        """The providers' signed receipts, lease by lease."""
        return [papers.receipt for papers in self.documents.leases if papers.receipt is not None]

    @property
    def providers(self) -> dict[str, int]:
        """How many segments each provider served, by its key in hex."""
        served: dict[str, int] = {}
        for receipt in self.receipts:
            key = receipt.body.provider.hex()
            served[key] = served.get(key, 0) + receipt.body.count
        return served

    def verify(self, genesis: Genesis | str | Path) -> list[Verdict]:
        """Check everything again, offline, with nothing but the genesis (or the path of its file). Raises `Refused` for
        a file that can't be read.
        """
        known = genesis if isinstance(genesis, Genesis) else load_genesis(Path(genesis))
        at_hand = measure_blobs(self.blobs, self.documents, self.records)
        return verify_job(self.documents, self.records, at_hand, known)


@dataclass(frozen=True, kw_only=True)
class JobResult(Finished):
    """A finished `run`: plain values, NumPy arrays, tables. `files` are what a folder's script wrote below
    `/job/outputs`, by checked names. `packed` is the output as it was received.
    """

    value: Any
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    packed: bytes | memoryview = field(default=b"", repr=False)

    @property
    def provider(self) -> bytes:
        """Key of the provider that did it."""
        return self.receipt.body.provider

    @property
    def receipt(self) -> Signed[Receipt]:
        """The provider's signed receipt."""
        return self.receipts[-1]


@dataclass(frozen=True, kw_only=True)
class MapResult(Finished):
    """A finished `map`. `values` are in the order of the items, None where there is none: see `failed`, which maps
    indices to error texts (hostile), and `missing`, the indices that nobody served or whose values could not be had.
    Both are empty, but for up to `tolerance` failed items, unless it was asked for with `partial`.

    Arrays of 64 KiB and more are read-only views of files in the store, unless they were asked for as copies.
    """

    values: list[Any]
    failed: dict[int, str]
    missing: tuple[int, ...]

    @property
    def came(self) -> int:
        """How many items have a value."""
        return len(self.values) - len(self.failed) - len(self.missing)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


class States(Sequence[Any]):
    """The states of a `train`, number `i` being what step `i` returned. Read from the store when asked for."""

    def __init__(self, blobs: BlobFolder, digests: Sequence[bytes], *, copy: bool) -> None:
        self._blobs = blobs
        self._digests = digests
        self._copy = copy

    def __len__(self) -> int:
        return len(self._digests)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> States: ...

    def __getitem__(self, index: int | slice) -> Any:
        """One state; raises `Refused` under `result.missing` or `result.form` where it can't be had."""
        if isinstance(index, slice):
            return States(self._blobs, self._digests[index], copy=self._copy)
        return load_value(self._blobs, self._digests[index], copy=self._copy)

    def get_packed(self, index: int) -> bytes | memoryview:
        """One state as it was received; empty where it is not here any more."""
        return self._blobs.open(self._digests[index]) or b""


@dataclass(frozen=True, kw_only=True)
class TrainResult(Finished):
    """A finished `train`: the last `state`, all `states` by step, and `failed` as in `MapResult`. Arrays of 64 KiB and
    more are read-only views of files in the store, unless they were asked for as copies.
    """

    states: States = field(repr=False)
    failed: dict[int, str]
    missing: tuple[int, ...]

    @property
    def came(self) -> int:
        """How many steps were done."""
        return len(self.states)

    @property
    def state(self) -> Any:
        """The last state; raises `Refused` under `result.missing` where there is none."""
        if not self.states:
            raise Refused("no step of this train was done", rule="result.missing")
        return self.states[-1]

    @property
    def packed(self) -> bytes | memoryview:
        """The last state as it was received; empty where there is none."""
        return self.states.get_packed(-1) if self.states else b""


def load_value(blobs: BlobFolder, digest: bytes, *, copy: bool) -> Any:
    """The value of an output in the store. Raises `Refused` under `result.missing` or `result.form`."""
    data = blobs.open(digest)
    if data is None:
        raise Refused(f"the output {digest.hex()[:16]} is not in {blobs.folder} any more", rule="result.missing")
    try:
        return unpack(data, copy=copy)
    except BadValue as error:
        raise Refused(f"the output cannot be read: {escape(str(error))}", rule="result.form") from error


def split_files(value: Any) -> tuple[Any, dict[str, bytes]]:
    """(result, files) of what a folder's script left; names that could lead elsewhere are refused (`result.form`)."""
    if type(value) is not dict or value.keys() != {"result", "files"}:
        return value, {}
    try:
        return value["result"], check_files(value["files"])
    except BadValue as error:
        raise Refused(f"the files of the result: {escape(str(error))}", rule="result.form") from error


def measure_blobs(
    blobs: BlobFolder, documents: Documents, records: Mapping[bytes, Sequence[SegmentRecord]]
) -> BlobsAtHand:
    """What of a job's blobs is in the store. Each is checked against its digest; none is held in memory."""
    sizes: dict[bytes, int] = {}
    provenance: dict[bytes, bytes] = {}
    for papers in documents.leases:
        if papers.receipt is None:
            continue
        receipt = papers.receipt.body
        named = [digest for record in records.get(papers.lease, ()) for digest in (record.output, record.error)]
        for digest in (*named, receipt.log, receipt.provenance):
            if digest not in sizes and (view := blobs.open(digest)) is not None:
                sizes[digest] = len(view)
        if receipt.provenance in sizes:
            provenance[receipt.provenance] = blobs.get(receipt.provenance) or b""
    return BlobsAtHand(sizes, provenance)
