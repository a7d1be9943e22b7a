"""What the demo tells at its end, for people and for machines. Every number comes from the chain, a receipt or a
result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chain.base.units import format_credits
from chain.rpc.schema import LeaseView, Supply

GOOD_ACCURACY = 0.95
"""What the network must reach on digits it has not seen."""


@dataclass(frozen=True)
class Ending:
    """Everything that was read back at the end of the demo.

    `before` and `after` are balances plus bonds by name, in micro-credits; `checks` are the verdicts of the offline
    check.
    """

    seconds: float
    bought: Mapping[str, Any]
    lease: LeaseView
    names: Mapping[str, str]
    before: Mapping[str, int]
    after: Mapping[str, int]
    supply_before: Supply
    supply_after: Supply
    verified: bool
    checks: Sequence[Mapping[str, Any]]
    restarts: Sequence[str]

    @property
    def burned(self) -> int:
        """Micro-credits burned during the job."""
        return self.supply_after.burned - self.supply_before.burned

    @property
    def is_conserved(self) -> bool:
        """Whether every unit is accounted for: before = after + burned, and both add up to genesis."""
        whole = all(
            supply.total + supply.burned == supply.genesis for supply in (self.supply_before, self.supply_after)
        )
        accounts = sum(self.before.values()) == sum(self.after.values()) + self.burned
        return whole and accounts and self.supply_before.total == self.supply_after.total + self.burned

    @property
    def problems(self) -> list[str]:
        """What went otherwise than promised; empty when the demo succeeded."""
        reached = self.bought["accuracy"]
        rows = [
            (reached >= GOOD_ACCURACY, f"accuracy {reached:.3f} is below {GOOD_ACCURACY}"),
            (self.verified, "the receipt did not pass its offline check"),
            (self.lease.state == "settled", f"the lease is {self.lease.state}, not settled"),
            (self.is_conserved, "credits were not conserved"),
        ]
        return [text for holds, text in rows if not holds]

    def to_json(self) -> dict[str, Any]:
        """For machines; amounts are micro-credits."""
        return {
            "version": 1,
            "unit": "micro-credits",
            "seconds": round(self.seconds, 3),
            "jobs": 1,
            "segments": self.bought["segments"],
            "accuracy": self.bought["accuracy"],
            "receipts": 1,
            "receipts_verified": int(self.verified),
            "credits_before": self.supply_before.total,
            "credits_after": self.supply_after.total,
            "credits_burned": self.burned,
            "conserved": self.is_conserved,
            "paid": self.lease.paid,
            "commission": self.lease.commission,
            "bids": self.bought["bids"],
            "balances_before": dict(self.before),
            "balances_after": dict(self.after),
            "restarts": list(self.restarts),
            "problems": self.problems,
        }

    def to_lines(self) -> list[str]:
        """For people."""
        was, now = self.supply_before, self.supply_after
        return [
            "",
            f"accuracy   {self.bought['accuracy']:.1%} on {self.bought['held_out']} digits it had not seen",
            (
                f"cost       {format_credits(self.bought['cost'])} credits for {self.bought['segments']} segment,"
                f" {self.bought['cpu_ms']} ms of CPU, {self.bought['peak_bytes'] >> 20} MiB at most"
            ),
            "",
            *self._book(),
            "",
            *self._payments(),
            "",
            (
                f"receipt    {'verified' if self.verified else 'NOT verified'} offline:"
                f" {sum(1 for check in self.checks if check['passed'])} of {len(self.checks)} checks passed"
            ),
            (
                f"credits    {format_credits(was.total)} before = {format_credits(now.total)} after"
                f" + {format_credits(self.burned)} burned: {'conserved' if self.is_conserved else 'NOT CONSERVED'}"
            ),
            f"time       {self.seconds:.1f} s",
            *(f"PROBLEM    {problem}" for problem in self.problems),
        ]

    def _book(self) -> list[str]:
        rows = sorted(self.bought["bids"], key=lambda bid: bid["price"])
        lines = ["the book, as the broker signed it:"]
        for bid in rows:
            won = "  won" if bid["provider"] == self.bought["provider"] else ""
            lines.append(f"  {self._name(bid['provider']):<10} bid {format_credits(bid['price']):>10} credits{won}")
        return lines

    def _payments(self) -> list[str]:
        lease = self.lease
        payer, earner, broker = (self._name(key) for key in (lease.requester, lease.provider, lease.auctioneer))
        lines = [
            "who paid whom:",
            f"  {payer} -> {earner}: {format_credits(lease.paid)} credits for work",
            f"  {payer} -> {broker}: {format_credits(lease.commission)} credits of commission",
            f"  {'account':<12} {'before':>16} {'after':>16} {'change':>12}",
        ]
        for name, before in self.before.items():
            after = self.after[name]
            change = format_credits(after - before)
            lines.append(f"  {name:<12} {format_credits(before):>16} {format_credits(after):>16} {change:>12}")
        return lines

    def _name(self, key: str) -> str:
        return self.names.get(key, key[:8])
