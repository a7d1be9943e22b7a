"""What a job has come to: which segments are done, which have no result, and why, over all its leases.

Pure reading of lots. The words are for the owner; the rule beside them is for programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from requester.purchase.lots import Lot
from requester.purchase.phases import LEASE_WORDS, Phase

MAX_REASONS = 12
"""Reasons that are spelled out; a text for people ends somewhere."""

UNSERVED = "nobody served them in time"
CANCELLED = "you cancelled it"
BEHIND = "not run, since segment {index} failed"
GIVEN_UP = "not offered again, since more segments failed than are tolerated"
LOST = "they are settled, but their results could not be had so far"


@dataclass(frozen=True)
class Outcome:
    """A phase with the rule and the words behind it."""

    phase: Phase
    rule: str = ""
    text: str = ""


@dataclass(frozen=True)
class Gap:
    """Segments without a result, under which rule, and why."""

    span: Span
    rule: str
    why: str


def is_covered(lots: Iterable[Lot], segments: int) -> bool:
    """Whether every segment is settled, or lies in a lease of which nothing is accepted: no other is waited for."""
    refused = sum(lot.span.count for lot in lots if lot.is_refused)
    return refused + sum(lot.taken.count for lot in lots if lot.is_settled and not lot.is_refused) >= segments


def conclude(lots: Sequence[Lot], kind: Kind, segments: int, tolerance: int = 0) -> Outcome:
    """What a job is once none of its leases waits for anything. At least one of them stood on the chain, or was
    refused.

    A `run` whose program failed is settled: its one segment is there, with its error (R9).
    """
    gaps = list_gaps(lots, kind, segments, tolerance)
    if not gaps or (kind is Kind.RUN and all(lot.is_good for lot in lots if not lot.is_gone)):
        return Outcome(Phase.SETTLED)
    missing = sum(gap.span.count for gap in gaps)
    if missing < segments or any(lot.is_good for lot in lots):
        text = f"{missing} of {segments} segments have no result: {describe_gaps(gaps)}"
        return Outcome(Phase.PARTLY, "job.partly", text)
    return _conclude_without(lots)


def _conclude_without(lots: Sequence[Lot]) -> Outcome:
    """Nothing is there at all: the gravest reason that a lease gives."""
    refused = next((lot for lot in lots if lot.is_refused and not lot.is_gone), None)
    if refused is not None:
        return Outcome(Phase.REFUSED, refused.rule, refused.text)
    if any(lot.lost for lot in lots):
        text = "the lease is settled, but the result could not be had so far"
        return Outcome(Phase.LOST, "result.missing", text)
    states = [lot.seen.state for lot in lots if lot.seen is not None]
    state = states[-1] if states else ""
    return Outcome(Phase.ENDED, f"lease.{state}", LEASE_WORDS.get(state, state))


def list_gaps(lots: Sequence[Lot], kind: Kind, segments: int, tolerance: int = 0) -> list[Gap]:
    """The segments without a result, in order; neighbours for one reason are one gap."""
    reasons = dict.fromkeys(range(segments), _explain_rest(lots, kind, tolerance))
    for lot in lots:
        if lot.is_gone:
            continue
        taken = range(lot.taken.first, min(lot.taken.first + lot.taken.count, segments))
        if lot.is_refused:
            reasons |= dict.fromkeys(taken, (lot.rule, f"they were refused ({lot.text})"))
        elif lot.is_good:
            for index in taken:
                reasons.pop(index, None)
        elif lot.is_settled:
            reasons |= dict.fromkeys(taken, ("result.missing", LOST))
        reasons |= {i: (f"job.{c.value}", f"their program failed ({c.value})") for i, c in _list_failures(lot)}
    return _merge(reasons)


def _explain_rest(lots: Sequence[Lot], kind: Kind, tolerance: int) -> tuple[str, str]:
    """Why nobody served what no lease speaks of. Once its owner cancels one lease, nothing of the job is offered again;
    nor is what lies behind a failed step of a `train`, or more of a `map` than may fail (R9).
    """
    if any(lot.cancelled for lot in lots):
        return "job.cancelled", CANCELLED
    failed = [(index, cause) for lot in lots if not lot.is_gone for index, cause in _list_failures(lot)]
    if failed and kind is Kind.TRAIN:
        index, cause = min(failed)
        return f"job.{cause.value}", BEHIND.format(index=index)
    if len(failed) > tolerance:
        return f"job.{failed[0][1].value}", GIVEN_UP
    return "job.unserved", UNSERVED


def _list_failures(lot: Lot) -> list[tuple[int, Cause]]:
    taken = lot.taken
    if not lot.is_good:
        return []
    return [(i, c) for i, c in lot.failures.items() if taken.first <= i < taken.first + taken.count]


def _merge(reasons: dict[int, tuple[str, str]]) -> list[Gap]:
    gaps: list[Gap] = []
    for index in sorted(reasons):
        rule, why = reasons[index]
        last = gaps[-1] if gaps else None
        if last and last.rule == rule and last.why == why and last.span.first + last.span.count == index:
            gaps[-1] = Gap(Span(last.span.first, last.span.count + 1), rule, why)
        else:
            gaps.append(Gap(Span(index, 1), rule, why))
    return gaps


def describe_gaps(gaps: Sequence[Gap]) -> str:
    """The gaps in words, segments for one reason together: `0-3, 7: nobody served them in time`."""
    reasons: dict[str, list[str]] = {}
    for gap in gaps:
        last = gap.span.first + gap.span.count - 1
        shown = f"{gap.span.first}" if gap.span.count == 1 else f"{gap.span.first}-{last}"
        reasons.setdefault(gap.why, []).append(shown)
    parts = [f"{_shorten(spans)}: {why}" for why, spans in reasons.items()]
    return "; ".join(_shorten_list(parts))


def _shorten(spans: list[str]) -> str:
    return ", ".join(_shorten_list(spans))


def _shorten_list(words: list[str]) -> list[str]:
    if len(words) <= MAX_REASONS:
        return words
    return [*words[:MAX_REASONS], f"and {len(words) - MAX_REASONS} more"]
