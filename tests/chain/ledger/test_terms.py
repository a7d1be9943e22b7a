"""Terms: what an id depends on, when a receipt is final (R9), how usage adds up, the root over records (R5)."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given

from chain.base.codec import encode
from chain.base.merkle import EMPTY_ROOT, is_included, prove_inclusion
from chain.base.units import MAX_INT
from chain.ledger.terms import agreement, work
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause, Usage
from tests.support import samples, strategies
from tests.support.samples import CHAIN, OTHER_CHAIN


def test_ids_differ_by_kind_and_chain() -> None:
    made = []
    for chain in (CHAIN, OTHER_CHAIN):
        made += [
            agreement.compute_order_id(chain, samples.ORDER),
            agreement.compute_bid_id(chain, samples.BID),
            agreement.compute_award_id(chain, samples.AWARD),
            agreement.compute_lease_id(chain, samples.AWARD),
            work.compute_receipt_id(chain, samples.RECEIPT),
        ]
    assert len(set(made)) == 10


COUNTS = [0, 1, 2, 3]


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("count", COUNTS)
def test_a_receipt_is_final_over_the_whole_range_or_with_a_cause_that_ends_it(cause: Cause, count: int) -> None:
    """`ok` never ends a range before its last segment, `host` not even there; nothing ends it before the first."""
    receipt = msgspec.structs.replace(samples.RECEIPT, count=count, cause=cause)
    ends = count == 3 or (count > 0 and cause is not Cause.OK)
    assert work.is_final(receipt, 3) == (ends and cause is not Cause.HOST)


def test_the_causes_that_end_a_range() -> None:
    assert {one.value for one in FINAL_FAILURES} == {
        "program", "oom", "cpu", "wall", "output", "log", "policy", "signal"
    }  # fmt: skip


@given(strategies.of(Usage), strategies.of(Usage))
def test_usage_adds_times_and_bytes_and_keeps_the_larger_peak(one: Usage, other: Usage) -> None:
    total = one + other
    assert total == other + one
    assert total.peak_bytes == max(one.peak_bytes, other.peak_bytes)
    for name in ("cpu_ms", "wall_ms", "bytes_in", "bytes_out"):
        assert getattr(total, name) == min(getattr(one, name) + getattr(other, name), MAX_INT)


def test_the_root_over_records_commits_to_each_and_to_their_order() -> None:
    records = [msgspec.structs.replace(samples.RECORD, index=index) for index in range(3)]
    roots = {work.compute_records_root(one) for one in itertools.permutations(records)}
    assert len(roots) == 6
    assert work.compute_records_root([]) == EMPTY_ROOT
    leaves = [encode(one) for one in records]
    path = prove_inclusion(leaves, 2)
    assert is_included(leaves[2], 2, 3, path, work.compute_records_root(records))
