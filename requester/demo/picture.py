"""What the demo shows while it runs: a picture of all jobs, fed by the buyers' lines and by the chain, drawn as lines.

Pure: time comes in with each call. Whatever a job or a provider wrote is escaped before it is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chain.base.units import format_credits
from chain.rpc.schema import ChainInfo
from requester.client.texts import escape_line
from requester.demo.plots import draw_bar, draw_curve

RECENT = 5
"""Lines of what was said last that are shown below the tables."""

BAR, CURVE = 24, 30

BAD = frozenset({"called", "expired", "failed", "returned", "slashed", "unstarted", "void"})
"""States of a lease that are worth a line."""


@dataclass
class JobPicture:
    """One job so far. `served` counts verified segments by provider, `told` what each lease says is done, `metrics` the
    last value of each name, `curve` the first metric by segment; `asked` the prices of the bids, `won` of the awards.
    """

    owner: str
    name: str
    kind: str
    total: int
    job: str = ""
    phase: str = "signing"
    done: int = 0
    cost: int = 0
    served: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)
    shown_at: float = 0.0

    @property
    def progress(self) -> int:
        """Segments done, verified or not yet."""
        return min(self.total, max(self.done, sum(self.told.values())))


class Picture:
    """All jobs. `names` turns keys (hex) into names of accounts and may grow."""

    def __init__(self, names: Mapping[str, str], started: float) -> None:
        self.jobs: dict[str, JobPicture] = {}
        self.recent: deque[str] = deque(maxlen=RECENT)
        self.chain: ChainInfo | None = None
        self._names = names
        self.started = started
        self._hearers: dict[str, Callable[[JobPicture, Mapping[str, Any], float], list[str]]] = {
            "phase": self._hear_phase,
            "lease": self._hear_lease,
            "progress": self._hear_progress,
            "segments": self._hear_segments,
            "metrics": self._hear_metrics,
            "book": self._hear_book,
            "output": self._hear_output,
            "trouble": self._hear_trouble,
            "bought": self._hear_bought,
        }

    def hear(self, owner: str, line: Mapping[str, Any], now: float) -> list[str]:
        """Take one line of a buyer in; returns what to say of it, as plain lines."""
        kind, name = line["kind"], line.get("name", "")
        if kind == "order":
            self.jobs[name] = JobPicture(owner, name, line["job_kind"], line["segments"])
            return [f"{name:<8} {owner} buys a {line['job_kind']} of {line['segments']} segment(s)"]
        if kind in ("result", "failed"):
            return [] if kind == "result" else [f"{owner}: {escape_line(line.get('text', ''))}"]
        job = self.jobs[name]
        job.job = line.get("job", job.job)
        job.cost = line.get("cost", job.cost)
        hear = self._hearers.get(kind)
        return [] if hear is None else [f"{name:<8} {text}" for text in hear(job, line, now)]

    def say(self, text: str) -> None:
        """Keep a line for the foot of the picture."""
        self.recent.append(text)

    def describe_last(self) -> str:
        """How far the job is that was ordered last."""
        if not self.jobs:
            return ""
        job = list(self.jobs.values())[-1]
        return f"{job.name} {job.phase}, {job.progress} of {job.total} segment(s)"

    # ---- one kind of line each ----

    def _hear_phase(self, job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        job.phase = line["phase"]
        why = f": {escape_line(line['text'])}" if line.get("text") else ""
        return [f"{job.phase}{why}"]

    def _hear_lease(self, job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        lease, indices = line["lease"], line.get("indices", [])
        is_new = lease not in job.leases
        job.leases[lease] = line["phase"]
        span = f"segments {indices[0]}..{indices[-1]}" if indices else "no segments"
        who = self.get_name(line.get("provider", ""))
        if is_new:
            return [f"{who} gets {span}"]
        return [f"{who} with {span}: {job.leases[lease]}"] if job.leases[lease] in BAD else []

    def _hear_progress(self, job: JobPicture, line: Mapping[str, Any], now: float) -> list[str]:
        job.told[line["lease"]] = line.get("done", 0)
        return self._show_progress(job, now)

    def _hear_segments(self, job: JobPicture, line: Mapping[str, Any], now: float) -> list[str]:
        job.done = line.get("done", 0)
        who = line.get("provider", "")
        job.served[who] = job.served.get(who, 0) + len(line.get("indices", []))
        return self._show_progress(job, now)

    def _hear_metrics(self, job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        job.metrics |= line.get("metrics", {})
        [segment, *_] = line.get("indices") or [0]
        for value in line.get("metrics", {}).values():
            if isinstance(value, float):
                job.curve[segment] = value
                break
        return []

    def _hear_book(self, job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        is_new, job.asked = not job.asked, {bid["provider"]: bid["price"] for bid in line["bids"]}
        return [f"bids per segment: {self._show_prices(job)}"] if is_new else []

    def _hear_output(self, _job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        return [f"| {escape_line(text)}" for text in line.get("output", "").splitlines()]

    def _hear_trouble(self, _job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        return [escape_line(line.get("text", ""))]

    def _hear_bought(self, job: JobPicture, line: Mapping[str, Any], _now: float) -> list[str]:
        job.done, job.phase, job.served = job.total, "settled" if line["settled"] else "accepted", line["providers"]
        parts = ", ".join(f"{count} by {self.get_name(key)}" for key, count in job.served.items())
        return [f"{job.total} segment(s): {parts}; {format_credits(job.cost)} credits"]

    def _show_progress(self, job: JobPicture, now: float) -> list[str]:
        """At most a line a second and job."""
        if now - job.shown_at < 1 or job.progress in (0, job.total):
            return []
        job.shown_at = now
        return [f"{job.progress} of {job.total} segments{_show_metrics(job)}"]

    # ---- the frame ----

    def get_name(self, key: str) -> str:
        """An account's name."""
        return self._names.get(key, key[:8])

    def draw(self, now: float) -> list[str]:
        """The whole picture."""
        height = "" if self.chain is None else f"   chain at block {self.chain.height}, {self.chain.seats} seat(s)"
        spent = sum(job.cost for job in self.jobs.values())
        lines = [f"tallystick  {now - self.started:5.1f} s{height}   cost so far {format_credits(spent)} credits", ""]
        for job in self.jobs.values():
            lines += self._draw_job(job)
        return [*lines, *self._draw_providers(), "", *(f"  {line}" for line in self.recent)]

    def _draw_job(self, job: JobPicture) -> list[str]:
        bar = draw_bar(job.progress, job.total, BAR)
        lines = [
            f"{job.owner:<6} {job.kind:<6} {job.name:<7} {job.phase:<10} {bar} {job.progress:>3} of {job.total:<3}",
        ]
        lines[0] += f" {format_credits(job.cost):>9} credits{_show_metrics(job)}"
        if job.asked:
            lines.append(f"{'':>7}bids per segment: {self._show_prices(job)}")
        if job.kind == "train" and job.curve:
            curve = draw_curve([value for _, value in sorted(job.curve.items())], CURVE)
            lines.append(f"{'':>7}loss {curve}")
        return lines

    def _draw_providers(self) -> list[str]:
        keys = sorted({key for job in self.jobs.values() for key in (*job.asked, *job.served)}, key=self.get_name)
        if not keys:
            return []
        head = f"{'segments':<15}" + "".join(f"{self.get_name(key):>8}" for key in keys)
        rows = [
            f"  {job.name:<13}" + "".join(f"{job.served.get(key, 0) or '-':>8}" for key in keys)
            for job in self.jobs.values()
        ]
        return ["", head, *rows]

    def _show_prices(self, job: JobPicture) -> str:
        rows = sorted(job.asked.items(), key=lambda row: row[1])
        return ", ".join(f"{self.get_name(key)} {format_credits(price)}" for key, price in rows)


def _show_metrics(job: JobPicture) -> str:
    """The last metrics, which are the job's own words."""
    shown: Sequence[str] = [
        f"{escape_line(name)} {_show_value(value)}" for name, value in list(job.metrics.items())[:3]
    ]
    return f"   {', '.join(shown)}" if shown else ""


def _show_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape_line(str(value), limit=20)
