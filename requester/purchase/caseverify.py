"""A case checked: all checks of the job (`verify`), and those of the file itself (90 to 95); then what was proved, in
figures. No network, no trust in whoever wrote the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.auction.scoring import divide
from chain.ledger.entries import LeaseRecord, LeaseState
from chain.ledger.genesis import Genesis
from chain.ledger.terms.agreement import compute_bid_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from requester.purchase import deliveries
from requester.purchase.casefile import Case, are_blobs_named, is_manifest_true
from requester.purchase.checking import Check, Verdict, judge
from requester.purchase.documents import LeasePapers
from requester.purchase.endings import read_state
from requester.purchase.verify import OUTPUTS_CHECK, BlobsAtHand, compute_spent, is_verified, verify_job

DIGESTS_ONLY = "outputs are not in the file: digests only"

TRIED = "bids that are said, by nobody's signature, not to have opened a lease"


@dataclass(frozen=True)
class LeaseSummary:
    """What is proved of one lease. `state` is its last; `served` counts segments that were paid for, `failed` those of
    them that failed; `accepted` is `requester`, `watcher`, `silence`, or empty where nothing was accepted. Sums
    are in micro-credits; `spent` is what left the requester, commission and burns included.
    """

    lease: bytes
    provider: bytes
    round: int
    first: int
    count: int
    served: int
    failed: int
    state: str
    accepted: str
    paid: int
    commission: int
    damages: int
    spent: int


@dataclass(frozen=True)
class CaseReport:
    """All verdicts in order, whether they add up to a verified case, and what it then proves: its leases, and the
    segments that no lease of the file was paid for. `tried` counts bids that are said not to have opened a lease.
    """

    verdicts: tuple[Verdict, ...]
    passed: bool
    leases: tuple[LeaseSummary, ...] = ()
    unserved: tuple[Span, ...] = ()
    tried: int = 0

    @property
    def is_lower_bound(self) -> bool:
        """Whether more may have been paid than the leases of the file say, and no signature tells: a bid that is said
        not to have opened a lease may have opened one, and a file without leases proves nothing of what was paid.
        """
        return self.passed and (self.tried > 0 or not self.leases)


def verify_case(case: Case, genesis: Genesis) -> CaseReport:
    """Check everything. Without outputs in the file check 35 is skipped, and that alone does not fail the case."""
    sizes = {digest: place.size for digest, place in case.blobs.items()}
    blobs = BlobsAtHand(sizes, case.provenance, outputs=case.manifest.outputs)
    of_job = verify_job(case.documents, case.records, blobs, genesis)
    of_file = judge(FILE_CHECKS, case)
    if is_verified(of_job):
        of_job += judge(COMPLETE_CHECKS, case)
        for place, papers in enumerate(case.documents.leases):
            of_job += judge(TIME_CHECKS, (papers, read_state(genesis, papers)), place)
    passed = is_verified(of_job) and is_verified(of_file)
    verdicts = (*_note_outputs(case, of_job), *of_file, *(_judge_tried(case) if passed else ()))
    if not passed:
        return CaseReport(verdicts, passed)
    leases = tuple(_summarize(genesis, case, papers) for papers in case.documents.leases)
    unserved = _find_unserved(case.documents.order.body.segments, leases)
    return CaseReport(verdicts, passed, leases, unserved, len(case.documents.tried))


def _note_outputs(case: Case, verdicts: list[Verdict]) -> list[Verdict]:
    """Say of each lease with outputs, before its check of error texts, that the outputs were not looked at."""
    if case.manifest.outputs:
        return verdicts
    row = next(check for check in deliveries.BLOB_CHECKS if check.number == OUTPUTS_CHECK)
    skipped = Verdict(row.number, row.name, DIGESTS_ONLY, passed=False, skipped=True)
    noted: list[Verdict] = []
    for verdict in verdicts:
        if verdict.number == OUTPUTS_CHECK + 1:
            noted.append(replace(skipped, lease=verdict.lease))
        noted.append(verdict)
    return noted


def _judge_tried(case: Case) -> list[Verdict]:
    """No paper proves that a bid's lease never opened, so the check passes where no bid is said to be such, and is
    skipped where one is: whoever writes a file could drop a lease that was paid for and name its bid.
    """
    tried = len(case.documents.tried)
    if not tried:
        return judge(DOUBT_CHECKS, case)
    return [Verdict(row.number, row.name, f"{TRIED}: {tried}", passed=False, skipped=True) for row in DOUBT_CHECKS]


# ---- checks of the file ----


def _are_inputs_here(case: Case) -> bool:
    spec = case.documents.spec
    return not case.manifest.inputs or {spec.code, spec.inputs} - {deliveries.EMPTY} <= set(case.blobs)


def _is_every_share_here(case: Case) -> bool:
    """What a round's book was divided into is here: as a lease, or as a bid that did not open one."""
    documents = case.documents
    known = {*documents.tried, *(papers.award.body.bid for papers in documents.leases)}
    commissions = {papers.round: papers.award.body.commission for papers in documents.leases}
    for signed in documents.books:
        book, order = signed.body, documents.order.body
        commission = commissions.get(book.round, order.commission)
        shares = divide(order, documents.spec, book.spans, book.bids, commission, book.closed)
        if any(compute_bid_id(documents.chain, share.bid.body) not in known for share in shares):
            return False
    return True


