"""What the machine of a job tells, as news and on the board: phases, leases, segments, metrics, output, trouble."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from broker.protocol.api import Advanced
from requester.client.board import Board, LeaseProgress
from requester.client.costs import compute_served
from requester.client.lines import ReportReader, make_row
from requester.client.news import News, NewsKind
from requester.purchase import events as e
from requester.purchase.lots import Lot
from requester.purchase.machine import Purchase
from requester.purchase.phases import Phase

MAX_METRICS = 200_000
"""Reports of one job that are kept in memory; its logs are bounded, so an honest job has fewer."""


class Teller:
    """Tells one job. `named` is False until its owner knows that the order is out."""

    def __init__(self, machine: Purchase, board: Board, *, named: bool) -> None:
        self._machine = machine
        self._board = board
        self._named = named
        self._job = machine.order_id.hex()
        self._shown: dict[bytes, int] = {}
        self._readers: dict[bytes, ReportReader] = {}

    def tell(self, effect: e.TellPhase | e.TellProgress | e.TellTrouble | e.TellSegments) -> None:
        """Pass on what the machine tells."""
        if not self._named:
            self._named = True
            self._board.tell(News(NewsKind.SIGNED, self._job))
        match effect:
            case e.TellPhase():
                self._board.phase = Phase(effect.phase)
                self._board.tell(News(NewsKind.PHASE, self._job, effect.phase, text=effect.text, rule=effect.rule))
            case e.TellTrouble():
                self.say_trouble(effect.rule, effect.text)
            case e.TellProgress():
                self._tell_progress(effect.item)
            case e.TellSegments():
                self._tell_segments(effect)
            case _:
                assert_never(effect)

    def say_trouble(self, rule: str, text: str) -> None:
        """Something that is tried again."""
        self._board.tell(News(NewsKind.TROUBLE, self._job, text=text, rule=rule))

    def tell_transfer(self, text: str, done: int, total: int) -> None:
        """Bytes of a large blob."""
        self._board.tell(News(NewsKind.TRANSFER, self._job, text=text, done=done, total=total))

    def look(self) -> None:
        """Tell of each lease whose state is another than before. One that only the chain has shown so far has no name
        to be told by; it stands on the board.
        """
        for lot in self._machine.lots:
            shown = self._board.leases.get(lot.lease.hex())
            phase, provider = _get_state(lot), _get_provider(lot)
            if phase and (shown is None or (shown.phase, shown.provider) != (phase, provider)):
                self._show_lease(lot, phase, provider, 0 if shown is None else shown.told)
        self._count()

    def _show_lease(self, lot: Lot, phase: str, provider: str, told: int) -> None:
        lease, span = lot.lease.hex(), lot.span
        self._board.leases[lease] = LeaseProgress(lease, provider, phase, span.first, span.count, told, lot.good)
        indices = tuple(range(span.first, span.first + span.count))
        if provider:
            self._board.tell(News(NewsKind.LEASE, self._job, phase, lease, provider, indices, done=lot.good))

    def _tell_segments(self, effect: e.TellSegments) -> None:
        board = self._board
        board.records |= {record.index: record for record in effect.records}
        self._count()
        lot = next(lot for lot in self._machine.lots if lot.lease == effect.lease)
        shown = board.leases.get(lot.lease.hex())
        if shown is not None:
            board.leases[shown.lease] = replace(shown, served=lot.good)
        self._board.tell(
            News(
                NewsKind.SEGMENTS,
                self._job,
                lease=effect.lease.hex(),
                provider=_get_provider(lot),
                indices=tuple(record.index for record in effect.records),
                done=len(board.records),
                total=board.total,
                cost=board.cost,
                kept_until=board.kept_until,
            )
        )

    def _count(self) -> None:
        """Cost and retention, over all leases."""
        lots = self._machine.lots
        self._board.cost = sum(_count_cost(lot) for lot in lots)
        kept = [storage.body.kept_until for lot in lots for _, storage in lot.receipts.values()]
        self._board.kept_until = min(kept, default=0)

    def _tell_progress(self, item: Advanced) -> None:
        """Output that was shown already (a chunk sent twice) is not shown again."""
        lot = next((lot for lot in self._machine.lots if lot.lease == item.lease), None)
        provider, lease = "" if lot is None else _get_provider(lot), item.lease.hex()
        shown = self._board.leases.get(lease)
        if shown is not None:
            self._board.leases[lease] = replace(shown, told=item.done)
        self._tell_output(item, provider)
        self._board.tell(
            News(NewsKind.PROGRESS, self._job, lease=lease, provider=provider, done=item.done, total=item.total)
        )

    def _tell_output(self, item: Advanced, provider: str) -> None:
        known = self._shown.get(item.lease, 0)
        fresh = item.log[max(0, known - item.log_offset) :]
        if not fresh:
            return
        reader = self._readers.setdefault(item.lease, ReportReader())
        held = reader.skip() if item.log_offset > known else b""
        self._shown[item.lease] = item.log_offset + len(item.log)
        shown, reports = reader.feed(fresh)
        lease = item.lease.hex()
        if held + shown:
            self._board.tell(News(NewsKind.OUTPUT, self._job, lease=lease, provider=provider, output=held + shown))
        for report in reports:
            row = make_row(report)
            if len(self._board.metrics) < MAX_METRICS:
                self._board.metrics.append(row)
            self._board.tell(
                News(
                    NewsKind.METRICS,
                    self._job,
                    lease=lease,
                    provider=provider,
                    indices=(report.segment,),
                    metrics=dict(report.values),
                )
            )


def _get_provider(lot: Lot) -> str:
    return "" if lot.awarded is None else lot.awarded.bid.body.provider.hex()


def _get_state(lot: Lot) -> str:
    """The chain's word; before it has one, whether the award stands. Empty where there is nothing to tell yet."""
    if lot.is_gone:
        return "failed"
    if lot.seen is not None:
        return lot.seen.state
    return "awarded" if lot.checked else ""


def _count_cost(lot: Lot) -> int:
    """As `costs.read_cost`, of a lease in the machine."""
    if lot.seen is not None and lot.is_over:
        return lot.seen.paid + lot.seen.commission
    if lot.awarded is None or lot.is_gone:
        return 0
    award = lot.awarded.award.body
    return compute_served(award.price, lot.good, award.commission)[0]
