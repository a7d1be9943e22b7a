"""What the demo tells at its end, for people and for machines. Every number comes from the chain, a receipt, a case
file or a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chain.base.units import format_credits
from chain.rpc.schema import LeaseView, Supply
from requester.demo.plots import draw_confusion, draw_plot

GOOD_ACCURACY = 0.95
"""What the network must reach on digits it has not seen."""

LEAST_JOBS, LEAST_SEGMENTS = 3, 57
"""What the demo must buy."""


GONE = "           (removed with the demo's folder when it ends; --directory FOLDER keeps them)"
"""Where the case files do not outlast the demo."""


@dataclass(frozen=True)
class CaseCheck:
    """One case file and what its offline check said: `passed` of `checks` passed, none failed if `verified`; `why` says
    what else stood in the way.
    """

    file: str
    size: int
    verified: bool
    passed: int
    checks: int
    why: str = ""


@dataclass(frozen=True)
class JobEnding:
    """One job: as its buyer told it (`told`), as the chain has it (`leases`), as its case file has it (`case`)."""

    owner: str
    name: str
    kind: str
    job: str
    segments: int
    told: Mapping[str, Any]
    bids: Sequence[Mapping[str, Any]]
    leases: Sequence[LeaseView]
    case: CaseCheck

    @property
    def problems(self) -> list[str]:
        """Broken promises about this job."""
        paid = [index for lease in self.leases for index in list_paid(lease)]
        live = sorted({lease.state for lease in self.leases if lease.locked})
        rows = [
            (not live, f"a lease is still {', '.join(live)}"),
            (sorted(paid) == list(range(self.segments)), f"{describe_segments(paid, self.segments)}"),
            (self.case.verified, f"its case file did not pass its checks: {self.case.why or self._describe_case()}"),
        ]
        return [f"{self.name}: {text}" for holds, text in rows if not holds]

    def _describe_case(self) -> str:
        return f"{self.case.passed} of {self.case.checks}"

    def to_json(self) -> dict[str, Any]:
        """For machines; amounts are micro-credits."""
        return {
            "name": self.name,
            "owner": self.owner,
            "kind": self.kind,
            "job": self.job,
            "segments": self.segments,
            "cost": self.told["cost"],
            "cpu_ms": self.told["cpu_ms"],
            "peak_bytes": self.told["peak_bytes"],
            "receipts": self.told["receipts"],
            "bids": list(self.bids),
        }


def list_paid(lease: LeaseView) -> range:
    """The segments that a lease was paid for: those of its receipt, where it was settled."""
    return range(lease.first, lease.first + (lease.served if lease.state == "settled" else 0))


def describe_segments(paid: Sequence[int], total: int) -> str:
    """What is wrong with the segments that were paid for."""
    twice = sorted({index for index in paid if paid.count(index) > 1})
    missing = sorted(set(range(total)) - set(paid))
    parts = [f"segments {missing} were not paid for"] if missing else []
    return "; ".join([*parts, f"segments {twice} were paid for twice"] if twice else parts)


@dataclass(frozen=True)
class Ending:
    """Everything that was read back at the end of the demo.

    `before` and `after` are balances plus bonds by name, in micro-credits; `choice` and `judged` are the last words of
    the two buyers; `faults` are what went wrong on the way; `is_kept`
    says whether the case files outlast the demo.
    """

    seconds: float
    jobs: Sequence[JobEnding]
    choice: Mapping[str, Any]
    judged: Mapping[str, Any]
    names: Mapping[str, str]
    before: Mapping[str, int]
    after: Mapping[str, int]
    supply_before: Supply
    supply_after: Supply
    restarts: Sequence[str] = ()
    faults: Sequence[str] = ()
    is_kept: bool = True

    @property
    def burned(self) -> int:
        """Micro-credits burned during the jobs."""
        return self.supply_after.burned - self.supply_before.burned

    @property
    def segments(self) -> int:
        """Segments that were paid for."""
        return sum(len(list_paid(lease)) for job in self.jobs for lease in job.leases)

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
        reached = self.judged.get("accuracy", 0.0)
        rows = [
            (len(self.jobs) >= LEAST_JOBS, f"{len(self.jobs)} jobs were bought, not {LEAST_JOBS}"),
            (self.segments >= LEAST_SEGMENTS, f"{self.segments} segments were paid for, not {LEAST_SEGMENTS}"),
            (reached >= GOOD_ACCURACY, f"accuracy {reached:.3f} is below {GOOD_ACCURACY}"),
            (self.supply_after.locked == 0, f"{format_credits(self.supply_after.locked)} credits are still locked"),
            (self.is_conserved, "credits were not conserved"),
        ]
        found = [*self.faults, *(text for job in self.jobs for text in (*job.problems, *self._blame(job)))]
        return [*found, *(text for holds, text in rows if not holds)]

    def _blame(self, job: JobEnding) -> list[str]:
        """Whose leases left segments of a job without a result that was paid for."""
        paid = {index for lease in job.leases for index in list_paid(lease)}
        rows = [(lease, sorted(set(range(lease.first, lease.first + lease.count)) - paid)) for lease in job.leases]
        return [
            f"{job.name}: {self._name(lease.provider)}'s lease of segments {missing[0]}..{missing[-1]} is {lease.state}"
            for lease, missing in rows
            if missing
        ]

    def list_payments(self) -> list[dict[str, Any]]:
        """Who paid whom, a row for each lease; amounts are micro-credits."""
        return [
            {
                "job": job.name,
                "lease": lease.id,
                "state": lease.state,
                "payer": self._name(lease.requester),
                "earner": self._name(lease.provider),
                "first": lease.first,
                "count": lease.count,
                "segments": len(list_paid(lease)),
                "price": lease.price,
                "paid": lease.paid,
                "commission": lease.commission,
                "damages": lease.damages,
            }
            for job in self.jobs
            for lease in job.leases
        ]

    def to_json(self, *, has_files: bool = True) -> dict[str, Any]:
        """For machines; amounts are micro-credits. A case file is None unless it is still there for whoever reads."""
        payments = self.list_payments()
        return {
            "version": 1,
            "unit": "micro-credits",
            "seconds": round(self.seconds, 3),
            "jobs": len(self.jobs),
            "segments": self.segments,
            "accuracy": self.judged.get("accuracy"),
            "choice": dict(self.choice),
            "loss": list(self.judged.get("loss", ())),
            "confusion": self.judged.get("confusion", []),
            "bought": [job.to_json() for job in self.jobs],
            "receipts": sum(job.told["receipts"] for job in self.jobs),
            "case_files": [
                {"job": job.job, **vars(job.case), "file": job.case.file if has_files else None} for job in self.jobs
            ],
            "verified": bool(self.jobs) and all(job.case.verified for job in self.jobs),
            "payments": payments,
            "paid": sum(row["paid"] for row in payments),
            "commission": sum(row["commission"] for row in payments),
            "credits_before": self.supply_before.total,
            "credits_after": self.supply_after.total,
            "credits_burned": self.burned,
            "conserved": self.is_conserved,
            "balances_before": dict(self.before),
            "balances_after": dict(self.after),
            "restarts": list(self.restarts),
            "problems": self.problems,
        }

    def to_lines(self) -> list[str]:
        """For people."""
        was, now = self.supply_before, self.supply_after
        return [
            *self._results(),
            *(line for job in self.jobs for line in self._book(job)),
            "",
            *self._payments(),
            "",
            *self._balances(),
            "",
            *(self._case(job) for job in self.jobs),
            *([] if self.is_kept else [GONE]),
            (
                f"credits    {format_credits(was.total)} before = {format_credits(now.total)} after"
                f" + {format_credits(self.burned)} burned: {'conserved' if self.is_conserved else 'NOT CONSERVED'}"
            ),
            f"time       {self.seconds:.1f} s",
            *(f"PROBLEM    {problem}" for problem in self.problems),
        ]

    def _results(self) -> list[str]:
        lines = [""]
        if self.choice:
            setting = ", ".join(f"{name} {value:g}" for name, value in self.choice["setting"].items())
            lines.append(f"chosen     {setting}: {self.choice['score']:.1%} over the folds of the training digits")
        if self.judged.get("loss"):
            lines += ["", "loss by epoch", *draw_plot(self.judged["loss"])]
        if self.judged.get("confusion"):
            lines += ["", *draw_confusion(self.judged["confusion"]), ""]
            held = self.judged["held_out"]
            lines.append(f"accuracy   {self.judged['accuracy']:.1%} on {held} digits that nothing was chosen by")
        return lines

    def _book(self, job: JobEnding) -> list[str]:
        winners = {lease.provider for lease in job.leases}
        rows = sorted(job.bids, key=lambda bid: (bid["round"], bid["price"]))
        lines = ["", f"the book of {job.name}, as the broker signed it (a bid is a price per segment):"]
        for bid in rows:
            won = "  won" if bid["provider"] in winners else ""
            again = f"  auction {bid['round'] + 1}" if bid["round"] else ""
            price = format_credits(bid["price"])
            lines.append(f"  {self._name(bid['provider']):<8} bid {price:>10} credits{won}{again}")
        return lines

    def _payments(self) -> list[str]:
        lines = [
            "who paid whom, lease by lease (credits):",
            f"  {'job':<8} {'from':<8} {'to':<8} {'segments':>9} {'price':>10} {'work':>10} {'commission':>10}  state",
        ]
        for row in self.list_payments():
            span = f"{row['first']}..{row['first'] + row['segments'] - 1}" if row["segments"] else "none"
            sums = "".join(f" {format_credits(row[name]):>10}" for name in ("price", "paid", "commission"))
            lines.append(f"  {row['job']:<8} {row['payer']:<8} {row['earner']:<8} {span:>9}{sums}  {row['state']}")
        return lines

    def _balances(self) -> list[str]:
        lines = [f"  {'account':<12} {'before':>16} {'after':>16} {'change':>12}"]
        for name, before in self.before.items():
            after = self.after[name]
            change = format_credits(after - before)
            lines.append(f"  {name:<12} {format_credits(before):>16} {format_credits(after):>16} {change:>12}")
        return lines

    def _case(self, job: JobEnding) -> str:
        verdict = "verified" if job.case.verified else "NOT verified"
        passed = f"{job.case.passed} of {job.case.checks} checks passed"
        return f"case       {job.name:<7} {verdict} offline, {passed}: {job.case.file}"

    def _name(self, key: str) -> str:
        return self.names.get(key, key[:8])
