"""What a job costs so far, until when its outputs are kept, and which of its segments are here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chain.base.units import compute_share
from chain.ledger.terms.outcome import FINAL_FAILURES
from requester.purchase.documents import Documents, LeasePapers
from requester.purchase.phases import LEASE_ENDS


@dataclass(frozen=True)
class Cost:
    """Micro-credits. `total` includes `commission`; `settled` once every lease of the job is over on the chain."""

    total: int
    commission: int
    settled: bool


def read_cost(documents: Documents) -> Cost:
    """What a job costs: as final blocks show it where a lease is over, else what its verified receipt comes to at the
    award's price.
    """
    leases = [_read_lease(papers) for papers in documents.leases]
    total = sum(cost for cost, _ in leases)
    commission = sum(part for _, part in leases)
    settled = bool(leases) and all(_is_over(papers) for papers in documents.leases)
    return Cost(total, commission, settled)


def _is_over(papers: LeasePapers) -> bool:
    return papers.seen is not None and papers.seen.state in LEASE_ENDS


def _read_lease(papers: LeasePapers) -> tuple[int, int]:
    if papers.seen is not None and _is_over(papers):
        return papers.seen.paid + papers.seen.commission, papers.seen.commission
    count = 0 if papers.receipt is None else papers.receipt.body.count
    return compute_served(papers.award.body.price, count, papers.award.body.commission)


def compute_served(price: int, count: int, commission: int) -> tuple[int, int]:
    """(cost, commission of it) of so many segments of one lease (R13)."""
    part = compute_share(price * count, commission)
    return price * count + part, part


def read_kept_until(documents: Documents) -> int:
    """The Instant until which the broker keeps all outputs, by its storage receipts; 0 where there is none yet."""
    kept = [papers.storage.body.kept_until for papers in documents.leases if papers.storage is not None]
    return min(kept, default=0)


def count_failed(leases: Iterable[LeasePapers]) -> int:
    """Segments that failed, by verified receipts: one ends its lease (R9)."""
    return sum(papers.receipt is not None and papers.receipt.body.cause in FINAL_FAILURES for papers in leases)


def count_served(leases: Iterable[LeasePapers]) -> int:
    """Segments of verified receipts, those of leases that ended unpaid left out."""
    return sum(papers.receipt.body.count for papers in leases if papers.receipt is not None)