def _is_time_true(facts: tuple[LeasePapers, LeaseRecord | None]) -> bool:
    """A transaction ended it in its block, a timer by the block that proves the state at the latest. Silence accepts
    only once the acceptance window is over, which begins after the lease does (row 13).
    """
    papers, state = facts
    if papers.seen is None or papers.state is None or state is None:
        return False
    height, time, proved = papers.seen.height, papers.seen.time, papers.state.finality.header
    if papers.proof is not None:
        header = papers.proof.finality.header
        return (height, time) == (header.height, header.time)
    earliest = state.terms.opened + (state.terms.windows.acceptance if state.state is LeaseState.SETTLED else 0)
    return height <= proved.height and earliest < time <= proved.time


FILE_CHECKS: tuple[Check[Case], ...] = (
    Check(90, "manifest", "the manifest says what is in the file", is_manifest_true),
    Check(91, "blobs", "each blob is one that the papers name, as what it stands for", are_blobs_named),
    Check(92, "inputs", "code and inputs are in the file if it says so", _are_inputs_here),
)

DOUBT_CHECKS: tuple[Check[Case], ...] = (
    Check(
        95,
        "tried",
        "no bid is said, by nobody's signature, not to have opened a lease",
        lambda case: not case.documents.tried,
    ),
)

COMPLETE_CHECKS: tuple[Check[Case], ...] = (
    Check(
        93, "shares", "each part that a round was divided into is here, or its bid did not open", _is_every_share_here
    ),
)

TIME_CHECKS: tuple[Check[tuple[LeasePapers, LeaseRecord | None]], ...] = (
    Check(94, "time of the end", "the lease ended when it is said to have, as far as it is proved", _is_time_true),
)


# ---- what is proved ----


def _summarize(genesis: Genesis, case: Case, papers: LeasePapers) -> LeaseSummary:
    state = read_state(genesis, papers)
    assert state is not None  # check 50
    served = state.served if state.state is LeaseState.SETTLED else 0
    failed = [record for record in case.records.get(papers.lease, ())[:served] if record.cause is not Cause.OK]
    return LeaseSummary(
        lease=papers.lease,
        provider=papers.bid.body.provider,
        round=papers.round,
        first=state.terms.first,
        count=state.terms.count,
        served=served,
        failed=len(failed),
        state=state.state.value,
        accepted=_tell_who_accepted(case, papers, state.state),
        paid=state.paid,
        commission=state.commission,
        damages=state.damages,
        spent=compute_spent(state),
    )


def _tell_who_accepted(case: Case, papers: LeasePapers, state: LeaseState) -> str:
    if state is not LeaseState.SETTLED:
        return ""
    if papers.proof is None or papers.acceptance is None:
        return "silence"
    return "requester" if papers.acceptance.body.signer == case.documents.order.body.requester else "watcher"


def _find_unserved(segments: int, leases: Sequence[LeaseSummary]) -> tuple[Span, ...]:
    """Segments of the first replica that no lease of the file was paid for."""
    spans, end = [], 0
    for one in sorted((one for one in leases if one.served), key=lambda one: one.first):
        if one.first > end:
            spans.append(Span(end, one.first - end))
        end = max(end, one.first + one.served)
    return (*spans, *((Span(end, segments - end),) if end < segments else ()))
