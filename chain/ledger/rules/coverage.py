"""Which segments of an order are taken (R2): pure arithmetic on sorted, disjoint, merged spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chain.ledger.entries import Cover

MAX_COVERAGE = 8_192
"""Most spans in one order's record, so that it always fits its encoding's bounds; only what adds spans is refused."""


def is_covered(coverage: Iterable[Cover], wanted: Cover) -> bool:
    """Whether any segment of `wanted` is taken."""
    return any(
        one.replica == wanted.replica
        and one.first < wanted.first + wanted.count
        and wanted.first < one.first + one.count
        for one in coverage
    )


def add_covers(coverage: Sequence[Cover], added: Iterable[Cover]) -> tuple[Cover, ...]:
    """Coverage with `added`, which is disjoint from it; neighbours merge."""
    merged: list[Cover] = []
    for one in sorted([*coverage, *added], key=lambda cover: (cover.replica, cover.first)):
        last = merged[-1] if merged else None
        if last and last.replica == one.replica and last.first + last.count == one.first:
            merged[-1] = Cover(last.replica, last.first, last.count + one.count)
        else:
            merged.append(one)
    return tuple(merged)


def remove_cover(coverage: Iterable[Cover], freed: Cover) -> tuple[Cover, ...]:
    """Coverage without the segments of `freed`."""
    kept: list[Cover] = []
    end = freed.first + freed.count
    for one in coverage:
        if not is_covered((one,), freed):
            kept.append(one)
            continue
        if one.first < freed.first:
            kept.append(Cover(one.replica, one.first, freed.first - one.first))
        if end < one.first + one.count:
            kept.append(Cover(one.replica, end, one.first + one.count - end))
    return tuple(kept)
